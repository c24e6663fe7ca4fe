"""The catalogue of planted faults, and planting: everywhere, and taken back."""

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from precision_lib import ppo
from precision_lib.conformance.checks import find_check
from precision_lib.faults import FAULTS, plant, wrong_core
from precision_lib.faults.catalogue import CATALOGUE
from precision_lib.phases.self_test import planted
from precision_lib.targets import INTERFACE
from precision_lib.targets.objectives import FUNCTIONS, OBJECTIVES, base
from tests.unit.small_blocks import read
from tests.unit.suite_runs import run_suite


def test_there_are_wrong_cores_of_every_function() -> None:
    """Thirty at least is what the project promises; the self-test catches every one."""
    caught_by_a_check = [fault for fault in FAULTS.values() if fault.caught_by]
    assert len(caught_by_a_check) >= 30
    assert {fault.function for fault in caught_by_a_check} == set(INTERFACE) | set(FUNCTIONS)
    tested = {find_check(fault.caught_by).function for fault in caught_by_a_check}
    assert tested == set(INTERFACE) | set(OBJECTIVES)


def test_no_two_faults_are_one() -> None:
    assert len(CATALOGUE) == len(FAULTS)
    assert len({fault.broken for fault in FAULTS.values()}) == len(FAULTS)
    assert len({(fault.function, fault.meaning) for fault in FAULTS.values()}) == len(FAULTS)


def test_every_fault_says_what_where_and_by_whom() -> None:
    for name, fault in FAULTS.items():
        assert fault.name == fault.broken.__name__ == name
        assert fault.meaning, name
        assert fault.source, name
        caught = fault.caught_by or fault.caught_in_pipeline
        assert bool(caught) != fault.harmless, name
        assert bool(fault.caught_by) == (fault.function in ppo.__all__ and not fault.harmless), name
        if fault.caught_by:
            assert base(find_check(fault.caught_by).function) == fault.function, name
        assert "\n" not in (fault.broken.__doc__ or "\n"), name


def test_every_fault_breaks_one_function_of_the_core() -> None:
    for name, fault in FAULTS.items():
        original = getattr(importlib.import_module(fault.module), fault.function)
        assert original.__module__ == fault.module, name
        if fault.function not in ppo.__all__:
            with pytest.raises(ValueError, match="no core offers"):
                wrong_core(name)
            continue
        core = vars(wrong_core(name))
        assert set(core) == set(ppo.__all__), name
        assert [key for key in core if core[key] is not getattr(ppo, key)] == [fault.function]
        assert core[fault.function] is fault.broken, name


def held() -> dict[tuple[str, str], Any]:
    """Every function in every loaded module of the package but the faults themselves."""
    modules = [
        module
        for name, module in list(sys.modules.items())
        if name.startswith("precision_lib.") and not name.startswith("precision_lib.faults")
    ]
    return {(m.__name__, k): v for m in modules for k, v in vars(m).items() if callable(v)}


def test_planting_replaces_a_function_everywhere_and_puts_it_back() -> None:
    """What one fault left behind would show in the next one's places, or at the end."""
    for fault in FAULTS.values():
        importlib.import_module(fault.module)
        assert callable(fault.broken)  # loads what it builds on
    before = held()
    for name, fault in FAULTS.items():
        original = before[fault.module, fault.function]
        with plant(name) as planted:
            assert planted is fault
            during = held()
        assert during.keys() == before.keys(), name
        changed = {place for place, value in before.items() if during[place] is not value}
        assert changed == {place for place, value in before.items() if value is original}, name
        assert (fault.module, fault.function) in changed, name
        assert all(during[place] is fault.broken for place in changed), name
    assert held() == before


def test_a_function_that_a_neighbour_imported_is_replaced_there_too() -> None:
    with plant("k3_as_textbook") as fault:
        during = held()
    assert during["precision_lib.ppo.losses", "kl_penalty"] is fault.broken
    assert during["precision_lib.ppo", "kl_penalty"] is fault.broken


def test_a_fault_is_taken_back_after_an_error() -> None:
    original = ppo.masked_mean
    with pytest.raises(ZeroDivisionError), plant("bf16_running_sum"):
        raise ZeroDivisionError
    assert ppo.masked_mean is original


def test_unknown_faults_are_named() -> None:
    with pytest.raises(ValueError, match="unknown fault 'typo'; known: advantage_with"):
        wrong_core("typo")
    with (
        pytest.raises(ValueError, match="unknown fault 'typo'; known: advantage_with"),
        plant("typo"),
    ):
        pass


def test_the_catalogue_is_read_without_torch() -> None:
    code = "import sys; from precision_lib.faults import FAULTS; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_planted_fault_differs_from_the_original_on_the_case_it_is_known_for() -> None:
    rewards = torch.tensor([[1.0, 1.0, 1.0, 1.0078125]], dtype=torch.bfloat16)
    wrong = wrong_core("group_statistics_in_rewards_dtype").group_advantages(rewards)
    assert wrong.tolist() == [[0.0, 0.0, 0.0, 2.0]]
    assert ppo.group_advantages(rewards).tolist() == [[-0.5, -0.5, -0.5, 1.5]]


def test_a_planted_fault_turns_its_file_red(tmp_path: Path) -> None:
    """One for all; ``pytest -m selftest`` plants the others."""
    fault = FAULTS["log_of_softmax"]
    caught, _ = planted(fault, None, tmp_path)
    assert fault.caught_in_pipeline in [by.by for by in caught]
    # Nobody may take such a record for a measurement.
    block = read(tmp_path / "planted" / f"{fault.name}.json")["precision"]
    assert block["planted_fault"] == fault.name


@pytest.mark.parametrize(("profile", "options"), [("ci", []), ("quick", ["--quick"])])
def test_a_fault_of_the_core_turns_its_own_conformance_check_red(
    profile: str, options: list[str], tmp_path: Path
) -> None:
    """Also on the fewer examples of a first look; ``test_wrong_cores.py`` has the other faults."""
    fault = FAULTS["k3_as_textbook"]
    check = f"tests/forensics/test_conformance.py::{fault.caught_by}"
    path = tmp_path / "report.json"
    done = run_suite(check, "--plant-fault", fault.name, f"--json-report-file={path}", *options)
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"FAILED {check}" in done.stdout
    assert read(path)["precision"]["conformance"]["profile"] == profile
