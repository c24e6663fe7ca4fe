"""What a person sees of an attribution: three sentences, a table by kind and one by layer."""

import math
from typing import Any

from precision_lib.record.codec import decode
from precision_lib.record.context import Context
from precision_lib.reporting.grid import grid_lines
from precision_lib.reporting.markdown import table
from precision_lib.reporting.numbers import two
from precision_lib.reporting.styles import Line
from precision_lib.reporting.table import measured_models

HEADINGS = ("demoted alone, share [95 %]", "promoted alone, share taken away [95 %]", "RMS, nats")
_TOP = 3


def share(metric: dict[str, Any]) -> str:
    """A share with its interval in percent: ``16.2 % [12.1, 20.3]``."""
    value, low, high = (100 * metric[key] for key in ("value", "low", "high"))
    return f"{value:.1f} % [{low:.1f}, {high:.1f}]"


def ordered(breakdown: dict[str, Any]) -> list[dict[str, Any]]:
    """The parts, the largest share first."""
    return sorted(breakdown["parts"], key=lambda part: -part["demoted"]["value"])


def rms(power: dict[str, Any]) -> str:
    """Nats RMS of an error power."""
    return two(math.sqrt(power["value"]))


def attribution_sentences(record: dict[str, Any]) -> list[str]:
    """Where the error is born, in which layers, and whether the parts add up."""
    power, kinds = record["power"], record["kinds"]
    main = kinds or record["layers"]
    top = ordered(main)
    largest = ", ".join(f"{part['name']} {share(part['demoted'])}" for part in top[:_TOP])
    first = (
        f"{_tested(record)} is off by {rms(power)} nats RMS on {power['n']} response tokens; the "
        f"largest parts of its error power are {largest}."
    )
    if kinds is None:
        first += (
            f" The modules of {record['architecture']['name']} are not known here, so its error is "
            "attributed by layer alone."
        )
    best = max(main["parts"], key=lambda part: part["promoted"]["value"])
    second = (
        f"FP32 in one part alone takes most away in {best['name']}: "
        f"{share(best['promoted'])} of the power. {_layers(record['layers'])}"
    )
    return [first, second, _remainder(main)]


def _tested(record: dict[str, Any]) -> str:
    name = record["context"]["checkpoint"]["name"]
    if record["planted_fault"]:
        return f"A log-prob of {name} in FP32 with the planted fault {record['planted_fault']}"
    formats = record["configuration"]
    return (
        f"A log-prob of {name} in {formats['name']} (policy {formats['policy']}, log-softmax "
        f"{formats['kl']})"
    )


def _layers(layers: dict[str, Any]) -> str:
    inside = [part for part in layers["parts"] if part["name"].startswith("layer ")]
    total = sum(part["demoted"]["value"] for part in inside)
    top = max(inside, key=lambda part: part["demoted"]["value"])
    return (
        f"The {len(inside)} layers make {100 * total:.0f} % of it, the most in {top['name']}: "
        f"{share(top['demoted'])}."
    )


def _remainder(breakdown: dict[str, Any]) -> str:
    remainder = breakdown["remainder"]
    added = {"value": 1 - remainder["value"], "low": 1 - remainder["high"]}
    text = f"The parts add up to {share(added | {'high': 1 - remainder['low']})} of the whole"
    if breakdown["adds_up"]:
        return f"{text}: 100 % lies in the interval, as for errors that are independent."
    return f"{text}: they do not add up, so errors of different parts are correlated."


def attribution_lines(record: dict[str, Any]) -> list[Line]:
    """The sentences and both tables as lines of text."""
    lines: list[Line] = [(text, "") for text in attribution_sentences(record)]
    lines += [("", ""), (_measured(record), ""), *grid_lines(_context(record))]
    for title, rows in _tables(record):
        widths = [max(len(row[i]) for row in [(title, *HEADINGS), *rows]) for i in range(4)]
        lines.append(("", ""))
        for number, row in enumerate([(title, *HEADINGS), *rows]):
            first, *others = zip(row, widths, strict=True)
            text = first[0].ljust(first[1]) + "".join(f"  {x:>{w}}" for x, w in others)
            lines.append((text, "" if number else "bold"))
    if record["planted_fault"]:
        lines.append((f"PLANTED FAULT: {record['planted_fault']}", "red"))
    return lines


def attribution_markdown(record: dict[str, Any]) -> str:
    """The same as Markdown."""
    parts = ["\n\n".join(attribution_sentences(record)), _measured(record)]
    parts += [text for text, _ in grid_lines(_context(record))]
    parts += [table((title, *HEADINGS), rows) for title, rows in _tables(record)]
    return "\n\n".join(parts) + "\n"


def _context(record: dict[str, Any]) -> Context:
    return decode(Context, record["context"])


def _measured(record: dict[str, Any]) -> str:
    context, settings = record["context"], record["settings"]
    return (
        f"{measured_models(_context(record))} on {context['device']['name']}, "
        f"{settings['num_prompts']} prompts with {settings['max_new_tokens']} response tokens "
        f"each, seed {settings['seed']}; "
        f"closure {two(record['closure'])}"
    )


def _tables(record: dict[str, Any]) -> list[tuple[str, list[tuple[str, ...]]]]:
    tables = [("layer", record["layers"], record["layers"]["parts"])]
    if record["kinds"]:
        tables.insert(0, ("kind of module", record["kinds"], ordered(record["kinds"])))
    return [
        (title, [*map(_row, parts), ("remainder", share(breakdown["remainder"]), "", "")])
        for title, breakdown, parts in tables
    ]


def _row(part: dict[str, Any]) -> tuple[str, ...]:
    return part["name"], share(part["demoted"]), share(part["promoted"]), rms(part["power"])
