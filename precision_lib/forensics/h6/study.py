"""Run H6: what is left of the optimizer's steps where the weights are stored in a format.

The policy learns from the frozen trajectories, with group advantages and PPO's clipped surrogate.
Gradients are computed in the policy's format, at FP32 masters, with Adam's moments in FP32. All
stored weights get the same steps, so that the storage alone is judged.

N sequences, one of each prompt; L tokens of the longest.
"""

from dataclasses import asdict, dataclass

import numpy as np

from precision_lib.forensics.causal import REFERENCE_RUN, Paired, Rebatched, Sums, rebatched
from precision_lib.forensics.evidence import (
    CopyLaw,
    FirstStep,
    H6Evidence,
    MasterFormat,
    Metrics,
    StoredLaws,
)
from precision_lib.forensics.h6.declaration import H6
from precision_lib.forensics.h6.updates import H6Settings, batch_of
from precision_lib.forensics.h6.walk import STORED, Walked, Walker
from precision_lib.forensics.hypothesis import Given
from precision_lib.forensics.statistics import Metric, NothingComparedError, resample
from precision_lib.forensics.study import Study
from precision_lib.forensics.verdicts import Control
from precision_lib.jsonio import Json
from precision_lib.matrix import REQUIRED, PrecisionConfig
from precision_lib.metrics.absorption import Counts
from precision_lib.metrics.measure import Array
from precision_lib.scoring.micro import AGAIN, FIRST, REBATCHED
from precision_lib.scoring.scorer import GOLDEN

DAMAGE = H6.decision.metric


