"""PPO runs of a few short steps on random models, for tests of the training package.

The hazard of a model that is shared between tests is one that a test changed: who wants another
policy makes one with :func:`variant`, and a test holds that training changes none.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from precision_lib.cli import main
from precision_lib.matrix import PrecisionConfig, get_configuration
from precision_lib.models.loading import parameter_digest, working_copy
from precision_lib.models.pipeline import Pipeline
from precision_lib.runtime import deterministic
from precision_lib.training.events import Ended, Stepped
from precision_lib.training.lines import Damage, Learning, StepLine, Symptoms, Timing
from precision_lib.training.rollout import Experience, rollout
from precision_lib.training.run import run_events
from precision_lib.training.settings import PPOSettings
from precision_lib.training.state import identity, read_state
from precision_lib.training.summary import RunSummary
from precision_lib.training.trainer import Run, open_run, ppo_step
from tests.unit.small_pipelines import random_checkpoint, random_reward

#: Two of the matrix with 16-bit formats, its FP32 one, and one of a user's own.
NAMES = ("bf16_pure", "mixed_recommended", "fp32_baseline", "all_fp16")
#: Enough scores that rounded ones cannot lie on the bf16 grid by chance.
MANY: dict[str, Any] = {"batch_size": 12, "minibatches": 3}
#: Files that a run leaves when it has ended, whatever happened to it.
ENDED = {".lock", "state.safetensors", "steps.jsonl", "summary.json"}


#: Names of the specification, by who reads them.
LEARNING = {
    *("reward_mean", "reward_std", "kl_sequence_mean", "kl_coefficient", "entropy_mean"),
    *("response_length_mean", "explained_variance", "value_error_rms", "return_rms"),
    *("policy_loss", "value_loss", "clip_frac", "approx_kl", "log_ratio_smallest"),
    *("log_ratio_largest", "ratio_overflows", "first_log_ratio", "gradient_norm", "updates"),
    *("skipped_updates", "weights_moved_frac"),
    *("importance_weight_mean", "importance_weight_truncated_frac"),
}
SYMPTOMS = {
    *("kl_penalty_mean", "kl_k1_mean", "log_ratio_near_zero_frac", "log_ratio_all_zero"),
    *("k3_negative_frac", "reward_resolution_median", "value_quant_step_median"),
    "log_ratio_nonfinite_frac",
    "values_unchanged_frac",
    *("rollout_log_ratio_final", "rollout_logprob_abs_diff_mean", "rollout_k3"),
    *("rollout_token_outside_clip_frac", "rollout_sequence_ess", "rollout_nonfinite_frac"),
}
DAMAGE = {
    *("golden_kl_penalty_mean", "log_ratio_nsr", "kl_k3_rel_error"),
    *("score_tie_frac", "score_kendall_tau", "gae_rms_error", "gae_sign_flip_frac"),
    *("value_td_zero_frac", "accum_err_final", "accum_err_growth_exponent"),
    *("drift_nats_per_1000_tokens", "log_ratio_rms_error", "sequence_ratio_ess"),
}
TIMES = {"rollout_seconds", "diagnostics_seconds", "update_seconds", "step_seconds"}
#: Figures that are 0, and those that are something else, where nothing was harmed.
UNHARMED = dict.fromkeys(DAMAGE - {"golden_kl_penalty_mean"}, 0.0) | {
    "score_kendall_tau": 1.0,
    "sequence_ratio_ess": 1.0,
}


def configuration(name: str) -> PrecisionConfig:
    """Of the matrix, or one of a user's own: ``all_fp16``, ``all_fp64``."""
    if name.startswith("all_"):
        return PrecisionConfig(name, *[name.removeprefix("all_")] * 5)
    return get_configuration(name)


def settings(**changes: Any) -> PPOSettings:
    """Four short sequences in two minibatches; a state every other step."""
    small = PPOSettings(
        max_steps=4,
        batch_size=4,
        max_new_tokens=6,
        learning_rate=1e-3,
        diagnostic_sequences=2,
        evaluation_sequences=2,
        checkpoint_every=2,
    )
    return dataclasses.replace(small, **changes)


@cache
def pipeline() -> Pipeline:
    """Random models; every fifth token ends a response, so that these have several lengths."""
    policy = random_checkpoint(num_hidden_layers=1)
    policy.model.generation_config.eos_token_id = list(range(0, 257, 5))
    return Pipeline(policy, policy, random_reward(), None)


def variant(role: str, change: Callable[[Any], None]) -> Pipeline:
    """:func:`pipeline` with a copy of one of its models, changed; the reference stays itself."""
    original = getattr(pipeline(), role)
    model = working_copy(original.model)
    with torch.no_grad():
        change(model)
    changed = dataclasses.replace(original, model=model, sha256=parameter_digest(model))
    return dataclasses.replace(pipeline(), **{role: changed})


