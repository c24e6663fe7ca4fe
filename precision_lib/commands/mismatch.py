"""``mismatch``: which kind of disagreement is between a rollout engine and a trainer?

Exit codes: 0 equal or precision within the limits, 1 a bug or precision beyond them, 2 cannot say,
4 wrong usage or a file that cannot be read.
"""

import argparse
from pathlib import Path
from typing import Any

from precision_lib.commands import UsageError, check_report_extra, print_lines


def add_mismatch(commands: Any) -> None:
    mismatch = commands.add_parser(
        "mismatch", help="rollout and trainer disagree: is it precision or a bug, from a dump"
    )
    mismatch.add_argument(
        "dumps",
        type=Path,
        nargs="+",
        metavar="DUMP",
        help="one file with both sides' log-probs, or two: ROLLOUT TRAIN (npz, safetensors, "
        "jsonl, parquet, pt; docs/mismatch.md)",
    )
    add_outputs(mismatch)
    mismatch.set_defaults(run=_mismatch, kept="the dumps are as they were")


def add_outputs(mismatch: argparse.ArgumentParser) -> None:
    """What is claimed, what is accepted, and where the record goes."""
    mismatch.add_argument(
        "--claim",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="what you believe, for example rollout_dtype=bf16 trainer_dtype=bf16 temperature=1",
    )
    mismatch.add_argument(
        "--limit", type=float, metavar="NATS", help="accept precision up to this RMS of d (nats)"
    )
    for side, whose, count in (("trainer", "the trainer's", 1), ("engine", "the engine's", "+")):
        mismatch.add_argument(
            f"--{side}-weights",
            type=Path,
            nargs=count,
            metavar="FILE",
            help=f"{whose} weights at the dump's step: a manifest or checkpoint (docs/weights.md); "
            "with those of the other side: rules delivery out, or proves it",
        )
    mismatch.add_argument("--json", type=Path, metavar="FILE", help="the record, strict JSON")
    mismatch.add_argument("--markdown", type=Path, metavar="FILE", help="one screen of it")
    mismatch.add_argument(
        "--page", type=Path, metavar="FILE", help="an HTML page with four plots (extra report)"
    )


def _mismatch(options: argparse.Namespace) -> int:
    from precision_lib.mismatch.delivered import with_weights
    from precision_lib.mismatch.report import exit_code, report_of
    from precision_lib.mismatch.schema import DumpError
    from precision_lib.mismatch.verdict import judge
    from precision_lib.reporting.mismatch import mismatch_lines
    from precision_lib.weights.files import SourceError

    try:
        check_options(options)
        weights = compared_weights(options)
        judgement = judge(_read(options.dumps, claims_of(options.claim)), options.limit)
        if weights is not None:
            judgement = with_weights(judgement, weights)
        report = report_of(judgement)
        write_outputs(options, report, judgement.dump)
    except (DumpError, SourceError, OSError) as error:
        raise UsageError(str(error)) from None
    print_lines(mismatch_lines(report))
    return exit_code(judgement)


def check_options(options: argparse.Namespace) -> None:
    """Refuse before anything is read what :func:`add_outputs` adds and nobody can use.

    Raises:
        UsageError: a limit that is not positive, or a page that cannot be drawn. OSError: a file
            that cannot be written.
    """
    from precision_lib.jsonio import check_file_writable

    if options.page is not None:
        check_report_extra("--page")
    if options.limit is not None and not options.limit > 0:
        raise UsageError(f"--limit {options.limit:g}: give a number of nats above 0")
    for path in (options.json, options.markdown, options.page):
        if path is not None:
            check_file_writable(path)


def write_outputs(options: argparse.Namespace, report: Any, dump: Any) -> None:
    """The record as JSON, Markdown and page, as far as they are asked for."""
    from precision_lib.jsonio import write_json, write_text
    from precision_lib.mismatch.report import as_record
    from precision_lib.reporting.mismatch import mismatch_markdown, mismatch_page

    if options.json is not None:
        write_json(options.json, as_record(report))
    if options.markdown is not None:
        write_text(options.markdown, mismatch_markdown(report))
    if options.page is not None:
        write_text(options.page, mismatch_page(report, dump))


def _read(paths: list[Path], claims: dict[str, str]) -> Any:
    from precision_lib.mismatch.reading import read_dump, read_pair

    if len(paths) > 2:
        raise UsageError(f"{len(paths)} files; give one dump, or two: ROLLOUT TRAIN")
    if len(paths) == 2:
        return read_pair(paths[0], paths[1], claims)
    return read_dump(paths[0], claims)


def claims_of(arguments: list[str]) -> dict[str, str]:
    """NAME=VALUE as names and values.

    Raises:
        UsageError: another form, or a name that is no claim.
    """
    from dataclasses import fields

    from precision_lib.mismatch.schema import Claims

    known = [field.name for field in fields(Claims)]
    claims = {}
    for text in arguments:
        name, equals, value = text.partition("=")
        if not equals or name not in known:
            raise UsageError(f"--claim {text}: give NAME=VALUE with one of {', '.join(known)}")
        claims[name] = value
    return claims


def compared_weights(options: argparse.Namespace) -> Any:
    """The comparison of both sides' weights, None where none are given.

    Raises:
        UsageError: one side alone. SourceError: a side that cannot be read.
    """
    from precision_lib.mismatch.delivered import Weights
    from precision_lib.weights.manifests import open_source
    from precision_lib.weights.rank_files import open_ranks
    from precision_lib.weights.ranks import compare_engine

    trainer, engine = options.trainer_weights, options.engine_weights
    if trainer is None and engine is None:
        return None
    if trainer is None or engine is None:
        given, missing = ("engine", "trainer") if trainer is None else ("trainer", "engine")
        raise UsageError(f"--{given}-weights needs --{missing}-weights too: two sides are compared")
    left, right = open_source(trainer[0]), open_ranks(engine)
    return Weights(compare_engine(left, right), left.step, right[0].step)
