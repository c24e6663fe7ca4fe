"""--target: whose core is loaded, what is said of it, and how a run on it ends."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from precision_lib import ppo
from precision_lib.targets import BUILT_IN, INTERFACE, TargetError, load_target, make_target
from precision_lib.targets.objectives import OBJECTIVES
from tests.unit.suite_runs import run_checkout, run_on


def test_the_built_in_core_offers_everything() -> None:
    target = load_target()
    assert target.name == BUILT_IN
    assert list(target.functions) == [*INTERFACE, *OBJECTIVES]
    line = "target precision_lib.ppo: offers 9 of 9 functions; objectives of today: all 17"
    assert target.capabilities() == line


def test_an_attribute_of_a_module_is_a_target() -> None:
    assert load_target("precision_lib:ppo").functions["gae"] is ppo.gae


def test_what_is_missing_is_said_once() -> None:
    target = make_target("mine", SimpleNamespace(gae=ppo.gae, whiten=ppo.whiten))
    assert target.not_offered == [name for name in INTERFACE if name not in ("gae", "whiten")]
    assert target.capabilities() == (
        "target mine: offers 2 of 9 functions; not offered: token_logprobs, entropy, kl_penalty, "
        "masked_mean, group_advantages, policy_loss, value_loss; objectives of today: "
        "gae_with_bootstrap"
    )


def test_an_option_is_offered_when_the_signature_names_it() -> None:
    def gae(rewards: object, values: object, mask: object, gamma: float, lam: float) -> None: ...

    without = make_target("mine", SimpleNamespace(gae=gae, aggregate=ppo.aggregate))
    assert list(without.functions) == ["gae", "aggregate"]
    assert without.capabilities().endswith("; objectives of today: aggregate")
    assert make_target("mine", SimpleNamespace(gae=gae)).capabilities().endswith("today: none")
    assert make_target("mine", SimpleNamespace(gae=print)).functions == {"gae": print}
    core = SimpleNamespace(gae=ppo.gae)
    assert make_target("mine", core).functions["gae_with_bootstrap"] is ppo.gae


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module", "importing 'no_such_module' raised ModuleNotFoundError"),
        ("precision_lib.ppo:no.such", "'precision_lib.ppo' has no attribute 'no.such'"),
        ("json", "'json' offers none of the functions of the interface: token_logprobs"),
        ("", "target '' is not a module name"),
        ("./core.py", "target './core.py' is not a module name: give package.module"),
    ],
)
def test_a_target_that_cannot_be_used_says_why(name: str, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        load_target(name)


def test_a_class_with_methods_is_refused_and_its_instance_taken() -> None:
    class Core:
        def whiten(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return ppo.whiten(x, mask)

    with pytest.raises(TargetError, match="is a class and 'whiten' takes 'self': give an instance"):
        make_target("mine:Core", Core)
    assert list(make_target("mine:core", Core()).functions) == ["whiten"]


def test_a_name_that_is_not_a_function_is_an_error() -> None:
    with pytest.raises(TargetError, match="'gae' is a float, not a function"):
        make_target("mine", SimpleNamespace(gae=0.5))


def test_a_module_that_loads_lazily_and_fails_is_named() -> None:
    class Lazy:
        def __getattr__(self, name: str) -> None:
            raise ImportError("no such extra")

    with pytest.raises(TargetError, match="reading 'token_logprobs' raised ImportError: no such"):
        make_target("mine", Lazy())


def test_what_an_import_changes_is_put_back_and_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = (
        "import torch\ntorch.set_default_dtype(torch.bfloat16)\nfrom precision_lib.ppo import gae\n"
    )
    (tmp_path / "their_switching_core.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    target = load_target("their_switching_core")
    assert torch.get_default_dtype() == torch.float32
    assert target.capabilities().endswith("; its import changed default_dtype (put back)")


ASSERTING = """
from precision_lib.ppo import whiten

def masked_mean(x, mask):
    raise RuntimeError("CUDA error: device-side assert triggered")
"""


def test_a_core_that_ends_the_device_ends_the_run(tmp_path: Path) -> None:
    """The function that did it is named and counted; no other is blamed for it."""
    done = run_on(tmp_path, ASSERTING, "-k", "ordinary and (masked_mean or whiten)")
    assert done.returncode == 1
    assert "! masked_mean ended the device for this process" in done.stdout
    functions = json.loads((tmp_path / "record.json").read_text())["precision"]["conformance"]
    assert functions["functions"]["masked_mean"]["tests"] == 1
    assert "whiten" not in functions["functions"]


PARTLY_WRONG = """
from precision_lib.ppo import masked_mean

