"""Consequences of a core's errors, function by function, on one synthetic batch of a usual kind.

Conformance looks for the worst input; a user's loss is measured here on ordinary input: a policy
near its reference, confident tokens, rewards with an offset. Only the function under test varies:
everything around it is float64, and the truth is the oracle's on the same rounded input. The batch
is seeded, and the figures are those of this batch.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from precision_lib import oracle
from precision_lib.conformance import consequences
from precision_lib.formats import get_format
from precision_lib.runtime import state_put_back

CLIP = 0.2
FORMATS_MEASURED = ("fp32", "bf16")
_SEQUENCES, _TOKENS, _VOCABULARY = 16, 64, 512
Measured = dict[str, float]
#: Metric to its value, or ``raised`` to what was raised.
Figures = dict[str, float | str]


def measure(functions: Mapping[str, Callable[..., Any]]) -> dict[str, dict[str, Figures]]:
    """Function of PPO to format to figures, or what was raised; what one leaves is undone."""
    measured: dict[str, dict[str, Figures]] = {}
    for name in filter(_SCENES.__contains__, functions):
        function = functions[name]
        for fmt in FORMATS_MEASURED:
            try:
                with state_put_back():
                    figures: Figures = {**_SCENES[name](function, get_format(fmt).dtype)}
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # somebody's function may leave the process or skip
                figures = {"raised": f"{type(error).__name__}: {error}"}
            measured.setdefault(name, {})[fmt] = figures
    return measured


def _draws(seed: int) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)


def _exact(function: Callable[..., Any], *tensors: Tensor, **options: Any) -> Tensor:
    """The oracle on the tensors' own values."""
    given = (x.double().numpy() if x.is_floating_point() else x.numpy() for x in tensors)
    return torch.as_tensor(function(*given, **options))


def _mask(rows: int, width: int) -> Tensor:
    return torch.ones(rows, width, dtype=torch.bool)


def _rms_error(got: Tensor, want: Tensor) -> float:
    """RMS error over RMS."""
    return float((got.double() - want).square().mean().sqrt() / want.square().mean().sqrt())


def _token_logprobs(function: Callable[..., Any], dtype: torch.dtype) -> Measured:
    """Log-ratios of about 0.1 nats; the PPO loss around them in float64."""
    draw = _draws(1)
    shape = (_SEQUENCES, _TOKENS, _VOCABULARY)
    base = 3 * draw(*shape)
    old, new = base.to(dtype), (base + 0.1 * draw(*shape)).to(dtype)
    tokens = torch.softmax(base, -1).cumsum(-1)  # sampled: the first entry beyond a uniform draw
    uniform = (draw(*shape[:2], 1) / 2**0.5).erf().add(1).div(2)
    tokens = (tokens < uniform).sum(-1).clamp(max=_VOCABULARY - 1)
    advantages = draw(*shape[:2])
    want = [_exact(oracle.token_logprobs, x, tokens) for x in (new, old)]
    leaf = new.clone().requires_grad_(True)
    got = function(logits=leaf, tokens=tokens)
    with torch.no_grad():
        before = function(logits=old.clone(), tokens=tokens).double()
    ratio = (got.double() - before).exp()
    loss = -torch.minimum(ratio * advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * advantages).mean()
    (gradient,) = torch.autograd.grad(loss, leaf)
    chain = _exact(
        partial(oracle.policy_loss_gradient, mask=_mask(*shape[:2]).numpy(), clip_range=CLIP),
        *want,
        advantages,
    )
    right = _exact(oracle.token_logprobs_gradient, new, tokens, upstream=chain.numpy())
    log_ratio = (got.detach().double() - before, want[0] - want[1])
    return {
        "log_ratio_rms_error": _rms_error(*log_ratio),
        "clip_decisions_flipped": consequences.clip_decisions_flipped(*log_ratio, advantages, CLIP),
        "gradient_cosine": consequences.gradient_cosine(gradient, right),
    }


def _entropy(function: Callable[..., Any], dtype: torch.dtype) -> Measured:
    """Confident tokens, as in a trained policy; then the same with one entry masked."""
    draw = _draws(2)
    logits = 2 * draw(_SEQUENCES, _TOKENS, _VOCABULARY) + 10
    logits[..., 0] += 18 + 2 * draw(_SEQUENCES, _TOKENS)
    given = logits.to(dtype)
    want, got = _exact(oracle.entropy, given), function(logits=given.clone()).double()
    masked = given.clone()
    masked[..., -1] = -torch.inf
    return {
        "median_relative_error": float(((got - want).abs() / want).median()),
        "negative": float((got < 0).double().mean()),
        "not_finite_with_a_masked_entry": float(
            (~torch.isfinite(function(logits=masked))).double().mean()
        ),
    }


