"""Manifests or checkpoints of a tensor-parallel engine: one source for each rank."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from precision_lib.weights.files import Source, SourceError, read_files
from precision_lib.weights.manifests import SCHEMA, open_source

_NUMBER = re.compile(r"(?:rank|tp)[-_]?(\d+)", re.IGNORECASE)


def open_ranks(paths: Sequence[Path]) -> list[Source]:
    """The sources that ``paths`` name, by rank; one source where no ranks are given.

    Several files are one rank each. A directory may hold a manifest (.json) for each rank, or
    safetensors files with ``rank-N`` in their names, as vLLM's sharded states.

    Raises:
        SourceError: what :func:`open_source` raises; a rank twice, or one that is not there.
    """
    if len(paths) > 1:
        return _by_rank([_opened(path) for path in paths])
    [path] = paths
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else []
    manifests = [] if files or not path.is_dir() else _manifests(path)
    if manifests:
        return _by_rank([_opened(file) for file in manifests])
    numbers = [_number(file) for file in files]
    if files and None not in numbers:
        parts = {n: [f for f in files if _number(f) == n] for n in sorted(set(numbers), key=str)}
        return _by_rank([read_files(path, some, rank=n) for n, some in parts.items()])
    return [open_source(path)]


def _manifests(folder: Path) -> list[Path]:
    """Files that begin as a manifest does, and not ``config.json``."""
    files = sorted(folder.glob("*.json"), key=_natural)
    return [file for file in files if SCHEMA in file.read_text(encoding="utf-8")[:200]]


def _opened(path: Path) -> Source:
    source = open_source(path)
    return source if source.rank is not None else replace(source, rank=_number(path))


def _number(path: Path) -> int | None:
    match = _NUMBER.search(path.name)
    return int(match[1]) if match else None


def _natural(path: Path) -> list[tuple[str, int]]:
    """``r10`` after ``r9``."""
    return [(text, int(part or 0)) for text, part in re.findall(r"(\D*)(\d*)", path.name)]


def _by_rank(sources: list[Source]) -> list[Source]:
    """The sources in the order of their ranks; in the order given where none says its rank."""
    ranks = [source.rank for source in sources]
    if all(rank is None for rank in ranks):
        return [replace(source, rank=i) for i, source in enumerate(sources)]
    for source in sources:
        if source.rank is None or ranks.count(source.rank) > 1:
            which = "no rank" if source.rank is None else f"rank {source.rank} again"
            raise SourceError(f"{source.label} has {which}; give one file for each rank")
    absent = sorted(set(range(max(rank or 0 for rank in ranks))) - set(ranks))
    if absent:
        raise SourceError(f"rank {absent[0]} is not there, of {len(ranks)}; give all of them")
    return sorted(sources, key=lambda source: source.rank or 0)
