"""Run one shard under one configuration, and time it against a bare forward.

The hazard. A format that was asked for is not always the one that was used, and a timing that stops
while the device still works is too short. So formats are read off the tensors, and the clock waits
for the device. The models take their turns, so that one working copy is enough.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

import torch

from precision_lib.formats import format_of
from precision_lib.matrix import REQUIRED, PrecisionConfig
from precision_lib.models.pipeline import Pipeline
from precision_lib.models.placement import devices_of
from precision_lib.models.value_head import ValueHead
from precision_lib.scoring.forced import Forced, forced, forced_rewards
from precision_lib.scoring.forward import in_own_format
from precision_lib.scoring.micro import Micro
from precision_lib.trajectories.comparison import ReplayFigures, figures
from precision_lib.trajectories.store import Trajectories
from precision_lib.trajectories.working_copy import WorkingCopy


@dataclass
class ThroughputClock:
    """Timed blocks.

    Attributes:
        rates: tokens per second of each. tokens: real ones that went through all of them.
    """

    rates: list[float] = field(default_factory=list)
    tokens: int = 0

    @contextmanager
    def running(self, model: Any, tokens: int) -> Iterator[None]:
        """Time the block, and all that the devices of ``model`` still do when it ends."""
        _wait_for(model)
        begin = time.perf_counter()
        yield
        _wait_for(model)
        self.rates.append(tokens / (time.perf_counter() - begin))
        self.tokens += tokens

    @property
    def rate(self) -> float:
        """Median tokens per second, which a busy neighbour moves less than the mean."""
        return median(self.rates)


def _wait_for(model: Any) -> None:
    for device in devices_of(model):
        if device.type == "cuda":
            torch.cuda.synchronize(device)


@dataclass
class Replayer:
    """The models of a pipeline under one configuration.

    Attributes:
        observed: component to the formats seen so far.
        replayed, plain: clocks of the policy's scoring and of its bare forward.
    """

    pipeline: Pipeline
    configuration: PrecisionConfig
    head: ValueHead
    observed: dict[str, set[str]] = field(default_factory=lambda: {c: set() for c in REQUIRED})
    replayed: ThroughputClock = field(default_factory=ThroughputClock)
    plain: ThroughputClock = field(default_factory=ThroughputClock)
    _working: WorkingCopy = field(default_factory=WorkingCopy)

    def run(
        self, trajectories: Trajectories, micro: Micro, *, timed: bool = False
    ) -> ReplayFigures:
        """The configuration's figures of a shard. Call it inside ``runtime.deterministic``.

        The reference always gets a forward of its own: a log-ratio of exactly 0 between equal
        models in one format is then a measurement.

        Args:
            timed: clock the policy's scoring, and its bare forward over the same micro-batches.
        """
        t, c = trajectories, self.configuration
        given = t.tokens, t.mask, micro
        clock = self.replayed if timed else ThroughputClock()
        tokens = int((t.prompt_lengths + t.response_lengths).sum())
        model = self._working.of(self.pipeline.policy.model, c.forward_format("policy"))
        if timed:  # the first forward after a cast pays for pages that the others find mapped
            _bare_forward(model, t, replace(micro, order=micro.order[: micro.rows]))
        with clock.running(model, tokens):
            policy = forced(model, *given, kl_formats=(c.kl,), head=self.head, value_format=c.value)
        self._observe_model("policy", policy)
        if timed:
            with self.plain.running(model, tokens):
                _bare_forward(model, t, micro)
        model = self._working.of(self.pipeline.reference.model, c.forward_format("reference"))
        reference = forced(model, *given, kl_formats=(c.kl,))
        self._observe_model("reference", reference)
        model = self._working.of(self.pipeline.reward.model, c.reward)
        rewards, seen = forced_rewards(model, t.reward_tokens, t.reward_lengths, micro)
        self._observe("reward", *seen.values())
        assert policy.values is not None
        quantities = figures(
            policy.logprobs[c.kl], reference.logprobs[c.kl], policy.values, rewards
        )
        self._observe("value", format_of(quantities.value.dtype).name)
        for x in (quantities.policy_logprob, quantities.reference_logprob, quantities.log_ratio):
            self._observe("kl", format_of(x.dtype).name)
        return quantities

    def _observe_model(self, component: str, scored: Forced) -> None:
        """Parameters and logits; where the LM head has a column of its own, the logits are its."""
        self._observe(component, scored.parameters)
        self._observe("lm_head" if self.configuration.lm_head else component, scored.logits)

    def _observe(self, component: str, *formats: str) -> None:
        self.observed.setdefault(component, set()).update(formats)

    def observed_formats(self) -> dict[str, str]:
        """Component to the formats that its tensors had, joined by ``+`` where they differ."""
        return {component: "+".join(sorted(seen)) for component, seen in self.observed.items()}


@torch.no_grad()
def _bare_forward(model: Any, trajectories: Trajectories, micro: Micro) -> None:
    """What a replay cannot do without: the model's forward over the same micro-batches."""
    for chosen in micro:
        with in_own_format(model):
            model(input_ids=trajectories.tokens[chosen].to(model.device), use_cache=False)
