"""Which runs a sweep is made of, where each of them lives, and which have ended.

The hazard. Two configurations compared at one seed differ by more than precision: PPO amplifies a
change of one ulp into another run. So each seed gets a *twin* of the baseline, FP32 throughout and
started one rounding error away: what twin and baseline differ by is chaos, not precision. What has
ended is read from each run's own summary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from precision_lib.matrix import TWIN, PrecisionConfig, get_configuration
from precision_lib.training.failures import COMPLETED, FINAL
from precision_lib.training.settings import PPOSettings, check_columns
from precision_lib.training.summary import RunSummary, read_summary

REFERENCE_RUN = get_configuration("fp32_baseline")
#: Unit roundoff of FP32: a relative change that moves about every second weight by one ulp.
ONE_ROUNDING = 2.0**-24


@dataclass(frozen=True)
class SweepCell:
    """One run of a sweep: its formats, and its settings with its seed."""

    configuration: PrecisionConfig
    settings: PPOSettings

    @property
    def name(self) -> str:
        """``bf16_pure-seed-0``."""
        return f"{self.configuration.name}-seed-{self.settings.seed}"


@dataclass(frozen=True)
class ModelNames:
    """What to load in each worker, by name; as the commands take them."""

    model: str = "embedded"
    reward_model: str = "embedded"
    reference_model: str | None = None
    device: str = "cpu"


@dataclass(frozen=True)
class SweepPlan:
    """Everything that a sweep runs; the runs of one seed stand next to each other.

    Each has a directory of its own below ``runs``. ``matrix_file``: with the user's configurations.
    """

    directory: Path
    cells: tuple[SweepCell, ...]
    models: ModelNames
    matrix_file: Path | None = None

    def run_directory(self, cell: SweepCell) -> Path:
        """Where the run of ``cell`` keeps its files."""
        return self.directory / "runs" / cell.name

    @property
    def steps(self) -> int:
        """PPO steps of all cells together."""
        return sum(cell.settings.max_steps for cell in self.cells)


def plan_sweep(
    directory: Path,
    configurations: Sequence[PrecisionConfig],
    seeds: Sequence[int],
    settings: PPOSettings,
    models: ModelNames,
    matrix_file: Path | None = None,
) -> SweepPlan:
    """Cells of ``configurations`` x ``seeds``; baseline and twin are added where they lack.

    Raises:
        ValueError: no seed, or one given twice; two configurations of one name; a column that
            training does not apply.
    """
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds {list(seeds)} must be at least one, and distinct")
    wanted = tuple(dict.fromkeys((REFERENCE_RUN, TWIN, *configurations)))
    names = [c.name for c in wanted]
    for configuration in wanted:
        check_columns(configuration)
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"there are two configurations {name!r}: give one another name")
    cells = [
        SweepCell(
            configuration,
            replace(
                settings,
                seed=seed,
                perturbation=ONE_ROUNDING if configuration.name == TWIN.name else 0.0,
            ),
        )
        for seed in seeds
        for configuration in wanted
    ]
    return SweepPlan(directory, tuple(cells), models, matrix_file)


@dataclass(frozen=True)
class Origin:
    """Of a run's identity, what all runs of a sweep share besides their settings.

    ``models``: part to the SHA-256 of its weights, None for a part that is new in each run.
    """

    models: Mapping[str, str | None]
    torch: str
    device: str

    def named(self) -> dict[str, str | None]:
        """Each fact under the name that a message gives it."""
        models = {f"checkpoint of the {name}": sha for name, sha in self.models.items()}
        return models | {"torch": self.torch, "device": self.device}


def _origin_of(summary: RunSummary) -> Origin:
    return Origin(**{field.name: summary.identity[field.name] for field in fields(Origin)})


class PlanError(ValueError):
    """A directory or a model does not fit a plan; the message says how, and what to do."""


def check_same(plan: SweepPlan, origin: Origin | None = None) -> None:
    """Refuse a directory in which a run of something else has ended.

    Args:
        origin: of the runs to come; by default that of the first run that has ended, so that all
            that ended is alike.

    Raises:
        PlanError: a run there was not made with its cell's settings and formats, from ``origin``,
            or has more steps than it should.
        SummaryError: a summary is damaged.
    """
    for cell in plan.cells:
        summary = read_summary(plan.run_directory(cell))
        if summary is None or not summary.identity:
            continue
        origin = origin or _origin_of(summary)
        differing = _differences(summary, cell, origin)
        if differing:
            raise PlanError(
                f"{plan.run_directory(cell)} holds another run: {'; '.join(differing)}; give "
                "another --output_dir, or --fresh to delete what is there"
            )


def _differences(summary: RunSummary, cell: SweepCell, origin: Origin) -> list[str]:
    """What a run is not that it should be, in words."""
    given = cell.settings
    begun = summary.identity["settings"] | _origin_of(summary).named()
    wanted = given.identity | origin.named()
    if summary.evaluation:
        begun["evaluation_sequences"] = summary.evaluation["initial"]["sequences"]
        wanted["evaluation_sequences"] = given.evaluation_sequences
    differing = [
        f"{name} was {begun.get(name)!r} and is {value!r}"
        for name, value in wanted.items()
        if begun.get(name) != value
    ]
    if summary.formats != cell.configuration.components:
        differing.append(f"formats were {summary.formats}")
    if summary.last_step > given.max_steps:
        differing.append(f"it has {summary.last_step} steps and is to have {given.max_steps}")
    return differing


def holds_runs(plan: SweepPlan) -> bool:
    """True when some cell's directory is there."""
    return any(plan.run_directory(cell).exists() for cell in plan.cells)


def ended(plan: SweepPlan, cell: SweepCell) -> RunSummary | None:
    """The summary of a cell that has nothing left to do; None for any other.

    Raises:
        SummaryError: the summary is damaged.
    """
    summary = read_summary(plan.run_directory(cell))
    if summary is None or summary.status not in FINAL:
        return None
    whole = summary.status != COMPLETED or summary.last_step >= cell.settings.max_steps
    return summary if whole else None