def kl_penalty(policy_logprobs, ref_logprobs, estimator):
    d = policy_logprobs - ref_logprobs
    return {"k1": d, "k2": d * d / 2, "k3": (-d).exp() - 1 + d}[estimator]

def entropy(logits):
    raise NotImplementedError("later")
"""


def test_a_run_names_the_function_the_region_the_input_and_how_to_repeat_it(
    tmp_path: Path,
) -> None:
    wanted = "near_identical-fp32 or entropy-ties or mean-ties-fp32"
    run = run_on(tmp_path, PARTLY_WRONG, "-k", wanted)
    assert run.returncode == 1, run.stdout + run.stderr
    assert "target their_core: offers 3 of 9 functions; not offered: token_logprobs" in run.stdout
    assert "kl_penalty: 1 of 1 values of the result are wrong" in run.stdout
    assert "limit" in run.stdout
    assert "from bounds.kl_bound" in run.stdout
    assert "hex_tensor('fp32'" in run.stdout
    command = (
        'again: pytest "tests/forensics/test_conformance.py::'
        'test_values_are_within_their_bound[kl_penalty-near_identical-fp32]" --target=their_core'
    )
    assert command in run.stdout
    assert "entropy raised NotImplementedError: later" in run.stdout


WANTED = "entropy-single_token-fp32 or masked_mean-large_mean-fp32 or gae-single_token-fp32"


def test_the_counts_of_a_run_stand_in_the_record(tmp_path: Path) -> None:
    run = run_on(tmp_path, PARTLY_WRONG, "-k", WANTED)
    block = json.loads((tmp_path / "record.json").read_text())["precision"]
    found = block["conformance"]
    assert found["target"] == "their_core"
    assert "gae" in found["not_offered"]
    assert found["functions"]["masked_mean"]["tests"] == 1
    assert found["functions"]["masked_mean"]["failed"] == []
    assert found["functions"]["masked_mean"]["inputs"] > 1
    assert found["functions"]["masked_mean"]["compared"] > 1
    assert 0 < found["functions"]["masked_mean"]["worst_over_limit"] <= 1
    assert found["functions"]["entropy"]["failed"] == [
        "test_values_are_within_their_bound[entropy-single_token-fp32]"
    ]
    assert "gae" not in found["functions"], "what is not offered is skipped, not counted"
    assert "SKIPPED" in run.stdout
    assert f"record: {tmp_path / 'record.json'}" in run.stdout
    assert "gae is not offered by their_core" in run.stdout


def test_only_conformance_tests_run_on_a_target(tmp_path: Path) -> None:
    run = run_on(tmp_path, "from precision_lib.ppo import *", "--collect-only", "-q")
    lines = [line for line in run.stdout.splitlines() if "::" in line]
    assert len(lines) > 300
    assert all("tests/forensics/test_conformance.py::" in line for line in lines)


def test_an_explored_failure_is_repeated_with_its_seed(tmp_path: Path) -> None:
    explore = ("--hypothesis-profile", "explore", "-k", "kl_penalty-near_identical-bf16")
    first = run_on(tmp_path, PARTLY_WRONG, *explore)
    (again,) = [line for line in first.stdout.splitlines() if "again: " in line]
    assert "--hypothesis-profile explore --hypothesis-seed=" in again
    second = run_on(tmp_path, PARTLY_WRONG, *explore, again.split()[-1])
    inputs = [line for line in first.stdout.splitlines() if "input: Case" in line]
    assert inputs
    assert inputs == [line for line in second.stdout.splitlines() if "input: Case" in line]


def test_a_run_that_compared_nothing_is_not_green(tmp_path: Path) -> None:
    run = run_on(tmp_path, PARTLY_WRONG, "-k", "gae-single_token")
    assert "3 skipped" in run.stdout
    assert "nothing was compared: no check came to a result" in run.stdout
    assert run.returncode == 1


BROKEN_IN_EVERY_WAY = """
from precision_lib.ppo import group_advantages

def masked_mean(x, mask):
    return x.sum(-1)

def whiten(x, mask):
    return gone(x)

def entropy(logits, mask):
    return logits.sum(-1)

def token_logprobs(logits, tokens):
    return None

def gae(rewards, values, mask, gamma, lam):
    return None, None

def value_loss(values, old_values, returns, mask, clip_range):
    raise SystemExit(7)
