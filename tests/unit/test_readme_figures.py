"""The figures in the README are those of the committed record, to the digits shown."""

from pathlib import Path
from typing import Any

import pytest

from precision_lib.records.record import load_record
from precision_lib.reporting.table import summary

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def block() -> dict[str, Any]:
    loaded: dict[str, Any] = load_record(ROOT / "docs" / "records" / "h1_cpu.json")["precision"]
    return loaded


@pytest.fixture(scope="module")
def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_record_is_a_whole_and_real_measurement(block: dict[str, Any]) -> None:
    assert block["complete"]
    assert block["planted_fault"] is None
    assert block["context"]["commit"]["dirty"] is False
    assert len(block["cells"]) == 12


def test_the_table_is_the_records(block: dict[str, Any], readme: str) -> None:
    for text, _ in summary(block):
        assert text.rstrip() in readme


def test_the_findings_are_the_records(block: dict[str, Any], readme: str) -> None:
    cells = {c["configuration"]: c for c in block["cells"]}

    def value(configuration: str, metric: str) -> float:
        found: float = cells[configuration]["metrics"][metric]["value"]
        return found

    pure, promoted = (value(c, "log_ratio_nsr") for c in ("bf16_pure", "bf16_fp32_kl"))
    demoted = cells["fp32_bf16_kl"]["evidence"]
    parts = demoted["log_ratio_nsr_by_rounding"]
    smallest = min(p["kl_penalty_mean"]["value"] for p in cells["bf16_pure"]["evidence"]["curve"])
    figures = (
        f"{value('bf16_pure', 'log_ratio_near_zero_frac') * 100:.1f} % of the tokens to none",
        f"removes {(1 - promoted / pure) * 100:.1f} % of the log-ratio noise",
        f"({(1 - (promoted / pure) ** 2) * 100:.1f} % of its",
        f"apart although their weights are {cells['bf16_pure']['evidence']['true_kl']:.1e}",
        f"are {cells['bf16_pure']['evidence']['executed_kl']:.1e} nats",
        f"FP32 KL reports {value('bf16_fp32_kl', 'kl_penalty_mean'):.1e}",
        f"`bf16_pure` reports {value('bf16_pure', 'kl_penalty_mean'):.1e}",
        f"below {smallest:.1e} nats",
        f"({parts['logits_only']:.2f} from",
        f"{parts['log_probs_only']:.2f} from rounding the log-probs",
        f"zeroes {value('fp32_bf16_kl', 'log_ratio_near_zero_frac') * 100:.1f} %",
        f"{demoted['log_ratio_near_zero_frac_predicted'] * 100:.1f} % is derived",
        f"in FP32 {value('fp32_baseline', 'k3_textbook_negative_frac') * 100:.1f} % of the tokens",
    )
    words = " ".join(readme.split()).replace("e-0", "e-")
    for figure in figures:
        assert figure.replace("e-0", "e-") in words, figure
