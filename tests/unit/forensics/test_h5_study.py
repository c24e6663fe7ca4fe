"""H5 on a random model: its controls are null, and each planted difference is seen."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from precision_lib.forensics.h4.long_sequences import check_fits
from precision_lib.forensics.h5 import study as h5_study
from precision_lib.forensics.h5.engines import QUICK, H5Settings, decode
from precision_lib.forensics.h5.study import H5Study, open_h5_study
from precision_lib.matrix import RECIPES, all_configurations, get_configuration
from precision_lib.models.loading import Checkpoint, working_copy
from precision_lib.models.prompts import Prompts
from precision_lib.models.rollout_engine import rollout_engine
from precision_lib.runtime import deterministic
from precision_lib.trajectories.sampling import Responses
from tests.unit.small_pipelines import random_pipeline

CONFIGURATIONS = (*all_configurations(), *RECIPES)
SETTINGS = replace(QUICK, length=33, opening=9)
PURE, REFERENCE = get_configuration("bf16_pure"), get_configuration("fp32_baseline")


@pytest.fixture(scope="module")
def policy() -> Checkpoint:
    return random_pipeline().policy


@pytest.fixture(scope="module")
def study(policy: Checkpoint) -> H5Study:
    return open_h5_study(policy, SETTINGS, CONFIGURATIONS)


def test_the_trainer_beside_itself_is_null(study: H5Study) -> None:
    control = study.control()
    assert control.is_null
    assert control.trainer_beside_itself_n == 8 * (32 + 8)
    cell = study.cell(get_configuration("bf16_trainer_rollout"))
    assert cell.metrics["rollout_log_ratio_final"].value == 0
    assert cell.evidence.observed_formats["rollout"] == "trainer"


@pytest.mark.parametrize("fault", ["dropout", "stale"])
def test_a_trainer_that_does_not_repeat_itself_is_not_null(
    policy: Checkpoint, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that moved between the two forwards, or a dropout that draws again."""
    study = open_h5_study(policy, SETTINGS, CONFIGURATIONS)
    scored = study.checked.scored

    def faulty(role: str, index: int, fmt: str, run: str = "first") -> object:
        found = scored(role, index, fmt, run)
        if run == "again":
            step = 2.0**-20 if fault == "stale" else 0.1
            return replace(found, logprobs={k: x + step for k, x in found.logprobs.items()})
        return found

    monkeypatch.setattr(study.checked, "scored", faulty)
    assert not study.control().is_null


def test_all_configurations_have_a_cell(study: H5Study) -> None:
    """With the formats that were asked for, recipes included."""
    for configuration in CONFIGURATIONS:
        cell = study.cell(configuration)
        assert {m.n for n, m in cell.metrics.items() if n != "batch_variance"} == {8 * 32}
        observed = {k: f for k, f in cell.evidence.observed_formats.items() if f is not None}
        assert observed == {name: configuration.format_of(name) for name in observed}
        assert {"policy", "rollout"} <= set(observed)
    assert study.cell(REFERENCE).metrics["rollout_logprob_abs_diff_mean"].value > 0


def test_two_configurations_that_differ_in_a_later_column_have_two_cells(study: H5Study) -> None:
    damage = {
        name: study.cell(get_configuration(name)).metrics["rollout_log_ratio_final"].value
        for name in ("bf16_pure", "bf16_fp8_rollout", "bf16_fp16_rollout")
    }
    assert len(set(damage.values())) == 3
    assert damage["bf16_fp8_rollout"] == max(damage.values())


def _responses(policy: Checkpoint) -> Responses:
    tokens = torch.arange(4 * 12).view(4, 12) % policy.model.config.vocab_size
    return Responses(tokens, torch.ones(4, dtype=torch.int64), 11)


def test_decoding_reports_what_the_whole_forward_gives(policy: Checkpoint) -> None:
    """Up to FP32 rounding; in other orders and batches the rows keep their place."""
    responses, model = _responses(policy), policy.model
    chosen = responses.tokens[:, 1:, None]
    with deterministic(native_products=True), torch.no_grad():
        logits = model(input_ids=responses.tokens, use_cache=False).logits[:, :-1]
        wanted = {
            t: (logits / t).double().log_softmax(-1).gather(-1, chosen).squeeze(-1)
            for t in (1.0, 0.5)
        }
        usual = decode(model, responses, 4, temperatures=(1.0, 0.5))
        other = decode(model, responses, 3, reverse=True)
    size = float(logits.abs().max())
    for t, want in wanted.items():
        assert usual.logprobs[t].shape == want.shape
        assert (usual.logprobs[t] - want).abs().max() < size / t * 2.0**-16
    assert (other.logprobs[1.0] - wanted[1.0]).abs().max() < size * 2.0**-16
    assert (wanted[1.0][0] - wanted[1.0][1]).abs().max() > size * 2.0**-10, "rows differ"


