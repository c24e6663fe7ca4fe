"""The critics that H3 compares: one head per reward scale and offset, run in each format.

The hazard. Multiplying the predictions of a trained head afterwards is not what large rewards do to
a critic: its weights grow, its optimizer does not. So the rewards are scaled, or offset, and the
head is fitted again before anything is rounded.

N sequences, T response tokens at most, M response tokens in all, S optimizer steps.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from precision_lib.forensics.causal import REFERENCE_RUN
from precision_lib.forensics.h3.states import States, response_rectangle, terminal_rewards
from precision_lib.forensics.h3.updates import (
    HeadFormats,
    UpdateSettings,
    of_configuration,
    predictions_over_updates,
)
from precision_lib.matrix import PrecisionConfig
from precision_lib.models.value_head import ValueHead, choose_ridge, fit_value_head
from precision_lib.runtime import deterministic
from precision_lib.scoring.micro import FIRST
from precision_lib.scoring.scorer import EXACT, GOLDEN


@dataclass(frozen=True)
class Task:
    """Rewards of one scale and offset, and the head that was fitted to them.

    Attributes:
        name: of the family and its size.
        rewards: [N, T] FP32, the score at the last response token.
        head: FP32.
    """

    name: str
    rewards: Tensor
    head: ValueHead


@dataclass
class Critics:
    """Predictions of every critic, each computed once.

    Attributes:
        states: hidden states of the frozen tokens, per format of the trunk.
        scores: [N] golden FP32 scores.
        head: the critic that the trajectories were frozen with.
        frozen_values: [M] FP32 values as frozen.
        updates: the optimizer steps.
    """

    states: States
    scores: Tensor
    head: ValueHead
    frozen_values: Tensor
    updates: UpdateSettings
    _ridge: tuple[float, float] | None = None
    _fitted_rms: float | None = None
    _tasks: dict[str, Task] = field(default_factory=dict)
    _predictions: dict[tuple[str, str, str, HeadFormats], Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.mask = response_rectangle(self.states.shards)

    def native(self) -> Task:
        """The task as frozen, with its own critic."""
        return Task("native", terminal_rewards(self.scores, self.mask), self.head)

    def scaled(self, magnitude: float) -> Task:
        """Rewards scaled so that the golden values have this RMS, and the head fitted to them."""
        if self._fitted_rms is None:
            fitted = self.values(REFERENCE_RUN, self._fitted("unscaled", self.scores.double()))
            self._fitted_rms = float(fitted.double().square().mean().sqrt())
        factor = magnitude / self._fitted_rms
        return self._fitted(f"scaled to {magnitude:g}", self.scores.double() * factor)

    def offset(self, offset: float) -> Task:
        """Rewards of mean ``offset`` times their standard deviation, and the head fitted."""
        scores = self.scores.double()
        return self._fitted(f"offset by {offset:g}", scores - scores.mean() + offset * scores.std())

    def _fitted(self, name: str, scores: Tensor) -> Task:
        if name not in self._tasks:
            wanted = scores.float()
            returns = self.returns(wanted)[self.mask]
            head = fit_value_head(self.states.hidden(GOLDEN), returns, self.ridge()[0])
            self._tasks[name] = Task(name, terminal_rewards(wanted, self.mask), head)
        return self._tasks[name]

    def ridge(self) -> tuple[float, float]:
        """Ridge of the fitted heads and their explained variance, on held-out prompts.

        It does not depend on scale and offset of the rewards, so it is chosen once.
        """
        if self._ridge is None:
            prompts = torch.cat([shard.prompt_ids.cpu() for shard in self.states.shards])
            groups = prompts.unsqueeze(1).expand(self.mask.shape)[self.mask]
            returns = self.returns(self.scores)[self.mask]
            self._ridge = choose_ridge(self.states.hidden(GOLDEN), returns, groups)
        return self._ridge

    def returns(self, scores: Tensor) -> Tensor:
        """[N, T]: gamma is 1 and there is no KL penalty, so each token's return is the score."""
        return scores.unsqueeze(1).expand(self.mask.shape)

    def golden(self, configuration: PrecisionConfig) -> PrecisionConfig:
        """What a configuration is measured against: FP32, or float64 where it is FP32 itself."""
        itself = {configuration.policy, configuration.value} == {GOLDEN}
        return replace(REFERENCE_RUN, policy=EXACT, value=EXACT) if itself else REFERENCE_RUN

    def values(self, configuration: PrecisionConfig, task: Task, run: str = FIRST) -> Tensor:
        """[M] predictions as the configuration stores them, ``run`` as in :meth:`States.hidden`."""
        hidden = self.states.hidden(configuration.policy, run)
        formats = of_configuration(configuration.value)
        with deterministic():
            return formats.predict(hidden, task.head.weight, task.head.bias)

    def over_updates(self, configuration: PrecisionConfig, task: Task, run: str = FIRST) -> Tensor:
        """[S + 1, M] predictions of a configuration before and after each optimizer step."""
        formats = of_configuration(configuration.value)
        return self.predictions(configuration.policy, task, formats, run)

    def predictions(self, trunk: str, task: Task, formats: HeadFormats, run: str = FIRST) -> Tensor:
        """The same for any head on a trunk in the format ``trunk``."""
        key = (trunk, run, task.name, formats)
        if key not in self._predictions:
            returns = self.returns(task.rewards.sum(1))
            hidden = self.states.hidden(trunk, run)
            with deterministic():
                self._predictions[key] = predictions_over_updates(
                    task.head, hidden, returns, self.mask, formats, self.updates
                )
        return self._predictions[key]
