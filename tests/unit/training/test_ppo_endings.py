"""However a run ends, it says so: a status by a planted cause, whole files, a state to look at.

What comes again after a resume is in ``test_ppo_resume.py``.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from precision_lib.models.pipeline import Pipeline
from precision_lib.models.value_head import ValueHead
from precision_lib.ppo.losses import policy_loss
from precision_lib.training.events import Began, StateWritten, Stepped
from precision_lib.training.failures import KL_COLLAPSE, LIMITS, RunEnded
from precision_lib.training.run import run_events
from precision_lib.training.trainer import ppo_step
from precision_lib.training.weights import Weights
from tests.unit.small_pipelines import files_of
from tests.unit.small_runs import (
    at_call,
    check_ended,
    configuration,
    next_step,
    opened,
    pipeline,
    settings,
    step_lines,
    train,
    variant,
)


def scaled_head(factor: float) -> Callable[[Any], None]:
    return lambda model: model.lm_head.weight.mul_(factor)


def certain_policy() -> Pipeline:
    """Logits a thousand times as large: one token has all the probability."""
    made = variant("policy", scaled_head(1000.0))
    return dataclasses.replace(made, reference=made.policy)


def foreign_reference() -> Pipeline:
    """A reference that finds likely what the policy finds unlikely."""
    return variant("reference", scaled_head(-5.0))


def lost_critic() -> Pipeline:
    head = ValueHead(torch.zeros(32), torch.tensor(1e4))
    return dataclasses.replace(pipeline(), value_head=head)


def loud_rewards() -> Pipeline:
    """Scores beyond the range of fp16."""
    return variant("reward", lambda model: model.score.weight.mul_(1e7))


def loud_policy() -> Pipeline:
    """Logits beyond the range of fp16."""
    return variant("policy", scaled_head(1e7))


CAUSES: list[tuple[str, str, Callable[[], Pipeline], dict[str, Any], int, str]] = [
    ("kl_explosion", "fp32_baseline", foreign_reference, {}, 3, "KL .* nats per token for 3 steps"),
    ("entropy_collapse", "bf16_pure", certain_policy, {}, 3, "entropy .* for 3 steps"),
    ("value_divergence", "fp32_baseline", lost_critic, {}, 3, r"value error 1e\+04 RMS"),
    ("nan_loss", "all_fp16", loud_rewards, {}, 0, "4 of 4 scores are not finite in step 0"),
    ("nan_loss", "all_fp16", loud_policy, {}, 0, "the logits of 4 of 4 sequences hold NaN or"),
    # AdamW's first step is the learning rate. The second minibatch overflows.
    ("nan_loss", "fp32_baseline", pipeline, {"learning_rate": 1e30}, 0, "loss nan, .* update 1 of"),
]


@pytest.mark.parametrize(
    ("status", "name", "models", "changes", "steps", "reason"),
    CAUSES,
    ids=[f"{c[0]}-{c[2].__name__}" for c in CAUSES],
)
def test_failed_run_says_how_and_is_not_run_again(
    status: str,
    name: str,
    models: Callable[[], Pipeline],
    changes: dict[str, Any],
    steps: int,
    reason: str,
    tmp_path: Path,
) -> None:
    made, wanted = models(), {"max_steps": 6} | changes
    summary = train(tmp_path, name, made, **wanted)
    check_ended(tmp_path, status, reason, steps)
    before = files_of(tmp_path)
    assert train(tmp_path, name, made, resume=True, **wanted) == summary
    assert files_of(tmp_path) == before


def test_gradients_that_are_never_finite_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Weights.collect_gradient

    def overflow(self: Weights) -> None:
        real(self)
        self.gradient[0] = torch.inf

    monkeypatch.setattr(Weights, "collect_gradient", overflow)
    summary = train(tmp_path, max_steps=6)
    check_ended(tmp_path, "nonfinite_gradients", "^2 updates skipped for 3 steps up to step 2", 3)
    assert [line["skipped_updates"] for line in step_lines(tmp_path)] == [2, 2, 2]
    assert [line["gradient_norm"] for line in step_lines(tmp_path)] == ["inf"] * 3
    assert summary.skipped_updates == 6
    assert summary.evaluation["final"] == summary.evaluation["initial"], "no weight has moved"


def test_log_ratios_that_bf16_rounds_to_zero_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masters one rounding away from the reference: in FP32 there is a KL, in bf16 none."""
    patience = dataclasses.replace(LIMITS[KL_COLLAPSE], patience=2)
    monkeypatch.setitem(LIMITS, KL_COLLAPSE, patience)
    still: dict[str, Any] = {"learning_rate": 1e-12, "perturbation": 2.0**-24}
    train(tmp_path / "bf16", "bf16_pure", **still)
    check_ended(tmp_path / "bf16", KL_COLLAPSE, "all log-ratios 0, KL in FP32 .* for 2 steps", 2)
    train(tmp_path / "fp32", "fp32_baseline", **still)
    check_ended(tmp_path / "fp32", "completed", "^$", 4)


