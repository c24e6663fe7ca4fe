"""What must stay FP32: the list is data, see ``contract.toml``."""

import functools
import re
import tomllib
from pathlib import Path


@functools.cache
def groups() -> dict[str, tuple[str, ...]]:
    """Name of a group -> its patterns."""
    text = (Path(__file__).parent / "contract.toml").read_text(encoding="utf-8")
    return {name: tuple(table["patterns"]) for name, table in tomllib.loads(text).items()}


def asked_groups() -> tuple[str, ...]:
    """Groups that ``--keep-fp32`` takes."""
    return tuple(name for name in groups() if name != "always")


def must_stay_fp32(shared: str, asked: tuple[str, ...]) -> bool:
    """Whether the tensor with this shared name must stay FP32."""
    wanted = [pattern for name in ("always", *asked) for pattern in groups()[name]]
    return any(re.search(pattern, shared) for pattern in wanted)
