"""The failure table: each limit at its edge, patience, what counts as out of memory."""

import re
from typing import Any

import pytest
import torch

from precision_lib.training.failures import (
    ENTROPY_COLLAPSE,
    FINAL,
    KL_COLLAPSE,
    KL_EXPLOSION,
    LIMITS,
    NAN_LOSS,
    NONFINITE_GRADIENTS,
    RESUMABLE,
    STATUSES,
    VALUE_DIVERGENCE,
    RunEnded,
    Watch,
    is_out_of_memory,
)
from precision_lib.training.rollout import Experience
from precision_lib.training.trainer import check_finite
from tests.unit.small_runs import a_line, scored, stepped

HEALTHY: dict[str, Any] = {
    "kl_k1_mean": 0.01,
    "golden_kl_penalty_mean": 0.01,
    "log_ratio_all_zero": False,
    "entropy_mean": 2.0,
    "value_error_rms": 1.0,
    "return_rms": 2.0,
    "updates": 2,
    "skipped_updates": 0,
}
#: Status, figures at the limit, figures beyond it, what the message begins with.
EDGES: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    (KL_EXPLOSION, {"kl_k1_mean": 5.0}, {"kl_k1_mean": 5.001}, "KL 5 nats per token"),
    (ENTROPY_COLLAPSE, {"entropy_mean": 0.05}, {"entropy_mean": 0.0499}, "entropy 0.0499 nats"),
    (
        VALUE_DIVERGENCE,
        {"value_error_rms": 20.0},
        {"value_error_rms": 20.1},
        "value error 20.1 RMS, returns 2 RMS",
    ),
    (
        KL_COLLAPSE,
        {"log_ratio_all_zero": True, "golden_kl_penalty_mean": 0.0},
        {"log_ratio_all_zero": True, "golden_kl_penalty_mean": 1e-30},
        "all log-ratios 0, KL in FP32 1e-30",
    ),
    (NONFINITE_GRADIENTS, {"skipped_updates": 1}, {"skipped_updates": 2}, "2 updates skipped"),
]


def look_at(watch: Watch, first: int, count: int, figures: dict[str, Any]) -> None:
    for step in range(first, first + count):
        watch.look(a_line(step, **(HEALTHY | figures)))


def test_every_limit_has_an_edge_and_a_status_and_says_what_it_means() -> None:
    assert {status for status, *_ in EDGES} == set(LIMITS)
    assert set(LIMITS) < set(FINAL)
    assert set(FINAL) | set(RESUMABLE) == set(STATUSES) >= {NAN_LOSS}
    assert not set(FINAL) & set(RESUMABLE)
    assert all(limit.patience >= 1 and limit.meaning for limit in LIMITS.values())


@pytest.mark.parametrize(("status", "at", "beyond", "message"), EDGES, ids=[e[0] for e in EDGES])
def test_limit_ends_a_run_beyond_it_and_not_at_it(
    status: str, at: dict[str, Any], beyond: dict[str, Any], message: str
) -> None:
    patience = LIMITS[status].patience
    look_at(Watch(), 0, 3 * patience, at)
    with pytest.raises(RunEnded, match=f"^{re.escape(message)}") as ended:
        look_at(Watch(), 7, patience, beyond)
    assert ended.value.status == status
    assert ended.value.line == a_line(6 + patience, **(HEALTHY | beyond))
    assert f"for {patience} steps up to step {6 + patience}; " in str(ended.value)
    assert str(ended.value).endswith(LIMITS[status].meaning)


@pytest.mark.parametrize(("status", "at", "beyond", "message"), EDGES, ids=[e[0] for e in EDGES])
def test_patience_counts_consecutive_steps(
    status: str, at: dict[str, Any], beyond: dict[str, Any], message: str
) -> None:
    patience, watch = LIMITS[status].patience, Watch()
    for first in range(0, 4 * patience, patience):
        look_at(watch, first, patience - 1, beyond)
        look_at(watch, first + patience - 1, 1, at)
    assert not any(watch.beyond.values())
    look_at(watch, 0, patience - 1, beyond)
    again = Watch(dict(watch.beyond))  # as a resumed run has it
    with pytest.raises(RunEnded):
        look_at(again, patience - 1, 1, beyond)


def test_a_step_without_updates_has_not_skipped_them_all() -> None:
    look_at(Watch(), 0, 9, {"updates": 0, "skipped_updates": 0})


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("status", "figure", "value", "message"),
    [
        (NAN_LOSS, "logprobs", NAN, r"1 of \d+ log-probs of the policy"),
        (NAN_LOSS, "logprobs", -INF, r"1 of \d+ log-probs of the policy"),
        (NAN_LOSS, "scores", INF, "1 of 12 scores"),
        (VALUE_DIVERGENCE, "values", INF, r"1 of \d+ values"),
        (KL_EXPLOSION, "penalty", INF, r"1 of \d+ log-ratios"),
    ],
)
def test_figures_that_are_not_finite_end_a_run_with_their_name(
    status: str, figure: str, value: float, message: str
) -> None:
    _, experience = stepped()
    check_finite(experience, 3)
    broken = poisoned(experience, figure, value, real=True)
    with pytest.raises(RunEnded, match=f"^{message} are not finite in step 3$") as ended:
        check_finite(broken, 3)
    assert ended.value.status == status
    assert ended.value.line is None
    if figure != "scores":
        check_finite(poisoned(experience, figure, value, real=False), 3)


def poisoned(experience: Experience, figure: str, value: float, *, real: bool) -> Experience:
    """With ``value`` at the first real token, or in a masked slot."""
    if figure == "scores":
        scores = experience.scored.scores.clone()
        scores[0] = value
        return scored(experience, scores=scores)
    mask = experience.given.mask if real else ~experience.given.mask
    row, column = mask.nonzero()[0].tolist()
    source = experience if figure == "penalty" else experience.scored
    x = getattr(source, figure).clone()
    x[row, column] = value
    if figure == "penalty":
        return scored(experience, penalty=x)
    return scored(experience, **{figure: x})


def test_what_out_of_memory_is() -> None:
    class AcceleratorError(RuntimeError):
        """What torch raises for errors of a device."""

    for error in (
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't "
            "allocate memory: you tried to allocate 8 bytes. Error code 12"
        ),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        AcceleratorError("CUDA error: out of memory"),
    ):
        assert is_out_of_memory(error), error
    for other in (
        RuntimeError("shape mismatch"),
        OSError("not enough memory"),
        ValueError("out of memory"),
        KeyboardInterrupt(),
    ):
        assert not is_out_of_memory(other), other


def test_torchs_own_cpu_allocator_is_recognised() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(raised.value)
