"""H3's metric functions on adversarial rewards and values: laws, limits, and what must be exact."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from torch import Tensor

from precision_lib.forensics.h3.updates import (
    HeadFormats,
    UpdateSettings,
    of_configuration,
    predictions_over_updates,
)
from precision_lib.forensics.observed_format import ENOUGH, observed_format
from precision_lib.formats import FORMATS, get_format, round_to, ulp
from precision_lib.metrics import values as h3
from precision_lib.metrics.stagnation import (
    critical_magnitude,
    stagnation_at,
    stagnation_rates,
)
from precision_lib.models.value_head import ValueHead, fit_value_head
from precision_lib.ppo import advantages

SETTINGS = settings(max_examples=40, deadline=None, derandomize=True, database=None)
#: A deviation of this many standard errors has a probability of 7e-6 under the null hypothesis.
SIGMAS = 4.5


def ragged_mask(generator: torch.Generator, sequences: int, length: int) -> Tensor:
    lengths = torch.randint(1, length + 1, (sequences,), generator=generator)
    return torch.arange(length) < lengths.unsqueeze(1)


def rewards_at_the_end(scores: Tensor, mask: Tensor) -> Tensor:
    last = mask.sum(1) - 1
    return torch.zeros(mask.shape).scatter(1, last.unsqueeze(1), scores.float().unsqueeze(1))


@pytest.mark.parametrize("fmt", ["bf16", "fp16", "fp32"])
@SETTINGS
@given(
    seed=st.integers(0, 2**32 - 1),
    sequences=st.integers(2, 12),
    length=st.integers(1, 20),
    log10_scale=st.integers(-3, 4),
    offset=st.sampled_from([0.0, 1.0, -100.0, 3e4]),
)
@example(seed=0, sequences=2, length=1, log10_scale=0, offset=0.0)
def test_quantities_are_finite_and_zero_for_the_golden_itself(
    fmt: str, seed: int, sequences: int, length: int, log10_scale: int, offset: float
) -> None:
    """Any scale and offset; a prediction beyond fp16 counts as such and enters nothing else."""
    generator = torch.Generator().manual_seed(seed)
    mask = ragged_mask(generator, sequences, length)
    golden = torch.randn(int(mask.sum()), generator=generator) * 10.0**log10_scale + offset
    rewards = rewards_at_the_end(torch.randn(sequences, generator=generator) + offset, mask)
    stored = golden.to(get_format(fmt).dtype)
    found = h3.finite_quantities(stored, golden, rewards, mask)
    assert {len(q) for q in found.values()} == {int(mask.sum())}
    assert all(torch.isfinite(q).all() for q in found.values())
    assert float(found["nonfinite"].sum()) == float((~torch.isfinite(stored)).sum())
    same = h3.finite_quantities(golden, golden, rewards, mask)
    assert float(same["error2"].sum()) == float(same["td_zero"].sum()) == 0


@pytest.mark.parametrize("fmt", ["bf16", "fp16"])
@SETTINGS
@given(
    seed=st.integers(0, 2**32 - 1),
    log2_offset=st.integers(0, 6),
    heavy=st.booleans(),
)
@example(seed=0, log2_offset=6, heavy=True)
def test_advantage_error_of_rounded_values_follows_the_law(
    fmt: str, seed: int, log2_offset: int, heavy: bool
) -> None:
    """Offsets up to 64 deviations, normal and heavy-tailed: the law holds where the step is small.

    The mean of M squared errors, each about 1.8 times as variable as a normal one's square would
    be (whatever its tails, an error is bounded by steps), is known to sqrt(2 / M) at most; errors
    of neighbouring tokens are correlated over 1 / (1 - lambda) = 20 tokens.
    """
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(64, 64, dtype=torch.bool)
    noise = torch.randn(mask.numel(), generator=generator)
    spread = noise.sign() * noise.abs() ** 1.5 if heavy else noise
    golden = spread + 2.0**log2_offset
    rewards = rewards_at_the_end(torch.randn(64, generator=generator), mask)
    derived = h3.predicted_advantage_error(golden, rewards, mask, fmt)
    stored = golden.to(get_format(fmt).dtype)
    error2 = h3.value_quantities(stored, golden, rewards, mask)["error2"]
    independent = mask.numel() * (1 - h3.LAMBDA)
    relative = float(error2.mean()) / derived**2 - 1
    assert abs(relative) < SIGMAS * math.sqrt(2 / independent)


@pytest.mark.parametrize("fmt", ["bf16", "fp16"])
@SETTINGS
@given(seed=st.integers(0, 2**32 - 1), log2_move=st.integers(-16, 2), log2_value=st.integers(-4, 9))
def test_stagnation_of_rounded_values_follows_the_law(
    fmt: str, seed: int, log2_move: int, log2_value: int
) -> None:
    """Bernoulli draws over the phase of the grid; the rate's standard error is theirs."""
    generator = torch.Generator().manual_seed(seed)
    before = (1 + torch.rand(4000, generator=generator)) * 2.0**log2_value
    move = torch.randn(4000, generator=generator) * 2.0**log2_move
    twin = torch.stack([before, before + move])
    dtype = get_format(fmt).dtype
    stagnant, moved = h3.moves(twin.to(dtype), twin)
    derived, n = h3.predicted_stagnation(twin, fmt), float(moved.sum())
    error = math.sqrt(max(derived * (1 - derived), 1 / n) / n)
    assert abs(float(stagnant.sum()) / n - derived) < SIGMAS * error


