"""What has to hold in the first step of every run; a run in which it does not measures nothing.

The hazard. A PPO with a shifted mask, a reference in another format than asked for, or dropout left
on trains, and its reward rises. Each of these is a precision study of the wrong program. The checks
are exact where the quantity is exact, and otherwise within a bound that follows from FP32 rounding.
"""

import torch
from torch import Tensor

from precision_lib.forensics.observed import observed_format
from precision_lib.formats import FORMATS, format_of
from precision_lib.training.rollout import Experience, Models
from precision_lib.training.settings import PPOSettings
from precision_lib.training.update import Updates
from precision_lib.training.weights import Weights

U = FORMATS["fp32"].unit_roundoff


class InvariantError(RuntimeError):
    """A PPO invariant does not hold: the numbers of this run would mean something else."""


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise InvariantError(f"PPO invariant broken: {message}")


def check_models(models: Models, weights: Weights) -> None:
    """Evaluation mode everywhere (no dropout), and masters, moments and gradient in FP32."""
    for name, model in (
        ("policy", weights.working),
        ("reference", models.reference),
        ("reward", models.reward),
    ):
        _require(
            not any(module.training for module in model.modules()),
            f"the {name} model is in training mode: dropout would make its ratio random",
        )
    state = weights.optimizer.state.get(weights.master, {})
    for name, tensor in (
        ("master weights", weights.master),
        ("gradient", weights.gradient),
        ("Adam's first moment", state.get("exp_avg", weights.master)),
        ("Adam's second moment", state.get("exp_avg_sq", weights.master)),
    ):
        _require(tensor.dtype == torch.float32, f"{name} are {tensor.dtype}, not float32")


def observed_formats(models: Models, weights: Weights, experience: Experience) -> dict[str, str]:
    """Component to the format that was seen at run time: parameters, and what came out."""
    scored = experience.scored
    seen = {
        "policy": _parameters(weights.working),
        "reference": _parameters(models.reference),
        "reward": _parameters(models.reward),
        "value": observed_format(scored.values[experience.given.mask]),
        "kl": observed_format(scored.logprobs[experience.given.mask]),
    }
    for name, logits in scored.logits_format.items():
        if logits != seen[name]:
            seen[name] = f"{seen[name]}, logits {logits}"
    scores = format_of(scored.scores.dtype).name
    return seen if scores == seen["reward"] else seen | {"reward": f"scores {scores}"}


def _parameters(model: object) -> str:
    parameters = model.parameters()  # type: ignore[attr-defined]  # transformers is untyped
    return "+".join(sorted({format_of(p.dtype).name for p in parameters}))


def check_formats(models: Models, observed: dict[str, str]) -> None:
    """Every component runs in the format that the configuration asks for."""
    for component, wanted in models.configuration.components.items():
        _require(
            observed[component] == wanted,
            f"{component} runs in {observed[component]}, {models.configuration.name} asks for "
            f"{wanted}",
        )


def check_start(models: Models, experience: Experience) -> None:
    """KL(policy, reference) is exactly 0 while both are the same weights in the same format."""
    formats, pipeline = models.configuration, models.pipeline
    if pipeline.reference is pipeline.policy and formats.policy == formats.reference:
        d = experience.penalty[experience.given.mask]
        wrong = int((d != 0).sum())
        _require(
            wrong == 0,
            f"{wrong} of {d.numel()} log-ratios are not 0 although policy and reference are the "
            f"same weights in {formats.policy}",
        )


def check_experience(
    experience: Experience, kl_coefficient: float, scores: Tensor | None = None
) -> None:
    """The penalty is on every token, the score on the last, advantages are white over real tokens.

    Bounds: each reward is at most three FP32 operations away from its exact value; a whitened
    advantage is rounded once, so that the mean of n of them is off by at most u mean |a|.
    """
    mask = experience.given.mask
    score = (experience.scored.scores if scores is None else scores).double()
    exact = -kl_coefficient * torch.where(mask, experience.penalty.double(), 0)
    exact.scatter_add_(1, mask.sum(1, keepdim=True) - 1, score.unsqueeze(1))
    size = exact.abs() + kl_coefficient * torch.where(mask, experience.penalty.double(), 0).abs()
    error = (experience.rewards.double() - exact).abs()
    wrong = int((error > 3 * U * (size + score.abs().unsqueeze(1) * (exact != 0))).sum())
    _require(
        wrong == 0,
        f"{wrong} rewards are not -kl_coefficient * KL per token plus the score at the last one",
    )
    a = experience.advantages.double()
    _require(bool((a[~mask] == 0).all()), "advantages are not 0 on padding")
    real = a[mask]
    if len(real) < 2 or not bool(real.any()):
        return
    off, spread = abs(float(real.mean())), float(real.std())
    _require(
        off <= 2 * U * float(real.abs().mean()) and abs(spread - 1) <= 4 * U,
        f"advantages have mean {off:.2g} and deviation {spread:.9g} over real tokens",
    )


def check_first_update(found: Updates) -> None:
    """The ratio is bitwise 1, and approx-KL exactly 0, before any update."""
    report = found.ratios[0]
    _require(
        found.first_log_ratio == 0 and report.approx_kl == 0 and report.clip_frac == 0,
        f"the ratio is not 1 before any update: largest log-ratio {found.first_log_ratio:.3g}, "
        f"approx-KL {report.approx_kl:.3g}; old and new log-probs come from different numbers",
    )


def check_clipped(weights: Weights, settings: PPOSettings) -> None:
    """The gradient is FP32 and no longer than allowed; scaling rounds each element once."""
    norm = float(torch.linalg.vector_norm(weights.gradient, dtype=torch.float64))
    _require(
        weights.gradient.dtype == torch.float32 and norm <= settings.max_grad_norm * (1 + 4 * U),
        f"the clipped gradient is {weights.gradient.dtype} with norm {norm:.9g}, allowed is "
        f"{settings.max_grad_norm}",
    )
