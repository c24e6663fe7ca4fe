"""A whole run on a device that is not the host: every tensor that meets another is where it is.

Simulated (see ``simulated_devices.py``): nothing is said of kernels, but a mask, an index or a
weight left on the CPU raises here as it would on a GPU.
"""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from precision_lib.matmul import FP32AccumulatedMatmul
from precision_lib.matrix import get_configuration
from precision_lib.models.placement import computes_on_cpu
from precision_lib.runtime import deterministic
from precision_lib.training.evaluation import evaluate
from precision_lib.training.events import Began
from precision_lib.training.run import run_events
from precision_lib.training.settings import PPOSettings
from precision_lib.training.state import STATE, write_state
from precision_lib.training.trainer import Run, open_run, ppo_step
from tests.benchmarks.test_training_benchmark import bare_calls
from tests.unit.simulated_devices import FIRST, HOST, TwoDevices, two_devices
from tests.unit.small_pipelines import random_pipeline

SETTINGS = PPOSettings(
    max_steps=2, batch_size=4, max_new_tokens=4, evaluation_sequences=4, target_kl=1.0
)


@contextmanager
def opened(name: str) -> Iterator[tuple[Run, TwoDevices]]:
    """A run whose four models are on a simulated device."""
    pipeline = random_pipeline()
    with two_devices() as devices, deterministic():
        for model in (pipeline.policy.model, pipeline.reward.model):
            devices.place(model, FIRST)
        yield open_run(pipeline, get_configuration(name), SETTINGS), devices


@pytest.mark.parametrize("name", ["bf16_pure", "mixed_recommended", "fp32_baseline"])
def test_run_evaluation_and_state_stay_on_the_models_device(name: str, tmp_path: Path) -> None:
    with opened(name) as (run, _):
        assert run.weights.master.device == FIRST
        for _ in range(SETTINGS.max_steps):
            ppo_step(run)
        write_state(tmp_path, run)
        found = evaluate(run.weights.golden, run.models.pipeline, 4, 4)
    assert (tmp_path / STATE).is_file()
    assert found.kl_per_token > 0


def test_in_a_step_the_host_waits_twice_for_each_drawn_token_and_at_most_27_times_more() -> None:
    """27: 5 scoring forwards, 5 moves around them; 3 and 5 for the diagnostics; in each of 2
    minibatches a forward, 2 moves and a norm; the share of the weights that moved. The prompts go
    up instead of the last drawn token.

    So 75 with 24 tokens. The 5 synchronisations of the clock are not seen here.
    """
    with opened("bf16_pure") as (run, devices):
        ppo_step(run)  # the first step checks more
        devices.waits.clear()
        ppo_step(run)
    drawn = 2 * SETTINGS.max_new_tokens
    assert drawn < sum(devices.waits.values()) <= drawn + 27, devices.waits


def test_what_makes_the_host_wait_is_counted_and_nothing_else() -> None:
    with two_devices() as devices:
        x = torch.arange(3.0).to(FIRST)
        assert float(x.sum()) == 3
        assert len(x[x > 0]) == 2
        assert x[torch.tensor([1])].cpu().tolist() == [1]
        seen = dict(devices.waits)
        assert (x[:1] + x[1]).shape == torch.Size([1])
        assert torch.ones(2).sum().item() == 2
        assert x.to(FIRST) is x
    assert seen == {"to": 1, "__float__": 1, "__getitem__": 2, "cpu": 1}
    assert devices.waits == seen


@pytest.mark.parametrize("name", ["bf16_pure", "fp32_baseline"])
def test_the_benchmarks_model_calls_stay_on_the_models_device(name: str) -> None:
    """What ``pytest -m benchmark --gpu`` compares a step with."""
    with opened(name) as (run, _):
        bare_calls(run)()


def test_head_that_was_left_on_the_host_is_noticed() -> None:
    with opened("bf16_pure") as (run, _):
        left = run.weights.head_weight.detach().to(HOST).requires_grad_(True)
        run.weights = dataclasses.replace(run.weights, head_weight=left)
        with pytest.raises(RuntimeError, match="same device"):
            ppo_step(run)


@pytest.mark.parametrize(
    ("name", "on_cpu", "watched"),
    [("bf16_pure", True, True), ("bf16_pure", False, False), ("fp32_baseline", True, False)],
)
def test_products_are_watched_only_where_16_bit_ones_run_on_the_cpu(
    name: str, on_cpu: bool, watched: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("precision_lib.training.run.computes_on_cpu", lambda *models: on_cpu)
    events = run_events(random_pipeline(), get_configuration(name), SETTINGS, tmp_path)
    assert next(events) == Began(0)
    modes = _get_current_dispatch_mode_stack()
    events.close()
    assert [type(mode) for mode in modes] == [FP32AccumulatedMatmul] * watched


def test_one_parameter_on_the_cpu_makes_products_there() -> None:
    here, elsewhere = (torch.nn.LayerNorm(2, device=device) for device in ("cpu", "meta"))
    assert computes_on_cpu(elsewhere, torch.nn.Sequential(elsewhere, here))
    assert not computes_on_cpu(elsewhere, elsewhere)
