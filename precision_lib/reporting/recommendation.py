"""What a person sees of a recommendation: the answer in sentences, the table, the settings."""

import math

from precision_lib.forensics.hypotheses import HYPOTHESES
from precision_lib.forensics.operating import EXTRAPOLATED, MEASURED
from precision_lib.forensics.verdicts import HEALTHY
from precision_lib.recipes.answer import Answer
from precision_lib.recipes.choice import Recipe, obstacles
from precision_lib.recipes.damage import NOT_APPLICABLE, Damage
from precision_lib.recipes.settings import Instructions
from precision_lib.recipes.tables import table
from precision_lib.reporting.damage import lost
from precision_lib.reporting.markdown import table as markdown_table
from precision_lib.reporting.numbers import DASH, two
from precision_lib.reporting.styles import STYLES, Line
from precision_lib.reporting.table import measured_models

_NAMED = 3
_SETTLED = (HEALTHY, NOT_APPLICABLE)


def sentences(given: Answer) -> list[str]:
    """The recommendation or the obstacle, what is cheaper and undecided, and what is missing."""
    choice = given.choice
    lines = [_recommended(choice.chosen) if choice.chosen else _nothing(given)]
    if choice.cheaper_undecided:
        kind = "Cheaper, but undecided" if choice.chosen else "Undecided, the cheapest first"
        named = "; ".join(map(_why_undecided, choice.cheaper_undecided[:_NAMED]))
        left = len(choice.cheaper_undecided) - _NAMED
        more = f"; and {left} more" if left > 0 else ""
        lines.append(f"{kind}: {named}{more}. {_what_decides(choice.cheaper_undecided)}")
    impossible = [r.name for r in choice.recipes if r.cost.time is None]
    if impossible:
        device = table("hardware")[given.hardware]["name"]
        lines.append(f"{device} has no products in a format of {', '.join(impossible)}.")
    return lines


def _recommended(recipe: Recipe) -> str:
    cost = recipe.cost
    formats = ", ".join(f"{name} {fmt}" for name, fmt in recipe.configuration.components.items())
    return (
        f"The cheapest recipe that is healthy everywhere is {recipe.name} ({formats}): "
        f"{two(cost.time or 0)} times the products of bf16_pure, "
        f"{cost.bytes_per_parameter:.1f} bytes per policy parameter, "
        f"{cost.kv_bytes_per_token:,} bytes of KV cache per token."
        f"{_turned(recipe)}"
    )


def _turned(recipe: Recipe) -> str:
    """How far the policy gradient turns, as a sentence; "" where nobody measured it."""
    if recipe.step is None:
        return ""
    if recipe.step.gradient_cosine is None:
        return " The policy gradient of a PPO step holds inf or NaN, so a trainer skips the step."
    return (
        " The policy gradient of a PPO step has a cosine with FP32's of 1 minus "
        f"{lost(recipe.step.gradient_cosine)}."
    )


def _nothing(given: Answer) -> str:
    recipes = [r for r in given.choice.recipes if r.cost.time is not None]
    if not recipes:
        return "No recipe can run on this hardware, so none is recommended."
    blocked = obstacles(recipes)
    parts = [_obstacle(name, rows, len(recipes)) for name, rows in blocked.items()]
    return (
        f"No recipe is healthy everywhere, so none is recommended. In the way: {'; '.join(parts)}."
    )


def _obstacle(hypothesis: str, blocked: tuple[Recipe, ...], of: int) -> str:
    title = f"{hypothesis} {HYPOTHESES[hypothesis].decision.title}"
    share = f"all {of} recipes" if len(blocked) == of else f"{len(blocked)} of {of} recipes"
    rows = [(d, r.name) for r in blocked for d in r.damages if d.hypothesis == hypothesis]
    known = [(d, name) for d, name in rows if d.over_limit is not None]
    if not known:
        return f"{title} was not measured, in {share}"
    nearest, name = min(known, key=lambda row: row[0].over_limit or 0.0)
    return f"{title}, in {share}; the nearest is {name} with {_figure(nearest)}"


def _what_decides(undecided: tuple[Recipe, ...]) -> str:
    """What settles at least one of them: more tokens, or cells that the record does not hold."""
    open_cells = [[d for d in r.damages if d.verdict not in _SETTLED] for r in undecided]
    if any(all(d.carried is not None for d in cells) for cells in open_cells):
        return "A larger budget (--whole) may decide."
    return "A record of this release, which measures every cell, decides: leave out --record."


def _why_undecided(recipe: Recipe) -> str:
    reasons = [f"{d.hypothesis} {_figure(d)}" for d in recipe.damages if d.verdict not in _SETTLED]
    return f"{recipe.name} ({', '.join(reasons)})"


def _figure(damage: Damage) -> str:
    if damage.carried is None:
        return damage.verdict
    figure = damage.carried.damage
    high = two(figure.high) if math.isfinite(figure.high) else "unbounded"
    text = f"{two(figure.value)} [{two(figure.low)}, {high}], limit {two(damage.limit)}"
    return f"{text}, {damage.carried.basis}" if damage.carried.basis != MEASURED else text


