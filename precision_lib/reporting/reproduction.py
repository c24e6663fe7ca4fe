"""The commands that make a results directory's files, and its pictures, again.

Seed, budget, device and model are taken from the record.
"""

import shlex

from precision_lib.record.record import Record
from precision_lib.record.sweep import Sweep
from precision_lib.reporting.results import Results

_HERE = "./setup.sh --local -- "
EMBEDDED = "embedded"
#: What measures each file, for somebody who has none yet.
MEASURE = {
    "report": _HERE + "pytest -m forensics --json-report-file={directory}/report.json",
    "sweep": _HERE + "precision-forensics sweep --output_dir {directory}{sweep_below}",
    "benchmarks": _HERE + "pytest -m benchmark --benchmark-json={directory}/benchmarks.json",
    "self_test": _HERE + "precision-forensics self-test --output_dir {directory}",
}


def measuring(results: Results, kind: str) -> str:
    """The command that measures one of the files, as it was measured where the file is there."""
    command = plain(results, kind)
    if kind == "report" and results.report:
        command += _report_options(results.report)
    if kind == "sweep" and results.sweep:
        command += _sweep_options(results.sweep)
    if kind == "self_test" and results.self_test and results.self_test.clean_runs:
        command += f" --clean_runs {results.self_test.clean_runs.last_seed}"
    return command


def plain(results: Results, kind: str) -> str:
    """The command that measures one of the files with everything at its default."""
    below = results.sweep_below
    return MEASURE[kind].format(directory=shlex.quote(results.directory), sweep_below=below)


def drawing(results: Results, output: str) -> str:
    """The command that draws everything."""
    given = f"--results_dir {shlex.quote(results.directory)} --output_dir {shlex.quote(output)}"
    return f"{_HERE}precision-forensics analyze {given}"


def _report_options(record: Record) -> str:
    context, fault = record.context, record.planted_fault
    options = [f"--seed {context.seed}"] if context.seed else []
    options += [f"--plant-fault={fault}"] if fault else []
    options += ["--quick"] if context.is_quick else []
    options += ["--gpu"] if context.device and context.device.device_class != "cpu" else []
    for option, model in (
        ("--model", context.checkpoint),
        ("--reward-model", context.reward_model),
    ):
        name = model.name if model else EMBEDDED
        options += [f"{option} {shlex.quote(name)}"] if name != EMBEDDED else []
    return "".join(f" {option}" for option in options)


def _sweep_options(sweep: Sweep) -> str:
    seeds = sorted({run.seed for run in sweep.runs})
    options = [f"--seeds {' '.join(map(str, seeds))}", f"--max_steps {sweep.max_steps}"]
    models = sweep.models
    options += [f"--device {models.device}"] if models.device != "cpu" else []
    for option, name in (("--model", models.model), ("--reward-model", models.reward_model)):
        options += [f"{option} {shlex.quote(name)}"] if name != EMBEDDED else []
    return "".join(f" {option}" for option in options)
