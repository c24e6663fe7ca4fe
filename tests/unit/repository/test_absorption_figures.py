"""The findings about H6 at other learning rates and the recipes about fp16 are the records."""

import re

import pytest

from precision_lib.forensics.hypotheses import DECISIONS
from precision_lib.reporting.numbers import two
from tests.unit.repository.test_readme_figures import RECORDS, between, document
from tools.absorption import law_of, load_rates
from tools.absorption_tables import rates_table
from tools.fp16_tables import fp16_table, load_fp16, parts_of

RATES = load_rates(RECORDS / "absorption")
FP16 = load_fp16(RECORDS / "fp16")


def test_the_tables_are_those_of_clean_checkouts() -> None:
    assert between(document("docs/findings.md"), "absorption") == rates_table(RATES)
    assert between(document("docs/recipes.md"), "fp16") == fp16_table(FP16)
    records = [*RATES, *(record for of in FP16.values() for record in of.values())]
    assert not any(record["context"]["commit"]["dirty"] for record in records)


def test_the_law_is_as_near_as_the_sentences_say() -> None:
    text = re.sub(r"\s+", " ", document("docs/findings.md"))
    moved: dict[str, list[float]] = {}
    kept = []
    for record in RATES:
        for row in record["rates"]:
            for fmt, stored in row["stored"].items():
                law = law_of(record, fmt, row["learning_rate"])
                of_model = moved.setdefault(record["context"]["model"], [])
                of_model.append(stored["moved_frac"] / law["moved_frac"])
                kept.append(stored["logprob_change_slope"]["value"] / law["kept"])
    assert len(kept) >= 14
    assert all(abs(ratio - 1) < 0.01 for ratio in moved["embedded"])
    real = moved["smollm2-135m-in-bf16"]
    assert f"{max(real) - 1:.0%} more move than the law".replace("%", " %") in text
    assert f"up to {1 - min(real):.0%} fewer weights".replace("%", " %") in text
    assert f"{min(kept):.2f} to {max(kept):.1f} times the law" in text


def test_the_weights_that_are_zero_are_as_the_sentence_says() -> None:
    text = re.sub(r"\s+", " ", document("docs/findings.md"))
    (real,) = (r for r in RATES if r["context"]["model"] == "smollm2-135m-in-bf16")
    # bf16 has FP32's range: no weight of SmolLM2 but 0 lies among its subnormals.
    counts = [count for _, count in real["ulps"]["bf16"]]
    zero = counts[0] / sum(counts)
    assert f"{100 * zero:.2f} % of its weights are exactly 0" in text
    assert 0.5 < zero / law_of(real, "bf16", 1e-6)["moved_frac"] < 1


def test_the_step_that_fp16_loses_is_the_records() -> None:
    text = re.sub(r"\s+", " ", document("docs/recipes.md"))
    real, rounded = (
        FP16[model]["noise"]["noise"] for model in ("smollm2-135m-in-bf16", "embedded-in-bf16")
    )
    kept, beside = parts_of(real["fp16_pure"])
    assert f"keeps {100 * kept:.0f} % of the log-ratio, and beside that the noise is" in text
    assert (
        f"{beside:.2f}, near an eighth of {two(real['bf16_pure']['log_ratio_nsr']['value'])}"
        in text
    )
    low, high = (1 + real[n]["kl_k3_rel_error"]["value"] for n in ("fp16_pure", "bf16_pure"))
    assert f"Its KL is {low:.2f} of the true one, and bf16's is {high:.0f} times it" in text
    assert f"{100 * parts_of(rounded['fp16_pure'])[0]:.0f} % with rounded ones" in text
    assert parts_of(FP16["embedded"]["noise"]["noise"]["fp16_pure"])[0] > 0.95
    assert rounded["fp16_fp32_kl"]["log_ratio_nsr"]["low"] > DECISIONS["H1"].limit


def test_the_figures_of_fp16_are_the_records() -> None:
    text = re.sub(r"\s+", " ", document("docs/recipes.md"))
    real = FP16["smollm2-135m-in-bf16"]["range"]
    largest, end = real["largest_output"]["value"], real["largest_finite"]
    assert f"largest output is {largest:,.0f}, {largest / end:.0%}".replace("%", " %") in text
    for recipe in ("fp16_pure", "fp16_fp32_kl"):
        metric = FP16["smollm2-135m-in-bf16"]["noise"]["noise"][recipe]["log_ratio_nsr"]
        assert metric["low"] > DECISIONS["H1"].limit
        assert f"{two(metric['value'])} [" in text
        assert 1e-4 * (metric["value"] / DECISIONS["H1"].limit) ** 2 == pytest.approx(
            7e-4, rel=0.05
        )
    weights, logits = (real["gradients"][kind]["scales"] for kind in ("parameters", "logits"))
    lost = f"{100 * weights[0]['zero_frac']:.1f} % of SmolLM2's gradients of weights"
    assert f"{lost} and {100 * logits[0]['zero_frac']:.0f} % of those of logits" in text
    assert weights[1]["overflow"] == 0
    assert weights[1]["zero_frac"] < 1e-4
    assert f"the largest is {real['gradients']['parameters']['largest']['value']:.2f}," in text
