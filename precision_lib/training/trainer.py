"""PPO steps, one after the other: rollout, update, diagnostics. The whole algorithm in one place.

The hazards. Random numbers that depend on what ran before make a resumed run another run; a timer
that does not wait for the device measures nothing; a check that runs only in a test does not run
where it matters. So all random numbers come from (seed, step), phases end with a synchronisation,
and the invariants are checked in the first step of every run, resumed ones too.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from precision_lib.formats import FORMATS
from precision_lib.matrix import PrecisionConfig
from precision_lib.models.pipeline import Pipeline
from precision_lib.models.value_head import ValueHead, explained_variance
from precision_lib.ppo.advantages import gae
from precision_lib.ppo.kl import update_kl_coefficient
from precision_lib.training import invariants
from precision_lib.training.failures import (
    KL_EXPLOSION,
    NAN_LOSS,
    VALUE_DIVERGENCE,
    RunEnded,
    Watch,
)
from precision_lib.training.golden import damage, golden_experience, symptoms
from precision_lib.training.lines import Learning, StepLine, Timing
from precision_lib.training.rollout import Experience, TrainingModels, open_models, rollout
from precision_lib.training.settings import PPOSettings
from precision_lib.training.update import Updates, update
from precision_lib.training.weights import Weights, open_weights
from precision_lib.trajectories.batches import fit_head, sample_batch

#: An adaptive coefficient that went down to it is as good as 0, but can grow again.
SMALLEST_COEFFICIENT = FORMATS["fp32"].smallest_normal


@dataclass
class Run:
    """A run between two steps: everything that the next one depends on.

    Attributes:
        models: formats, reference, reward. weights: masters, moments, working copy.
        settings: of the run. step: the next one.
        kl_coefficient: as the next step will use it.
        skipped: updates left out so far. watch: counters of the failure table.
        observed: component to format as seen in the first step; empty before.
        checked: the invariants held in the first step since the run was opened.
        whole: ``weights`` are those of ``step``; False from the first update of a step to its end.
    """

    models: TrainingModels
    weights: Weights
    settings: PPOSettings
    step: int = 0
    kl_coefficient: float = 0.0
    skipped: int = 0
    watch: Watch = field(default_factory=Watch)
    observed: dict[str, str] = field(default_factory=dict)
    checked: bool = False
    whole: bool = True


def open_run(pipeline: Pipeline, configuration: PrecisionConfig, settings: PPOSettings) -> Run:
    """A run before its first step. Call it inside :func:`runtime.deterministic`.

    A pipeline without a value head gets one that is fitted, in FP32, to the returns of the first
    rollout: the same head in every configuration.
    """
    models = open_models(pipeline, configuration)
    head = pipeline.value_head or _fitted_head(pipeline, settings)
    weights = open_weights(
        pipeline.policy.model,
        head,
        configuration.policy,
        settings.learning_rate,
        settings.perturbation,
        settings.seed,
    )
    return Run(models, weights, settings, kl_coefficient=settings.kl_coefficient)


def _fitted_head(pipeline: Pipeline, settings: PPOSettings) -> ValueHead:
    return fit_head(pipeline, sample_batch(pipeline, settings.sampling, 0))


def ppo_step(run: Run) -> StepLine:
    """One PPO step; its line of diagnostics. Call it inside :func:`runtime.deterministic`.

    Raises:
        RunEnded: the run fails; its ``line`` holds the figures, where the step was finished.
        FloatingPointError: the policy gives no distribution to sample from.
        InvariantError: in the first step, when one does not hold.
    """
    clock = PhaseClock(run.weights.master.device)
    settings, weights = run.settings, run.weights
    with clock.phase("rollout"):
        experience = rollout(run.models, weights, settings, run.step, run.kl_coefficient)
    check_finite(experience, run.step)
    with clock.phase("diagnostics"):
        both = golden_experience(run.models, weights, experience, settings, run.kl_coefficient)
        figures = symptoms(experience), damage(*both)
    if not run.checked:
        _check_experience(run, experience)
    before = weights.low.clone()
    with clock.phase("update"):
        updates = update(
            run.models, weights, experience, settings, run.step, partial(_before_update, run)
        )
    if not run.checked:
        invariants.check_first_update(updates)
        invariants.check_optimizer(weights)
    run.checked = True
    moved = float((weights.low != before).double().mean())
    learning, timing = _learning(run, experience, updates), clock.timing(experience.given.mask)
    line = StepLine(run.step, learning, *figures, moved, timing)
    _finish(run, line)
    return line


def check_finite(experience: Experience, step: int) -> None:
    """End a run whose figures hold NaN or inf: whitening would make all advantages NaN.

    Raises:
        RunEnded: with the status that names what is not finite; no weight was changed.
    """
    scored, mask = experience.scored, experience.given.mask
    for status, name, x in (
        (NAN_LOSS, "log-probs of the policy", scored.logprobs[mask]),
        (NAN_LOSS, "scores", scored.scores),
        (VALUE_DIVERGENCE, "values", scored.values[mask]),
        (KL_EXPLOSION, "log-ratios", experience.penalty[mask]),
    ):
        wrong = int((~torch.isfinite(x)).sum())
        if wrong:
            raise RunEnded(status, f"{wrong} of {x.numel()} {name} are not finite in step {step}")


def _check_experience(run: Run, experience: Experience) -> None:
    invariants.check_models(run.models, run.weights)
    run.observed = invariants.observed_formats(run.models, run.weights, experience)
    invariants.check_formats(run.models, run.observed)
    if run.step == 0 and not run.settings.perturbation:
        invariants.check_start(run.models, experience)
    invariants.check_rewards(experience, run.kl_coefficient)
    invariants.check_advantages(experience)


def _before_update(run: Run) -> None:
    if not run.checked:
        invariants.check_clipped(run.weights.gradient, run.settings)
    run.whole = False


def _learning(run: Run, experience: Experience, done: Updates) -> Learning:
    mask, scored = experience.given.mask, experience.scored
    scores, lengths = scored.scores.double(), mask.sum(1).double()
    values, returns = scored.values[mask].double(), experience.returns[mask].double()
    rewarded = monte_carlo_returns(experience, run.settings.gamma)[mask]
    ratios = done.ratios
    importance_mean, truncated = _importance(run, experience)
    return Learning(
        reward_mean=float(scores.mean()),
        reward_std=float(scores.std()) if len(scores) > 1 else 0.0,
        kl_sequence_mean=float(torch.where(mask, experience.penalty.double(), 0).sum(1).mean()),
        kl_coefficient=run.kl_coefficient,
        entropy_mean=float(scored.entropy[mask].double().mean()),
        response_length_mean=float(lengths.mean()),
        explained_variance=explained_variance(values, returns),
        value_error_rms=float((values - rewarded).square().mean().sqrt()),
        return_rms=float(rewarded.square().mean().sqrt()),
        policy_loss=_mean(done.policy_losses),
        value_loss=_mean(done.value_losses),
        clip_frac=_mean([r.clip_frac for r in ratios]),
        approx_kl=_mean([r.approx_kl for r in ratios]),
        log_ratio_smallest=min(r.smallest_log_ratio for r in ratios),
        log_ratio_largest=max(r.largest_log_ratio for r in ratios),
        ratio_overflows=sum(r.overflow_count for r in ratios),
        first_log_ratio=done.first_log_ratio,
        gradient_norm=_mean(done.gradient_norms),
        updates=len(done.gradient_norms),
        skipped_updates=done.skipped,
        values_unchanged_frac=done.stagnant / done.watched if done.watched else None,
        importance_weight_mean=importance_mean,
        importance_weight_truncated_frac=truncated,
    )


def _importance(run: Run, experience: Experience) -> tuple[float | None, float | None]:
    """Mean of the importance weights, and the share that the cap has cut; None without them."""
    if experience.importance is None:
        return None, None
    weights = experience.importance[experience.given.mask]
    assert run.settings.importance_cap is not None
    truncated = weights >= weights.new_tensor(run.settings.importance_cap)
    return float(weights.double().mean()), float(truncated.double().mean())


def monte_carlo_returns(experience: Experience, gamma: float) -> Tensor:
    """[N, T] float64 discounted rewards to come, 0 where masked: what the critic has no part in.

    The returns that it is trained on hold its own values (lambda below 1), so that a critic that
    is off by 1e4 looks good beside them.
    """
    rewards, mask = experience.rewards.double(), experience.given.mask
    _, returns = gae(rewards, torch.zeros_like(rewards), mask, gamma, 1.0)
    return returns


def _mean(figures: list[float]) -> float:
    return sum(figures) / len(figures)


def _finish(run: Run, line: StepLine) -> None:
    """Adapt the coefficient, count the step, look for failures."""
    settings = run.settings
    if settings.target_kl is not None:
        adapted = update_kl_coefficient(
            run.kl_coefficient,
            line.learning.kl_sequence_mean,
            settings.target_kl,
            settings.kl_horizon,
            settings.batch_size,
        )
        run.kl_coefficient = max(adapted, SMALLEST_COEFFICIENT)
    run.skipped += line.learning.skipped_updates
    run.step += 1
    run.whole = True  # not before: what fails on the way leaves weights that no step number has
    run.watch.look(line)


class PhaseClock:
    """Seconds per phase, with the device waited for at the end of each.

    So nothing of one phase is left to run when the next one begins.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds: dict[str, float] = {}
        self._start = self._now()

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count what runs inside as ``NAME_seconds``."""
        start = time.perf_counter()
        yield
        self._seconds[f"{name}_seconds"] = self._now() - start

    def timing(self, mask: Tensor) -> Timing:
        """All phases and the step, of the response tokens [N, T] that ``mask`` is True for."""
        step = self._now() - self._start
        tokens = int(mask.sum())
        return Timing(**self._seconds, step_seconds=step, tokens_per_second=tokens / step)
