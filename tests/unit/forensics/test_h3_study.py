"""The H3 study on a tiny model: it sees what is planted, and nothing where nothing is."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from precision_lib.forensics.h3 import updates as value_updates
from precision_lib.forensics.h3.study import QUICK, H3Study, open_h3_study
from precision_lib.matrix import get_configuration
from precision_lib.models import value_head
from precision_lib.models.loading import Checkpoint
from precision_lib.models.value_head import fit_value_head, predict_values
from precision_lib.ppo import logprobs
from precision_lib.runtime import deterministic
from precision_lib.scoring import forced, forward
from precision_lib.scoring.forward import trunk_and_logits
from precision_lib.trajectories.sampling import sample_responses
from precision_lib.trajectories.store import Trajectories

PURE, REFERENCE_RUN, DEMOTED = map(
    get_configuration, ("bf16_pure", "fp32_baseline", "fp32_bf16_value")
)


def small_study(checkpoint: Checkpoint, seed: int = 0) -> H3Study:
    """8 prompts of 4 responses to a tiny random model; the score is the mean log-prob."""
    prompts = [[0, 1 + number] for number in range(8) for _ in range(4)]
    with deterministic(seed), torch.no_grad():
        drawn = sample_responses(checkpoint.model, prompts, 16, seed=seed)
        hidden, logits = trunk_and_logits(checkpoint.model, drawn.tokens)
        scored = logprobs.token_logprobs(*logprobs.shift(logits, drawn.tokens))
        lengths = torch.full((len(prompts),), 16)
        blank = torch.zeros_like(scored)
        shard = Trajectories(
            drawn.tokens,
            drawn.prompt_lengths,
            lengths,
            torch.arange(8).repeat_interleave(4),
            drawn.tokens,
            drawn.prompt_lengths + lengths,
            *(blank, blank, blank),
            rewards=torch.where(drawn.mask[:, 1:], scored, 0).sum(1),
        )
        mask = shard.mask
        states = hidden[:, :-1][mask]
        head = fit_value_head(states, shard.rewards.unsqueeze(1).expand(mask.shape)[mask])
        values = predict_values(states, head.weight, head.bias, "fp32")
    shard = replace(shard, values=blank.masked_scatter(mask, values))
    return open_h3_study(checkpoint, head, [shard], replace(QUICK, seed=seed))


def test_the_context_says_that_the_head_is_on_the_cpu_where_the_trunk_is_not(
    tiny_llama: Checkpoint,
) -> None:
    study = small_study(tiny_llama)
    assert "head_device" not in study.context()["h3"], "the committed records are as they were"
    on_a_gpu = SimpleNamespace(device=torch.device("cuda"))
    study.critics.states.checkpoint = replace(tiny_llama, model=on_a_gpu)
    assert study.context()["h3"]["head_device"] == "cpu"


def test_clean_study_has_null_controls_and_a_verdict(tiny_llama: Checkpoint) -> None:
    study = small_study(tiny_llama)
    verdict = study.verdict()
    assert verdict.control.is_null, verdict.control
    assert verdict.control.golden_values_n == 32 * 16
    assert verdict.verdict in ("supported", "partly supported", "refuted")
    assert study.cell(REFERENCE_RUN).verdict == "healthy"
    assert study.cell(REFERENCE_RUN).evidence.observed_formats["value"] == "fp32"
    assert study.cell(PURE).evidence.observed_formats["value"] == "bf16"


def test_cells_that_agree_in_what_h3_runs_differ_in_name_only(tiny_llama: Checkpoint) -> None:
    study = small_study(tiny_llama)
    other = study.cell(get_configuration("bf16_fp32_ref"))
    assert other.configuration == "bf16_fp32_ref"
    assert other.metrics == study.cell(PURE).metrics


def test_a_value_head_that_is_silently_bf16_is_observed(
    tiny_llama: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dtype says FP32, the digits say bf16; the frozen values differ as well."""
    study = small_study(tiny_llama)

    def silently(hidden: Tensor, weight: Tensor, bias: Tensor, fmt: str) -> Tensor:
        low = value_head.predict_values(hidden, weight, bias, "bf16")
        return low.to(value_head.predict_values(hidden[:1], weight, bias, fmt).dtype)

    monkeypatch.setattr(value_updates, "predict_values", silently)
    assert study.cell(REFERENCE_RUN).evidence.observed_formats["value"] == "bf16 in fp32"
    assert study.verdict().verdict == "inconclusive"
    assert study.verdict().control.golden_values_beyond_rounding


def test_states_one_position_late_are_caught_by_the_control(
    tiny_llama: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A critic that sees the action it judges: the golden values are no longer the frozen ones."""
    study = small_study(tiny_llama)
    monkeypatch.setattr(
        forced, "trunk", lambda model, tokens: forward.trunk(model, tokens).roll(-1, 1)
    )
    assert study.verdict().control.golden_values_beyond_rounding
    assert study.verdict().verdict == "inconclusive"


def test_values_beyond_fp16_make_a_cell_impaired(tiny_llama: Checkpoint) -> None:
    """A critic of magnitude 1e6 in fp16: every prediction is infinite, and that is a finding."""
    study = small_study(tiny_llama)
    large = study.critics.scaled(1e6)
    study.critics.head = large.head
    study.critics.scores = large.rewards.sum(1)
    study.critics.frozen_values = study.critics.values(REFERENCE_RUN, large)
    half = replace(REFERENCE_RUN, name="half", value="fp16")
    cell = study.cell(half)
    assert cell.metrics["value_nonfinite_frac"].value > 0
    assert cell.verdict == "impaired"
