"""The measurements of ``python -m tools.mismatch`` as Markdown tables."""

from typing import Any


def noise_markdown(result: dict[str, Any]) -> str:
    """Emulated engines: sigma and the statistics that the margins come from."""
    names = ("sigma", "slope_share", "early", "sequence_means", "sequence_spread", "tail")
    lines = [
        "| rollout | trainer | sigma, nats | share of a line | first 8 tokens | within sequences "
        "| spread of sizes | RMS over robust size |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in result["pairs"]:
        values = " | ".join(f"{row[name]:.2g}" for name in names)
        lines.append(f"| {row['rollout']} | {row['trainer']} | {values} |")
    verdicts = ", ".join(
        f"{n} `{word}`" for word, n in sorted(result["verdicts_on_subsets"].items())
    )
    count = sum(result["verdicts_on_subsets"].values())
    lines += [
        "",
        f"{count:,} subsets of these rows and lengths, of every pair of formats: {verdicts}.",
    ]
    return "\n".join(lines)


def calibration_markdown(result: dict[str, Any]) -> str:
    """Verdicts on pure noise, and the smallest fault that is found."""
    verdicts = ", ".join(f"{n} `{word}`" for word, n in sorted(result["verdicts_on_noise"].items()))
    columns = list(result["power"][0]["found_from"])
    lines = [
        f"{result['runs']:,} runs of pure rounding noise: {verdicts}; "
        f"{len(result['false_alarms'])} called a bug.",
        "",
        "| planted | must be called | size in | " + " | ".join(columns) + " |",
        "|---|---|---|" + "---:|" * len(columns),
    ]
    for row in result["power"]:
        sizes = [
            "never" if row["found_from"][c] is None else f"{row['found_from'][c]:g}"
            for c in columns
        ]
        lines.append(
            f"| {row['fault']} | `{row['verdict']}` | {row['unit']} | " + " | ".join(sizes) + " |"
        )
    return "\n".join(lines)