@pytest.mark.parametrize(("call", "state"), [(6, 3), (7, 2)])
def test_nan_loss_keeps_the_state_of_its_step_until_a_weight_of_it_has_moved(
    call: int, state: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In update 0 and 1 of step 3: half of a step's updates are no weights of any step."""

    broken = at_call(call, policy_loss, lambda *arguments: policy_loss(*arguments) * torch.nan)
    monkeypatch.setattr("precision_lib.training.update.policy_loss", broken)
    train(tmp_path, checkpoint_every=2)
    check_ended(tmp_path, "nan_loss", f"policy loss nan, .* in update {call - 6} of step 3", 3)
    assert next_step(tmp_path) == state


@pytest.mark.parametrize(
    ("status", "error"),
    [
        ("out_of_memory", MemoryError()),
        ("out_of_memory", RuntimeError("DefaultCPUAllocator: can't allocate memory\nin C++")),
        ("nan_loss", FloatingPointError("the logits of 1 of 2 sequences hold NaN")),
    ],
)
def test_evaluation_that_fails_is_an_ending_too(
    status: str, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes after all steps, and needs more memory than they did."""

    def failing(*_arguments: Any) -> Any:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("precision_lib.training.run.evaluate", failing)
        summary = train(tmp_path)
    assert summary.evaluation == {}
    check_ended(tmp_path, status, str(error).partition("\n")[0], 4)
    again = train(tmp_path, resume=True)
    assert again.status == ("completed" if status == "out_of_memory" else status)
    assert bool(again.evaluation) == (status == "out_of_memory")
    assert again.weights_sha256 == summary.weights_sha256


def test_memory_that_lacks_for_the_models_is_an_ending_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path, stop_before=3)

    def failing(*_arguments: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with monkeypatch.context() as patch:
        patch.setattr("precision_lib.training.trainer.open_models", failing)
        summary = train(tmp_path, resume=True)
    check_ended(tmp_path, "out_of_memory", "^CUDA out of memory", 3)
    assert summary.identity["settings"]["learning_rate"] == 1e-3
    assert train(tmp_path, resume=True).status == "completed"


def test_errors_of_the_program_are_not_called_an_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug is to be seen; what was written stays, and nothing says that the run has ended."""

    def broken(*_arguments: Any) -> Any:
        raise RuntimeError("shapes differ")

    with monkeypatch.context() as patch:
        patch.setattr("precision_lib.training.trainer.symptoms", broken)
        with pytest.raises(RuntimeError, match="shapes differ"):
            train(tmp_path)
    assert not (tmp_path / "summary.json").exists()
    assert train(tmp_path, resume=True).status == "completed"


def test_who_takes_no_more_events_leaves_the_numerical_state_as_it_was(tmp_path: Path) -> None:
    """The autouse guard of all tests compares it."""
    events = run_events(pipeline(), configuration("bf16_pure"), settings(), tmp_path)
    assert [type(next(events)) for _ in range(3)] == [Began, StateWritten, Stepped]
    events.close()
    assert not (tmp_path / "summary.json").exists()


def test_step_by_step_a_failure_carries_its_line() -> None:
    with opened("fp32_baseline", foreign_reference()) as run:
        ppo_step(run)
        ppo_step(run)
        with pytest.raises(RunEnded) as ended:
            ppo_step(run)
        assert run.step == 3
        assert run.whole
    assert ended.value.line is not None
    assert ended.value.line.step == 2
    assert ended.value.line.symptoms.kl_k1_mean > 5