def test_scaling_rewards_and_values_by_a_power_of_two_changes_no_advantage() -> None:
    """The damage has no scale: whitened advantages of rounded values are the same to the bit."""
    generator = torch.Generator().manual_seed(3)
    mask = ragged_mask(generator, 16, 30)
    golden = torch.randn(int(mask.sum()), generator=generator) + 5
    scores = torch.randn(16, generator=generator)

    def advantages(factor: float) -> Tensor:
        rewards = rewards_at_the_end(scores * factor, mask)
        return h3.whitened_advantages((golden * factor).bfloat16(), rewards, mask)

    assert torch.equal(advantages(1.0), advantages(2.0**10))


def test_td_errors_by_hand() -> None:
    """r_t + V_(t+1) - V_t, nothing behind the last real token; padding is not counted."""
    mask = torch.tensor([[True, True], [True, False]])
    values, rewards = torch.tensor([1.0, 3.0, 5.0]), torch.tensor([[0.0, 10.0], [7.0, 0.0]])
    assert h3.td_errors(values, rewards, mask).tolist() == [2.0, 7.0, 2.0]


def test_a_td_error_that_rounding_swallows_is_counted() -> None:
    """256 and 256.5 are one number in bf16, where the step is 2."""
    mask, rewards = torch.ones(2, 2, dtype=torch.bool), torch.zeros(2, 2)
    golden = torch.tensor([256.0, 256.5, 1.0, 2.0])
    found = h3.value_quantities(golden.bfloat16(), golden, rewards, mask)
    assert found["td_zero"].tolist() == [1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("rates", "wanted"),
    [
        ((0.0, 0.25, 0.75, 1.0), 10.0**1.5),
        ((0.0, 0.5, 1.0, 1.0), 10.0),
        ((0.0, 0.1, 0.2, 0.3), 1000.0),  # never: the end of the grid
        ((0.9, 1.0, 1.0, 1.0), 1.0),  # from the start
    ],
)
def test_critical_magnitude_by_hand(rates: tuple[float, ...], wanted: float) -> None:
    grid = (1.0, 10.0, 100.0, 1000.0)
    totals: dict[str, np.ndarray] = {}
    for magnitude, rate in zip(grid, rates, strict=True):
        stagnant, moved = stagnation_at(magnitude)
        totals |= {stagnant: np.array([rate, rate]), moved: np.array([1.0, 1.0])}
    # log10 and its inverse: a handful of roundings.
    assert critical_magnitude(totals) == pytest.approx([wanted, wanted], rel=2**-48)


def test_crossing_by_hand() -> None:
    assert h3.crossing((0.0, 1.0, 100.0), (0.0, 0.1, 10.0), 1.0) == pytest.approx(10.0, rel=2**-48)
    assert h3.crossing((1.0, 10.0), (0.1, 0.2), 0.3) is None
    assert h3.crossing((1.0, 10.0), (0.5, 0.9), 0.3) == 1.0, "above from the start"
    assert h3.crossing((0.0, 10.0), (0.1, 0.5), 0.3) == pytest.approx(5.0, rel=2**-48)


@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
def test_gain_of_independent_value_errors_is_that_of_gae_itself(lam: float) -> None:
    """GAE is linear in the values: row 0 of its matrix, squared and summed, is the gain.

    200 tokens from the end the rest of the series is below lam^400 = 1e-9, or 0 for lam = 1.
    """
    length = 200
    unit = torch.eye(length, dtype=torch.float64)
    mask = torch.ones(length, length, dtype=torch.bool)
    response, _ = advantages.gae(torch.zeros_like(unit), unit, mask, 1.0, lam)
    gain = float(response[:, 0].square().sum())
    tail = lam ** (2 * length) if lam < 1 else 0.0
    assert abs(gain - h3.rounding_gain(lam)) <= tail + length * 2.0**-52


def test_magnitudes_at_which_the_twin_stands_still_say_nothing() -> None:
    """The rate before them is kept: a twin that lost its own moves is no cure."""
    totals: dict[str, np.ndarray] = {}
    for magnitude, (stagnant, moved) in enumerate([(1.0, 10.0), (9.0, 10.0), (0.0, 0.0)]):
        names = stagnation_at(float(magnitude))
        totals |= {names[0]: np.array([stagnant]), names[1]: np.array([moved])}
    assert stagnation_rates(totals)[:, 0].tolist() == [0.1, 0.9, 0.9]