def _kl_penalty(function: Callable[..., Any], dtype: torch.dtype) -> Measured:
    """k3 of a policy 3e-4 nats from its reference."""
    draw = _draws(3)
    policy = -2 * draw(_SEQUENCES, _TOKENS).abs()
    given = policy.to(dtype), (policy + 3e-4 * draw(_SEQUENCES, _TOKENS)).to(dtype)
    leaf = given[0].clone().requires_grad_(True)
    got = function(policy_logprobs=leaf, ref_logprobs=given[1].clone(), estimator="k3")
    want = _exact(oracle.kl_penalty, *given, estimator="k3")
    (gradient,) = torch.autograd.grad(got.double().sum(), leaf)
    upstream = torch.ones_like(want).numpy()
    right = _exact(oracle.kl_penalty_gradient, *given, estimator="k3", upstream=upstream)
    return {
        "mean_kl_over_true": float(got.detach().double().mean() / want.mean()),
        "negative": float((got < 0).double().mean()),
        "gradient_cosine": consequences.gradient_cosine(gradient, right),
    }


def _masked_mean(function: Callable[..., Any], dtype: torch.dtype) -> Measured:
    draw, mask = _draws(4), _mask(_SEQUENCES, _TOKENS)
    x = (draw(_SEQUENCES, _TOKENS) + 1).to(dtype)
    want = float(_exact(oracle.masked_mean, x, mask))
    return {"relative_error": abs(float(function(x=x.clone(), mask=mask)) / want - 1)}


def _advantages(got: Tensor, want: Tensor) -> Measured:
    return {
        "rms_error": _rms_error(got, want),
        "signs_flipped": consequences.signs_flipped(got.double(), want),
    }


def _whiten(function: Callable[..., Any], dtype: torch.dtype) -> Measured:
    draw, mask = _draws(5), _mask(_SEQUENCES, _TOKENS)
    x = (draw(_SEQUENCES, _TOKENS) + 0.5).to(dtype)
    return _advantages(function(x=x.clone(), mask=mask), _exact(oracle.whiten, x, mask))


def _group_advantages(function: Callable[..., Any], dtype: torch.dtype) -> Measured:
    """Scores of a reward model, offset by 10 spreads; then groups that all get the same reward."""
    draw = _draws(6)
    rewards = (5 + 0.5 * draw(64, 8)).to(dtype)
    got, want = function(rewards=rewards.clone()), _exact(oracle.group_advantages, rewards)
    equal = torch.linspace(0.05, 1, 20, dtype=torch.float64).to(dtype)[:, None].repeat(1, 8)
    return _advantages(got, want) | {
        "rank_inversions": consequences.rank_inversions(got.double(), want),
        "largest_for_equal_rewards": float(function(rewards=equal.clone()).abs().max()),
    }


def _gae(function: Callable[..., Any], dtype: torch.dtype) -> Measured:
    """512 tokens, a KL penalty on each and a score on the last."""
    draw, mask = _draws(7), _mask(_SEQUENCES, 512)
    rewards = 1e-3 * draw(_SEQUENCES, 512)
    rewards[:, -1] += 1 + draw(_SEQUENCES)
    given = rewards.to(dtype), (0.5 + 0.3 * draw(_SEQUENCES, 512)).to(dtype)
    advantages, returns = function(
        rewards=given[0].clone(), values=given[1].clone(), mask=mask, gamma=1.0, lam=0.95
    )
    exact = (x.double().numpy() for x in given)
    want = [
        torch.as_tensor(x) for x in oracle.gae(next(exact), next(exact), mask.numpy(), 1.0, 0.95)
    ]
    told = {} if advantages is None else _advantages(advantages, want[0])
    return told | {"returns_rms_error": _rms_error(returns, want[1])}


def _losses(
    kind: str, truth: Callable[..., Any], function: Callable[..., Any], dtype: torch.dtype
) -> Measured:
    """The gradient of one micro-batch; policies 0.1 nats apart, values 0.3 from the old ones."""
    draw, mask = _draws(8), _mask(_SEQUENCES, _TOKENS)
    shape = (_SEQUENCES, _TOKENS)
    first = -2 * draw(*shape).abs() if kind == "policy" else draw(*shape)
    scale = 0.1 if kind == "policy" else 0.3
    given = [x.to(dtype) for x in (first, first + scale * draw(*shape), draw(*shape))]
    names = {
        "policy": ("logprobs", "old_logprobs", "advantages"),
        "value": ("values", "old_values", "returns"),
    }[kind]
    leaf = given[0].clone().requires_grad_(True)
    inputs = dict(zip(names, (leaf, given[1].clone(), given[2].clone()), strict=True))
    (gradient,) = torch.autograd.grad(function(**inputs, mask=mask, clip_range=CLIP), leaf)
    right = _exact(partial(truth, mask=mask.numpy(), clip_range=CLIP), *given)
    return {"gradient_cosine": consequences.gradient_cosine(gradient, right)}


_SCENES: dict[str, Callable[[Callable[..., Any], torch.dtype], Measured]] = {
    "token_logprobs": _token_logprobs,
    "entropy": _entropy,
    "kl_penalty": _kl_penalty,
    "masked_mean": _masked_mean,
    "whiten": _whiten,
    "gae": _gae,
    "group_advantages": _group_advantages,
    "policy_loss": partial(_losses, "policy", oracle.policy_loss_gradient),
    "value_loss": partial(_losses, "value", oracle.value_loss_gradient),
}
