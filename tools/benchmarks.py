"""``python -m tools.benchmarks``: Markdown tables of the PPO core's benchmarks.

The hazards. A hand-copied table drifts from its measurement, and a goal that is judged by eye is
met. So the tables are generated, each target stands once, in :data:`GOALS`, and its verdict is
computed from the figures in the table above it. A time without an error invites the fastest wrong
answer, so both are shown, and "of equal accuracy" means an error within the limit.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from precision_lib.exit_codes import OK, USAGE
from precision_lib.reporting.benchmarks import ResultsError, Row, load_plain, results_of
from tools.documents import MarkerError, write_between

FORMATS = ("fp32", "bf16")
PEER, ACCURATE, ANY = "the fastest peer", "the fastest of equal accuracy", "the fastest"


@dataclass(frozen=True)
class Goal:
    """What the core is held to in one step.

    Attributes:
        step: the step's name in the results.
        times: largest allowed multiple of the yardstick's time.
        yardstick: among whom the fastest is sought. Where none is of equal accuracy, the fastest
            of any is the yardstick.
        buffers, extra_mib: largest allowed memory, as a number of buffers of the size of the
            largest input plus MiB; no goal where ``extra_mib`` is None.
        formats: the formats that it holds for.
    """

    step: str
    times: float
    yardstick: str
    buffers: int = 0
    extra_mib: float | None = None
    formats: tuple[str, ...] = FORMATS


GOALS = (
    Goal("token_logprobs, forward", 1.0, ACCURATE, 0, 32, ("fp32",)),
    Goal("token_logprobs, forward", 0.5, ACCURATE, 0, 32, ("bf16",)),
    Goal("token_logprobs, forward and backward", 1.0, ACCURATE, 1, 32),
    Goal("entropy, forward", 1.0, ANY),
    Goal("gae, forward", 0.2, PEER),
    Goal("whiten, forward", 1.2, ACCURATE),
    Goal("kl_penalty k1, forward", 1.2, ACCURATE),
    Goal("kl_penalty k2, forward", 1.2, ACCURATE),
    Goal("kl_penalty k3, forward", 1.2, ACCURATE),
    Goal("policy_loss, forward", 1.2, ACCURATE),
    Goal("policy_loss, forward and backward", 1.2, ACCURATE),
    Goal("value_loss, forward", 1.2, ACCURATE),
    Goal("dapo_loss, forward and backward", 1.2, ACCURATE),
    Goal("gspo_loss, forward and backward", 1.2, ACCURATE),
    Goal("cispo_loss, forward and backward", 1.2, ACCURATE),
    Goal("aggregate, forward and backward", 1.2, ACCURATE),
    Goal("sequence_ratio, forward and backward", 1.2, ACCURATE),
    Goal("importance_weights, forward", 1.2, ACCURATE),
    Goal("gae_with_bootstrap, forward", 0.2, ANY),
    Goal("rloo_advantages, forward", 1.2, ACCURATE),
    Goal("dpo_loss, forward and backward", 1.2, ACCURATE),
    Goal("jsd, forward and backward", 1.0, ACCURATE, 1, 32),
    Goal("linear_token_logprobs, forward and backward", 1.0, ACCURATE, 1, 32),
)


def tables(results: dict[str, Any]) -> str:
    """All tables of a results file as Markdown, each with its goals, after a line of context.

    Raises:
        ResultsError: when nothing of the core was measured.
    """
    device_of(results)
    measured = results_of(results).rows
    parts = [_context(results, measured)]
    for step in dict.fromkeys(row.step for row in measured):
        of_step = [row for row in measured if row.step == step]
        parts += [f"#### {step} {list(of_step[0].shape)}", _table(of_step), *_verdicts(of_step)]
    return "\n\n".join(parts) + "\n"


def _context(results: dict[str, Any], measured: Sequence[Row]) -> str:
    machine, info = results["machine_info"], results["benchmarks"]
    bandwidth = next(e["extra_info"] for e in info if "contender" in e["extra_info"])
    name = machine.get("cuda_device") if device_of(results) == "cuda" else None
    processor = name or machine["cpu"].get("brand_raw", machine["machine"])
    spreads = [row.spread for row in measured]
    return (
        f"{processor}, {machine['threads']} thread, Python {machine['python_version']}, torch "
        f"{machine['torch']}, {results['datetime'][:10]}. One read of memory: "
        f"{bandwidth['bandwidth_gib_s']:.1f} GiB/s. Interquartile range of the rounds over their "
        f"median: {statistics.median(spreads):.0%} in the middle row, {max(spreads):.0%} at most."
    )


def _table(of_step: Sequence[Row]) -> str:
    ours = {row.fmt: row for row in of_step if row.kind == "ours"}
    by_name = {
        name: {row.fmt: row for row in of_step if row.contender == name}
        for name in dict.fromkeys(row.contender for row in of_step)
    }
    heading = "| contender | version | fp32 ms | × ours | bf16 ms | × ours | "
    heading += "peak MiB | × floor | error/limit |"
    lines = [heading, "|---|---|" + "---:|" * 7]
    order = sorted(by_name.values(), key=lambda r: next(r[fmt].ms for fmt in FORMATS if fmt in r))
    return "\n".join([*lines, *(_line(formats, ours) for formats in order)])


def _line(formats: dict[str, Row], ours: dict[str, Row]) -> str:
    present = [formats[fmt] for fmt in FORMATS if fmt in formats]
    cells = [present[0].contender, present[0].version]
    for fmt in FORMATS:
        row, own = formats.get(fmt), ours.get(fmt)
        cells.append(_number(row.ms) if row else "–")
        cells.append(f"{row.ms / own.ms:.2f}" if row and own else "–")
    cells.append(" / ".join(f"{row.peak_mib:.1f}" for row in present))
    cells.append(" / ".join(f"{row.floor:.1f}" for row in present))
    cells.append(" / ".join(_share(row.error) for row in present))
    if present[0].kind == "ours":
        cells = [f"**{cell}**" for cell in cells]
    return "| " + " | ".join(cells) + " |"


def _number(value: float) -> str:
    """Three significant digits, without an exponent for what a time can be."""
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"


def _share(error: float) -> str:
    """Two significant digits between 0.001 and a million, never rounded up to the limit 1."""
    if error == 0:
        return "0"
    if error < 1e-3:
        return "< 0.001"
    if error < 1:
        return f"{min(error, 0.99):.2g}"
    return "> 1e6" if error > 1e6 else f"{float(f'{error:.2g}'):g}"


def _verdicts(of_step: Sequence[Row]) -> list[str]:
    """One list of goal lines, or nothing where the step has no goal."""
    lines = []
    for goal in GOALS:
        for fmt in goal.formats if goal.step == of_step[0].step else ():
            here = [row for row in of_step if row.fmt == fmt]
            own = [row for row in here if row.kind == "ours"]
            others = [row for row in here if row.kind != "ours"]
            if own and others:
                lines.append(_time_verdict(goal, own[0], others))
            if own and goal.extra_mib is not None:
                lines.append(_memory_verdict(goal, own[0]))
    return ["\n".join(lines)] if lines else []


def _met(fits: bool, own: Row) -> str:
    if not own.accurate:
        return "**missed** (the core's own error is beyond the limit)"
    return "met" if fits else "**missed**"


def _time_verdict(goal: Goal, own: Row, others: Sequence[Row]) -> str:
    fastest = min(others, key=lambda row: row.ms)
    groups = {
        PEER: [row for row in others if row.kind == "peer"],
        ACCURATE: [row for row in others if row.accurate],
        ANY: others,
    }
    group = groups[goal.yardstick]
    if goal.yardstick == PEER and not group:
        return f"- Target, {own.fmt}: not judged, no peer was installed."
    bar = min(group or others, key=lambda row: row.ms)
    named = goal.yardstick if group else f"{ANY} (none is of equal accuracy)"
    ratio = own.ms / bar.ms
    text = (
        f"- Target, {own.fmt}: at most {goal.times:g}× the time of {named}, {bar.contender} "
        f"({_number(bar.ms)} ms): {ratio:.3g}×, {_met(ratio <= goal.times, own)}."
    )
    accurate = min(groups[ACCURATE], key=lambda row: row.ms, default=None)
    if goal.yardstick == ANY and accurate not in (None, bar):
        assert accurate is not None
        text += f" Against {ACCURATE}, {accurate.contender}: {own.ms / accurate.ms:.3g}×."
    if fastest is not bar:
        remark = "" if fastest.accurate else f", error {_share(fastest.error)} times the limit"
        text += (
            f" {ANY.capitalize()} of all, {fastest.contender}: {own.ms / fastest.ms:.3g}×{remark}."
        )
    return text


def _memory_verdict(goal: Goal, own: Row) -> str:
    assert goal.extra_mib is not None
    allowed = goal.buffers * own.input_mib + goal.extra_mib
    what = f"one buffer of the logits' size and {goal.extra_mib:g} MiB" if goal.buffers else ""
    return (
        f"- Target, {own.fmt}: at most {what or f'{allowed:g} MiB'} of memory: "
        f"{own.peak_mib:.1f} MiB, {_met(own.peak_mib <= allowed, own)}."
    )


def device_of(results: dict[str, Any]) -> str:
    """``cpu`` or ``cuda``: where the core was measured.

    Raises:
        ResultsError: when nothing of the core was measured.
    """
    for entry in results["benchmarks"]:
        if "contender" in entry["extra_info"]:
            return str(entry["extra_info"]["device"])
    raise ResultsError("the file holds no benchmark of the PPO core; run pytest -m benchmark")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables or put them between a document's markers."""
    options = _parser().parse_args(arguments)
    try:
        results = load_plain(options.results)
        text = tables(results)
        if options.into is not None:
            write_between(options.into, f"benchmarks {device_of(results)}", text)
    except (ResultsError, MarkerError, OSError) as error:
        print(error, file=sys.stderr)  # noqa: T201
        return USAGE
    if options.into is None:
        print(text, end="")  # noqa: T201
    return OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.benchmarks")
    parser.add_argument(
        "results", type=Path, metavar="RESULTS.json", help="what --benchmark-json wrote"
    )
    parser.add_argument(
        "--into",
        type=Path,
        metavar="FILE.md",
        help="replace all text between the file's markers, so measure everything (default: print)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
