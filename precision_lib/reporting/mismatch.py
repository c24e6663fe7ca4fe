"""The verdict on a dump: for a terminal, for a pull request, and as a page with four plots."""

import math
from collections.abc import Mapping

from precision_lib.mismatch.cost import Cost
from precision_lib.mismatch.report import Report, Scored, ScoredInBoth
from precision_lib.mismatch.schema import Dump
from precision_lib.reporting.markdown import table
from precision_lib.reporting.page import data_uri
from precision_lib.reporting.styles import Line

_STYLE = {"equal": "green", "precision": "green", "cannot say": "yellow"}
_COST = {
    "token_outside_clip_frac": "tokens whose ratio is outside 1 +- 0.2",
    "token_truncated_weight_mean": "mean truncated weight of a token, E[min(w, 2)]",
    "token_ess_frac": "effective sample size of token weights",
    "sequence_log_ratio_rms": "RMS of a sequence's summed log-ratio, nats",
    "sequence_truncated_weight_mean": "mean truncated weight of a sequence, E[min(w, 2)]",
    "sequence_outside_gspo_frac": "sequences outside GSPO's band",
    "gradient_cosine": "cosine of the weighted and the plain gradient",
}


def mismatch_lines(report: Report) -> list[Line]:
    """Verdict, evidence, cost and next experiment."""
    style = _STYLE.get(report.verdict, "red") if report.exit_code != 1 else "red"
    lines: list[Line] = [(f"verdict: {report.verdict} ({report.cause})", style)]
    lines += [(f"  {text}", "") for text in report.evidence]
    if report.also_possible:
        lines.append((f"  not excluded: {', '.join(report.also_possible)}", ""))
    if report.scored and report.model:
        lines.append((f"scored here with {report.model['name']}:", "bold"))
        lines += [(f"  {text}", "") for text in _scored(report.scored)]
    lines.append(("cost:", "bold"))
    lines += [(f"  {words}: {value}", "") for words, value in _costs(report.cost)]
    lines.append(("next:", "bold"))
    lines += [(f"  {text}", "") for text in report.next]
    return lines + [(f"note: {text}", "") for text in report.notes]


def _scored(scored: Mapping[str, Scored]) -> list[str]:
    """The engine against each format, and how the halves of a difference add up."""
    texts = []
    for fmt, part in scored.items():
        text = f"engine against {fmt}: sigma {part.sigma:.3g} nats"
        if isinstance(part, ScoredInBoth):
            apart = math.hypot(part.trainer_sigma, part.engine_sigma)
            text += (
                f"; {fmt} against fp32: {part.trainer_sigma:.3g}; independent errors would make "
                f"{apart:.3g}, and theirs correlate {part.correlation:+.2f}"
            )
        texts.append(text)
    return texts


def _costs(cost: Cost) -> list[tuple[str, str]]:
    by_length = cost["sequence_ess_frac_by_length"]
    rows = [(words, f"{cost[name]:.4g}") for name, words in _COST.items() if name in cost]
    if isinstance(by_length, dict) and by_length:
        text = ", ".join(f"{value:.2f} at {length}" for length, value in by_length.items())
        rows.append(("effective sample size of sequence weights, by tokens", text))
    return rows


def mismatch_markdown(report: Report) -> str:
    """One screen of Markdown."""
    tests = [
        (
            name,
            f"{p.value:.4g}",
            "" if p.limit is None else f"{p.limit:.3g}",
            "**not rounding**" if p.rejects else "rounding explains it",
        )
        for name, p in report.fingerprints.items()
    ]
    parts = [
        f"### Trainer against rollout: {report.verdict} ({report.cause})",
        "\n".join(f"- {text}" for text in report.evidence),
        "**Next.** " + ". ".join(_sentence(text) for text in report.next) + ".",
        table(("cost", "value"), _costs(report.cost)),
        "\n".join(f"- {text}" for text in _scored(report.scored or {})),
        table(("fingerprint", "value", "limit", ""), tests),
        f"Rounding noise is called a bug in at most {report.false_alarm_rate:g} of all runs. "
        f"Source: `{report.source}`.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def mismatch_page(report: Report, dump: Dump) -> str:
    """One self-contained HTML page; nothing is fetched, no script runs, every text is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from precision_lib.reporting.plots.appearance import rendered
    from precision_lib.reporting.plots.mismatch import mismatch_figure

    environment = Environment(
        loader=PackageLoader("precision_lib.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    picture = data_uri(rendered(mismatch_figure(dump)))
    template = environment.get_template("mismatch.html.j2")
    return template.render(record=report, picture=picture, costs=_costs(report.cost))
