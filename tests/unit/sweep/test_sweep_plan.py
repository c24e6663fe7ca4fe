"""Which runs a sweep has, what they are told, and which directories it refuses."""

import argparse
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from precision_lib import cli
from precision_lib.commands.training import settings_of
from precision_lib.jsonio import write_text
from precision_lib.matrix import MATRIX, TWIN, get_configuration
from precision_lib.sweep import budget
from precision_lib.sweep.arguments import ppo_arguments
from precision_lib.sweep.events import ExecutorError
from precision_lib.sweep.executors import Resources, executor
from precision_lib.sweep.local import run_local
from precision_lib.sweep.plan import (
    ONE_ROUNDING,
    REFERENCE_RUN,
    ModelNames,
    PlanError,
    SweepPlan,
    check_same,
    ended,
    holds_runs,
    plan_sweep,
)
from precision_lib.training.failures import COMPLETED, INTERRUPTED, KL_EXPLOSION
from precision_lib.training.settings import PPOSettings
from precision_lib.training.summary import SUMMARY, SummaryError
from tests.unit.sweep_runs import ORIGIN, leave, small_plan

PURE = get_configuration("bf16_pure")


def names(plan: SweepPlan) -> list[str]:
    return [cell.name for cell in plan.cells]


def test_baseline_and_twin_come_to_every_seed_and_seeds_stay_together(tmp_path: Path) -> None:
    plan = small_plan(tmp_path, PURE, seeds=(3, 1))
    assert names(plan) == [
        *("fp32_baseline-seed-3", "fp32_twin-seed-3", "bf16_pure-seed-3"),
        *("fp32_baseline-seed-1", "fp32_twin-seed-1", "bf16_pure-seed-1"),
    ]
    assert plan.steps == 6 * 4


def test_what_is_asked_for_twice_is_run_once(tmp_path: Path) -> None:
    plan = small_plan(tmp_path, PURE, REFERENCE_RUN, TWIN, PURE, *MATRIX)
    assert len(names(plan)) == len(set(names(plan))) == len(MATRIX) + 1


def test_two_configurations_of_one_name_are_refused(tmp_path: Path) -> None:
    """They would train in one directory; so would one that calls itself the twin."""
    for name in (PURE.name, TWIN.name):
        with pytest.raises(ValueError, match=f"two configurations '{name}'"):
            small_plan(tmp_path, PURE, replace(PURE, name=name, kl="fp16"))


@pytest.mark.parametrize("seeds", [[], [0, 1, 0]])
def test_seeds_are_at_least_one_and_distinct(seeds: list[int], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be at least one, and distinct"):
        small_plan(tmp_path, PURE, seeds=seeds)


def test_cells_differ_by_seed_and_the_twin_by_its_perturbation_alone(tmp_path: Path) -> None:
    given = PPOSettings(max_steps=7, learning_rate=2e-4, perturbation=0.5, seed=9)
    plan = plan_sweep(tmp_path, [PURE], [0, 1], given, ModelNames())
    for cell in plan.cells:
        twin = cell.configuration == TWIN
        want = replace(given, seed=cell.settings.seed, perturbation=ONE_ROUNDING if twin else 0.0)
        assert cell.settings == want
    assert {cell.settings.seed for cell in plan.cells} == {0, 1}


def test_every_cell_has_a_directory_of_its_own(tmp_path: Path) -> None:
    plan = small_plan(tmp_path, *MATRIX, seeds=(0, 1))
    directories = {plan.run_directory(cell) for cell in plan.cells}
    assert len(directories) == len(plan.cells)
    assert {d.parent for d in directories} == {tmp_path / "runs"}


@pytest.mark.parametrize(
    ("changes", "has_ended"),
    [
        ({}, True),
        ({"status": KL_EXPLOSION, "last_step": 2}, True),
        ({"status": INTERRUPTED, "last_step": 2}, False),
        ({"status": COMPLETED, "last_step": 3}, False),  # more steps are asked for
    ],
)
def test_a_cell_has_ended_when_nothing_is_left_to_do(
    changes: dict[str, Any], has_ended: bool, tmp_path: Path
) -> None:
    plan = small_plan(tmp_path)
    assert not holds_runs(plan)
    assert ended(plan, plan.cells[0]) is None
    leave(plan, plan.cells[0], **changes)
    assert holds_runs(plan)
    assert (ended(plan, plan.cells[0]) is not None) is has_ended
    check_same(plan)


def test_a_damaged_summary_is_no_end_and_no_reason_to_go_on(tmp_path: Path) -> None:
    plan = small_plan(tmp_path)
    write_text(plan.run_directory(plan.cells[1]) / SUMMARY, "{")
    with pytest.raises(SummaryError, match=r"summary.json cannot be read"):
        check_same(plan)


def identity(**changes: Any) -> dict[str, Any]:
    return {"settings": PPOSettings(max_steps=4).identity, **vars(ORIGIN), **changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"identity": identity(models={"policy": "x", "reward": "b"})}, "checkpoint of the policy"),
        ({"identity": identity(torch="1.0")}, "torch was '1.0' and is '2.0'"),
        ({"identity": identity(device="cuda")}, "device was 'cuda' and is 'cpu'"),
        (
            {"identity": identity(settings=PPOSettings(learning_rate=3.0).identity)},
            "learning_rate was 3.0 and is 0.0001",
        ),
        ({"formats": PURE.components}, "formats were {'policy': 'bf16'"),
        ({"last_step": 5}, "it has 5 steps and is to have 4"),
    ],
    ids=["models", "torch", "device", "settings", "formats", "longer"],
)
def test_a_directory_with_another_run_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    plan = small_plan(tmp_path)
    baseline, twin = plan.cells
    leave(plan, twin)
    check_same(plan)
    leave(plan, baseline, **changes)
    with pytest.raises(PlanError, match=f"{message}.*; give another --output_dir, or --fresh"):
        check_same(plan, ORIGIN)
    if message != "checkpoint of the policy":
        return
    with pytest.raises(PlanError, match="fp32_twin-seed-0 holds another run: checkpoint of the"):
        check_same(plan)  # without being told: the first run that ended is what the others follow


