"""The damage of a whole PPO step as a table: on a terminal, in Markdown, on the page."""

from collections.abc import Callable

from precision_lib.forensics.damage.figures import PipelineDamage, StepDamage
from precision_lib.forensics.statistics import Metric
from precision_lib.reporting.numbers import DASH, interval, percent, two
from precision_lib.reporting.styles import Line

#: Where a step holds inf or NaN.
SKIPPED = "step skipped"


def lost(metric: Metric | None, none: str = SKIPPED) -> str:
    """1 - cosine with its interval."""
    if metric is None:
        return none
    return f"{two(1 - metric.value)} [{two(1 - metric.high)}, {two(1 - metric.low)}]"


def _share(metric: Metric | None) -> str:
    return DASH if metric is None else percent(metric.value)


def _norm(step: StepDamage) -> str:
    norm = step.gradient_norm_ratio
    return SKIPPED if norm is None else f"{round(norm.value - 1, 4) + 0.0:+.2%}".replace("%", " %")


def _expected(step: StepDamage) -> str:
    return DASH if step.expected_cosine is None else two(1 - step.expected_cosine)


_COLUMNS: dict[str, Callable[[StepDamage], str]] = {
    "configuration": lambda s: s.configuration,
    "1 - cosine [95 %]": lambda s: lost(s.gradient_cosine),
    "expected": _expected,
    "inputs exact": lambda s: lost(s.exact_inputs_cosine, DASH),
    "norm": _norm,
    "advantage error": lambda s: (
        DASH if s.advantage_rms_error is None else interval(s.advantage_rms_error)
    ),
    "sign flips": lambda s: _share(s.advantage_sign_flip_frac),
    "rank inversions": lambda s: _share(s.rank_inversion_frac),
    "clips changed": lambda s: _share(s.clip_change_frac),
}
HEADINGS = tuple(_COLUMNS)


def damage_rows(damage: PipelineDamage) -> tuple[tuple[str, ...], ...]:
    """A row for each configuration, in the order of :data:`HEADINGS`."""
    return tuple(tuple(show(step) for show in _COLUMNS.values()) for step in damage.steps)


def damage_title(damage: PipelineDamage) -> str:
    """What was compared, in one sentence."""
    return (
        f"The policy gradient of a whole PPO step against FP32: {damage.tokens:,} tokens of "
        f"{damage.sequences} sequences, policy at a true KL of {damage.true_kl:.1e} nats/token"
    )


def damage_notes(damage: PipelineDamage) -> tuple[str, ...]:
    """What the columns are, a sentence for each line."""
    return (
        "Expected: from the errors of log-probs and advantages. Inputs exact: the policy alone in "
        "its format.",
        "Norm: over FP32's, minus 1. Sign flips: of tokens' advantages. Rank inversions: of pairs "
        "of answers.",
        f"Clips changed: at a KL of {damage.clip_kl:.1e}, where FP32 clips "
        f"{percent(damage.clipped_frac)} of the tokens. FP32 itself runs one rounding away.",
    )


def damage_lines(damage: PipelineDamage | None) -> list[Line]:
    """The table as lines; none for an earlier record."""
    if damage is None:
        return []
    body = [HEADINGS, *damage_rows(damage)]
    widths = [max(map(len, column)) for column in zip(*body, strict=True)]
    lines: list[Line] = [(damage_title(damage), "")]
    for number, row in enumerate(body):
        text = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        lines.append((text.rstrip(), "" if number else "bold"))
    return [*lines, *((text, "") for text in damage_notes(damage))]
