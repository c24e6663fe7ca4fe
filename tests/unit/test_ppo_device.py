"""A whole run on a device that is not the host: every tensor that meets another is where it is.

Simulated (see ``simulated_devices.py``): nothing is said of kernels, but a mask, an index or a
weight left on the CPU raises here as it would on a GPU.
"""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from precision_lib.matrix import get_configuration
from precision_lib.runtime import deterministic
from precision_lib.training.evaluation import evaluate
from precision_lib.training.settings import PPOSettings
from precision_lib.training.state import STATE, write_state
from precision_lib.training.trainer import open_run, ppo_step
from tests.benchmarks.test_training_benchmark import bare_calls
from tests.unit.simulated_devices import FIRST, HOST, two_devices
from tests.unit.small_pipelines import random_pipeline

if TYPE_CHECKING:
    from precision_lib.training.trainer import Run

SETTINGS = PPOSettings(
    max_steps=2, batch_size=4, max_new_tokens=4, evaluation_sequences=4, target_kl=1.0
)


@contextmanager
def opened(name: str) -> Iterator["Run"]:
    """A run whose four models are on a simulated device."""
    pipeline = random_pipeline()
    with two_devices() as devices, deterministic():
        for model in (pipeline.policy.model, pipeline.reward.model):
            devices.place(model, FIRST)
        yield open_run(pipeline, get_configuration(name), SETTINGS)


@pytest.mark.parametrize("name", ["bf16_pure", "mixed_recommended", "fp32_baseline"])
def test_run_evaluation_and_state_stay_on_the_models_device(name: str, tmp_path: Path) -> None:
    with opened(name) as run:
        assert run.weights.master.device == FIRST
        for _ in range(SETTINGS.max_steps):
            ppo_step(run)
        write_state(tmp_path, run)
        found = evaluate(run.weights.golden, run.models.pipeline, 4, 4)
    assert (tmp_path / STATE).is_file()
    assert found.kl_per_token > 0


@pytest.mark.parametrize("name", ["bf16_pure", "fp32_baseline"])
def test_the_benchmarks_model_calls_stay_on_the_models_device(name: str) -> None:
    """What ``pytest -m benchmark --gpu`` compares a step with."""
    with opened(name) as run:
        bare_calls(run)()


def test_head_that_was_left_on_the_host_is_noticed() -> None:
    with opened("bf16_pure") as run:
        left = run.weights.head_weight.detach().to(HOST).requires_grad_(True)
        run.weights = dataclasses.replace(run.weights, head_weight=left)
        with pytest.raises(RuntimeError, match="same device"):
            ppo_step(run)