def premises(given: Answer) -> list[str]:
    """The operating point, what was measured, on which model the cost is, and what was carried."""
    point, shape = given.point, given.shape
    device = table("hardware")[given.hardware]
    about = (
        f"operating point: {point.algorithm}, {point.length:,} response tokens, a KL of "
        f"{point.kl:.0e} nats per token"
    )
    budget = f"{given.context.budget} budget" if given.context.budget else "an unknown budget"
    cost = (
        f"cost: {shape.name}, {shape.parameters:,} parameters, {device['name']} "
        f"({device['source']}); counted, not measured; a reward model as large as the policy"
    )
    lines = [about, f"damage: {measured_models(given.context)}; {budget}", cost]
    checkpoint = given.context.checkpoint
    if checkpoint is not None and checkpoint.name != shape.name:
        lines.append(
            f"The damage was measured on {checkpoint.name}, the cost is that of {shape.name}: "
            "the damage of the second was not measured."
        )
    return lines + [line for name in HYPOTHESES if (line := _basis(given, name))]


def _basis(given: Answer, hypothesis: str) -> str:
    """How a hypothesis came to the operating point, one line; "" where nobody measured it."""
    damages = [d for r in given.choice.recipes for d in r.damages if d.hypothesis == hypothesis]
    declared = HYPOTHESES[hypothesis]
    if all(d.verdict == NOT_APPLICABLE for d in damages):
        return f"{hypothesis}: does not apply, {given.point.algorithm} has no {declared.needs}"
    carried = [d.carried for d in damages if d.carried is not None]
    if not carried:
        return f"{hypothesis}: not measured in this record; measure again with this release"
    weakest = max(carried, key=lambda c: (c.basis == EXTRAPOLATED, c.basis != MEASURED))
    if not weakest.measured_at:
        return f"{hypothesis}: as measured; {declared.carried_by}"
    if weakest.basis == MEASURED:
        return f"{hypothesis}: measured at {weakest.measured_at}"
    return f"{hypothesis}: {weakest.basis} (~) from {weakest.measured_at}; {declared.carried_by}"


def headings(given: Answer) -> tuple[str, ...]:
    """Of the table of recipes."""
    names = [f"{name} {h.decision.title}" for name, h in HYPOTHESES.items() if _shown(given, name)]
    step = ("1 - cosine of a step",) if _knows_the_step(given) else ()
    return ("recipe", "time", "bytes/param", "KV bytes/token", *names, *step, "verdict")


def _knows_the_step(given: Answer) -> bool:
    return any(r.step is not None for r in given.choice.recipes)


def rows(given: Answer) -> list[tuple[str, ...]]:
    """The recipes, the cheapest first; ``*`` is on the front, ``>`` the chosen one."""
    choice = given.choice
    order = sorted(choice.recipes, key=lambda r: (r.cost.time is None, r.price(given.by)))
    return [_row(given, recipe) for recipe in order]


def _row(given: Answer, recipe: Recipe) -> tuple[str, ...]:
    chosen = given.choice.chosen is not None and recipe.name == given.choice.chosen.name
    mark = (">" if chosen else " ") + ("*" if recipe.name in given.choice.front else " ")
    time = f"{recipe.cost.time:.2f}" if recipe.cost.time is not None else "no products"
    cells = [_cell(d) for d in recipe.damages if _shown(given, d.hypothesis)]
    cost = (f"{recipe.cost.bytes_per_parameter:.1f}", f"{recipe.cost.kv_bytes_per_token:,}")
    turned = lost(recipe.step.gradient_cosine) if recipe.step else DASH
    step = (turned,) if _knows_the_step(given) else ()
    return (f"{mark} {recipe.name}", time, *cost, *cells, *step, recipe.verdict)


def _shown(given: Answer, hypothesis: str) -> bool:
    needs = HYPOTHESES[hypothesis].needs
    return not needs or bool(getattr(given.point, needs))


def _cell(damage: Damage) -> str:
    if damage.carried is None:
        return damage.verdict
    mark = "" if damage.carried.basis == MEASURED else "~"
    return f"{mark}{two(damage.carried.damage.value)} {damage.verdict}"


def settings_lines(one: Instructions) -> list[str]:
    """A framework's settings, what it cannot do, and the notes."""
    lines = [f"{one.title} {one.release} ({one.checked})"]
    lines += [f"  {line}" for line in one.lines]
    lines += [f"  note, {s.component} {s.fmt}: {s.note}" for s in one.settings if s.note]
    return lines + [f"  NOT POSSIBLE, {name}: {why}" for name, why in one.missing.items()]


def recommendation_lines(given: Answer) -> list[Line]:
    """All of it as lines of text."""
    lines: list[Line] = [(text, "") for text in (*sentences(given), "", *premises(given), "")]
    body = [headings(given), *rows(given)]
    widths = [max(map(len, column)) for column in zip(*body, strict=True)]
    for number, row in enumerate(body):
        text = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        lines.append((text.rstrip(), STYLES.get(row[-1], "") if number else "bold"))
    lines += [
        ("> recommended   * on the Pareto front   ~ not measured at this point", ""),
        ("", ""),
    ]
    lines += [(f"condition: {text}", "") for text in given.conditions]
    for one in given.settings.values():
        lines += [("", ""), *((text, "") for text in settings_lines(one))]
    return lines


def recommendation_markdown(given: Answer) -> str:
    """The same as Markdown."""
    parts = ["\n\n".join(sentences(given)), "\n".join(f"- {text}" for text in premises(given))]
    parts.append(markdown_table(headings(given), rows(given), numbers=False))
    parts.append("`>` recommended, `*` on the Pareto front, `~` not measured at this point.")
    if given.conditions:
        parts.append("\n".join(f"- {text}" for text in given.conditions))
    parts += ["```\n" + "\n".join(settings_lines(one)) + "\n```" for one in given.settings.values()]
    return "\n\n".join(parts) + "\n"
