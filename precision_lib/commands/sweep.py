"""``sweep``: train configurations x seeds to the end and compare them.

What can be refused is refused before the first cell. A directory that holds runs is neither
overwritten nor continued unless ``--fresh`` or ``--resume`` says so.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from precision_lib.commands import INCONCLUSIVE, INTERNAL, OK, UsageError, add_models, fail
from precision_lib.commands.training import add_settings, settings_of


def add_sweep(commands: Any) -> None:
    sweep = commands.add_parser(
        "sweep", help="PPO training of configurations x seeds, and what their precision does to it"
    )
    sweep.add_argument("--seeds", type=int, nargs="+", help="default: 0 1 2")
    sweep.add_argument(
        "--configurations",
        nargs="+",
        metavar="NAME",
        help="default: the seven of the matrix, and those of --matrix",
    )
    sweep.add_argument(
        "--counterfactuals",
        action="store_true",
        help="FP32 with one component in bf16 too: without them no demotion is tried",
    )
    add_settings(sweep, leave_out=("perturbation",))
    sweep.add_argument("--quick", action="store_true", help="a first look: tiny runs, two minutes")
    sweep.add_argument("--jobs", type=int, help="cells at once (default: what the machine holds)")
    sweep.add_argument("--executor", default="local", choices=("local", "ray"))
    sweep.add_argument("--ray_address", help="of a running cluster (default: start one here)")
    sweep.add_argument("--gpus_per_cell", type=float, help="with ray (default: 0.25 on cuda)")
    there = sweep.add_mutually_exclusive_group()
    there.add_argument("--resume", action="store_true", help="continue what is in --output_dir")
    there.add_argument("--fresh", action="store_true", help="delete the runs in --output_dir first")
    sweep.add_argument("--output_dir", type=Path, help="default: results/sweep")
    sweep.add_argument("--matrix", type=Path, help="TOML file of configurations, or `recipes`")
    add_models(sweep, pipeline=True)
    sweep.set_defaults(run=_sweep, kept="finished cells are kept: continue with --resume")


def _sweep(options: argparse.Namespace) -> int:
    from precision_lib.phases.sweep import check_models, record_path, run_sweep
    from precision_lib.reporting.training import sweep_lines
    from precision_lib.sweep.events import ExecutorError
    from precision_lib.sweep.executors import LOCAL, executor
    from precision_lib.sweep.plan import PlanError
    from precision_lib.training.signals import stop_requests
    from precision_lib.training.state import StateError
    from precision_lib.training.summary import SummaryError

    plan, resources = _asked_for(options)
    refusals = (PlanError, ExecutorError, StateError, SummaryError)
    local = resources.executor == LOCAL
    with stop_requests() as stop:
        try:
            record = run_sweep(
                plan,
                executor(plan, resources, stop),
                origin=lambda: _loaded(lambda: check_models(plan, here=local)),
                fresh=options.fresh,
                say=_say,
            )
        except refusals as error:
            raise UsageError(str(error)) from None
        interrupted = stop()
    print("\n".join(text for text, _ in sweep_lines(record)))  # noqa: T201
    print(f"record: {record_path(plan)}")  # noqa: T201
    if interrupted and not record.complete:
        return fail(INTERNAL, f"stopped by {interrupted}; continue with --resume")
    if record.failed:
        return fail(INTERNAL, f"{len(record.failed)} cells failed; continue with --resume")
    return OK if record.evidence else fail(INCONCLUSIVE, record.not_compared)


def _asked_for(options: argparse.Namespace) -> tuple[Any, Any]:
    """(SweepPlan, Resources) that ``options`` name.

    Raises:
        UsageError: something does not fit, or the directory holds runs that it should not.
    """
    from precision_lib.jsonio import check_writable
    from precision_lib.sweep.executors import Resources
    from precision_lib.sweep.plan import check_same, holds_runs
    from precision_lib.training.summary import SummaryError

    try:
        plan = _plan(options)
        resources = Resources(
            options.executor, options.jobs, options.ray_address, options.gpus_per_cell
        )
        check_writable(plan.directory)
        if holds_runs(plan) and not (options.resume or options.fresh):
            raise ValueError(
                f"{plan.directory} holds runs of a sweep already; continue them with --resume, "
                "delete them with --fresh, or give another --output_dir"
            )
        if not options.fresh:
            check_same(plan)
    except (OSError, ValueError, SummaryError) as error:
        raise UsageError(str(error)) from None
    return plan, resources


def _loaded(load: Callable[[], Any]) -> Any:
    """What ``load`` gives: what cannot be loaded is refused here, and not by every cell."""
    from precision_lib.models.loading import CheckpointError, NoDeviceError

    try:
        return load()
    except (CheckpointError, NoDeviceError, OSError, ValueError) as error:
        raise UsageError(str(error)) from None


def _say(line: str) -> None:
    from tqdm import tqdm

    tqdm.write(line)


def _sized(options: argparse.Namespace, settings: Any) -> Any:
    """``settings`` with the defaults for the size of a policy of the user's own, and said so."""
    from precision_lib.models.loading import EMBEDDED, load_checkpoint
    from precision_lib.training.defaults import NAMES, parameters_of, sized

    given = {name for name in NAMES if getattr(options, name) is not None}
    if options.model == EMBEDDED or given == set(NAMES):
        return settings
    parameters = parameters_of(_loaded(lambda: load_checkpoint(options.model)).model)
    settings, text = sized(settings, parameters, given)
    _say(text)
    return settings


def _plan(options: argparse.Namespace) -> Any:
    from functools import partial

    from precision_lib.matrix import (
        COUNTERFACTUALS,
        MATRIX,
        all_configurations,
        get_configuration,
    )
    from precision_lib.sweep import budget
    from precision_lib.sweep.plan import ModelNames, plan_sweep

    known = all_configurations(options.matrix)  # refuses a name that is taken
    configurations = MATRIX + known[len(all_configurations()) :]
    if options.configurations:
        named = [get_configuration(name, options.matrix) for name in options.configurations]
        configurations = tuple(named)
    if options.counterfactuals:
        configurations = tuple(dict.fromkeys((*configurations, *COUNTERFACTUALS)))
    defaults = (budget.QUICK_SEEDS, budget.QUICK) if options.quick else (budget.SEEDS, budget.WHOLE)
    settings = settings_of(options, make=partial(budget.sweep_settings, quick=options.quick))
    settings = _sized(options, settings)
    models = ModelNames(
        options.model, options.reward_model, options.reference_model, options.device
    )
    directory = options.output_dir or defaults[1]
    seeds = options.seeds or defaults[0]
    return plan_sweep(directory, configurations, seeds, settings, models, options.matrix)
