"""The summary table of a run, as plain lines with a style each.

Symptom and damage stand side by side, each with the unit in its heading.
"""

from collections.abc import Callable
from typing import Any

from precision_lib.forensics.verdicts import BATCH_VARIANCE
from precision_lib.reporting.consequences import sentence
from precision_lib.reporting.grid import grid_lines
from precision_lib.reporting.numbers import interval, two
from precision_lib.reporting.reproduction import EMBEDDED
from precision_lib.reporting.styles import STYLES, Line
from precision_lib.reporting.training import sweep_lines


def _value(name: str, form: str) -> Callable[[dict[str, Any]], str]:
    return lambda metrics: format(metrics[name]["value"], form)


def _interval(name: str) -> Callable[[dict[str, Any]], str]:
    return lambda metrics: interval(metrics[name])


#: Heading, width, text of a cell's metrics.
_COLUMNS: tuple[tuple[str, int, Callable[[dict[str, Any]], str]], ...] = (
    ("KL mean", 8, _value("kl_penalty_mean", ".2e")),
    ("d = 0", 6, _value("log_ratio_near_zero_frac", ".1%")),
    ("noise/signal [95 %]", 26, _interval("log_ratio_nsr")),
    ("k3 error", 9, _value("kl_k3_rel_error", "+.1%")),
    ("k3<0", 5, _value("k3_negative_frac", ".0%")),
    ("written*", 8, _value("k3_textbook_negative_frac", ".0%")),
)


def h1_table(block: dict[str, Any]) -> list[Line]:
    """Lines for the H1 cells of a ``precision`` block; none when there is no such cell."""
    cells = [c for c in block["cells"] if c["hypothesis"] == "H1"]
    if not cells:
        return []
    names = max(len("configuration"), *(len(c["configuration"]) for c in cells))
    heading = "configuration".ljust(names) + "  " + "policy/ref/KL".ljust(14) + "  "
    heading += "  ".join(title.rjust(width) for title, width, _ in _COLUMNS) + "  verdict"
    lines: list[Line] = [(_title(block, cells), ""), ("", ""), (heading, "bold")]
    for cell in cells:
        formats = block["matrix"][cell["configuration"]]
        shown = "/".join(formats[c] for c in ("policy", "reference", "kl"))
        text = f"{cell['configuration']:<{names}}  {shown:<14}  "
        text += "  ".join(show(cell["metrics"]).rjust(width) for _, width, show in _COLUMNS)
        lines.append((f"{text}  {cell['verdict']}", STYLES[cell["verdict"]]))
    return [*lines, ("", ""), *_notes(block)]


def curve_table(block: dict[str, Any]) -> list[Line]:
    """The collapse curve: noise over signal of each configuration at each true KL."""
    cells = [c for c in block["cells"] if c["hypothesis"] == "H1"]
    if not cells:
        return []
    names = max(len("configuration"), *(len(c["configuration"]) for c in cells))
    points = sorted(cells[0]["evidence"]["curve"], key=lambda p: p["true_kl"])
    heading = "configuration".ljust(names) + "".join(f"{p['true_kl']:>10.1e}" for p in points)
    lines: list[Line] = [("noise/signal against the true KL, nats/token", ""), (heading, "bold")]
    for cell in cells:
        curve = sorted(cell["evidence"]["curve"], key=lambda p: p["true_kl"])
        values = "".join(two(p["log_ratio_nsr"]["value"]).rjust(10) for p in curve)
        lines.append((cell["configuration"].ljust(names) + values, ""))
    return lines


def _title(block: dict[str, Any], cells: list[dict[str, Any]]) -> str:
    cell = cells[0]
    decision = block["thresholds"]["H1"]
    return (
        f"H1 KL collapse ({block['context']['checkpoint']['name']}): policy at a true KL of "
        f"{cell['evidence']['true_kl']:.2e} nats/token, "
        f"{cell['metrics']['log_ratio_nsr']['n']} tokens; "
        f"impaired above noise/signal {decision['limit']:.2g}"
    )


def _notes(block: dict[str, Any]) -> list[Line]:
    lines = [
        ("symptom: d = 0, log-ratios with no signal; damage: noise/signal, RMS error of the", ""),
        ("log-ratio over its RMS. * k3 < 0 when written as exp(-d) - 1 + d.", ""),
    ]
    if "H1" in block["noise_floors"]:
        floor = max(f["value"] for f in block["noise_floors"]["H1"].values())
        lines.append((f"FP32 against itself in another batch order and size: {floor:.1g}", ""))
    return lines


