"""The recipes of a record by cost and damage: the Pareto front and the cheapest healthy one.

The hazard. A tool that always names a recipe names a damaged one where none is healthy. So there
are three answers, and the two that name no recipe say which hypothesis is in the way.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from precision_lib.forensics.causal import PURE
from precision_lib.forensics.damage.figures import StepDamage
from precision_lib.forensics.operating import OperatingPoint
from precision_lib.forensics.verdicts import HEALTHY, IMPAIRED, INCONCLUSIVE
from precision_lib.matrix import PrecisionConfig
from precision_lib.recipes.cost import Cost, cost_of
from precision_lib.recipes.damage import NOT_MEASURED, Damage, damages_of, verdict_of
from precision_lib.recipes.shape import Shape
from precision_lib.record.record import Record

#: What a recommendation can say.
RECOMMENDED, NONE_HEALTHY, UNDECIDED = "recommended", "none healthy", "inconclusive"
#: What cheap can mean.
CHEAP = ("time", "memory")


@dataclass(frozen=True)
class Recipe:
    """A configuration with its cost and its damage at the operating point.

    Attributes:
        step: a whole PPO step beside FP32's, as measured; None where it was not.
    """

    configuration: PrecisionConfig
    cost: Cost
    damages: tuple[Damage, ...]
    verdict: str
    step: StepDamage | None = None

    @property
    def name(self) -> str:
        return self.configuration.name

    @property
    def worst(self) -> Damage | None:
        """The damage that is largest over its limit; None where none has a figure."""
        known = [d for d in self.damages if d.over_limit is not None]
        return max(known, key=lambda d: d.over_limit or 0.0, default=None)

    @property
    def worst_over_limit(self) -> float | None:
        return None if self.worst is None else self.worst.over_limit

    def price(self, by: str) -> tuple[float, float]:
        """(what is compared first, what decides between equals), for a recipe that can be run."""
        time, memory = self.cost.time or 0.0, self.cost.bytes_per_parameter
        return (time, memory) if by == "time" else (memory, time)


@dataclass(frozen=True)
class Choice:
    """What was found.

    Attributes:
        verdict: ``recommended``, ``none healthy`` or ``inconclusive``.
        recipes: all of them, in the order of the record.
        front: names of the recipes that no other one beats in both cost and damage.
        chosen: the cheapest healthy recipe; None unless recommended.
        cheaper_undecided: recipes cheaper than the chosen one, or any, that a larger measurement
            could find healthy.
    """

    verdict: str
    recipes: tuple[Recipe, ...]
    front: tuple[str, ...]
    chosen: Recipe | None
    cheaper_undecided: tuple[Recipe, ...]


def recipes_of(
    record: Record, shape: Shape, point: OperatingPoint, hardware: str
) -> tuple[Recipe, ...]:
    """Every configuration of the record's matrix as a recipe.

    Raises:
        ValueError: a configuration, a cell or the hardware cannot be used; the message says which.
    """
    configurations = [PrecisionConfig(name, **formats) for name, formats in record.matrix.items()]
    recipes = []
    for configuration in configurations:
        damages = damages_of(record, configuration.name, point)
        cost = cost_of(configuration, PURE, shape, point, hardware)
        damage = record.pipeline_damage
        step = damage.of(configuration.name) if damage else None
        recipes.append(Recipe(configuration, cost, damages, verdict_of(damages), step))
    return tuple(recipes)


def choose(recipes: Iterable[Recipe], by: str = "time") -> Choice:
    """The cheapest recipe that is healthy everywhere, or why there is none.

    Args:
        by: ``time`` or ``memory``; equal recipes are told apart by the other one.

    Raises:
        ValueError: ``by`` is neither, or there is no recipe.
    """
    recipes = tuple(recipes)
    if by not in CHEAP:
        raise ValueError(f"by = {by!r}: cheap means {' or '.join(CHEAP)}")
    if not recipes:
        raise ValueError("the record holds no configuration; give one that the main job wrote")
    possible = [r for r in recipes if r.cost.time is not None]
    order = sorted(possible, key=lambda r: (*r.price(by), r.worst_over_limit or 0.0))
    chosen = next((r for r in order if r.verdict == HEALTHY), None)
    undecided = tuple(
        r
        for r in order
        if r.verdict == INCONCLUSIVE and (chosen is None or r.price(by) < chosen.price(by))
    )
    verdict = NONE_HEALTHY if not undecided else UNDECIDED
    return Choice(
        verdict=RECOMMENDED if chosen else verdict,
        recipes=recipes,
        front=front(possible, by),
        chosen=chosen,
        cheaper_undecided=undecided,
    )


def front(recipes: Iterable[Recipe], by: str) -> tuple[str, ...]:
    """Names of the recipes that no other one beats: none is as cheap and less damaged, or cheaper.

    A recipe without a figure of damage is not on it.
    """
    points = [(r.price(by), r.worst_over_limit, r.name) for r in recipes]
    known = [(price, damage, name) for price, damage, name in points if damage is not None]
    return tuple(
        name
        for price, damage, name in known
        if not any(
            other <= price and less <= damage and (other, less) != (price, damage)
            for other, less, _ in known
        )
    )


def obstacles(recipes: Iterable[Recipe]) -> dict[str, tuple[Recipe, ...]]:
    """Hypothesis to the recipes that it keeps from being healthy, where it does so for all.

    Where no single hypothesis is in the way of all, those that are in the way of any.
    """
    recipes = tuple(r for r in recipes if r.cost.time is not None)
    blocked: dict[str, list[Recipe]] = {}
    for recipe in recipes:
        for damage in recipe.damages:
            if damage.verdict in (IMPAIRED, INCONCLUSIVE, NOT_MEASURED):
                blocked.setdefault(damage.hypothesis, []).append(recipe)
    everywhere = {name: tuple(rows) for name, rows in blocked.items() if len(rows) == len(recipes)}
    return everywhere or {name: tuple(rows) for name, rows in blocked.items()}
