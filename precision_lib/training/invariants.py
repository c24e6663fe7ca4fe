"""What has to hold in the first step of every run; a run in which it does not measures nothing.

The hazard. A PPO with a shifted mask, a reference in another format than asked for, or dropout left
on trains, and its reward rises. Each of these is a precision study of the wrong program. The checks
are exact where the quantity is exact, and otherwise within a bound that follows from FP32 rounding.
A NaN passes none of them: comparisons say what holds, not what is wrong.
"""

import torch
from torch import Tensor

from precision_lib.forensics.observed_format import observed_format
from precision_lib.formats import FORMATS, format_of
from precision_lib.training.rollout import Experience, TrainingModels
from precision_lib.training.settings import PPOSettings
from precision_lib.training.update import Updates
from precision_lib.training.weights import Weights

U = FORMATS["fp32"].unit_roundoff


class InvariantError(RuntimeError):
    """A PPO invariant does not hold: the numbers of this run would mean something else."""


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise InvariantError(f"PPO invariant broken: {message}")


def check_models(models: TrainingModels, weights: Weights) -> None:
    """Evaluation mode everywhere: no dropout."""
    for name, model in (
        ("policy", weights.working),
        ("reference", models.reference),
        ("reward", models.reward),
    ):
        _require(
            not any(module.training for module in model.modules()),
            f"the {name} model is in training mode: dropout would make its ratio random",
        )


def check_optimizer(weights: Weights) -> None:
    """Masters, gradient and, from the first update on, Adam's moments are FP32."""
    moments = weights.optimizer.state.get(weights.master, {})
    for name, tensor in (
        ("the master weights", weights.master),
        ("the gradient", weights.gradient),
        ("Adam's first moment", moments.get("exp_avg")),
        ("Adam's second moment", moments.get("exp_avg_sq")),
    ):
        _require(
            tensor is None or tensor.dtype == torch.float32,
            f"{name} should be float32, found {tensor.dtype if tensor is not None else None}",
        )


def observed_formats(
    models: TrainingModels, weights: Weights, experience: Experience
) -> dict[str, str]:
    """Component to the format that was seen at run time: parameters, and what came out."""
    scored, mask = experience.scored, experience.given.mask
    seen = {
        "policy": {_parameters(weights.working), scored.logits_format["policy"]},
        "reference": {_parameters(models.reference), scored.logits_format["reference"]},
        "reward": {_parameters(models.reward), observed_format(scored.scores)},
        "value": {observed_format(scored.values[mask])},
        "kl": {
            observed_format(scored.logprobs[mask]),
            observed_format(scored.ref_logprobs[mask]),
            format_of(experience.penalty.dtype).name,  # a difference needs fewer digits
        },
    }
    if models.configuration.rollout:
        seen["rollout"] = {experience.rollout_format}
    return {component: " and ".join(sorted(formats)) for component, formats in seen.items()}


def _parameters(model: object) -> str:
    parameters = model.parameters()  # type: ignore[attr-defined]  # transformers is untyped
    return "+".join(sorted({format_of(p.dtype).name for p in parameters}))


def check_formats(models: TrainingModels, observed: dict[str, str]) -> None:
    """Every component runs in the format that the configuration asks for."""
    for component, wanted in models.configuration.components.items():
        _require(
            observed[component] == wanted,
            f"{component} runs in {observed[component]}, {models.configuration.name} asks for "
            f"{wanted}",
        )


def check_start(models: TrainingModels, experience: Experience) -> None:
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


def check_rewards(experience: Experience, kl_coefficient: float) -> None:
    """The penalty is on every real token, the score is added on the last one and nowhere else.

    Bound: the coefficient, its product with the KL, and the sum are rounded once each, so that a
    reward is off by at most 3 u times the sum of the magnitudes that went into it.
    """
    mask = experience.given.mask
    penalty = -kl_coefficient * torch.where(mask, experience.penalty.double(), 0)
    last, score = mask.sum(1, keepdim=True) - 1, experience.scored.scores.double().unsqueeze(1)
    exact = penalty.scatter_add(1, last, score)
    magnitude = penalty.abs().scatter_add(1, last, score.abs())
    holds = (experience.rewards.double() - exact).abs() <= 3 * U * magnitude
    _require(
        bool(holds.all()),
        f"{int((~holds).sum())} rewards are not -kl_coefficient * KL per token plus the score at "
        "the last one",
    )


def check_advantages(experience: Experience) -> None:
    """Advantages are 0 on padding; over real tokens they have mean 0 and deviation 1, or are all 0.

    Bound: they are whitened in float64 and rounded once, so that the mean of n of them is off by
    at most u mean |a| and the deviation by u, each doubled for float64 and the second order.
    """
    mask, a = experience.given.mask, experience.advantages.double()
    _require(bool((a[~mask] == 0).all()), "advantages are not 0 on padding")
    real = a[mask]
    if len(real) < 2 or bool((real == 0).all()):
        return
    off, spread = abs(float(real.mean())), float(real.std())
    _require(
        off <= 2 * U * float(real.abs().mean()) and abs(spread - 1) <= 2 * U,
        f"advantages have mean {off:.2g} and deviation {spread:.9g} over real tokens",
    )


def check_first_update(found: Updates) -> None:
    """The ratio is bitwise 1, and approx-KL exactly 0, before any update."""
    report = found.ratios[0]
    figures = report.smallest_log_ratio, report.largest_log_ratio, report.approx_kl
    _require(
        all(figure == 0 for figure in (*figures, report.clip_frac)),
        f"the ratio is not 1 before any update: largest log-ratio {found.first_log_ratio:.3g}, "
        f"approx-KL {report.approx_kl:.3g}; old and new log-probs come from different numbers",
    )


def check_clipped(gradient: Tensor, settings: PPOSettings) -> None:
    """The gradient is FP32 and no longer than allowed.

    Bound: the scale and each scaled element are rounded once, so that the norm is too long by at
    most 2 u, doubled for the second order.
    """
    norm = float(torch.linalg.vector_norm(gradient, dtype=torch.float64))
    _require(
        gradient.dtype == torch.float32 and norm <= settings.max_grad_norm * (1 + 4 * U),
        f"the clipped gradient is {gradient.dtype} with norm {norm:.9g}, allowed is "
        f"{settings.max_grad_norm}",
    )