def test_an_evaluation_of_another_size_is_another_run(tmp_path: Path) -> None:
    leave(small_plan(tmp_path), small_plan(tmp_path).cells[0])
    other = small_plan(tmp_path, evaluation_sequences=32)
    with pytest.raises(PlanError, match="evaluation_sequences was 256 and is 32"):
        check_same(other)


def test_a_longer_plan_goes_on_in_the_same_directory(tmp_path: Path) -> None:
    short = small_plan(tmp_path)
    for cell in short.cells:
        leave(short, cell)
    longer = small_plan(tmp_path, max_steps=9, checkpoint_every=3)
    check_same(longer)
    assert [ended(longer, cell) for cell in longer.cells] == [None, None]


def parsed(arguments: list[str]) -> argparse.Namespace:
    return cli._parser().parse_args(arguments)


def test_a_cells_arguments_give_back_its_settings(tmp_path: Path) -> None:
    """Every field but its default, so that one that is not passed on is seen."""
    changed = PPOSettings(
        max_steps=7,
        batch_size=12,
        samples_per_prompt=3,
        max_new_tokens=5,
        epochs=2,
        minibatches=4,
        learning_rate=1 / 3,
        clip_range=0.1 + 0.2,
        value_clip_range=7.0,
        value_coefficient=1e-300,
        gamma=0.0,
        lam=1.0,
        kl_coefficient=0.3,
        target_kl=6.5,
        kl_horizon=99,
        max_grad_norm=1e300,
        diagnostic_sequences=2,
        evaluation_sequences=8,
        checkpoint_every=3,
        perturbation=0.0,
        importance_weights="sequence",
        importance_cap=3.5,
        seed=11,
    )
    default = asdict(PPOSettings())
    same = {name for name, value in asdict(changed).items() if value == default[name]}
    assert same == {"perturbation"}, "the twin has one"
    models = ModelNames("policy", "reward", "reference", "cuda:1")
    plan = plan_sweep(tmp_path, [PURE], [11], changed, models, tmp_path / "m.toml")
    for cell in plan.cells:
        options = parsed(ppo_arguments(plan, cell, plan.run_directory(cell)))
        assert settings_of(options, seed=options.seed) == cell.settings
        twin = cell.configuration == TWIN
        assert options.precision_config == (REFERENCE_RUN.name if twin else cell.configuration.name)
        assert options.resume
        assert options.output_dir == plan.run_directory(cell)
        found = (options.model, options.reward_model, options.reference_model, options.device)
        assert found == tuple(asdict(models).values())
        assert options.matrix == tmp_path / "m.toml"


def test_what_is_not_set_is_not_passed_on(tmp_path: Path) -> None:
    plan = small_plan(tmp_path)
    arguments = ppo_arguments(plan, plan.cells[0], tmp_path)
    for option in ("--target_kl", "--reference-model", "--matrix"):
        assert option not in arguments
    assert settings_of(parsed(arguments)).target_kl is None


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"executor": "slurm"}, "unknown executor 'slurm'; use one of local, ray"),
        ({"executor": "ray", "jobs": 2}, "--jobs is for local runs"),
        ({"address": "auto"}, "--ray_address and --gpus_per_cell need --executor ray"),
        ({"gpus_per_cell": 0.0}, "--ray_address and --gpus_per_cell need --executor ray"),
        ({"jobs": 0}, "--jobs 0 must be at least 1"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    resources: dict[str, Any], message: str
) -> None:
    with pytest.raises(ExecutorError, match=message):
        Resources(**resources)


def test_the_local_executor_gets_the_plan_the_jobs_and_the_request_to_stop(tmp_path: Path) -> None:
    plan = small_plan(tmp_path)

    def stop() -> str | None:
        return "SIGTERM"

    made = executor(plan, Resources(jobs=3), stop)
    assert isinstance(made, partial)
    assert (made.func, made.args, made.keywords) == (run_local, (plan,), {"jobs": 3, "stop": stop})
    assert list(made(list(plan.cells))) == [], "asked to stop before it began"


def test_a_first_look_is_small_and_lives_elsewhere() -> None:
    quick, whole = budget.sweep_settings(quick=True), budget.sweep_settings()
    assert whole == PPOSettings()
    assert quick.max_steps < 10 < whole.max_steps
    assert quick.checkpoint_every < quick.max_steps, "a state is written on the way"
    assert budget.QUICK != budget.WHOLE
    assert 1 < len(budget.QUICK_SEEDS) < len(budget.SEEDS)


def test_given_settings_win_over_those_of_a_first_look() -> None:
    made = budget.sweep_settings(quick=True, max_steps=50, gamma=0.5)
    assert (made.max_steps, made.gamma) == (50, 0.5)
    assert made.batch_size == budget.sweep_settings(quick=True).batch_size
