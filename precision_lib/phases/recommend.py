"""A recommendation from end to end: measure the recipes or take a record, choose, write files."""

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from precision_lib.forensics.budget import Budget
from precision_lib.forensics.hypotheses import HYPOTHESES
from precision_lib.jsonio import write_bytes, write_json, write_text
from precision_lib.matrix import PrecisionConfig
from precision_lib.models.pipeline import Pipeline
from precision_lib.phases.estimate import estimate_main_job
from precision_lib.phases.main_job import run_main_job
from precision_lib.phases.progress import Meter, watched
from precision_lib.recipes.answer import Answer, as_json
from precision_lib.record.record import Record
from precision_lib.reporting.bar import every
from precision_lib.reporting.plots.appearance import rendered
from precision_lib.reporting.plots.recommendation import recommendation_picture
from precision_lib.reporting.recommendation import recommendation_markdown


def measure_recipes(
    pipeline: Pipeline,
    budget: Budget,
    configurations: Sequence[PrecisionConfig],
    path: Path,
    *,
    budget_name: str,
) -> Record:
    """The main job over ``configurations``, its record written to ``path``.

    Says how long it takes, and every 20 seconds how far it is, on stderr.

    Raises:
        ValueError: a budget that the models cannot hold.
    """
    budget.check_fits(pipeline.policy)
    estimate = estimate_main_job(pipeline, budget, configurations, tuple(HYPOTHESES))
    _say(f"measuring {len(configurations)} recipes: {estimate.sentence()}")
    meter = Meter(estimate, lambda _: None)
    meter.begin("opening")
    with watched(pipeline, meter), every(lambda: _say(meter.progress().line())):
        recorder = run_main_job(
            pipeline,
            budget,
            configurations,
            path,
            budget_name=budget_name,
            damage=True,
            begins=meter.begin,
        )
    recorder.write()
    return recorder.record()


def write_recommendation(
    given: Answer, output_dir: Path, json: Path | None, markdown: Path | None
) -> list[Path]:
    """Write the answer, its Markdown and, where matplotlib is installed, its picture; the files."""
    json = json or output_dir / "recommendation.json"
    markdown = markdown or output_dir / "recommendation.md"
    write_json(json, as_json(given))
    write_text(markdown, recommendation_markdown(given))
    if find_spec("matplotlib") is None:
        return [json, markdown]
    picture = recommendation_picture(given)
    files = {output_dir / f"{picture.name}.{k}": v for k, v in rendered(picture.figure).items()}
    for path, content in files.items():
        write_bytes(path, content)
    return [json, markdown, *files]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201
