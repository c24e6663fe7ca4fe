"""Cells on a Ray cluster end in the bits of a local run, whatever happens to their workers.

The cluster is one of two nodes with a worker each, on this machine.
"""

import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from precision_lib.matrix import get_configuration
from precision_lib.runtime import state_put_back
from precision_lib.sweep.events import (
    FAILED,
    FINISHED,
    RETRIED,
    STARTED,
    STEPPED,
    Event,
    ExecutorError,
)
from precision_lib.sweep.local import RETRIES
from precision_lib.sweep.plan import ModelNames, SweepCell, SweepPlan
from precision_lib.sweep.ray_cluster import run_ray
from precision_lib.training.directory import read_lines
from precision_lib.training.events import Ended, StateWritten
from precision_lib.training.run import run_events
from precision_lib.training.settings import PPOSettings
from precision_lib.training.summary import read_summary

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

STEPS = 16
SETTINGS = PPOSettings(
    max_steps=STEPS, batch_size=4, max_new_tokens=4, checkpoint_every=4, evaluation_sequences=4
)
NAMES = ("fp32_baseline", "bf16_pure")
STORE = 80 * 2**20


def cell(name: str, **changes: Any) -> SweepCell:
    return SweepCell(get_configuration(name), replace(SETTINGS, **changes))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> ModelNames:
    from tests.unit.sweep.saved_pipelines import saved_models

    return saved_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def local(models: ModelNames, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Digest of the final weights of a plain local run, by configuration."""
    from precision_lib.models.pipeline import load_pipeline

    pipeline = load_pipeline(models.model, models.reward_model)
    found = {}
    for name in NAMES:
        directory = tmp_path_factory.mktemp(name)
        *_, end = run_events(pipeline, get_configuration(name), SETTINGS, directory)
        assert isinstance(end, Ended)
        found[name] = end.summary.weights_sha256
    return found


@pytest.fixture
def plan(models: ModelNames, tmp_path: Path) -> Callable[..., SweepPlan]:
    def make(*cells: SweepCell) -> SweepPlan:
        return SweepPlan(tmp_path, cells, models)

    return make


def test_ray_that_the_sweep_starts_ends_with_it(tmp_path: Path) -> None:
    from precision_lib.models.pipeline import load_pipeline

    ray = pytest.importorskip("ray", reason="the Ray executor needs the optional package ray")
    embedded = cell(NAMES[1], max_steps=3, checkpoint_every=2)
    here = SweepPlan(tmp_path / "sweep", (embedded,), ModelNames())
    local = run_events(load_pipeline(), embedded.configuration, embedded.settings, tmp_path / "run")
    *_, end = local
    assert isinstance(end, Ended)
    handler = signal.getsignal(signal.SIGTERM)
    events = []
    for event in run_ray(here, list(here.cells)):
        events.append(event)
        assert ray.is_initialized()
        assert signal.getsignal(signal.SIGTERM) == handler
    assert not ray.is_initialized()
    assert weights(here) == [end.summary.weights_sha256]
    process, threads = said_by(events[0])
    assert threads == 1
    for _ in range(1000):  # on a busy machine a worker ends after the cluster does
        if not Path(f"/proc/{process}").exists():
            return
        time.sleep(0.1)
    pytest.fail(f"worker {process} outlives the Ray that was started for it")


@pytest.fixture(scope="module")
def cluster() -> Iterator["Cluster"]:
    """Two nodes of one CPU each, and a connection of this process."""
    ray = pytest.importorskip("ray", reason="the Ray executor needs the optional package ray")
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": STORE}
    handler = signal.getsignal(signal.SIGTERM)
    made = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
    try:
        made.add_node(**node)
        ray.init(address=made.address, log_to_driver=False)
        yield made
    finally:
        ray.shutdown()
        made.shutdown()
        signal.signal(signal.SIGTERM, handler)


def weights(plan: SweepPlan) -> list[str]:
    summaries = [read_summary(plan.run_directory(cell)) for cell in plan.cells]
    return [summary.weights_sha256 for summary in summaries if summary]


def said_by(event: Event) -> tuple[int, int]:
    """Process and threads of the worker that started a cell."""
    assert event.kind == STARTED
    found = re.match(r"process (\d+) on .*, (\d+) thread", event.detail)
    assert found
    return int(found[1]), int(found[2])


def ends(events: list[Event]) -> list[tuple[str, str]]:
    return [(e.kind, e.cell.name) for e in events if e.kind not in (STARTED, STEPPED)]


def test_cells_end_in_the_bits_of_local_runs(
    plan: Callable[..., SweepPlan], local: dict[str, str], cluster: "Cluster"
) -> None:
    here = plan(*(cell(name) for name in NAMES))
    events = list(run_ray(here, list(here.cells), address=cluster.address))
    assert sorted(ends(events)) == sorted((FINISHED, c.name) for c in here.cells)
    assert weights(here) == [local[name] for name in NAMES]
    processes = {said_by(event)[0] for event in events if event.kind == STARTED}
    assert len(processes) == 2
    for c in here.cells:
        steps = [e.steps for e in events if e.kind == STEPPED and e.cell is c]
        assert steps == list(range(1, STEPS + 1))
        assert len(read_lines(here.run_directory(c))) == STEPS
    again = list(run_ray(here, list(here.cells), address=cluster.address))
    for c in here.cells:  # two cells may run at once, so their events may alternate
        assert [e.kind for e in again if e.cell is c] == [STARTED, FINISHED]
    assert {e.detail for e in again if e.kind == FINISHED} == {"completed"}


def test_killed_worker_costs_the_steps_since_the_last_state_and_the_third_the_cell(
    plan: Callable[..., SweepPlan],
    local: dict[str, str],
    cluster: "Cluster",
) -> None:
    here = plan(cell(NAMES[1]), cell(NAMES[0], seed=1))
    once, always = here.cells
    process, events = {}, []
    for event in run_ray(here, list(here.cells), address=cluster.address):
        events.append(event)
        if event.kind == STARTED:
            process[event.cell.name] = said_by(event)[0]
        begun = [e for e in events if e.kind == STARTED and e.cell is once]
        if (event.cell is always and event.kind == STARTED) or (
            event.cell is once and event.kind == STEPPED and event.steps == 6 and len(begun) == 1
        ):
            os.kill(process[event.cell.name], signal.SIGKILL)
    lost = [event for event in events if event.kind in (RETRIED, FAILED)]
    assert all(event.detail.startswith("ActorDiedError: ") for event in lost)
    assert [e.kind for e in lost if e.cell is always] == [RETRIED] * RETRIES + [FAILED]
    assert [e.kind for e in lost if e.cell is once] == [RETRIED]
    back = events.index(next(event for event in lost if event.cell is once))
    resumed = next(e.steps for e in events[back:] if e.kind == STEPPED and e.cell is once)
    assert resumed in (4, 8, 12)  # a state, and not the beginning
    assert weights(here) == [local[NAMES[1]]]
    assert len(read_lines(here.run_directory(once))) == STEPS


def test_cells_that_raise_fail_with_their_message_and_the_others_finish(
    plan: Callable[..., SweepPlan], local: dict[str, str], cluster: "Cluster"
) -> None:
    from precision_lib.models.pipeline import load_pipeline

    too_long = cell(NAMES[0], max_new_tokens=1000, seed=1)
    changed = cell(NAMES[0], learning_rate=1e-3, seed=2)
    here = plan(too_long, changed, cell(NAMES[0]))
    pipeline = load_pipeline(here.models.model, here.models.reward_model)
    begun, directory = cell(NAMES[0], seed=2).settings, here.run_directory(changed)
    for event in run_events(pipeline, changed.configuration, begun, directory):
        if isinstance(event, StateWritten):
            break
    events = list(run_ray(here, list(here.cells), address=cluster.address))
    assert sorted(ends(events)) == [
        (FAILED, too_long.name),
        (FAILED, changed.name),
        (FINISHED, here.cells[2].name),
    ]
    said = {event.cell.name: event.detail for event in events if event.kind == FAILED}
    assert re.match(r"ValueError: .*positions", said[too_long.name])
    assert said[changed.name].startswith("StateError: ")
    assert "learning_rate was 0.0001 and is 0.001" in said[changed.name]
    assert said[too_long.name] in (here.run_directory(too_long) / "log.txt").read_text()
    assert weights(here) == [local[NAMES[0]]]


@pytest.mark.parametrize("how", ["stop", "close"])
def test_stopped_sweep_keeps_every_step_and_goes_on_to_the_same_bits(
    how: str, plan: Callable[..., SweepPlan], local: dict[str, str], cluster: "Cluster"
) -> None:
    here = plan(*(cell(name) for name in NAMES), cell(NAMES[0], seed=1), cell(NAMES[0], seed=2))
    reached: list[int] = []
    events = run_ray(
        here,
        list(here.cells),
        lambda: "a test" if how == "stop" and reached else None,
        address=cluster.address,
    )
    for event in events:
        if event.kind == STEPPED and event.steps == 5:
            reached.append(event.steps)
            if how == "close":
                break
    events.close()  # type: ignore[attr-defined]
    first = read_summary(here.run_directory(here.cells[0]))
    assert first is not None
    assert (first.status, first.last_step < STEPS) == ("interrupted", True)
    assert ("a test" if how == "stop" else "the end of the sweep") in first.reason
    assert len(read_lines(here.run_directory(here.cells[0]))) == first.last_step >= 5
    assert not read_lines(here.run_directory(here.cells[3]))
    rest = list(here.cells[:2])
    events = run_ray(here, rest, address=cluster.address)
    begun = [e.steps for e in events if e.kind == STEPPED and e.cell is here.cells[0]]
    assert begun[:2] == [first.last_step, first.last_step + 1]
    assert weights(here)[:2] == [local[name] for name in NAMES]


def test_lost_node_costs_the_steps_since_the_last_state(
    plan: Callable[..., SweepPlan], local: dict[str, str], cluster: "Cluster"
) -> None:
    here = plan(*(cell(name) for name in NAMES))
    (other,) = cluster.worker_nodes
    events: list[Event] = []
    for event in run_ray(here, list(here.cells), address=cluster.address):
        events.append(event)
        if event.kind == STEPPED and event.steps == 6 and other in cluster.worker_nodes:
            with state_put_back():  # it draws from `random`
                cluster.remove_node(other, allow_graceful=False)
    # A busy machine can lose the new actor as well: the cell is then begun once more.
    retried = [event for event in events if event.kind == RETRIED]
    assert retried
    assert all(event.cell is retried[0].cell for event in retried)
    assert all(re.match("Actor(Died|Unavailable)Error: ", event.detail) for event in retried)
    resumed = [e.steps for e in events if e.kind == STEPPED and e.cell is retried[0].cell]
    # None where the node died at a state: which of the two cells was on it, and how far that one
    # had come when the other made its sixth step, is chance.
    assert 0 <= len(resumed) - STEPS < 6 * len(retried)
    assert weights(here) == [local[name] for name in NAMES]


def test_missing_ray_is_said_at_once(
    plan: Callable[..., SweepPlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    here = plan(cell(NAMES[0]))
    with pytest.raises(ExecutorError, match=r"not installed: pip install .*\[ray\]"):
        run_ray(here, list(here.cells))
    assert not here.run_directory(here.cells[0]).exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"address": "ray://there:10001"}, "not supported"),
        ({"gpus_per_cell": -1}, "-1 GPUs per cell"),
        ({"gpus_per_cell": 1.5}, "whole ones"),
        ({"device": "cuda:1"}, "use --device cuda"),
    ],
)
def test_impossible_arguments_are_refused_at_once(
    arguments: dict[str, Any], message: str, plan: Callable[..., SweepPlan]
) -> None:
    pytest.importorskip("ray", reason="the Ray executor needs the optional package ray")
    here = replace(plan(), models=ModelNames(device=arguments.pop("device", "cpu")))
    with pytest.raises(ExecutorError, match=message):
        run_ray(here, [], **arguments)


def test_models_in_directories_are_given_by_their_full_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from precision_lib.sweep.ray_cluster import found_anywhere

    monkeypatch.chdir(tmp_path)
    for name in ("policy", "embedded"):
        (tmp_path / name).mkdir()
    found = found_anywhere(ModelNames("policy", "embedded", "owner/name", "cuda"))
    assert found == ModelNames(str(tmp_path / "policy"), "embedded", "owner/name", "cuda")
