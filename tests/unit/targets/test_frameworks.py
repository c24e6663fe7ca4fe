"""Frameworks as targets: what is refused, with which words, and what is called.

No framework is needed for these: packages of a few lines stand in for one.
"""

import dataclasses
import importlib
import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from precision_lib import ppo
from precision_lib.targets import INTERFACE, TargetError, adapters, load_target, stubs
from precision_lib.targets.frameworks import Framework, FrameworkMissingError, load, release
from precision_lib.targets.objectives import FUNCTIONS
from tests.unit.targets.easy_inputs import EASY, far_from_the_core

FAKE = Framework(
    "fakerl", "1.2", "1.4", ("fakerl.core",), {}, stubs=("absent_heavy",), needs=("x",)
)


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, version: str, core: str) -> None:
    """A package ``fakerl`` with metadata, importable until the test ends."""
    (folder / "fakerl").mkdir()
    (folder / "fakerl" / "__init__.py").write_text("")
    (folder / "fakerl" / "core.py").write_text(core)
    metadata = folder / f"fakerl-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: fakerl\nVersion: {version}\n")
    monkeypatch.syspath_prepend(str(folder))
    for name in ("fakerl", "fakerl.core"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def fresh(**changes: object) -> Framework:
    """The fake framework under a stub of its own, so that no earlier import is remembered."""
    return dataclasses.replace(FAKE, **changes)  # type: ignore[arg-type]


def test_an_absent_framework_says_how_to_install_it() -> None:
    message = (
        r"fakerl is not installed; \./setup\.sh --local -- pip install --no-deps fakerl==1\.2 x"
    )
    with pytest.raises(FrameworkMissingError, match=message):
        load(FAKE)


def test_a_distribution_of_another_name_is_looked_for_under_that() -> None:
    with pytest.raises(FrameworkMissingError, match=r"--no-deps fake-rl==1\.2 x"):
        load(fresh(distribution="fake-rl"))


@pytest.mark.parametrize("version", ["1.1.9", "1.4", "2.0"])
def test_a_release_that_was_not_checked_is_refused(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, version, "x = 1")
    with pytest.raises(TargetError, match=rf"fakerl {version} is installed; .* 1\.2 <= release"):
        load(FAKE)


def test_a_checked_release_is_called_with_its_heavy_imports_stubbed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, "1.3.1", "import absent_heavy\ndef mean(x): return x.mean()")
    assert load(fresh())["mean"](torch.ones(3)) == 1
    assert "absent_heavy" not in sys.modules


def test_a_framework_is_looked_up_once_and_not_at_every_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a millisecond of looking for metadata would count as the framework's time."""
    install(tmp_path, monkeypatch, "1.3.1", "")
    framework = fresh()
    names = load(framework)
    monkeypatch.setattr(Framework, "version", lambda _: pytest.fail("looked up again"))
    assert load(framework) is names


def test_a_function_that_is_gone_is_named_when_it_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, "1.3.2", "def mean(x): return x.mean()")
    names = load(fresh(stubs=("another_heavy",)))
    with pytest.raises(AttributeError, match="fakerl has no 'whiten' where its adapter looks"):
        names["whiten"]


def test_what_fails_inside_the_import_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, "1.3", "import no_such_light_package")
    message = "fakerl.core does not import .ModuleNotFoundError: No module named 'no_such_light"
    with pytest.raises(FrameworkMissingError, match=message):
        load(fresh(stubs=()))


def test_versions_compare_as_numbers() -> None:
    assert release("0.11.2.post1") == (0, 11, 2)
    assert release("0.9.1") < release("0.10") < release("1.0rc1")


@pytest.mark.parametrize("name", adapters.NAMES)
def test_an_adapter_offers_what_it_says_and_says_what_it_does_not(name: str) -> None:
    module = importlib.import_module(f"precision_lib.targets.adapters.{name}")
    framework = module.FRAMEWORK
    assert framework.name == name
    names = INTERFACE | FUNCTIONS
    assert set(framework.offered) | set(framework.not_offered) == set(names)
    assert not set(framework.offered) & set(framework.not_offered)
    assert {f for f in names if hasattr(module, f)} == set(framework.offered)


@pytest.mark.parametrize("name", adapters.NAMES)
def test_an_installed_framework_is_near_the_core_on_easy_input(name: str) -> None:
    """The translation: argument order, mask, shapes. Rounding is what conformance is for."""
    try:
        target = load_target(name)
    except FrameworkMissingError as error:
        pytest.skip(str(error))
    for function, call in target.functions.items():
        assert far_from_the_core(function, call(**EASY[function])) < 1e-5, function


def test_a_translation_that_swaps_two_arguments_is_seen() -> None:
    given = EASY["policy_loss"] | {
        "logprobs": EASY["policy_loss"]["old_logprobs"],
        "old_logprobs": EASY["policy_loss"]["logprobs"],
    }
    assert far_from_the_core("policy_loss", ppo.policy_loss(**EASY["policy_loss"])) == 0
    assert far_from_the_core("policy_loss", ppo.policy_loss(**given)) > 1e-3


def test_padded_slots_are_0_and_real_ones_untouched() -> None:
    x = torch.tensor([[1.0, torch.nan, torch.inf]])
    mask = torch.tensor([[True, False, False]])
    assert adapters.real_only(x, mask).tolist() == [[1.0, 0.0, 0.0]]
    assert torch.isnan(adapters.real_only(x, torch.tensor([[True, True, False]]))[0, 1])


def test_stubs_import_as_anything_and_vanish() -> None:
    names = ("no_such_package", "json")  # the second exists and is hidden for the while
    import json

    with stubs.stubbed(names):
        module = importlib.import_module("no_such_package.deep.down")

        def three() -> int:
            return 3

        class Child(module.Base):  # type: ignore[misc, name-defined]  # made up on access
            pass

        assert module.remote(num_cpus=1)(three)() == 3  # as a decorator
        assert Child() is not None
        assert importlib.import_module("json") is not json
    assert importlib.import_module("json") is json
    assert not [name for name in sys.modules if name.startswith("no_such_package")]
    assert importlib.util.find_spec("no_such_package") is None


def test_a_stub_of_a_part_of_a_package_leaves_the_package_as_it_was() -> None:
    import xml.dom

    with stubs.stubbed(("xml.dom", "xml.no_such_part")):
        for part in ("xml.dom", "xml.no_such_part"):
            assert isinstance(importlib.import_module(part), stubs._Stub)
    assert xml.dom is sys.modules["xml.dom"]
    assert not isinstance(xml.dom, stubs._Stub)
    assert not hasattr(xml, "no_such_part")
