"""Gradients of an update against a loss written by hand, micro-batches, clipping, skipped steps."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from precision_lib.casts import Float64Casts
from precision_lib.formats import FORMATS
from precision_lib.record.codec import encode
from precision_lib.runtime import state_put_back
from precision_lib.scoring import forward as teacher_forcing
from precision_lib.training.forward import forward
from precision_lib.training.rollout import Experience
from precision_lib.training.trainer import Run, ppo_step
from precision_lib.training.update import Updates, clip_gradient, minibatch_order, update
from precision_lib.training.weights import Weights, perturbed
from tests.unit.small_runs import NAMES, experience_of, opened, settings

#: Gradients as they are; ratios and values are clipped soon.
CLIPPED: dict[str, Any] = {"max_grad_norm": 1e9, "value_clip_range": 0.01}


def token_terms(
    run: Run, experience: Experience, row: int, dtype: torch.dtype, model: Any, head: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """Sums over the response of a row: the clipped surrogate and the half squared value error."""
    sampled, given = experience.sampled, run.settings
    start, length = int(sampled.prompt_lengths[row]), int(sampled.response_lengths[row])
    tokens = sampled.tokens[row : row + 1, : start + length]
    out = model(input_ids=tokens, output_hidden_states=True, use_cache=False)
    logp = torch.log_softmax(out.logits[0, :-1].to(dtype), -1)
    new = logp.gather(1, tokens[0, 1:, None])[start - 1 :, 0]
    values = (out.hidden_states[-1][0, start - 1 : -1].to(dtype) * head[0]).sum(-1) + head[1]
    old, old_values, advantages, returns = (
        x[row, :length].to(dtype)
        for x in (
            experience.scored.logprobs,
            experience.scored.values,
            experience.advantages,
            experience.returns,
        )
    )
    ratio = torch.exp(new - old)
    limited = ratio.clamp(1 - given.clip_range, 1 + given.clip_range)
    surrogate = -torch.minimum(ratio * advantages, limited * advantages)
    c = given.value_clip_range
    close = torch.maximum(torch.minimum(values, old_values + c), old_values - c)
    error = torch.maximum((values - returns).square(), (close - returns).square()) / 2
    return surrogate.sum(), error.sum()


def gradient_by_hand(
    run: Run, experience: Experience, rows: list[int], dtype: torch.dtype
) -> Tensor:
    """[P + H + 1] float64: autograd of the mean over the real tokens of ``rows``."""
    model = copy.deepcopy(run.weights.golden).to(dtype).requires_grad_(True)
    head = [
        x.detach().to(dtype).requires_grad_(True)
        for x in (run.weights.head_weight, run.weights.head_bias)
    ]
    tokens = int(experience.sampled.response_lengths[rows].sum())
    with Float64Casts() if dtype == torch.float64 else state_put_back():
        terms = [token_terms(run, experience, row, dtype, model, head) for row in rows]
        losses = torch.stack([s + run.settings.value_coefficient * v for s, v in terms])
        (losses.sum() / tokens).backward()
    leaves = [*model.parameters(), *head]
    return torch.cat([leaf.grad.double().view(-1) for leaf in leaves])


@contextmanager
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tensor]]:
    """Gradients of the optimizer steps that would be taken; none is."""
    found: list[Tensor] = []
    with monkeypatch.context() as patch:
        patch.setattr(Weights, "step", lambda self: found.append(self.gradient.double().clone()))
        yield found


def distance(got: Tensor, want: Tensor) -> float:
    return float((got - want).norm() / want.norm())


@pytest.mark.parametrize(("rows", "moved"), [(4, 0.0), (4, 0.1), (2, 0.1), (1, 0.1)])
def test_gradient_is_that_of_the_loss_written_by_hand(
    rows: int, moved: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Autograd of the same formula in float64 is the truth; in FP32 it shows what FP32 can do.

    Ours may be off by twice as much: micro-batches add up in another order. Two minibatches of
    four responses; ``rows`` is how many go into a forward, so that 2 and 1 make micro-batches.
    Weights that were ``moved`` since the rollout bring ratios and values to where they are clipped.
    """
    with opened("fp32_baseline", batch_size=8, value_coefficient=0.5, **CLIPPED) as run:
        experience = experience_of(run)
        lengths = experience.sampled.response_lengths.tolist()
        assert len({*lengths[:4]}) > 1, "equal lengths would hide a mean of means"
        run.weights.master.copy_(perturbed(run.weights.master, moved, seed=1))
        width = experience.given.tokens.shape[1]
        monkeypatch.setitem(teacher_forcing.LOGITS_BYTES, "cpu", rows * width * 257 * 4)
        assert teacher_forcing.rows_per_forward(width, run.weights.working) == rows
        with recorded(monkeypatch) as gradients:
            found = update(run.models, run.weights, experience, run.settings, run.step)
        assert all((r.clip_frac > 0) == (moved > 0) for r in found.ratios)
        for got, members in zip(gradients, ([0, 1, 2, 3], [4, 5, 6, 7]), strict=True):
            want = gradient_by_hand(run, experience, members, torch.float64)
            plain = gradient_by_hand(run, experience, members, torch.float32)
            assert 0 < distance(got, want) <= 2 * distance(plain, want)
            short = gradient_by_hand(run, experience, members[:-1], torch.float64)
            assert distance(short, want) > 1000 * distance(plain, want), "a row left out is seen"


