"""H2 as cells and a verdict: frozen answers, scored in each format, against the stored rewards.

The hazard. "bf16 rewards are harmless" and "bf16 rewards lose the ranking" are both true, of
different reward models. So a cell says where its reward model stands (offset and step over the
spread within a group), which part of the damage is the stored score and which the forward before
it, what the law of ``law.py`` predicts at that point, and at which offset the same format
would begin to harm.

N sequences of G prompts. What is measured against golden: the stored FP32 rewards; a configuration
whose reward model is FP32 is the golden path itself and is measured against the float64 model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from precision_lib.forensics.causal import PURE, REFERENCE_RUN, Paired, Rebatched, Sums, rebatched
from precision_lib.forensics.evidence import H2Evidence, Metrics
from precision_lib.forensics.h2 import families, operating_point
from precision_lib.forensics.h2.declaration import H2
from precision_lib.forensics.h2.families import measured
from precision_lib.forensics.h2.forwards import WIDE_HEAD, RewardForwards
from precision_lib.forensics.h2.rewards import StoringLaw, SyntheticRewards
from precision_lib.forensics.hypothesis import Given
from precision_lib.forensics.observed_format import observed_format
from precision_lib.forensics.probe import check_prompts
from precision_lib.forensics.statistics import Metric, resample
from precision_lib.forensics.study import Study
from precision_lib.forensics.verdicts import Control
from precision_lib.formats import get_format
from precision_lib.jsonio import Json
from precision_lib.matrix import REQUIRED, PrecisionConfig
from precision_lib.metrics import rewards as grouped
from precision_lib.models.reward_model import RewardModel
from precision_lib.scoring.micro import FIRST, REBATCHED
from precision_lib.scoring.scorer import EXACT, GOLDEN
from precision_lib.trajectories.store import Trajectories

DAMAGE, SYMPTOM = H2.decision.metric, H2.decision.symptom


@dataclass
class H2Study(Study):
    """H2 over frozen trajectories.

    Attributes:
        forwards: scores of the frozen sequences; it keeps what was computed.
        seed: of the resampling and of the synthetic rewards.
    """

    hypothesis = H2
    forwards: RewardForwards
    seed: int
    _families: dict[str, SyntheticRewards] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shards = self.forwards.trajectories
        if not shards:
            raise ValueError("no trajectories: freeze some first")
        #: Stored FP32 rewards and group number of each sequence, [N].
        self.golden = torch.cat([t.rewards for t in shards]).cpu()
        self.groups = grouped.numbered(torch.cat([t.prompt_ids for t in shards]).cpu())
        count = int(self.groups.max()) + 1
        check_prompts(count)
        self.paired = Paired(H2.metrics, resample(np.arange(count), self.seed), H2.counted)

    def context(self) -> dict[str, Json]:
        """What the measurement was made on, for the record's context."""
        reward, sizes = self.forwards.reward, torch.bincount(self.groups)
        return {
            "reward_model": {"name": reward.name, "sha256": reward.sha256},
            "reward_groups": {
                "sequences": len(self.golden),
                "prompts": len(sizes),
                "samples_per_prompt": [int(sizes.min()), int(sizes.max())],
                "seed": self.seed,
            },
        }

    def metrics(self, configuration: PrecisionConfig) -> dict[str, Metric]:
        """Every metric on the real scores; where no score is finite, the share of those."""
        return measured(self.paired, self.sums(configuration))

    def scores(self, fmt: str, run: str = FIRST) -> Tensor:
        """[N] scores as a reward model in ``fmt`` gives them."""
        return self.forwards.scored(fmt, run).scores

    def measured_against(self, fmt: str) -> Tensor:
        """[N] what scores of ``fmt`` are held against: the stored rewards, or the exact model's."""
        return self.scores(EXACT) if fmt == GOLDEN else self.golden

    def measure(self, configuration: PrecisionConfig, run: str = FIRST) -> Sums:
        """Sums per prompt."""
        fmt = configuration.reward
        return grouped.group_sums(self.scores(fmt, run), self.measured_against(fmt), self.groups)

    def rebatched(self, configuration: PrecisionConfig) -> Rebatched:
        """:data:`DAMAGE` of a format in another order and micro-batch.

        Where no score is finite: the share of scores of which that depends on the batch.
        """
        fmt = configuration.reward
        first, second = self.scores(fmt), self.scores(fmt, REBATCHED)
        finite = torch.isfinite(first)
        if not bool(finite.any()):
            changed = torch.where(torch.isfinite(second), torch.nan, 0.0)
            sums = grouped.group_sums(changed, torch.zeros_like(self.golden), self.groups)
            share = self.paired.estimate(sums, H2.nonfinite)
            return Rebatched(share, 0.0)
        truth = self.measured_against(fmt)
        moved, usual, other = (
            grouped.group_sums(
                torch.where(finite, scores, torch.nan), torch.where(finite, of, 0), self.groups
            )
            for scores, of in ((second, first), (first, truth), (second, truth))
        )
        # Over the truth's signal, as the damage is: scores that tie have none of their own.
        moved["signal2"] = usual["signal2"]
        return rebatched(self.paired, DAMAGE, moved, usual, other)

    def causes(self, fmt: str) -> dict[str, Metrics]:
        """Damage and symptom of the stored score, of the forward before it, and of both.

        ``stored_only``: the golden score, rounded to the format. ``forward_only``: hidden states in
        the format, score head and score wide. ``both``: the configuration.
        """
        golden = self.measured_against(fmt)
        scores = {
            "stored_only": golden.to(get_format(fmt).dtype),
            "forward_only": self.scores(fmt, WIDE_HEAD),
            "both": self.scores(fmt),
        }
        return {
            name: {
                metric: figures
                for metric, figures in measured(
                    self.paired, grouped.group_sums(x, golden, self.groups)
                ).items()
                if metric in (DAMAGE, SYMPTOM, "batch_advantage_rms_error", H2.nonfinite)
            }
            for name, x in scores.items()
        }

    def storing(self, fmt: str) -> StoringLaw:
        """The law on the real scores, see :func:`operating_point.storing`."""
        return operating_point.storing(self.measured_against(fmt), self.groups, fmt)

    def control(self) -> Control:
        """FP32 repeats itself and what was frozen; exact rewards have no error."""
        replay = operating_point.replay(self.forwards, self.golden)
        immunity = operating_point.immunity(self.seed)
        both = replay.is_null and immunity.is_null
        return Control(both, fp32_replay=replay, exact_rewards=immunity)

    def explanation(self, contrasts: dict[str, Metric]) -> str:
        native, fmt = operating_point.native(self.golden, self.groups, PURE.reward), PURE.reward
        causes = {name: figures[DAMAGE].value for name, figures in self.causes(fmt).items()}
        critical = self._family(fmt).critical_offset_over_spread
        assert critical is not None
        low, high = critical.predicted_range
        ties = self.cell(PURE).metrics[SYMPTOM].value
        baseline = self.cell(REFERENCE_RUN).metrics[DAMAGE].value
        law = self.storing(fmt)
        predicted = "beyond the law" if law.predicted is None else f"law: {law.predicted:.3f}"
        stored_share = (causes["stored_only"] / causes["both"]) ** 2 if causes["both"] else 0.0
        return (
            f"At these scores (offset {native.offset_over_spread:.2g} spreads, {fmt} step "
            f"{native.resolution_over_spread:.2g} spreads) a {fmt} reward model costs an "
            f"advantage error of {causes['both']:.3f} with {ties:.1%} of the pairs tied; storing "
            f"alone costs {causes['stored_only']:.3f} ({predicted}), "
            f"{stored_share:.1%} of the power, and the {fmt} forward {causes['forward_only']:.3f}; "
            f"the limit is {H2.decision.limit:.2f}, FP32 is at {baseline:.1e}. Storing alone "
            f"passes the limit from an offset of {low:.0f} to {high:.0f} spreads on, by the phase "
            "of the binade, and never for rewards 0 and 1."
        )

    def _family(self, fmt: str) -> SyntheticRewards:
        if fmt not in self._families:
            self._families[fmt] = families.family_evidence(fmt, self.seed)
        return self._families[fmt]

    def evidence(self, configuration: PrecisionConfig, metrics: Metrics) -> H2Evidence:
        fmt = configuration.reward
        return H2Evidence(
            measured_against=EXACT if fmt == GOLDEN else GOLDEN,
            observed_formats=self._observed(fmt),
            golden_observed_format=observed_format(self.golden),
            native=operating_point.native(self.golden, self.groups, fmt),
            causes=self.causes(fmt),
            storing_law=self.storing(fmt),
            fp32_replay=operating_point.replay(self.forwards, self.golden),
            synthetic=self._family(fmt),
        )

    def _observed(self, fmt: str) -> dict[str, str | None]:
        """Formats as seen at run time; None for a component that H2 does not run."""
        scored = self.forwards.scored(fmt)
        seen = {scored.parameters, observed_format(scored.scores)}
        return dict.fromkeys(REQUIRED) | {"reward": "+".join(sorted(seen))}


def open_given(given: Given) -> H2Study:
    """H2 on the frozen trajectories of a main job; its setting is the seed."""
    return open_h2_study(given.pipeline.reward, given.trajectories.shards, given.settings)


def open_h2_study(
    reward: RewardModel,
    trajectories: Sequence[Trajectories],
    seed: int,
) -> H2Study:
    """Be ready to measure cells on frozen trajectories.

    Args:
        reward: the FP32 reward model that scored them.
        trajectories: shards; the sequences of a prompt id form a group, at least 2 of each, and 4
            or more to make sense.
        seed: of the resampling and of the synthetic rewards.

    Raises:
        ValueError: no shard, fewer than 8 prompts, or a prompt with one sequence only.
    """
    return H2Study(RewardForwards(reward, tuple(trajectories)), seed)
