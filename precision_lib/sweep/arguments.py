"""A cell as the arguments of ``precision-forensics ppo``: what a worker is told, and all of it."""

import sys
from dataclasses import asdict
from pathlib import Path

from precision_lib.matrix import TWIN
from precision_lib.sweep.plan import REFERENCE_RUN, SweepCell, SweepPlan


def command(plan: SweepPlan, cell: SweepCell, directory: Path) -> list[str]:
    """What runs ``cell`` in ``directory``, with this Python."""
    return [sys.executable, "-m", "precision_lib.cli", *ppo_arguments(plan, cell, directory)]


def ppo_arguments(plan: SweepPlan, cell: SweepCell, directory: Path) -> list[str]:
    """The command line behind ``precision-forensics`` that runs ``cell`` in ``directory``."""
    models = plan.models
    twin = cell.configuration.name == TWIN.name  # the baseline but for its perturbation
    name = REFERENCE_RUN.name if twin else cell.configuration.name
    arguments = ["ppo", "--precision_config", name, "--resume"]
    for setting, value in asdict(cell.settings).items():
        if value is not None:
            arguments += [f"--{setting}", value if isinstance(value, str) else repr(value)]
    arguments += ["--output_dir", str(directory), "--device", models.device]
    arguments += ["--model", models.model, "--reward-model", models.reward_model]
    if models.reference_model is not None:
        arguments += ["--reference-model", models.reference_model]
    if plan.matrix_file is not None:
        arguments += ["--matrix", str(plan.matrix_file)]
    return arguments