@dataclass
class H6Study(Study):
    """H6 over frozen trajectories.

    Attributes:
        walker: takes the steps.
    """

    hypothesis = H6
    walker: Walker

    def __post_init__(self) -> None:
        count = len(self.walker.compared.tokens)
        self.mask = self.walker.compared.mask.numpy()
        seed = self.walker.settings.seed
        self.paired = Paired(H6.metrics, resample(np.arange(count), seed))

    def context(self) -> dict[str, Json]:
        compared = {"compared": len(self.mask), "tokens": int(self.mask.sum())}
        return {"h6": asdict(self.walker.settings) | compared}

    def measure(self, configuration: PrecisionConfig, run: str = FIRST) -> Sums:
        """Sums of every metric; those of weights are the same for every sequence."""
        return self._sums_of(self.walker.whole(configuration.policy), _master(configuration))

    def _sums_of(self, walked: Walked, master: str) -> Sums:
        tally, count = walked.tally, len(self.mask)
        counts = {
            "moved": tally.moved[master],
            "masters_moved": tally.masters_moved[master],
            "weights": tally.weights[master],
        }
        change, golden = self._change(walked, master), self._change(walked, None)
        return self._against(change, golden) | {
            name: np.full(count, number / count) for name, number in counts.items()
        }

    def _change(self, walked: Walked, master: str | None, shape: str = FIRST) -> Array:
        change: Array = walked.changes[master, shape].numpy()
        return change

    def _against(self, change: Array, golden: Array, signal: Array | None = None) -> Sums:
        """Sums of a change against the masters'; the signal is theirs unless it is given.

        Raises:
            NothingComparedError: the steps changed no log-prob.
        """
        signal = golden if signal is None else signal
        if not np.square(signal).sum() > 0:
            raise NothingComparedError(
                "the optimizer's steps changed no log-prob: in every group all rewards are equal, "
                "or every gradient was skipped"
            )
        return {
            "error2": np.square(change - golden).sum(1),
            "signal2": np.square(signal).sum(1),
            "product": (change * golden).sum(1),
            "tokens": self.mask.sum(1).astype(np.float64),
        }

    def repeated(self, configuration: PrecisionConfig, run: str) -> tuple[Sums, Paired]:
        """The first steps alone."""
        master = _master(configuration)
        walked = self.walker.beginning(configuration.policy, master, run)
        return self._sums_of(walked, master), self.paired

    def rebatched(self, configuration: PrecisionConfig) -> Rebatched:
        """:data:`DAMAGE` where both changes are read in another order and in other micro-batches.

        The steps are given; a gradient in another batch shape would be another step.
        """
        walked, master = self.walker.whole(configuration.policy), _master(configuration)
        usual, other = (self._change(walked, master, shape) for shape in (FIRST, REBATCHED))
        golden = self._change(walked, None)
        sums = (
            self._against(other, usual, golden),
            self._against(usual, golden),
            self._against(other, golden),
        )
        return rebatched(self.paired, DAMAGE, *sums)

    def control(self) -> Control:
        """FP32 masters lose exactly nothing, and a second walk changes the same log-probs."""
        walks = [self.walker.whole(c.policy) for c in (self.looked_at[0], REFERENCE_RUN)]
        lost = [self._change(w, GOLDEN) - self._change(w, None) for w in walks]
        pure = self.looked_at[0]
        first, again = (
            self._change(self.walker.beginning(pure.policy, _master(pure), run), None)
            for run in (FIRST, AGAIN)
        )
        nonzero = sum(int((x != 0).sum()) for x in (*lost, again - first))
        return Control(
            is_null=nonzero == 0,
            fp32_masters_nonzero=nonzero,
            fp32_masters_n=(len(lost) + 1) * int(self.mask.sum()),
        )

    def evidence(self, configuration: PrecisionConfig, metrics: Metrics) -> H6Evidence:
        walked = self.walker.whole(configuration.policy)
        tally, golden = walked.tally, self._change(walked, None)
        weights = tally.weights[GOLDEN] // (self.walker.settings.steps - walked.skipped)
        formats = {"policy": walked.policy, "master": walked.stored[_master(configuration)]}
        return H6Evidence(
            observed_formats=dict.fromkeys(REQUIRED) | formats,
            logprob_change_rms=float(np.sqrt(np.square(golden).sum() / self.mask.sum())),
            skipped_steps=walked.skipped,
            weights=weights,
            masters={fmt: self._master_figures(walked, fmt) for fmt in STORED},
            copies={fmt: CopyLaw(**vars(c), z=c.z) for fmt, c in tally.copies.items()},
            first_step={
                fmt: tuple(FirstStep(rate, moved / weights) for rate, moved in of_format.items())
                for fmt, of_format in tally.first_step.items()
            },
        )

    def _master_figures(self, walked: Walked, fmt: str) -> MasterFormat:
        """Metrics of weights stored in a format, beside this policy, and their laws."""
        laws = StoredLaws(**vars(walked.tally.laws.get(fmt, Counts())))
        return MasterFormat(laws, self.paired.estimates(self._sums_of(walked, fmt)))

    def explanation(self, contrasts: dict[str, Metric]) -> str:
        pure, promoted, _ = (self.cell(c).metrics for c in self.looked_at)
        settings = self.walker.settings
        left, lost = pure["logprob_change_slope"].value, pure[DAMAGE].value
        moved, copies = (m["weights_moved_frac"].value for m in (pure, promoted))
        return (
            f"After {settings.steps} AdamW steps at a learning rate of "
            f"{settings.learning_rate:.0e}, weights stored in bf16 keep {left:.1%} of the change "
            f"of log-probs that FP32 masters make, and miss it by {lost:.1%}. FP32 masters lose "
            f"exactly nothing, although only {copies:.1%} of their bf16 copy moves in a step; of "
            f"weights stored in bf16 it is {moved:.1%}."
        )


def _master(configuration: PrecisionConfig) -> str:
    return configuration.format_of("master")


def open_given(given: Given) -> H6Study:
    """H6 on the frozen trajectories of a main job."""
    settings: H6Settings = given.settings
    batch, size = batch_of(given.trajectories, settings.prompts)
    return H6Study(Walker(given.pipeline.policy.model, batch, size, settings))
