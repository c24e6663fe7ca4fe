"""The PPO core under test: loading it, and which functions of the interface it offers by name.

A name that is missing is reported once and not counted as a pass.
"""

import difflib
import importlib
import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from precision_lib.targets import adapters
from precision_lib.targets.errors import TargetError
from precision_lib.targets.frameworks import load
from precision_lib.targets.objectives import FUNCTIONS, OBJECTIVES, with_options
from precision_lib.targets.only import Taken, read_only, shown

__all__ = ["BUILT_IN", "INTERFACE", "Target", "TargetError", "load_target", "make_target"]

#: The nine functions of PPO and the keyword arguments with which each is called. Those of today's
#: objectives stand in ``objectives.py``.
INTERFACE: dict[str, tuple[str, ...]] = {
    "token_logprobs": ("logits", "tokens"),
    "entropy": ("logits",),
    "kl_penalty": ("policy_logprobs", "ref_logprobs", "estimator"),
    "masked_mean": ("x", "mask"),
    "whiten": ("x", "mask"),
    "gae": ("rewards", "values", "mask", "gamma", "lam"),
    "group_advantages": ("rewards",),
    "policy_loss": ("logprobs", "old_logprobs", "advantages", "mask", "clip_range"),
    "value_loss": ("values", "old_values", "returns", "mask", "clip_range"),
}
BUILT_IN = "precision_lib.ppo"


@dataclass(frozen=True)
class Target:
    """A core under test.

    Attributes:
        name: as it was asked for: ``package.module``, ``package.module:attribute`` or a framework.
        functions: those of the interface that it offers, today's objectives included.
        changed: switches of torch that its import changed, put back since.
        version: of the framework, "" for other targets.
        near: name of the interface that is missing to one of the core that looks like it.
        without_gradient: functions that carry none on purpose, the core's ``WITHOUT_GRADIENT``.
        only: function to argument to the values that it takes, the core's ``ONLY``.
    """

    name: str
    functions: Mapping[str, Callable[..., Any]]
    changed: tuple[str, ...] = ()
    version: str = ""
    near: Mapping[str, str] = field(default_factory=dict)
    without_gradient: tuple[str, ...] = ()
    only: Mapping[str, Taken] = field(default_factory=dict)

    @property
    def not_offered(self) -> list[str]:
        """Names of :data:`INTERFACE` that the target lacks, in the order of the interface."""
        return [name for name in INTERFACE if name not in self.functions]

    def _absent(self, name: str) -> str:
        return f"{name} (is {self.near[name]!r} meant?)" if name in self.near else name

    def _objectives(self) -> str:
        offered = [name for name in OBJECTIVES if name in self.functions]
        return (
            f"all {len(OBJECTIVES)}"
            if len(offered) == len(OBJECTIVES)
            else ", ".join(offered) or "none"
        )

    def capabilities(self) -> str:
        """One line: what is tested, what is not offered, what its import changed."""
        name = f"{self.name} {self.version}".strip()
        nine = len(INTERFACE) - len(self.not_offered)
        line = f"target {name}: offers {nine} of {len(INTERFACE)} functions"
        if self.not_offered:
            line += f"; not offered: {', '.join(map(self._absent, self.not_offered))}"
        line += f"; objectives of today: {self._objectives()}"
        line += shown(self.only)
        if self.changed:
            line += f"; its import changed {', '.join(self.changed)} (put back)"
        return line


def load_target(name: str = BUILT_IN) -> Target:
    """Import ``package.module`` or ``package.module:attribute`` and look what it offers.

    The name of a shipped adapter (``trl``, ``verl``, ``openrlhf``, ``torchtune``, ``liger``) means
    the installed framework behind it. What the import changes of torch's global switches is put
    back and noted.

    Raises:
        TargetError: when it looks like a path, when a framework is absent or of another release,
            when the module cannot be imported or raises while being imported or read, when the
            attribute does not exist, a name of the interface is not callable, or none is there.
    """
    from precision_lib.runtime import state_put_back

    module_name, _, attribute = name.partition(":")
    if "/" in module_name or module_name.endswith(".py") or not module_name:
        raise TargetError(
            f"target {name!r} is not a module name: give package.module, with its folder on "
            "PYTHONPATH, not a path"
        )
    with state_put_back() as changed:
        version = ""
        if name in adapters.NAMES:
            core = importlib.import_module(f"precision_lib.targets.adapters.{name}")
            load(core.FRAMEWORK)
            version = core.FRAMEWORK.version()
        else:
            core = _imported(name, module_name)
        for part in attribute.split(".") if attribute else ():
            core = _attribute(name, core, part)
            if core is None:
                raise TargetError(
                    f"target {name!r}: {module_name!r} has no attribute {attribute!r}"
                )
        target = make_target(name, core)
    return replace(target, changed=tuple(changed), version=version)


def _imported(name: str, module: str) -> Any:
    """The module; what it warns of is its own business, and it may raise anything."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # leaving and skipping are not exceptions
        raise TargetError(
            f"target {name!r}: importing {module!r} raised {type(error).__name__}: {error}; give a "
            "module that Python can import from here (installed, or on PYTHONPATH)"
        ) from error


def make_target(name: str, core: object) -> Target:
    """The target that a module or object is.

    Raises:
        TargetError: when a name of the interface is not callable, or none is there.
    """
    names = (*INTERFACE, *FUNCTIONS)
    offered = {function: _attribute(name, core, function) for function in names}
    functions = {function: value for function, value in offered.items() if value is not None}
    for function, value in functions.items():
        if not callable(value):
            raise TargetError(
                f"target {name!r}: {function!r} is a {type(value).__name__}, not a function"
            )
        if isinstance(core, type) and "self" in inspect.signature(value).parameters:
            raise TargetError(
                f"target {name!r} is a class and {function!r} takes 'self': give an instance "
                "(module:instance) or static methods"
            )
    if not functions:
        raise TargetError(
            f"target {name!r} offers none of the functions of the interface: "
            f"{', '.join(names)}; see docs/targets.md"
        )
    near = {
        function: close[0]
        for function in names
        if function not in functions
        and (close := difflib.get_close_matches(function, set(dir(core)) - set(functions), 1, 0.85))
    }
    return Target(
        name,
        with_options(functions),
        near=near,
        without_gradient=_without_gradient(name, core),
        only=read_only(name, _attribute(name, core, "ONLY"), INTERFACE | FUNCTIONS),
    )


def _without_gradient(name: str, core: object) -> tuple[str, ...]:
    """What the core says in ``WITHOUT_GRADIENT``."""
    given = _attribute(name, core, "WITHOUT_GRADIENT")
    names = () if given is None else tuple(given)
    strangers = [str(function) for function in names if function not in INTERFACE | FUNCTIONS]
    if isinstance(given, str) or strangers:
        raise TargetError(
            f"target {name!r}: WITHOUT_GRADIENT is {given!r}; "
            "give a tuple of names of the interface"
        )
    return names


def _attribute(name: str, core: object, part: str) -> Any:
    """``core.part``, None where it is missing; a module that loads lazily may raise anything."""
    try:
        return getattr(core, part, None)
    except Exception as error:
        raise TargetError(
            f"target {name!r}: reading {part!r} raised {type(error).__name__}: {error}"
        ) from error
