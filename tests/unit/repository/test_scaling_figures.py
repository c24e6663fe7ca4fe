"""The scaling law in docs/findings.md is that of the committed record."""

import math
import re
from typing import Any

from tests.unit.repository.test_readme_figures import RECORDS, between, document
from tools.scaling import FITTED, ROUNDOFF, TESTED, fitted
from tools.scaling_tables import load_scaling, scaling_table

RECORD = load_scaling(RECORDS / "scaling.json")
TEXT = document("docs/findings.md")


def test_the_table_is_the_record_of_a_clean_checkout() -> None:
    assert between(TEXT, "scaling") == scaling_table(RECORD)
    assert RECORD["law"] == fitted(RECORD["models"])
    assert not RECORD["context"]["commit"]["dirty"]
    assert {m["use"] for m in RECORD["models"] if m["architecture"] != "LlamaForCausalLM"} == {
        TESTED
    }


def test_the_sentences_are_the_record() -> None:
    words, law = re.sub(r"\s+", " ", TEXT), RECORD["law"]
    assert f"a is {law['a']:.1f} and b {law['b']:.2f}" in words

    def off(model: dict[str, Any], prediction: str) -> float:
        return abs(math.log(model["sigma"]["value"] / model["predicted"][prediction]))

    unseen = [m for m in RECORD["models"] if m["use"] == TESTED and m["name"] == "random"]
    assert unseen
    assert max(off(m, "sigma") for m in unseen) < math.log(1.15)
    assert max(off(m, "sigma_of_measured_hidden_error") for m in unseen) < math.log(1.04)
    widths = [m for m in RECORD["models"] if m["use"] == FITTED and m["width"] != 256]
    assert all(abs(m["hidden_error"] / m["predicted"]["hidden_error"] - 1) < 0.03 for m in widths)
    real = RECORD["models"][-1]
    hidden = ROUNDOFF * math.sqrt(law["a"] + 32 * law["b"])
    assert f"{math.hypot(real['lever'] * hidden, real['rounding']):.3f} nats RMS per token" in words
