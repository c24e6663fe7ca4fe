"""H3 as cells and a verdict: values at their own magnitude, scaled, and offset; causes apart.

Rewards are scaled, and rewards are offset; the head is fitted again each time, and the three places
where a head rounds are tried alone.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from precision_lib.forensics.causal import (
    PURE,
    REFERENCE_RUN,
    Paired,
    Rebatched,
    Sums,
    per_sequence,
    rebatched,
)
from precision_lib.forensics.evidence import Cause, Critic, H3Evidence, Metrics
from precision_lib.forensics.h3.critics import Critics
from precision_lib.forensics.h3.declaration import H3
from precision_lib.forensics.h3.magnitudes import Sizes, critical_offset
from precision_lib.forensics.h3.states import States
from precision_lib.forensics.h3.updates import UpdateSettings
from precision_lib.forensics.hypothesis import Given
from precision_lib.forensics.observed_format import observed_format
from precision_lib.forensics.probe import check_prompts
from precision_lib.forensics.statistics import (
    Metric,
    NothingComparedError,
    resample,
)
from precision_lib.forensics.study import Study
from precision_lib.forensics.verdicts import Control
from precision_lib.formats import FORMATS, format_of, ulp
from precision_lib.jsonio import Json
from precision_lib.matrix import REQUIRED, PrecisionConfig
from precision_lib.metrics import values as h3
from precision_lib.metrics.measure import Array, Measure, level_counts
from precision_lib.metrics.stagnation import stagnation_at, stagnation_rates
from precision_lib.models.loading import Checkpoint
from precision_lib.models.value_head import ValueHead
from precision_lib.scoring.micro import AGAIN, FIRST, REBATCHED
from precision_lib.scoring.scorer import GOLDEN
from precision_lib.trajectories.store import Trajectories

DAMAGE = H3.decision.metric


@dataclass(frozen=True)
class H3Settings:
    """What H3 varies.

    Attributes:
        magnitudes: RMS values that rewards are scaled to.
        offsets: rewards are moved by so many standard deviations of the score.
        updates: the optimizer steps.
        seed: of the resampling.
    """

    magnitudes: tuple[float, ...] = (1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0, 1e3, 1e4)
    offsets: tuple[float, ...] = (0.0, 1.0, 10.0, 30.0, 100.0, 300.0, 1e3, 1e4)
    updates: UpdateSettings = field(default_factory=UpdateSettings)
    seed: int = 0


QUICK = H3Settings(magnitudes=(0.01, 1.0, 100.0), offsets=(0.0, 30.0, 300.0))


@dataclass
class H3Study(Study):
    """H3 over frozen trajectories."""

    hypothesis = H3
    critics: Critics
    settings: H3Settings
    _causes: dict[str, tuple[Cause, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.mask = self.critics.mask
        self.sequence = np.repeat(np.arange(len(self.mask)), self.mask.sum(1).numpy())
        prompts = torch.cat([s.prompt_ids for s in self.critics.states.shards]).numpy()
        clusters = np.unique(prompts, return_inverse=True)[1].astype(np.int64)
        self.paired = Paired(H3.metrics, resample(clusters, self.settings.seed))

    def context(self) -> dict[str, Json]:
        """What the measurement was made on, for the record's context.

        The head and its updates run on the CPU; it is said where the trunk does not.
        """
        trunk = self.critics.states.checkpoint.model.device.type
        return {"h3": asdict(self.settings) | ({} if trunk == "cpu" else {"head_device": "cpu"})}

    def metrics(self, configuration: PrecisionConfig) -> dict[str, Metric]:
        """Every metric at the native magnitude; no critical magnitude where none is reached."""
        metrics = super().metrics(configuration)
        if not self._reached(configuration):
            metrics.pop("value_critical_magnitude")
        return metrics

    def measure(self, configuration: PrecisionConfig, run: str = FIRST) -> Sums:
        """Per-sequence sums of every metric."""
        native = self.critics.native()
        values = self.critics.values(configuration, native, run)
        golden = self.critics.values(self.critics.golden(configuration), native)
        quantities = h3.finite_quantities(values, golden, native.rewards, self.mask)
        tasks = [self.critics.scaled(magnitude) for magnitude in self.settings.magnitudes]
        names = map(stagnation_at, self.settings.magnitudes)
        for task, pair in ((native, ("stagnant", "twin_moved")), *zip(tasks, names, strict=True)):
            twin = self.critics.over_updates(self.critics.golden(configuration), task)
            moves = h3.moves(self.critics.over_updates(configuration, task, run), twin)
            quantities |= dict(zip(pair, moves, strict=True))
        steps = ulp(torch.nan_to_num(values), format_of(values.dtype)).numpy()
        levels = level_counts(steps, self.sequence, len(self.mask))
        return per_sequence(quantities, self.sequence) | levels

    def rebatched(self, configuration: PrecisionConfig) -> Rebatched:
        """:data:`DAMAGE` of a configuration in another order and micro-batch."""
        native = self.critics.native()
        golden = self.critics.values(self.critics.golden(configuration), native)
        first, second = (
            self.critics.values(configuration, native, run) for run in (FIRST, REBATCHED)
        )
        pairs = ((second, first), (first, golden), (second, golden))
        return rebatched(self.paired, DAMAGE, *(self._against(*pair) for pair in pairs))

    def _against(self, values: Tensor, truth: Tensor) -> Sums:
        """Sums of predictions [M] against others, with the native rewards."""
        rewards = self.critics.native().rewards
        quantities = h3.finite_quantities(values, truth, rewards, self.mask)
        return per_sequence(quantities, self.sequence)

    def _reached(self, configuration: PrecisionConfig) -> bool:
        """True when the stagnation rate passes one half within the magnitudes, from below."""
        rates = self._rates(configuration)
        return bool(rates[0] < 0.5 <= rates.max())

    def _rates(self, configuration: PrecisionConfig) -> Array:
        totals = {name: values.sum() for name, values in self.sums(configuration).items()}
        return stagnation_rates(totals)

    def control(self) -> Control:
        native = self.critics.native()
        golden = self.critics.values(REFERENCE_RUN, native)
        beyond = golden.double() - self.critics.frozen_values.double()
        differing = int((beyond.abs() > self._reordering_bound()).sum())
        again = self.critics.over_updates(REFERENCE_RUN, native, AGAIN)
        stagnant, _ = h3.moves(again, self.critics.over_updates(REFERENCE_RUN, native))
        return Control(
            is_null=differing == 0 and int(stagnant.sum()) == 0,
            golden_values_beyond_rounding=differing,
            golden_values_n=golden.numel(),
            golden_head_against_itself_stagnant=int(stagnant.sum()),
        )

    def _reordering_bound(self) -> Tensor:
        """[M]: how far two FP32 sums of the same h . w + b can lie apart, in whatever order.

        Each is within gamma_(H+1) (sum |h_i w_i| + |b|) of the exact one.
        """
        hidden = self.critics.states.hidden(GOLDEN).double()
        head, u = self.critics.head, FORMATS[GOLDEN].unit_roundoff
        size = hidden.abs() @ head.weight.double().abs() + head.bias.double().abs()
        terms = (hidden.shape[1] + 1) * u
        return 2 * terms / (1 - terms) * size

    def explanation(self, contrasts: dict[str, Metric]) -> str:
        cells = {c.name: self.cell(c).metrics for c in self.looked_at}
        damage = {name: metrics[DAMAGE].value for name, metrics in cells.items()}
        pure, promoted, demoted = (c.name for c in self.looked_at)
        critical = cells[pure].get("value_critical_magnitude")
        low = self._rates(PURE)[0] < 0.5
        starts = (
            f"predictions stand still in half of the updates from |V| = {critical.value:.2g} on"
            if critical
            else f"predictions {'move' if low else 'stand still'} at every magnitude tried"
        )
        return (
            f"At the critic's own magnitude a bf16 pipeline's advantages are off by "
            f"{damage[pure]:.1%} of their standard deviation, {damage[promoted]:.1%} "
            f"with an FP32 value head; a bf16 value head on FP32 models alone makes "
            f"{damage[demoted]:.1%}. In bf16 {starts}; scaling the rewards leaves the "
            "advantages' error as it is, an offset multiplies it."
        )

    def evidence(self, configuration: PrecisionConfig, metrics: Metrics) -> H3Evidence:
        sums = self.sums(configuration)
        probe = Sizes(self.critics, self.paired, self.sequence)
        settings, value = self.settings, configuration.value
        if value in ("bf16", "fp16") and value not in self._causes:
            self._causes[value] = probe.causes(value, settings.magnitudes)
        offsets = probe.by_offset(configuration, settings.offsets)
        return H3Evidence(
            measured_against=self.critics.golden(configuration).policy,
            critic=self._critic,
            observed_formats=self._observed(configuration),
            by_magnitude=probe.by_magnitude(configuration, settings.magnitudes, sums),
            by_offset=offsets,
            critical_offset_over_spread=critical_offset(offsets),
            critical_offset_over_spread_predicted=critical_offset(offsets, predicted=True),
            causes=self._causes.get(value, ()),
            critical_magnitude_reached=self._reached(configuration),
        )

    @cached_property
    def _critic(self) -> Critic:
        """How good the critic is that the study starts from."""
        values = self.critics.frozen_values.double()
        returns = self.critics.returns(self.critics.scores)[self.mask].double()
        squares = {
            "residual2": (returns - values) ** 2,
            "deviation2": (returns - returns.mean()) ** 2,
            "tokens": torch.ones_like(returns),
        }
        explained = replace(
            self.paired,
            metrics={"explained": Measure(lambda t: 1 - t["residual2"] / t["deviation2"], "share")},
        ).estimate(per_sequence(squares, self.sequence), "explained")
        return Critic(
            explained_variance=explained,
            refitted_held_out_explained_variance=self.critics.ridge()[1],
            refitted_ridge=self.critics.ridge()[0],
            value_rms=float(values.square().mean().sqrt()),
            value_mean=float(values.mean()),
            return_std=float(returns.std()),
        )

    def _observed(self, configuration: PrecisionConfig) -> dict[str, str | None]:
        values = self.critics.values(configuration, self.critics.native())
        return dict.fromkeys(REQUIRED) | {
            "policy": self.critics.states.observed(configuration.policy),
            "value": observed_format(values),
        }


def open_given(given: Given) -> H3Study:
    """H3 on the frozen trajectories of a main job."""
    frozen = given.trajectories
    return open_h3_study(given.pipeline.policy, frozen.head, frozen.shards, given.settings)


def open_h3_study(
    checkpoint: Checkpoint,
    head: ValueHead,
    shards: Sequence[Trajectories],
    settings: H3Settings,
) -> H3Study:
    """Be ready to measure H3's cells on frozen trajectories.

    Args:
        checkpoint: the FP32 policy that the trajectories were frozen with.
        head: its value head.
        shards: at least one; together at least ``probe.MIN_PROMPTS`` prompts.

    Raises:
        ValueError: too few prompts for an interval.
        NothingComparedError: all scores or all values are equal, so no advantage can be lost.
    """
    check_prompts(len(torch.unique(torch.cat([shard.prompt_ids for shard in shards]))))
    values = torch.cat([shard.values[shard.mask].cpu() for shard in shards])
    scores = torch.cat([shard.rewards.cpu() for shard in shards])
    for name, numbers in (("scores", scores), ("values", values)):
        if bool((numbers == numbers[0]).all()):
            raise NothingComparedError(
                f"all {len(numbers)} {name} are {float(numbers[0]):g}: no advantage can be lost; "
                "give a reward model that tells responses apart (--reward-model)"
            )
    states = States(checkpoint, shards)
    return H3Study(Critics(states, scores, head, values, settings.updates), settings)