"""


def test_every_way_of_being_broken_is_attributed_and_the_rest_goes_on(tmp_path: Path) -> None:
    run = run_on(tmp_path, BROKEN_IN_EVERY_WAY, "-k", "wider and not bf16 and not fp16")
    assert run.returncode == 1
    for said in (
        "masked_mean: result has shape (",
        "whiten raised NameError: name 'gone' is not defined (at their_core.py:8)",
        "entropy raised TypeError: entropy() missing 1 required positional argument: 'mask'",
        "token_logprobs returned NoneType, expected a tensor",
        "gae returned NoneType, expected a tensor",
        "value_loss raised SystemExit: 7",
    ):
        assert said in run.stdout, said
    assert "6 failed, 1 passed" in run.stdout
    record = json.loads((tmp_path / "record.json").read_text())["precision"]["conformance"]
    assert record["consequences"]["whiten"]["fp32"]["raised"].startswith("NameError")
    assert record["functions"]["group_advantages"]["failed"] == []


def test_whitened_advantages_may_be_left_out_and_returns_not(tmp_path: Path) -> None:
    source = """
from precision_lib import ppo

def gae(**given):
    advantages, returns = ppo.gae(**given)
    return None, returns
"""
    run = run_on(tmp_path, source, "-k", "gae-ragged-fp32 or gae-undiscounted_is")
    assert run.returncode == 0, run.stdout
    wrong = source.replace("None, returns", "None, 1.001 * returns")
    assert run_on(tmp_path, wrong, "-k", "gae-ragged-fp32").returncode == 1
    left_out = source.replace("None, returns", "advantages, None")
    assert run_on(tmp_path, left_out, "-k", "gae-ragged-fp32").returncode == 1


@pytest.mark.parametrize("other", [("tests/unit/test_matrix.py",), ("-m", "unit")])
def test_other_tests_of_the_checkout_do_not_run_on_a_target(
    tmp_path: Path, other: tuple[str, ...]
) -> None:
    record = f"--json-report-file={tmp_path / 'record.json'}"
    run = run_checkout("--target=precision_lib.ppo", record, *other)
    assert run.returncode in (4, 5)
    assert "passed" not in run.stdout


def test_a_planted_fault_and_a_target_exclude_each_other(tmp_path: Path) -> None:
    run = run_on(tmp_path, PARTLY_WRONG, "--plant-fault", "log_of_softmax")
    assert run.returncode == 4
    assert "--plant-fault breaks the built-in core: leave out --target" in run.stderr


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("1 / 0", "importing 'their_module' raised ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)", "importing 'their_module' raised SystemExit: 3"),
        ("import pytest\npytest.skip('x', allow_module_level=True)", "raised Skipped: x"),
        ("x = 1", "offers none of the functions of the interface"),
        ("def gae(:", "importing 'their_module' raised SyntaxError: invalid syntax"),
        ("import no_such_dependency", "raised ModuleNotFoundError: No module named 'no_such_dep"),
        ("gae = 0.95", "'gae' is a float, not a function"),
    ],
)
def test_a_broken_module_says_why(
    source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_fresh(source, tmp_path, monkeypatch)
    with pytest.raises(TargetError, match=message) as refused:
        load_target("their_module")
    assert str(refused.value).startswith("target 'their_module'")


def test_a_module_that_warns_when_it_is_imported_is_a_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warns = "import warnings\nwarnings.warn('old', DeprecationWarning)\ndef masked_meen(): ...\n"
    import_fresh(f"{warns}def gae(): ...", tmp_path, monkeypatch)
    target = load_target("their_module")
    assert list(target.functions) == ["gae"]
    assert "masked_mean (is 'masked_meen' meant?), whiten" in target.capabilities()


def import_fresh(source: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``their_module`` with this source, importable until the test ends."""
    (folder / "their_module.py").write_text(source)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "their_module", raising=False)


@pytest.mark.parametrize(
    ("source", "arguments", "message"),
    [
        ("raise SystemExit(3)", (), "--target: target 'their_core': importing 'their_core' raised"),
        ("", ("--target=",), "--target: names no module"),
        ("", ("--known-failures=",), "--known-failures: needs the name of a file and a --target"),
    ],
)
def test_what_cannot_be_tested_is_a_usage_error_and_leaves_no_record(
    source: str, arguments: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    run = run_on(tmp_path, source, *arguments)
    assert run.returncode == 4
    assert message in run.stderr
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "record.json").exists()
