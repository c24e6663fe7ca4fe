"""The H1 study on a tiny model: controls that can fail, overflow that is a finding."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from precision_lib.forensics import forwards
from precision_lib.forensics.evidence import IdenticalWeights
from precision_lib.forensics.h1 import study as h1_study
from precision_lib.forensics.h1.study import H1Study, open_study
from precision_lib.forensics.policy_shift import OPERATING_KL
from precision_lib.forensics.probe import ProbeSettings
from precision_lib.matrix import PrecisionConfig, get_configuration
from precision_lib.models.loading import Checkpoint, load_checkpoint
from precision_lib.phases.static_probe import run_probe
from precision_lib.scoring import forward

PURE, REFERENCE_RUN = get_configuration("bf16_pure"), get_configuration("fp32_baseline")


def small_study(checkpoint: Checkpoint, *more: PrecisionConfig) -> H1Study:
    settings = ProbeSettings(num_prompts=8, seq_lengths=(12,), target_kls=(OPERATING_KL,))
    return open_study(checkpoint, settings, (PURE, REFERENCE_RUN, *more))


def test_the_null_control_is_exactly_zero(tiny_llama: Checkpoint) -> None:
    control = small_study(tiny_llama).identical_weights(PURE)
    assert control == IdenticalWeights(same_format=True, nonzero=0, n=96, log_ratio_rms=0.0)


@pytest.mark.parametrize(("kept_bytes", "count"), [(2**28, 12), (0, 14)])
def test_kept_logits_of_the_reference_change_no_number(
    kept_bytes: int, count: int, tiny_llama: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three forwards in bf16, three in FP32, two in float64, four rebatched; two pairs more."""
    usual = small_study(tiny_llama)
    cells = [usual.cell(c) for c in (PURE, REFERENCE_RUN)]
    monkeypatch.setattr(forwards, "KEPT_LOGITS_BYTES", kept_bytes)
    study, calls = small_study(tiny_llama), list[None]()
    study.forwards.scorer.progress = lambda: calls.append(None)
    assert [study.cell(c) for c in (PURE, REFERENCE_RUN)] == cells
    assert len(calls) == count


def test_a_dropout_left_on_breaks_the_null_control(
    saved_checkpoint: Callable[[str], Path],
) -> None:
    study = small_study(load_checkpoint(str(saved_checkpoint("GPT2"))))
    assert study.identical_weights(PURE).nonzero == 0
    study = small_study(load_checkpoint(str(saved_checkpoint("GPT2"))))
    for role in ("policy", "reference"):
        study.forwards.scorer.model(study.forwards.weights(role, 0, "bf16")).train()
    assert study.identical_weights(PURE).nonzero > 0


def test_a_stale_reference_breaks_the_null_control(
    tiny_llama: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference of a trainer that forgot to freeze it: one weight has moved."""
    study = small_study(tiny_llama)
    build = study.forwards.scorer.model

    def stale(weights: Any, copy: int = 0) -> Any:
        model = build(weights, copy)
        if weights.owner == "reference":
            next(iter(model.parameters())).data.mul_(1 + 2.0**-6)
        return model

    monkeypatch.setattr(study.forwards.scorer, "model", stale)
    assert study.identical_weights(PURE).nonzero > 0


def test_forwards_that_do_not_repeat_break_the_irrelevant_control(
    tiny_llama: Checkpoint,
) -> None:
    """Each forward is a little different from the one before, as with unordered reductions."""
    counterfactual = get_configuration("fp32_bf16_kl")
    assert small_study(tiny_llama, counterfactual).verdict().control.is_null
    study = small_study(tiny_llama, counterfactual)
    build, calls = study.forwards.scorer.model, itertools.count()

    def restless(weights: Any, copy: int = 0) -> Any:
        model = build(weights, copy)
        next(iter(model.parameters())).data.mul_(1 + next(calls) * 2.0**-8)
        return model

    study.forwards.scorer.model = restless  # type: ignore[method-assign]
    control = study.verdict().control
    assert control.irrelevant_promotion_damage_removed != 0
    assert not control.is_null


def test_batch_variance_sees_a_forward_that_depends_on_its_batch(
    tiny_llama: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted: logits that depend on the number of rows, as a kernel with split sums does.

    Both models suffer it alike, so only a run that really changes the batch shows it.
    """
    quiet = small_study(tiny_llama).rebatched(REFERENCE_RUN).variance.value
    original = forward.trunk_and_logits

    def batch_dependent(model: Any, tokens: Any) -> Any:
        hidden, logits = original(model, tokens)
        return hidden, logits * (1 + 2.0**-10 * len(tokens))

    monkeypatch.setattr(forward, "trunk_and_logits", batch_dependent)
    loud = small_study(tiny_llama).rebatched(REFERENCE_RUN).variance.value
    assert loud > 100 * quiet
    assert loud > 0


def test_overflow_is_counted_and_impairs_the_cell(tiny_llama: Checkpoint) -> None:
    """fp16 logits beyond 65,504 are infinite; the cell says so instead of crashing."""
    study = small_study(tiny_llama, HALF)
    build = study.forwards.scorer.model

    def loud(weights: Any, copy: int = 0) -> Any:
        model = build(weights, copy)
        if weights.fmt == "fp16":
            model.lm_head.weight.data = torch.full_like(model.lm_head.weight, 6e4)
        return model

    study.forwards.scorer.model = loud  # type: ignore[method-assign]
    cell = study.cell(HALF)
    assert cell.verdict == "impaired"
    assert cell.metrics["log_ratio_nonfinite_frac"].value > 0
    assert all(math.isfinite(m.value) for m in cell.metrics.values())


HALF = replace(REFERENCE_RUN, name="half", policy="fp16", reference="fp16", kl="fp16")


def test_a_log_softmax_in_fp32_stays_fp32_behind_an_fp64_model(tiny_llama: Checkpoint) -> None:
    wide = replace(REFERENCE_RUN, name="wide", policy="fp64", reference="fp64")
    evidence = small_study(tiny_llama, wide).cell(wide).evidence
    assert evidence.observed_formats["policy"] == "fp64"
    assert evidence.observed_formats["kl"] == "fp32"


def test_an_interrupted_probe_without_a_cell_keeps_the_earlier_record(
    tiny_llama: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    (tmp_path / "record.json").write_text("measured")
    settings = ProbeSettings(num_prompts=8, seq_lengths=(12,), target_kls=(OPERATING_KL,))
    monkeypatch.setattr(h1_study.H1Study, "cell", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_probe(tiny_llama, settings, (PURE,), tmp_path)
    assert (tmp_path / "record.json").read_text() == "measured"