def test_mean_of_micro_batch_means_is_another_gradient() -> None:
    """The planted fault that shares of tokens are there for."""
    with opened("fp32_baseline", minibatches=1, **CLIPPED) as run:
        experience = experience_of(run)
        want = gradient_by_hand(run, experience, [0, 1, 2, 3], torch.float64)
        singles = [gradient_by_hand(run, experience, [r], torch.float64) for r in range(4)]
        shares = experience.sampled.response_lengths / experience.sampled.response_lengths.sum()
        weighted = torch.stack([s * g for s, g in zip(shares.double(), singles, strict=True)])
        assert distance(weighted.sum(0), want) < FORMATS["fp32"].unit_roundoff
        assert distance(torch.stack(singles).mean(0), want) > 0.01


@pytest.mark.parametrize(
    ("name", "rows"),
    [("fp32_baseline", 1), ("fp32_baseline", 3), *zip(NAMES, (1, 2, 2, 3), strict=True)],
)
def test_old_log_probs_come_from_the_shapes_of_the_new_ones(
    name: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Minibatches of four in forwards of 1, 2 or 3 + 1 rows: the ratio is bitwise 1."""
    shapes: dict[str, list[tuple[int, ...]]] = {"old": [], "new": []}

    def watched(key: str) -> Callable[..., Any]:
        def watching(model: Any, given: Any, *arguments: Any, **options: Any) -> Any:
            if model is run.weights.working:
                shapes[key].append(tuple(given.tokens.shape))
            return forward(model, given, *arguments, **options)

        return watching

    for module, key in (("rollout", "old"), ("update", "new")):
        place = f"precision_lib.training.{module}"
        monkeypatch.setattr(f"{place}.rows_per_forward", lambda length, model: rows)
        monkeypatch.setattr(f"{place}.forward", watched(key))
    with opened(name, batch_size=8) as run:
        line = encode(ppo_step(run))
    own = shapes["old"][: len(shapes["new"])]  # the diagnostics come after the rollout
    assert own == shapes["new"]
    assert [shape[0] for shape in own] == 2 * {1: [1, 1, 1, 1], 2: [2, 2], 3: [3, 1]}[rows]
    assert line["first_log_ratio"] == 0


def test_minibatches_come_in_order_first_and_then_shuffled_by_seed_and_step() -> None:
    def order(step: int, **changes: int) -> list[list[int]]:
        wanted = settings(batch_size=8, epochs=3, **changes)
        return [rows.tolist() for rows in minibatch_order(wanted, step)]

    found = order(5)
    assert found[:2] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    for epoch in (found[2:4], found[4:6]):
        assert sorted(epoch[0] + epoch[1]) == list(range(8))
    assert found[2:4] != found[4:6]
    assert found == order(5)
    assert found[2:] != order(6)[2:]
    assert found[2:] != order(5, seed=1)[2:]


def test_clipping_scales_to_the_norm_and_says_what_it_was() -> None:
    gradient = torch.tensor([3.0, 4.0])
    assert clip_gradient(gradient, 5.0) == 5
    assert gradient.tolist() == [3, 4], "at the limit nothing is clipped"
    assert clip_gradient(gradient, 2.5) == 5
    assert gradient.tolist() == [1.5, 2]
    tiny = torch.full((2**20,), 2.0**-10)
    assert clip_gradient(tiny.clone(), 9.0) == 1, "a sum of squares in bf16 stops at 2**-12"
    huge = torch.full((4,), 2.0**100)
    assert clip_gradient(huge, 1.0) == 2.0**101, "squares beyond FP32"
    assert huge.tolist() == [0.5] * 4


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_gradient_that_is_not_finite_is_not_scaled(value: str) -> None:
    gradient = torch.tensor([float(value), 2.0])
    assert not torch.isfinite(torch.tensor(clip_gradient(gradient, 1.0)))
    assert gradient[1] == 2


def poisoned(numbers: set[int], value: float) -> Callable[[Weights], None]:
    """``Weights.collect_gradient`` that leaves ``value`` in the gradients of those calls."""
    real, calls = Weights.collect_gradient, iter(range(10**6))

    def collect(self: Weights) -> None:
        real(self)
        if next(calls) in numbers:
            self.gradient[7] = value

    return collect


@pytest.mark.parametrize(
    ("name", "value"), [("bf16_pure", torch.inf), ("fp32_baseline", torch.nan)]
)
def test_gradient_that_is_not_finite_is_skipped_counted_and_reported(
    name: str, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All three updates of a step: weights and moments keep every bit. Then one of three."""
    with opened(name, batch_size=6, minibatches=3, learning_rate=1e-2) as run:
        ppo_step(run)
        weights, moments = run.weights, run.weights.optimizer.state[run.weights.master]
        kept = [weights.master.clone(), weights.low.clone()]
        kept += [moments[m].clone() for m in ("exp_avg", "exp_avg_sq", "step")]
        with monkeypatch.context() as patch:
            patch.setattr(Weights, "collect_gradient", poisoned({0, 1, 2}, value))
            line = encode(ppo_step(run))
        assert (line["updates"], line["skipped_updates"]) == (3, 3)
        assert line["gradient_norm"] in ("inf", "nan")
        assert line["weights_moved_frac"] == 0
        assert line["values_unchanged_frac"] is None, "no step was taken, nothing stood still"
        assert line["log_ratio_largest"] == line["log_ratio_smallest"] == 0
        now = [weights.master, weights.low, moments["exp_avg"], moments["exp_avg_sq"]]
        assert all(torch.equal(a, b) for a, b in zip(kept, [*now, moments["step"]], strict=True))
        with monkeypatch.context() as patch:
            patch.setattr(Weights, "collect_gradient", poisoned({1}, value))
            line = encode(ppo_step(run))
        assert (line["updates"], line["skipped_updates"]) == (3, 1)
        assert line["weights_moved_frac"] > 0
        assert run.skipped == 4
        assert torch.isfinite(weights.master).all()
        assert moments["step"] == 3 + 0 + 2


def test_values_that_stand_still_are_counted_after_a_step_and_not_before() -> None:
    """With a learning rate that moves no bf16 value all of them do; in FP32 some move."""
    rates = []
    for name in ("bf16_pure", "fp32_baseline"):
        with opened(name, learning_rate=1e-7) as run:
            found = update(run.models, run.weights, experience_of(run), run.settings, run.step)
            assert isinstance(found, Updates)
            second = int(experience_of(run).given.mask[2:].sum())
            assert found.watched == second, "the first minibatch comes before any step"
            rates.append(found.stagnant / found.watched)
    assert rates[0] == 1
    assert rates[1] < 1
