"""What a PPO sweep found: its runs with their curves, cells over seeds, verdicts in training."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from precision_lib.forensics.statistics import Metric
from precision_lib.jsonio import FLAT, Json
from precision_lib.record.context import Commit, Context

#: Status of a run that has not ended.
UNFINISHED = "unfinished"
COMPLETED = "completed"


@dataclass(frozen=True)
class Evaluated:
    """FP32 figures of one policy: reward in log odds, KL and entropy in nats."""

    reward_mean: float
    reward_std: float
    kl_per_sequence: float
    entropy_mean: float
    kl_per_token: float | None = None
    sequences: int | None = None
    tokens: int | None = None


@dataclass(frozen=True)
class Evaluation:
    """A policy before training and after, measured in FP32."""

    initial: Evaluated
    final: Evaluated


@dataclass(frozen=True)
class Run:
    """One run of a sweep.

    Attributes:
        status: of the failure taxonomy, or :data:`UNFINISHED`; all below are of an ended run.
        reason: what was seen; "" when completed.
        best: mean reward of the best window of steps, and its last step.
        final: means over the last window of steps, by name.
        identity: settings, models, versions.
        seconds: spent on steps.
        curves: name to the figure of each step, None where a step has none.
    """

    configuration: str
    seed: int
    status: str
    reason: str = ""
    formats: Mapping[str, str] = field(default_factory=dict)
    observed_formats: Mapping[str, str] = field(default_factory=dict)
    last_step: int | None = None
    max_steps: int | None = None
    best: Mapping[str, float | None] = field(default_factory=dict)
    final: Mapping[str, float | None] = field(default_factory=dict)
    evaluation: Evaluation | None = None
    skipped_updates: int | None = None
    weights_sha256: str = ""
    identity: Mapping[str, Json] = field(default_factory=dict)
    seconds: float = 0.0
    commit: Commit | None = None
    curves: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        """Whether it has nothing left to do."""
        return self.status != UNFINISHED


@dataclass(frozen=True)
class TrainingCell:
    """A configuration over all seeds, against the baseline.

    Attributes:
        verdict: healthy, impaired or inconclusive.
        metrics: name to value, 95 % interval over seeds, n seeds, unit; none where a run failed.
        statuses: how the runs ended, by seed.
        seeds_needed: that would decide an undecided cell if means and spread stayed what they are,
            which they do about every second time; None where decided or unknown.
    """

    configuration: str
    verdict: str
    metrics: Mapping[str, Metric]
    statuses: Mapping[int, str]
    seeds_needed: int | None


@dataclass(frozen=True)
class Difference:
    """A difference with its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class TwinControl:
    """Twin against baseline, which must not differ; ``is_null`` is None for one seed."""

    twin: str
    twin_objective_difference: Difference
    is_null: bool | None


@dataclass(frozen=True)
class TrainingVerdict:
    """What the sweep says of a hypothesis.

    Attributes:
        healed: objective_gain_lost of bf16_pure less that of the promoted configuration; None where
            one of them was not trained or failed, or the baseline gained nothing.
        seeds_needed: that would decide all of its undecided cells; None where none is undecided,
            where it is unknown for one of them, or where more seeds would not help.
    """

    hypothesis: str
    title: str
    verdict: str
    healed: Metric | None
    control: TwinControl
    explanation: str
    seeds_needed: int | None


@dataclass(frozen=True)
class Resolution:
    """What a sweep of this spread can tell, whatever its cells happened to come out as.

    Attributes:
        power: the probability of both figures.
        smallest_loss: share of the gain that a configuration must lose to be found impaired.
        seeds_for_no_loss: how many seeds find one healthy that loses nothing.
    """

    power: float
    smallest_loss: float | None
    seeds_for_no_loss: int | None


@dataclass(frozen=True)
class TrainingEvidence:
    """Cells, verdicts, and how far runs part without any difference in precision.

    Attributes:
        seeds: that every configuration has an ended run for.
        limit: share of the gain; a cell is impaired above it. meaning: in words.
        baseline_gain: mean gain of the objective, reward units.
        chaos: metric to the RMS over seeds of twin less baseline.
        deviations: metric to the residual deviation between runs, seeds and configurations apart;
            None for one seed. Runs that parted like the twin's have chaos / sqrt(2).
        exercised: hypothesis to the share of bf16_pure's steps in which its own damage metric was
            above the main job's limit; None where no step has it. At 0 these runs never were where
            the hypothesis says that damage is done, and its verdict is about such runs.
        cells: of all configurations but the baseline. hypotheses: one verdict each.
    """

    seeds: tuple[int, ...]
    limit: float
    meaning: str
    baseline_gain: float
    chaos: Mapping[str, float]
    deviations: Mapping[str, float | None]
    resolution: Resolution
    exercised: Mapping[str, float | None]
    cells: tuple[TrainingCell, ...]
    hypotheses: tuple[TrainingVerdict, ...]

    @property
    def by_configuration(self) -> dict[str, TrainingCell]:
        """Configuration to its cell."""
        return {cell.configuration: cell for cell in self.cells}


@dataclass(frozen=True)
class ModelsUsed:
    """What each worker loaded, by name, and on which device."""

    model: str
    reward_model: str
    reference_model: str | None
    device: str


@dataclass(frozen=True)
class TrainingSettings:
    """PPO settings that all runs of a sweep share; ``more`` holds those that no reader names."""

    batch_size: int
    max_new_tokens: int
    learning_rate: float
    kl_coefficient: float
    more: Mapping[str, Json] = field(default_factory=dict, metadata=FLAT)


@dataclass(frozen=True)
class Sweep:
    """Everything that a sweep found.

    Attributes:
        complete: every run has ended.
        context: of the first run that ended.
        failed: run to why it could not be done.
        evidence: None where nothing could be compared; ``not_compared`` says why.
    """

    complete: bool
    context: Context
    models: ModelsUsed
    settings: TrainingSettings
    max_steps: int
    matrix: Mapping[str, Mapping[str, str]]
    failed: Mapping[str, str]
    runs: tuple[Run, ...]
    evidence: TrainingEvidence | None
    not_compared: str

    @property
    def ended(self) -> int:
        """Number of runs that have ended."""
        return sum(run.ended for run in self.runs)