@contextmanager
def opened(name: str, models: Pipeline | None = None, **changes: Any) -> Iterator[Run]:
    """A run before its first step, inside the numerical state of one."""
    formats = configuration(name)
    wanted = settings(**changes)
    low = set(formats.components.values()) - {"fp32", "fp64", "trainer"}
    with deterministic(wanted.seed, native_products=not low):
        yield open_run(models or pipeline(), formats, wanted)


def a_line(step: int = 0, **figures: Any) -> StepLine:
    """A step's line with these figures, and 0 for all others."""

    def part(kind: Any) -> Any:
        return kind(**{f.name: figures.get(f.name, 0.0) for f in dataclasses.fields(kind)})

    return StepLine(step, part(Learning), part(Symptoms), part(Damage), 0.0, part(Timing))


def experience_of(run: Run) -> Experience:
    """The rollout of the step that comes next."""
    return rollout(run.models, run.weights, run.settings, run.step, run.kl_coefficient)


@cache
def stepped() -> tuple[Run, Experience]:
    """An FP32 run after its first step, with the experience of the second; to look at only."""
    with opened("fp32_baseline", **MANY) as run:
        ppo_step(run)
        return run, experience_of(run)


def scored(experience: Experience, penalty: Tensor | None = None, **changes: Any) -> Experience:
    """With other figures of the models, or another penalty."""
    return dataclasses.replace(
        experience,
        scored=dataclasses.replace(experience.scored, **changes),
        penalty=experience.penalty if penalty is None else penalty,
    )


def train(
    directory: Path,
    name: str = "fp32_baseline",
    models: Pipeline | None = None,
    *,
    resume: bool = False,
    stop_before: int | None = None,
    **changes: Any,
) -> RunSummary:
    """Train in ``directory`` to the end, or to the step before which somebody asks to stop."""
    done: list[int] = []

    def stop() -> str | None:
        return "a test" if stop_before is not None and len(done) >= stop_before else None

    for event in run_events(
        models or pipeline(),
        configuration(name),
        settings(**changes),
        directory,
        resume=resume,
        stop=stop,
    ):
        if isinstance(event, Stepped):
            done.append(event.line.step)
    assert isinstance(event, Ended)
    return event.summary


def next_step(directory: Path, name: str = "fp32_baseline", **changes: Any) -> int:
    """The next step by the state in ``directory``."""
    state = read_state(directory, identity(pipeline(), configuration(name), settings(**changes)))
    assert state is not None
    return state.step


def at_call(number: int, real: Callable[..., Any], instead: Callable[..., Any]) -> Any:
    """``real``, but the call of that number, from 0, goes to ``instead``."""
    calls = iter(range(10**6))

    def function(*arguments: Any, **options: Any) -> Any:
        chosen = instead if next(calls) == number else real
        return chosen(*arguments, **options)

    return function


def refuse_constant(name: str) -> Any:
    """For ``json.loads``: NaN and Infinity are no JSON."""
    raise ValueError(f"{name} is no JSON")


def step_lines(directory: Path) -> list[dict[str, Any]]:
    """The lines of ``steps.jsonl``, each of them whole and strict JSON."""
    path = directory / "steps.jsonl"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    assert text == "" or text.endswith("\n"), "half a line"
    return [json.loads(line, parse_constant=refuse_constant) for line in text.splitlines()]


def stored_summary(directory: Path) -> dict[str, Any]:
    """``summary.json`` as strict JSON."""
    text = (directory / "summary.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text, parse_constant=refuse_constant)
    return found


def without_time(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The figures that have to come again, bit by bit."""
    return [
        {k: v for k, v in line.items() if not k.endswith(("_seconds", "_per_second"))}
        for line in lines
    ]


def check_ended(directory: Path, status: str, reason: str, steps: int) -> None:
    """The summary has the status and the reason, lines are whole, nothing half-written is left."""
    stored, lines = stored_summary(directory), step_lines(directory)
    assert stored["status"] == status, stored["reason"]
    assert re.search(reason, stored["reason"]), stored["reason"]
    assert stored["last_step"] == len(lines) == steps
    assert [line["step"] for line in lines] == list(range(steps))
    files = {path.name for path in directory.iterdir() if not path.match("weights_*_00000?.json")}
    assert files <= ENDED
    assert (directory / "state.safetensors").exists()


def small_arguments() -> list[str]:
    """:func:`settings` as options."""
    usual, small = PPOSettings(), settings()
    names = (field.name for field in dataclasses.fields(PPOSettings))
    return [
        f"--{name}={getattr(small, name)!r}"
        for name in names
        if getattr(small, name) != getattr(usual, name)
    ]


def ppo_command(directory: Path, *arguments: str, name: str = "fp32_baseline") -> int:
    """Exit code of ``ppo`` with the numbers of :func:`settings`, and more ``arguments``."""
    where = ["--precision_config", name, "--output_dir", str(directory)]
    return main(["ppo", *where, *small_arguments(), *arguments])


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """What was said on stderr, which is one line and no traceback."""
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("precision-forensics: ")
    return line.removeprefix("precision-forensics: ")
