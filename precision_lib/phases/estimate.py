"""How long the main job takes on this device, and how much memory, from a few timed forwards.

The forwards that a budget needs are counted (``work.py``), and one of each kind is timed on the
models themselves. The time of a forward grows with the length of a sequence, because of attention.
What is no forward (bootstrap, updates of value heads) is left out: 4 of 31 seconds where the models
are the embedded ones, less where they are larger.
"""

import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from precision_lib.forensics.budget import Budget, budget
from precision_lib.forensics.damage.work import USED
from precision_lib.forensics.forwards import score
from precision_lib.forensics.hypotheses import HYPOTHESES
from precision_lib.forensics.work import BACKWARD, DRAWN, REWARDED, SCORED, TRAINED, Pass
from precision_lib.matrix import PrecisionConfig
from precision_lib.models.loading import set_parameters, working_copy
from precision_lib.models.pipeline import Pipeline
from precision_lib.phases.work import DAMAGE, FREEZE, planned_work
from precision_lib.runtime import deterministic
from precision_lib.scoring.forced import forced_rewards
from precision_lib.scoring.forward import rows_per_forward
from precision_lib.scoring.micro import Micro
from precision_lib.scoring.scorer import EXACT, GOLDEN
from precision_lib.trajectories.sampling import Responses, sample_responses

#: A backward pass multiplies twice as often as the forward.
_MORE = {TRAINED: 3.0, BACKWARD: 2.0}
#: Tokens of the short sequences that are timed; tokens that are drawn, for so many sequences.
_SHORT, _DRAWN, _ROWS = 128, 3, (8, 32)
#: Sizes of the policy's FP32 weights that the main job holds at its peak, beyond what the timed
#: forwards held: of H1 and H4 two working copies and a direction each, of H4 two more on the
#: checked sequences and two while the drift is computed, and one of H3. Half may be float64 then.
#: H6 holds masters, moments, gradients and two models on top of what stays. A model of 135 million
#: parameters took 9.3 GiB in all, 3.6 sizes more than without H6.
COPIES = 15.0

Clock = Callable[[], float]


@dataclass(frozen=True)
class Speed:
    """Seconds per token on this device.

    Attributes:
        base, growth: of an FP32 forward: seconds, and seconds per token of the sequence's length.
        factor: format to its forward's time over that of FP32; a format that was not timed, such as
            that of another engine's prompts, counts as FP32.
        step, drawn: seconds of drawing one token for some sequences, and for each of them more.
        rewarded: of the FP32 reward model.
    """

    base: float
    growth: float
    factor: dict[str, float]
    step: float
    drawn: float
    rewarded: float

    def seconds(self, done: Pass, tokens: int) -> float:
        """Seconds of so many tokens of a kind."""
        if done.kind == DRAWN:  # on average half of the sequence is there to be looked at
            per_token = self.step / done.rows + self.drawn + self.growth * done.length / 2
            return tokens * per_token
        if done.kind == REWARDED:
            return tokens * self.rewarded * self.factor.get(done.fmt, 1.0)
        per_token = (self.base + self.growth * done.length) * self.factor.get(done.fmt, 1.0)
        return tokens * per_token * _MORE.get(done.kind, 1.0)


@dataclass(frozen=True)
class Estimate:
    """What a main job takes.

    Attributes:
        stages: ``freeze`` and hypotheses to seconds; those that are needed.
        quick_seconds: of the same stages with ``--quick``; None where that is what was asked for.
        memory_bytes: of the process at its peak, on the device of the models.
        speed: what the seconds were computed from.
    """

    stages: dict[str, float]
    quick_seconds: float | None
    memory_bytes: float
    speed: Speed

    @property
    def seconds(self) -> float:
        return sum(self.stages.values())

    def without(self, stage: str) -> "Estimate":
        """What is left when another process does a stage meanwhile."""
        return replace(self, stages={n: s for n, s in self.stages.items() if n != stage})

    def sentence(self) -> str:
        """``about 3 h and 6 GiB on this device; --quick 20 min``."""
        memory = self.memory_bytes / 2**30
        size = f"{memory:.{0 if memory >= 10 else 1}f} GiB"
        whole = f"about {duration(self.seconds)} and {size} on this device"
        if self.quick_seconds is None:
            return whole
        return f"{whole}; --quick {duration(self.quick_seconds)}"


