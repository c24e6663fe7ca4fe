"""``recommend``: the cheapest recipe that does no damage at the user's operating point.

Exit codes: 0 a recipe is healthy everywhere, 1 none is, 2 none is and some are undecided, 4 wrong
usage.
"""

import argparse
from pathlib import Path
from typing import Any

from precision_lib.commands import (
    INCONCLUSIVE,
    OK,
    REGRESSION,
    UsageError,
    add_models,
    load_models,
    print_lines,
)
from precision_lib.plugin.options import EMBEDDED, add_prompts

_EXIT_CODES = (
    "exit codes: 0 a recipe is healthy everywhere, 1 every recipe is impaired somewhere, 2 none is "
    "healthy and some are undecided, 4 usage"
)


#: The shipped matrix of recipes.
RECIPES = Path("recipes")


def add_recommend(commands: Any) -> None:
    recommend = commands.add_parser(
        "recommend",
        help="the cheapest recipe that does no damage, and its settings in your framework",
        epilog=_EXIT_CODES,
    )
    add = recommend.add_argument
    add("--record", type=Path, metavar="FILE", help="of a main job; without it the recipes are run")
    add("--length", type=int, default=2048, help="response tokens (default: %(default)s)")
    add("--algorithm", default="grpo", metavar="NAME", help="ppo, grpo, rloo or dapo: %(default)s")
    add("--kl", type=float, default=1e-4, help="true KL to the reference, nats per token (1e-4)")
    add("--hardware", default="h100", metavar="NAME", help="h100, h200 or a100 (%(default)s)")
    add("--by", default="time", choices=("time", "memory"), help="what is cheap: %(default)s")
    add("--whole", action="store_true", help="measure with the whole budget, not the quick one")
    add(
        "--matrix",
        type=Path,
        default=RECIPES,
        metavar="FILE.toml",
        help="your own configurations beside the matrix (default: `recipes`, the shipped ones)",
    )
    add("--output_dir", type=Path, default=Path("results/recommendation"), help="%(default)s")
    add("--json", type=Path, metavar="FILE", help="the answer, elsewhere")
    add("--markdown", type=Path, metavar="FILE", help="the tables, elsewhere")
    add("--seed", type=int, default=0)
    add_prompts(add)
    add_models(recommend, pipeline=True)
    recommend.set_defaults(run=_recommend, model=None, kept="cells that were finished were kept")


def _recommend(options: argparse.Namespace) -> int:
    from precision_lib.phases.recommend import write_recommendation
    from precision_lib.recipes.answer import answer
    from precision_lib.recipes.choice import NONE_HEALTHY, RECOMMENDED, UNDECIDED
    from precision_lib.reporting.recommendation import recommendation_lines

    point, record, shape = _checked(options)
    try:
        record = record or _measured(options)
        advice = answer(record, shape, point, options.hardware, options.by)
    except ValueError as error:
        raise UsageError(str(error)) from None
    files = write_recommendation(advice, options.output_dir, options.json, options.markdown)
    print_lines(recommendation_lines(advice))
    print(f"\nanswer: {files[0]}; {_picture(files)}")  # noqa: T201
    codes = {RECOMMENDED: OK, NONE_HEALTHY: REGRESSION, UNDECIDED: INCONCLUSIVE}
    return codes[advice.choice.verdict]


def _picture(files: list[Path]) -> str:
    return f"picture: {files[2]}" if len(files) > 2 else "no picture: the extra report draws it"


def _checked(options: argparse.Namespace) -> Any:
    """(operating point, record or None, shape), refused before anything is computed."""
    from precision_lib.jsonio import check_file_writable, check_writable
    from precision_lib.recipes.shape import UnknownShapeError, shape_of
    from precision_lib.recipes.tables import operating_point, table
    from precision_lib.record.files import load_record

    if options.hardware not in table("hardware"):
        known = ", ".join(table("hardware"))
        raise UsageError(f"--hardware {options.hardware}: unknown; known: {known}")
    _check_with_record(options)
    try:
        point = operating_point(options.algorithm, options.length, options.kl)
        check_writable(options.output_dir)
        for path in (options.json, options.markdown):
            if path is not None:
                check_file_writable(path)
        record = load_record(options.record) if options.record else None
        measured = record.context.checkpoint if record else None
        shape = shape_of(options.model or (measured.name if measured else EMBEDDED))
    except (UnknownShapeError, OSError, ValueError) as error:
        raise UsageError(str(error)) from None
    return point, record, shape


def _check_with_record(options: argparse.Namespace) -> None:
    """Refuse what says how to measure where nothing is measured."""
    given = {
        "--matrix": options.matrix != RECIPES,
        "--whole": options.whole,
        "--prompts": options.prompts is not None,
    }
    for name in (name for name, is_given in given.items() if is_given):
        if options.record is not None:
            raise UsageError(f"{name} says how to measure, --record that it is done; give one")


def _measured(options: argparse.Namespace) -> Any:
    from precision_lib.forensics.budget import budget
    from precision_lib.matrix import all_configurations
    from precision_lib.phases.recommend import measure_recipes

    options.model = options.model or EMBEDDED
    pipeline = load_models(options)
    path = options.output_dir / "report.json"
    record = measure_recipes(
        pipeline,
        budget(quick=not options.whole, seed=options.seed),
        all_configurations(options.matrix),
        path,
        budget_name="whole" if options.whole else "quick",
    )
    print(f"measured; another operating point takes seconds: --record {path}\n")  # noqa: T201
    return record
