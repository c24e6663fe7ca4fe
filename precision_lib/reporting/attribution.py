"""What a person sees of an attribution: three sentences, a table by kind and one by layer."""

import math
from collections.abc import Iterable

from precision_lib.attribution.breakdown import Breakdown, Part
from precision_lib.forensics.statistics import Metric
from precision_lib.record.attribution import AttributionRecord
from precision_lib.reporting.grid import grid_lines
from precision_lib.reporting.markdown import table
from precision_lib.reporting.numbers import two
from precision_lib.reporting.styles import Line
from precision_lib.reporting.table import measured_models

HEADINGS = ("demoted alone, share [95 %]", "promoted alone, share taken away [95 %]", "RMS, nats")
_TOP = 3


def share(metric: Metric) -> str:
    """A share with its interval in percent: ``16.2 % [12.1, 20.3]``."""
    return _percent(metric.value, metric.low, metric.high)


def _percent(value: float, low: float, high: float) -> str:
    return f"{100 * value:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def rms(power: Metric) -> str:
    """Nats RMS of an error power."""
    return two(math.sqrt(power.value))


def attribution_sentences(record: AttributionRecord) -> list[str]:
    """Where the error is born, in which layers, and whether the parts add up."""
    power, kinds = record.power, record.kinds
    main = kinds or record.layers
    largest = ", ".join(f"{part.name} {share(part.demoted)}" for part in main.by_size[:_TOP])
    first = (
        f"{_tested(record)} is off by {rms(power)} nats RMS on {power.n} response tokens; the "
        f"largest parts of its error power are {largest}."
    )
    if kinds is None:
        first += (
            f" The modules of {record.architecture.name} are not known here, so its error is "
            "attributed by layer alone."
        )
    best = max(main.parts, key=lambda part: part.promoted.value)
    second = (
        f"FP32 in one part alone takes most away in {best.name}: "
        f"{share(best.promoted)} of the power. {_layers(record.layers)}"
    )
    return [first, second, _remainder(main)]


def _tested(record: AttributionRecord) -> str:
    name, tested = record.context.model_name, record.configuration
    if record.planted_fault:
        return f"A log-prob of {name} in FP32 with the planted fault {record.planted_fault}"
    return (
        f"A log-prob of {name} in {tested.name} (policy {tested.components['policy']}, log-softmax "
        f"{tested.components['kl']})"
    )


def _layers(layers: Breakdown) -> str:
    inside = [part for part in layers.parts if part.name.startswith("layer ")]
    total = sum(part.demoted.value for part in inside)
    top = max(inside, key=lambda part: part.demoted.value)
    return (
        f"The {len(inside)} layers make {100 * total:.0f} % of it, the most in {top.name}: "
        f"{share(top.demoted)}."
    )


def _remainder(breakdown: Breakdown) -> str:
    rest = breakdown.remainder
    added = _percent(1 - rest.value, 1 - rest.high, 1 - rest.low)
    text = f"The parts add up to {added} of the whole"
    if breakdown.adds_up:
        return f"{text}: 100 % lies in the interval, as for errors that are independent."
    return f"{text}: they do not add up, so errors of different parts are correlated."


def attribution_lines(record: AttributionRecord) -> list[Line]:
    """The sentences and both tables as lines of text."""
    lines: list[Line] = [(text, "") for text in attribution_sentences(record)]
    lines += [("", ""), (_measured(record), ""), *grid_lines(record.context)]
    for title, rows in _tables(record):
        widths = [max(len(row[i]) for row in [(title, *HEADINGS), *rows]) for i in range(4)]
        lines.append(("", ""))
        for number, row in enumerate([(title, *HEADINGS), *rows]):
            first, *others = zip(row, widths, strict=True)
            text = first[0].ljust(first[1]) + "".join(f"  {x:>{w}}" for x, w in others)
            lines.append((text, "" if number else "bold"))
    if record.planted_fault:
        lines.append((f"PLANTED FAULT: {record.planted_fault}", "red"))
    return lines


def attribution_markdown(record: AttributionRecord) -> str:
    """The same as Markdown."""
    parts = ["\n\n".join(attribution_sentences(record)), _measured(record)]
    parts += [text for text, _ in grid_lines(record.context)]
    parts += [table((title, *HEADINGS), rows) for title, rows in _tables(record)]
    return "\n\n".join(parts) + "\n"


def _measured(record: AttributionRecord) -> str:
    settings = record.settings
    return (
        f"{measured_models(record.context)} on {record.context.device_name}, "
        f"{settings.num_prompts} prompts with {settings.max_new_tokens} response tokens "
        f"each, seed {settings.seed}; "
        f"closure {two(record.closure)}"
    )


def _tables(record: AttributionRecord) -> list[tuple[str, list[tuple[str, ...]]]]:
    tables = [("layer", _rows(record.layers.parts, record.layers.remainder))]
    if record.kinds:
        kinds = record.kinds
        tables.insert(0, ("kind of module", _rows(kinds.by_size, kinds.remainder)))
    return tables


def _rows(parts: Iterable[Part], remainder: Metric) -> list[tuple[str, ...]]:
    return [*map(part_row, parts), ("remainder", share(remainder), "", "")]


def part_row(part: Part) -> tuple[str, ...]:
    """Name, both shares and nats of a part, as the tables show them."""
    return part.name, share(part.demoted), share(part.promoted), rms(part.power)