def small_task(seed: int = 0) -> tuple[ValueHead, Tensor, Tensor, Tensor]:
    """(head, hidden, returns, mask): a critic that explains part of noisy returns."""
    generator = torch.Generator().manual_seed(seed)
    mask = ragged_mask(generator, 48, 12)
    hidden = torch.randn(int(mask.sum()), 16, generator=generator)
    scores = torch.randn(48, generator=generator) + 2
    returns = scores.unsqueeze(1).expand(mask.shape)
    return fit_value_head(hidden, returns[mask]), hidden, returns, mask


def test_predictions_over_updates_are_those_of_a_plain_training_loop() -> None:
    """The FP32 head against AdamW written down by hand, one minibatch of all sequences."""
    fitted, hidden, returns, mask = small_task()
    head = ValueHead(fitted.weight + 0.25, fitted.bias)  # at the optimum the gradient is noise
    taken = UpdateSettings(steps=1, sequences=len(mask))
    got = predictions_over_updates(head, hidden, returns, mask, of_configuration("fp64"), taken)
    h, w, b = hidden.double(), head.weight.double(), head.bias.double()
    residual = (h @ w + b) - returns[mask].double()
    gradient = torch.cat([(residual @ h), residual.sum().unsqueeze(0)]) / mask.sum()
    # The first step of Adam: m / (sqrt(v) + eps) with both moments bias-corrected.
    step = taken.learning_rate * gradient / (gradient.abs() + 1e-8)
    want = h @ (w - step[:-1]) + (b - step[-1])
    assert got.shape == (2, len(hidden))
    assert torch.equal(got[0], torch.nn.functional.linear(h, w.unsqueeze(0), b.unsqueeze(0))[:, 0])
    # Float64 throughout: a dot product of 17 terms and a handful of operations of Adam.
    limit = 64 * FORMATS["fp64"].unit_roundoff * float(h.abs().sum(1).max() + 1)
    assert float((got[1] - want).abs().max()) <= limit


@pytest.mark.parametrize("formats", [HeadFormats("bf16", "fp32"), HeadFormats("fp32", "bf16")])
def test_each_cause_rounds_in_its_own_place_only(formats: HeadFormats) -> None:
    head, hidden, _, _ = small_task()
    got = formats.predict(hidden, head.weight, head.bias).detach()
    inputs = [
        x.bfloat16().float() if formats.inputs == "bf16" else x for x in (hidden, head.weight)
    ]
    bias = head.bias.bfloat16().float() if formats.inputs == "bf16" else head.bias
    exact = inputs[0].double() @ inputs[1].double() + bias.double()
    limit = 20 * FORMATS["fp32"].unit_roundoff * float(exact.abs().max() + 16)
    if formats.stored == "bf16":
        assert torch.equal(round_to(got, FORMATS["bf16"]), got.double())
        assert float((got.double() - exact).abs().max()) > limit
        assert bool(((got.double() - exact).abs() <= ulp(exact, FORMATS["bf16"])).all())
    else:
        assert float((got.double() - exact).abs().max()) <= limit


def test_a_head_without_master_weights_loses_small_updates_for_good() -> None:
    """Weights near 1 have a bf16 step of 2**-7; an update of 1e-5 rounds to nothing, every time."""
    _, hidden, returns, mask = small_task()
    head = ValueHead(torch.full((16,), 1.5), torch.tensor(1.5))
    taken = UpdateSettings(steps=3, sequences=len(mask))
    kept = predictions_over_updates(head, hidden, returns, mask, of_configuration("fp32"), taken)
    lost = predictions_over_updates(
        head, hidden, returns, mask, HeadFormats("fp32", "fp32", master="bf16"), taken
    )
    assert h3.update_error(lost, kept) == 1.0
    assert h3.update_error(kept, kept) == 0.0


@pytest.mark.parametrize("fmt", ["bf16", "fp16"])
def test_laundered_numbers_are_seen(fmt: str) -> None:
    """The planted fault and the clean case of the detector, at its own minimum."""
    x = torch.linspace(0.1, 0.9, 2 * ENOUGH)
    assert observed_format(x) == "fp32"
    assert observed_format(x.to(get_format(fmt).dtype)) == fmt
    assert observed_format(x.to(get_format(fmt).dtype).float()) == f"{fmt} in fp32"
    few = x.to(get_format(fmt).dtype).float()[: ENOUGH - 1]
    assert observed_format(few) == "fp32", "so few numbers prove nothing"
    assert observed_format(torch.arange(100.0)) == "fp32", "small integers lie on every grid"


def test_a_twin_that_never_moves_leaves_finite_figures() -> None:
    """At 1e8 an FP32 step is 8 and no update of 1e-5 shows: a record has no place for 0 / 0."""
    still = torch.full((3, 5), 1e8)
    assert h3.predicted_stagnation(still, "bf16") == 1.0
    assert h3.update_error(still, still) == 1.0
    assert [float(x.sum()) for x in h3.moves(still, still)] == [0.0, 0.0]