def matrix_table(block: dict[str, Any]) -> list[Line]:
    """Configurations x hypotheses: the damage metric and the verdict of each cell.

    None when there is no cell.
    """
    found = {(c["hypothesis"], c["configuration"]): c for c in block["cells"]}
    hypotheses = sorted({h for h, _ in found})
    rows = list(dict.fromkeys(c["configuration"] for c in block["cells"]))
    if not found:
        return []
    names = max(len("configuration"), *map(len, rows))
    titles = [f"{h} {block['thresholds'][h]['title']}" for h in hypotheses]
    measured_on = _measured_on(block["context"])
    widths = [max(len(t), len("0.00054 inconclusive")) for t in titles]
    heading = "configuration".ljust(names)
    heading += "".join(f"  {t:<{w}}" for t, w in zip(titles, widths, strict=True))
    lines: list[Line] = [(measured_on, ""), *grid_lines(block["context"]), ("", "")]
    lines.append((heading.rstrip(), "bold"))
    for row in rows:
        cells = [found.get((h, row)) for h in hypotheses]
        shown = [_damage_and_verdict(block, cell) for cell in cells]
        text = row.ljust(names)
        text += "".join(f"  {x:<{w}}" for x, w in zip(shown, widths, strict=True))
        lines.append((text.rstrip(), STYLES[_worst(cells)]))
    return [*lines, ("", ""), *_thresholds(block, hypotheses), *batch_variance_lines(block)]


def _measured_on(context: dict[str, Any]) -> str:
    """Model, device and seed of a run, and whether it was only a first look."""
    device = context.get("device", {})
    text = f"{measured_models(context)} on {device.get('name', 'unknown device')}"
    quick = "; a first look (--quick), not the whole budget" if _is_quick(context) else ""
    return f"{text}, seed {context.get('seed', 'unknown')}{quick}"


def measured_models(context: dict[str, Any]) -> str:
    """Policy, reward model and prompts of a run, and which of them are not the user's.

    A record that names no prompts was made with the embedded ones. One that names no reward model
    used none.
    """
    names = {
        "policy": context.get("checkpoint", {}).get("name", "unknown"),
        "reward model": context.get("reward_model", {}).get("name"),
        "prompts": context.get("prompts", {}).get("name", EMBEDDED),
    }
    used = {role: name for role, name in names.items() if name is not None}
    shown = [f"{role} {name}" for role, name in used.items() if name != EMBEDDED]
    embedded = [role for role, name in used.items() if name == EMBEDDED]
    if embedded:
        first, last = ", ".join(embedded[:-1]), embedded[-1]
        shown.append(f"{f'{first} and {last}' if first else last} embedded, not yours")
    return ", ".join(shown)


def _is_quick(context: dict[str, Any]) -> bool:
    return context.get("budget") == "quick"


def _damage_and_verdict(block: dict[str, Any], cell: dict[str, Any] | None) -> str:
    if cell is None:
        return "-"
    metric = block["thresholds"][cell["hypothesis"]]["metric"]
    return f"{two(cell['metrics'][metric]['value']):<7} {cell['verdict']}"


def _worst(cells: list[dict[str, Any] | None]) -> str:
    verdicts = {cell["verdict"] for cell in cells if cell is not None}
    return next(v for v in ("impaired", "inconclusive", "healthy") if v in verdicts)


def _thresholds(block: dict[str, Any], hypotheses: list[str]) -> list[Line]:
    """What the number in each column is, and above what a cell is impaired."""
    lines: list[Line] = []
    for h in hypotheses:
        row = block["thresholds"][h]
        cell = next(c for c in block["cells"] if c["hypothesis"] == h)
        metric = cell["metrics"][row["metric"]]
        text = f"{h}: {row['metric']} ({metric['unit']}), impaired above {row['limit']:.2g}"
        lines.append((text, ""))
    return lines


#: What a batch variance is a multiple of, in words; ``{kl}`` is the true KL of the cell.
_VARIANCE_OF = {
    "H1": "times the signal at a KL of {kl:.0e}",
    "H2": "standard deviations of the advantages, by the rewards",
    "H3": "standard deviations of the advantages, by the values",
    "H4": "nats RMS at the end of the sequence",
}


