"""The bf16 error of a log-prob by depth, width and vocabulary, for docs/findings.md."""

from pathlib import Path
from typing import Any

from precision_lib.jsonio import load_object
from precision_lib.reporting.markdown import table
from tools.scaling import FITTED, ROUNDOFF, SCHEMA

HEADINGS = (
    "model",
    "layers",
    "width",
    "vocabulary",
    "parameters",
    "hidden error, u: law",
    "measured",
    "log-prob error, nats: law",
    "law, with the measured hidden error",
    "measured [95 %]",
)


def load_scaling(path: Path) -> dict[str, Any]:
    """The record of ``python -m tools.scaling``.

    Raises:
        ValueError: the file is something else; the message says what to do.
    """
    how = "`python -m tools.scaling --json FILE` writes one"
    record = load_object(path, "scaling", how)
    if record.get("schema") != SCHEMA:
        raise ValueError(f"{path} is no record of scaling ({SCHEMA}); {how}")
    return record


def scaling_table(record: dict[str, Any]) -> str:
    """A row per model: first those that the law was fitted on."""
    return table(HEADINGS, [_row(model) for model in record["models"]])


def _row(model: dict[str, Any]) -> tuple[str, ...]:
    sigma, law = model["sigma"], model["predicted"]
    family = model["architecture"].removesuffix("ForCausalLM").removesuffix("LMHeadModel")
    name = family if model["name"] == "random" else f"**{model['name']}** ({family})"
    return (
        name if model["use"] == FITTED else f"{name}, not fitted",
        str(model["depth"]),
        str(model["width"]),
        f"{model['vocabulary']:,}",
        f"{model['parameters'] / 1e6:.1f} M",
        f"{law['hidden_error'] / ROUNDOFF:.2f}",
        f"{model['hidden_error'] / ROUNDOFF:.2f}",
        f"{law['sigma']:.3f}",
        f"{law['sigma_of_measured_hidden_error']:.3f}",
        f"{sigma['value']:.3f} [{sigma['low']:.3f}, {sigma['high']:.3f}]",
    )
