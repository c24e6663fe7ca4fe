"""The H4 study on a tiny model: it sees what is planted, and nothing where nothing is."""

from dataclasses import replace
from typing import Any

import pytest

from precision_lib.faults import plant
from precision_lib.forensics.evidence import H4Evidence
from precision_lib.forensics.forwards import POLICY, ScoredTokens
from precision_lib.forensics.h4.expected_drift import drift_z, random_walk_z, source_z
from precision_lib.forensics.h4.long_sequences import H4Settings
from precision_lib.forensics.h4.study import H4Study, open_h4_study
from precision_lib.forensics.observed_format import observed_format
from precision_lib.matrix import get_configuration
from precision_lib.models import loading
from precision_lib.models.loading import Checkpoint

PURE, REFERENCE_RUN, PROMOTED = map(
    get_configuration, ("bf16_pure", "fp32_baseline", "bf16_fp32_ref")
)


def small_study(checkpoint: Checkpoint, seed: int = 0) -> H4Study:
    settings = H4Settings(length=64, seed=seed)
    return open_h4_study(checkpoint, settings, (PURE, REFERENCE_RUN, PROMOTED))


def test_clean_study_has_null_controls_and_a_verdict(tiny_llama: Checkpoint) -> None:
    study = small_study(tiny_llama)
    verdict = study.verdict()
    assert verdict.control.is_null, verdict.control
    assert verdict.control.identical_weights_n == 3 * 2 * 63
    assert verdict.verdict in ("supported", "partly supported", "refuted", "inconclusive")
    baseline = study.cell(REFERENCE_RUN)
    assert baseline.verdict == "healthy"
    assert baseline.evidence.measured_against == "fp64"
    counts = {name: m.n for name, m in baseline.metrics.items()}
    assert counts.pop("batch_variance") == 2 * 63
    assert set(counts.values()) == {8 * 63}


def test_both_kinds_of_tokens_and_both_components_are_reported(tiny_llama: Checkpoint) -> None:
    evidence = small_study(tiny_llama).cell(PROMOTED).shows(H4Evidence)
    assert evidence.sampled is not None
    assert set(evidence.sampled.components) == {"policy", "reference"}
    reference = evidence.sampled.components["reference"]
    assert reference["accum_err_final"].value > 0, "bf16 log-softmax alone"
    text = evidence.expected_policy_drift["text"]
    assert text.by_position[0].first == 0
    assert text.metrics["accum_err_final"].n == 8 * 63


def test_sampled_tokens_pass_the_source_check_and_text_does_not(tiny_llama: Checkpoint) -> None:
    """The detector of a shift or of foreign tokens, with its clean case and its planted one."""
    study = small_study(tiny_llama)
    assert abs(source_z(study.drift("sampled", "bf16"))) < 4.5
    assert abs(drift_z(study.drift("sampled", "bf16"))) < 4.5
    assert abs(random_walk_z(study.drift("sampled", "bf16"))) < 4.5
    assert abs(source_z(study.drift("text", "bf16"))) > 4.5


def test_a_reference_in_the_wrong_format_is_observed(tiny_llama: Checkpoint) -> None:
    with plant("reference_in_bf16"):
        study = small_study(tiny_llama)
        assert study.cell(REFERENCE_RUN).evidence.observed_formats["reference"] != "fp32"
        assert study.verdict().verdict == "inconclusive", "the null control of FP32 is not null"


@pytest.mark.parametrize("fault", ["stale_reference", "dropout_left_on"])
def test_a_reference_that_is_another_model_breaks_the_null_control(
    fault: str, tiny_llama: Checkpoint
) -> None:
    with plant(fault):
        study = small_study(tiny_llama)
        assert study.identical_weights(PURE).nonzero > 0
        assert study.verdict().verdict == "inconclusive"


def test_a_rope_table_that_was_cast_is_observed(tiny_llama: Checkpoint) -> None:
    """One of 8 frequencies is 1 and says nothing, so this one is of a model with 16."""
    import torch

    table = 10000.0 ** (-torch.arange(16) / 16)
    assert observed_format(table) == "fp32"
    with plant("rope_table_in_format"):
        working = loading.working_copy(tiny_llama.model)
        loading.set_parameters(working, tiny_llama.model, "bf16")
    name, cast = next((n, b) for n, b in working.named_buffers() if b.is_floating_point())
    original = dict(tiny_llama.model.named_buffers())[name]
    assert not torch.equal(cast, original)
    assert torch.equal(cast, original.bfloat16().float())
    assert observed_format(table.bfloat16().float()) == "bf16 in fp32"


def test_a_shift_by_one_is_caught_by_the_source_check(tiny_llama: Checkpoint) -> None:
    study = small_study(tiny_llama)
    with plant("shift_off_by_one"):
        assert abs(source_z(study.drift("sampled", "bf16"))) > 4.5


def test_settings_that_cannot_give_an_interval_are_refused() -> None:
    with pytest.raises(ValueError, match="sequences = 4, text_windows = 8: an interval"):
        H4Settings(sequences=4)
    with pytest.raises(ValueError, match="length = 16"):
        H4Settings(length=16)
    with pytest.raises(ValueError, match="checked = 1 must be at least 2"):
        H4Settings(checked=1)


def test_log_ratios_that_are_infinite_in_both_batch_shapes_impair_the_cell(
    tiny_llama: Checkpoint,
) -> None:
    """inf - inf is NaN, a warning of numpy, which pytest.ini makes an error."""
    study = small_study(tiny_llama)

    def overflowing(scored: Any) -> Any:
        def changed(role: str, policy: int, fmt: str, *run: str) -> ScoredTokens:
            given: ScoredTokens = scored(role, policy, fmt, *run)
            if (role, fmt) != (POLICY, "bf16"):
                return given
            logprobs = {name: x.clone() for name, x in given.logprobs.items()}
            for x in logprobs.values():
                x[::7] = -float("inf")
            return replace(given, logprobs=logprobs)

        return changed

    for forwards in (study.sampled, study.checked):
        forwards.scored = overflowing(forwards.scored)  # type: ignore[method-assign]
    cell = study.cell(PURE)
    assert cell.verdict == "impaired"
    assert cell.metrics["log_ratio_nonfinite_frac"].value > 0
    assert cell.metrics["batch_variance"].value == cell.evidence.batch_shift == 0