def batch_variance_lines(block: dict[str, Any]) -> list[Line]:
    """How far two batch shapes of one ``bf16_pure`` model differ, a line per hypothesis."""
    cells = [
        cell
        for cell in block["cells"]
        if cell["configuration"] == "bf16_pure" and BATCH_VARIANCE in cell["metrics"]
    ]
    if not cells:
        return []
    if all(cell["metrics"][BATCH_VARIANCE]["value"] == 0 for cell in cells):
        return [("two batch shapes of one bf16 model give the same bits", "")]
    lines: list[Line] = [("two batch shapes of one bf16 model differ by", "")]
    for cell in cells:
        of = _VARIANCE_OF[cell["hypothesis"]].format(kl=cell["evidence"].get("true_kl", 0.0))
        variance = two(cell["metrics"][BATCH_VARIANCE]["value"])
        lines.append((f"{cell['hypothesis']}: {variance} {of}", ""))
    return lines


def hypothesis_lines(block: dict[str, Any]) -> list[Line]:
    """One line per hypothesis verdict, then its explanation."""
    lines: list[Line] = []
    for h in block["hypotheses"]:
        null = "null, as it must be" if h["control"]["is_null"] else "NOT NULL"
        lines.append((f"{h['hypothesis']}: {h['verdict']} (controls {null})", "bold"))
        lines.append((h["explanation"], ""))
    return lines


def conformance_table(block: dict[str, Any]) -> list[Line]:
    """One line per function of the core under test; none when no check was run."""
    found = block.get("conformance")
    if not found:
        return []
    heading = f"{'function':<18}{'tests':>6}{'failed':>8}{'inputs':>9}{'compared':>11}"
    whose = f"{found['target']} {found.get('version', '')}".strip()
    lines: list[Line] = [
        (f"conformance of {whose} to FP32", ""),
        ("", ""),
        (heading + f"{'error/limit':>13}", "bold"),
    ]
    for name, counts in found["functions"].items():
        failed = len(counts["failed"])
        text = f"{name:<18}{counts['tests']:>6}{failed:>8}{counts['inputs']:>9}"
        text += f"{counts['compared']:>11}{counts['worst_over_limit']:>13.2g}"
        lines.append((text, "red" if failed else "green"))
    lines += [(f"{name:<18}not offered", "yellow") for name in found["not_offered"]]
    lines += [("", ""), ("error/limit: the largest error as a share of what FP32 may do", "")]
    if found.get("known"):
        failed = sum(len(counts["failed"]) for counts in found["functions"].values())
        lines.append((f"{len(found['known'])} of {failed} failures are known", ""))
    return [*lines, *_in_rl_terms(found.get("consequences") or {})]


def _in_rl_terms(consequences: dict[str, dict[str, Any]]) -> list[Line]:
    """What the errors do on an ordinary batch; functions without a consequence are left out."""
    said = [
        (f"{name:<18}{fmt:<6}{sentence(figures)}", "")
        for name, formats in consequences.items()
        for fmt, figures in formats.items()
        if sentence(figures) != "none"
    ]
    return [("", ""), ("on an ordinary batch:", "bold"), *said] if said else []


def summary(block: dict[str, Any], *, details: bool = False) -> list[Line]:
    """The whole summary of a run, with ``details`` the tables of each hypothesis too.

    Empty when it measured nothing.
    """
    blank: Line = ("", "")
    parts = [conformance_table(block)]
    if block["cells"]:
        parts += [h1_table(block), curve_table(block)] if details else []
        parts += [matrix_table(block), hypothesis_lines(block)]
        parts.append([] if block["complete"] else _missing(block))
    if block.get("training"):
        parts.append(sweep_lines(block["training"]))
    lines = [line for part in parts if part for line in (*part, blank)][:-1]
    if lines and block["planted_fault"]:
        fault = f"PLANTED FAULT: {block['planted_fault']}; nothing here is a measurement"
        lines.append((fault, "red"))
    return lines


def _missing(block: dict[str, Any]) -> list[Line]:
    done = {(c["hypothesis"], c["configuration"]) for c in block["cells"]}
    missing = [f"{h} {c}" for h, c in block["expected"] if (h, c) not in done]
    return [(f"INCOMPLETE: not measured: {', '.join(missing)}", "red")] if missing else []
