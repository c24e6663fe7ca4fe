"""The answer to "what should I run": the choice, what it rests on, and the settings, JSON-ready."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from precision_lib.forensics.operating import OperatingPoint
from precision_lib.recipes.choice import Choice, Recipe, choose, recipes_of
from precision_lib.recipes.damage import Damage
from precision_lib.recipes.settings import Instructions, conditions, frameworks, instructions
from precision_lib.recipes.shape import Shape
from precision_lib.recipes.tables import table
from precision_lib.record.codec import encode
from precision_lib.record.context import Context
from precision_lib.record.record import Record

SCHEMA = "precision-forensics recommendation 1"


@dataclass(frozen=True)
class Answer:
    """What is recommended at an operating point, and on what it rests.

    Attributes:
        run: identifier of the record that was measured. context: of that record.
        shape: of the model that the cost is of.
        by: ``time`` or ``memory``.
        settings: of the chosen recipe, by framework; empty where none was chosen.
        conditions: what must also be true for the chosen recipe.
    """

    run: str
    context: Context
    point: OperatingPoint
    hardware: str
    shape: Shape
    by: str
    choice: Choice
    settings: Mapping[str, Instructions]
    conditions: tuple[str, ...]


def answer(record: Record, shape: Shape, point: OperatingPoint, hardware: str, by: str) -> Answer:
    """Choose among the configurations of a record.

    Raises:
        ValueError: a record with a planted fault or without cells, an unknown name, or a cell that
            cannot be carried to the point; the message says which.
    """
    if record.planted_fault:
        raise ValueError(
            f"the record was made with the planted fault {record.planted_fault}: it says nothing "
            "about a pipeline; measure again without it"
        )
    if not record.cells:
        raise ValueError("the record holds no measured cell; give one that the main job wrote")
    choice = choose(recipes_of(record, shape, point, hardware), by)
    chosen = choice.chosen.configuration if choice.chosen else None
    settings = {} if chosen is None else {f: instructions(f, chosen, point) for f in frameworks()}
    return Answer(
        run=record.run,
        context=record.context,
        point=point,
        hardware=hardware,
        shape=shape,
        by=by,
        choice=choice,
        settings=settings,
        conditions=() if chosen is None else conditions(chosen),
    )


def as_json(given: Answer) -> dict[str, Any]:
    """The answer as builtin types; an interval that nothing bounds has ``high`` None."""
    choice, context = given.choice, given.context
    models = {
        "policy": context.checkpoint.name if context.checkpoint else None,
        "reward_model": context.reward_model.name if context.reward_model else None,
        "prompts": context.prompts.get("name"),
    }
    return {
        "schema": SCHEMA,
        "verdict": choice.verdict,
        "recommended": choice.chosen.name if choice.chosen else None,
        "cheaper_undecided": [r.name for r in choice.cheaper_undecided],
        "measured": {"run": given.run, "budget": context.budget, **models},
        "point": asdict(given.point),
        "cost_of": asdict(given.shape),
        "hardware": {"name": given.hardware, **table("hardware")[given.hardware]},
        "cheap_by": given.by,
        "front": list(choice.front),
        "recipes": [_recipe(recipe) for recipe in choice.recipes],
        "conditions": list(given.conditions),
        "settings": {name: _settings(one) for name, one in given.settings.items()},
    }


def _recipe(recipe: Recipe) -> dict[str, Any]:
    cosine = recipe.step.gradient_cosine if recipe.step else None
    cost = asdict(recipe.cost) | {"bytes_per_parameter": recipe.cost.bytes_per_parameter}
    return {
        "name": recipe.name,
        "formats": recipe.configuration.components,
        "verdict": recipe.verdict,
        "worst_over_limit": recipe.worst_over_limit,
        "gradient_cosine": encode(cosine),
        "cost": cost,
        "damage": {d.hypothesis: _damage(d) for d in recipe.damages},
    }


def _damage(damage: Damage) -> dict[str, Any]:
    plain: dict[str, Any] = {"verdict": damage.verdict, "limit": damage.limit}
    if damage.carried is None:
        return plain
    figure = damage.carried.damage
    return plain | {
        "value": figure.value,
        "low": figure.low,
        "high": figure.high if math.isfinite(figure.high) else None,
        "unit": figure.unit,
        "basis": damage.carried.basis,
        "measured_at": damage.carried.measured_at,
    }


def _settings(one: Instructions) -> dict[str, Any]:
    return {
        "title": one.title,
        "release": one.release,
        "checked": one.checked,
        "lines": list(one.lines),
        "notes": {s.component: s.note for s in one.settings if s.note},
        "missing": dict(one.missing),
    }