def duration(seconds: float) -> str:
    """Seconds in words: ``45 s``, ``20 min``, ``1 h 30 min``."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(round(minutes / 10) * 10, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def needed_stages(hypotheses: Sequence[str]) -> tuple[str, ...]:
    """The hypotheses in their order; before the first on trajectories, those; last the damage.

    The damage of a whole step is measured where all hypotheses are.
    """
    asked = [h for name, h in HYPOTHESES.items() if name in hypotheses]
    stages = [h.name for h in asked]
    first = next((h.name for h in asked if h.on_trajectories), None)
    if first is not None:
        stages.insert(stages.index(first), FREEZE)
    if len(asked) == len(HYPOTHESES) and HYPOTHESES.keys() >= set(USED):
        stages.append(DAMAGE)
    return tuple(stages)


def estimate_main_job(
    pipeline: Pipeline,
    asked: Budget,
    configurations: Sequence[PrecisionConfig],
    hypotheses: Sequence[str],
    clock: Clock = time.perf_counter,
) -> Estimate:
    """Time one forward of each kind, and add up what the budget needs of them.

    Args:
        hypotheses: those that are measured.
        clock: seconds; another one for tests.
    """
    speed = measured_speed(pipeline, asked, configurations, clock)
    stages = _stages(speed, pipeline, asked, configurations, hypotheses)
    first_look = budget(quick=True, seed=asked.seed)
    quick = None
    if first_look != asked:
        quick = sum(_stages(speed, pipeline, first_look, configurations, hypotheses).values())
    return Estimate(stages, quick, _memory(pipeline), speed)


def _stages(
    speed: Speed,
    pipeline: Pipeline,
    asked: Budget,
    configurations: Sequence[PrecisionConfig],
    hypotheses: Sequence[str],
) -> dict[str, float]:
    work = planned_work(pipeline, asked, configurations)
    return {
        stage: sum(speed.seconds(done, tokens) for done, tokens in work[stage].items())
        for stage in needed_stages(hypotheses)
    }


def measured_speed(
    pipeline: Pipeline, asked: Budget, configurations: Sequence[PrecisionConfig], clock: Clock
) -> Speed:
    """Time a forward in each format, a long one, drawn tokens and the reward model."""
    model, reward = pipeline.policy.model, pipeline.reward.model
    kl_formats = tuple(sorted({c.kl for c in configurations} | {"bf16", GOLDEN, EXACT}))
    formats = {
        f
        for c in configurations
        for f in (c.forward_format("policy"), c.forward_format("reference"), c.reward)
    }
    work = planned_work(pipeline, asked, configurations)
    long = max(p.length for stage in work.values() for p in stage if p.kind == SCORED)
    short = min(_SHORT, long // 2)
    working = working_copy(model)

    def forward(fmt: str, length: int) -> float:
        rows = max(1, rows_per_forward(length, model) // 4)  # a fourth is long enough
        given = (_sequences(model, rows, length),)
        set_parameters(working, model, fmt)
        score(working, (_sequences(model, 1, 2),), kl_formats)  # what is only done once
        return _timed(lambda: score(working, given, kl_formats), clock, model) / rows / length

    with deterministic(native_products=model.device.type != "cpu"):
        by_format = {fmt: forward(fmt, short) for fmt in sorted(formats | {GOLDEN, EXACT})}
        at_length = forward(GOLDEN, long)
        few, many = (_step(model, rows, clock) for rows in _ROWS)
        rewarded = _rewarded(reward, short, clock)
    golden = by_format[GOLDEN]
    growth = max(0.0, (at_length - golden) / (long - short))
    factor = {fmt: seconds / golden for fmt, seconds in by_format.items()}
    drawn = max(0.0, (many - few) / (_ROWS[1] - _ROWS[0]))
    step = max(0.0, few - drawn * _ROWS[0])
    return Speed(golden - growth * short, growth, factor, step, drawn, rewarded)


def _sequences(model: Any, rows: int, length: int) -> Responses:
    """``rows`` sequences of ``length`` tokens: what they are takes no time."""
    tokens = torch.ones(rows, length, dtype=torch.int64)
    sequences = Responses(tokens, torch.ones(rows, dtype=torch.int64), length - 1)
    return sequences.to(model.device)


def _timed(work: Callable[[], object], clock: Clock, model: Any) -> float:
    """Seconds of ``work``, to its end on the model's device."""
    on_gpu = model.device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize()
    start = clock()
    work()
    if on_gpu:
        torch.cuda.synchronize()
    return clock() - start


def _step(model: Any, rows: int, clock: Clock) -> float:
    """Seconds of drawing one token for each of ``rows`` sequences."""

    def draw(count: int) -> float:
        return _timed(lambda: sample_responses(model, [[1]] * rows, count, seed=0), clock, model)

    draw(1)  # what is only done once
    return max(0.0, draw(1 + _DRAWN) - draw(1)) / _DRAWN


def _rewarded(model: Any, length: int, clock: Clock) -> float:
    """Seconds per token that the FP32 reward model reads."""
    rows = rows_per_forward(length, model)
    tokens = torch.ones(rows, length, dtype=torch.int64)
    lengths, micro = torch.full((rows,), length), Micro(rows, torch.arange(rows))
    forced_rewards(model, tokens[:1, :2], torch.tensor([2]), Micro(1, torch.arange(1)))
    return (
        _timed(lambda: forced_rewards(model, tokens, lengths, micro), clock, model) / rows / length
    )


def _memory(pipeline: Pipeline) -> float:
    """Peak of the timed forwards, and the copies of the weights that are held later."""
    policy = pipeline.policy.model
    weights = sum(int(p.numel()) * 4 for p in policy.parameters())
    return peak_memory(policy.device) + COPIES * weights


def peak_memory(device: torch.device) -> int:
    """Bytes that this process held at most: on a GPU, or resident in main memory."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