@pytest.mark.parametrize("fmt", ["fp8", "int8", "fp8/fp32"])
def test_a_scaled_engine_computes_its_trunk_in_codes(policy: Checkpoint, fmt: str) -> None:
    """And says so; the FP32 original keeps its layers."""
    made = rollout_engine(policy.model, fmt)
    with deterministic():
        reported = decode(made, _responses(policy), 4)
    trunk, _, head = fmt.partition("/")
    assert (reported.fmt, reported.head) == (trunk, head or "bf16")
    kinds = {type(m).__name__ for m in policy.model.modules()}
    assert "ScaledLinear" not in kinds
    assert all(torch.isfinite(x).all() for x in reported.logprobs.values())


@pytest.mark.parametrize("rows", [4, 3])
def test_prompts_of_several_lengths_are_decoded_together(policy: Checkpoint, rows: int) -> None:
    """Each row reports on its own response, as the forward over the whole sequences gives it."""
    tokens = _responses(policy).tokens
    starts, length = torch.tensor([1, 4, 2, 5]), 7
    with deterministic(native_products=True), torch.no_grad():
        logits = policy.model(input_ids=tokens, use_cache=False).logits[:, :-1]
        got = decode(policy.model, Responses(tokens, starts, length), rows, reverse=rows == 3)
    every = logits.double().log_softmax(-1).gather(-1, tokens[:, 1:, None]).squeeze(-1)
    want = torch.stack([row[s - 1 : s - 1 + length] for row, s in zip(every, starts, strict=True)])
    assert (got.logprobs[1.0] - want).abs().max() < float(logits.abs().max()) * 2.0**-16


def own_prompts(policy: Checkpoint, lengths: range) -> Checkpoint:
    """The policy with a prompt of each length."""
    tokens = tuple(tuple(range(1, 1 + n)) for n in lengths)
    return replace(policy, prompts=Prompts("mine.txt", tokens, chat=True, sha256=""))


def test_prompts_of_a_users_own_have_cells_and_null_controls(policy: Checkpoint) -> None:
    """Every response is as long as without them, and the checked ones are openings of them."""
    asked = own_prompts(policy, range(3, 11))
    study = open_h5_study(asked, SETTINGS, (PURE, REFERENCE))
    cell = study.cell(PURE)
    assert cell.metrics["rollout_log_ratio_final"].n == 8 * 32
    assert cell.metrics["rollout_log_ratio_final"].value > 0
    assert cell.metrics["batch_variance"].n == 8 * 8
    assert study.control().is_null
    assert study.cell(REFERENCE).metrics["rollout_log_ratio_final"].value < 1e-3


def test_prompts_that_leave_no_room_for_a_response_are_refused(policy: Checkpoint) -> None:
    positions = policy.model.config.max_position_embeddings
    check_fits(own_prompts(policy, range(positions - 38, positions - 30)), SETTINGS)
    with pytest.raises(ValueError, match=f"longest prompt has {positions - 30} tokens, the model"):
        check_fits(own_prompts(policy, range(positions - 37, positions - 29)), SETTINGS)
    with pytest.raises(ValueError, match="holds 7 different prompts, 8 are needed"):
        check_fits(own_prompts(policy, range(3, 10)), SETTINGS)


def test_bad_settings_are_refused(policy: Checkpoint) -> None:
    for wrong in ({"checked": 4}, {"checked": 50}, {"opening": 1}, {"length": 8, "opening": 4}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            H5Settings(**wrong)
    with pytest.raises(TypeError, match="no linear layer to compute in fp8"):
        rollout_engine(_without_layers(policy), "fp8")


def _without_layers(policy: Checkpoint) -> object:
    """The policy with an empty trunk, as a model whose layers are of another kind looks."""
    model = working_copy(policy.model)
    model.base_model.layers = torch.nn.ModuleList()
    return model


def test_a_stale_engine_is_told_from_precision(
    policy: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted fault of delivery: FP32 on both sides is 100 times off, and not healthy noise."""
    usual = open_h5_study(policy, SETTINGS, CONFIGURATIONS)
    before = usual.difference(usual.all, REFERENCE)

    def stale(original: object, fmt: str) -> object:
        made = rollout_engine(original, fmt)
        next(iter(made.base_model.layers.parameters())).data.mul_(1 + 2.0**-6)
        return made

    monkeypatch.setattr(h5_study, "rollout_engine", stale)
    faulty = open_h5_study(policy, SETTINGS, CONFIGURATIONS)
    after = faulty.difference(faulty.all, REFERENCE)
    assert np.sqrt((after**2).mean()) > 10 * np.sqrt((before**2).mean())
