"""What a hypothesis declares about itself, so that nothing outside its folder knows it by name.

A declaration is read wherever a record is, so it imports neither torch nor a model: what measures
is named, and imported when it is called (:class:`Imported`).
"""

import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from precision_lib.forensics.operating import Carried, MeasuredCell, OperatingPoint, unchanged
from precision_lib.metrics.direction import Direction
from precision_lib.metrics.measure import Measure

if TYPE_CHECKING:
    from precision_lib.forensics.frozen import Frozen
    from precision_lib.forensics.study import Study
    from precision_lib.forensics.work import Planned, Tokens
    from precision_lib.matrix import PrecisionConfig
    from precision_lib.models.loading import Checkpoint
    from precision_lib.models.pipeline import Pipeline

#: Damage metric of a configuration against itself in another order and in other micro-batches.
BATCH_VARIANCE = "batch_variance"

#: One rule for all: impaired is where the power of the error is 10 % of the signal's.
TENTH_OF_THE_POWER = 0.1**0.5


@dataclass(frozen=True)
class Decision:
    """One row of the decision table.

    Attributes:
        hypothesis: its name, ``H1``.
        title: what the hypothesis is called.
        metric: the damage metric that decides.
        symptom: the metric that people look at instead; "" where there is none.
        limit: a cell is impaired above it.
        meaning: what the number says in words.
        components: of the pipeline, those that the hypothesis runs.
        promoted: ``pure`` with the component in question in FP32.
        demoted: ``fp32_baseline`` with the component in question in bf16.
        irrelevant: a promotion of a component that the hypothesis does not run; "" in old records.
        pure: the configuration that is promoted.
    """

    hypothesis: str
    title: str
    metric: str
    symptom: str
    limit: float
    meaning: str
    components: tuple[str, ...]
    promoted: str
    demoted: str
    irrelevant: str = ""
    pure: str = "bf16_pure"


@dataclass(frozen=True)
class Given:
    """What a study is opened on.

    Attributes:
        pipeline: the FP32 models.
        settings: what ``Hypothesis.settings`` gave, perhaps changed since.
        configurations: those that will be asked for.
        frozen: the trajectories; None for a hypothesis that measures on tokens of its own.
    """

    pipeline: "Pipeline"
    settings: Any
    configurations: "Iterable[PrecisionConfig]"
    frozen: "Frozen | None" = None

    @property
    def trajectories(self) -> "Frozen":
        """The frozen trajectories.

        Raises:
            ValueError: the declaration does not say that the hypothesis needs them.
        """
        if self.frozen is None:
            raise ValueError("no trajectories: declare the hypothesis with on_trajectories=True")
        return self.frozen


@dataclass(frozen=True)
class Imported:
    """The function ``module:name``, imported when it is called."""

    name: str

    def __call__(self, *given: Any) -> Any:
        return pkgutil.resolve_name(self.name)(*given)


@dataclass(frozen=True)
class Sized:
    """Settings of the main job, or of a first look.

    Attributes:
        first_look: ``module:instance`` of the first look; the main job has the defaults of its
            class.
    """

    first_look: str

    def __call__(self, quick: bool, seed: int) -> Any:
        first_look = pkgutil.resolve_name(self.first_look)
        return replace(first_look if quick else type(first_look)(), seed=seed)


def _fits(policy: "Checkpoint", settings: Any) -> None:
    """Settings that fit every model."""


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """One hypothesis: its decision, what measures it, and the words for what it finds.

    Attributes:
        decision: metric, symptom, limit, promotion, demotion, irrelevant promotion.
        metrics: of its cells, each with its unit and the way in which it gets worse.
        nonfinite: metric above 0 where something came out inf or NaN: the cell is impaired then;
            "" where nothing can.
        variance_of: what a batch variance is a multiple of; ``{kl}`` is the true KL of the cell.
        open: its study on the models of a run.
        settings: what it measures on, from (a first look?, seed).
        work: the forwards that it takes.
        check: raises ValueError where its settings do not fit a model.
        on_trajectories: it measures on the frozen trajectories, not on tokens of its own.
        counted: what a metric counts, ``tokens`` or ``sequences``.
        context: key of its settings in a record's context; "" where it has none.
        training_figure: of a training step, what comes nearest to the damage; "" where that has
            the same name.
        in_sweeps: a sweep of training runs judges it, too; training applies its formats.
        picture: draws its evidence from the ``precision`` block of a record; None: nothing does.
        needs: what an algorithm must have, ``critic`` or ``reference``, for it to apply; or "".
        carry: its damage at another operating point, from (cell, damage metric, point).
        carried_by: the law of ``carry`` in words.
    """

    decision: Decision
    metrics: dict[str, Measure]
    variance_of: str
    open: "Callable[[Given], Study]"
    settings: Callable[[bool, int], Any]
    work: "Callable[[Planned], Tokens]"
    nonfinite: str = ""
    check: "Callable[[Checkpoint, Any], None]" = _fits
    on_trajectories: bool = False
    counted: str = "tokens"
    context: str = ""
    training_figure: str = ""
    in_sweeps: bool = True
    picture: Callable[..., Any] | None = None
    needs: str = ""
    carry: Callable[[MeasuredCell, str, OperatingPoint], Carried] = unchanged
    carried_by: str = "depends on neither length nor KL"

    @property
    def name(self) -> str:
        return self.decision.hypothesis

    @property
    def in_training(self) -> str:
        """The figure of a training step that stands for the damage."""
        return self.training_figure or self.decision.metric

    @property
    def directions(self) -> dict[str, Direction]:
        """Metric to which way it gets worse; a batch variance follows the KL as the damage does."""
        rows = {name: metric.direction for name, metric in self.metrics.items()}
        given = {name: row for name, row in rows.items() if row is not None}
        exponent = given[self.decision.metric].kl_exponent
        return given | {BATCH_VARIANCE: Direction("difference", kl_exponent=exponent)}
