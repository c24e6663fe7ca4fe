"""Imports run one way, the oracle never meets the core, only the plug-in imports pytest."""

import ast
from pathlib import Path

import pytest

import precision_lib

ROOT = Path(precision_lib.__file__).parent
#: A module may import from its own layer and from those above it in this list.
LAYERS = (
    {"environment", "jsonio", "exit_codes"},
    {"arguments", "formats", "matrix"},
    {"bounds", "matmul", "oracle", "quantized"},
    {"runtime"},
    {"ppo"},
    {"models"},
    {"scoring", "metrics"},
    {"trajectories"},
    {"targets"},
    {"conformance", "weights"},
    {"forensics", "faults", "attribution"},
    {"mismatch"},
    {"record", "compare"},
    {"recipes"},
    {"reporting"},
    {"training"},
    {"sweep"},
    {"phases"},
    {"plugin", "suite"},
    {"commands"},
    {"cli"},
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
MODULES = sorted(p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py")


def imported(path: Path) -> set[str]:
    """Dotted names that the file imports, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room(dotted: str) -> str:
    return dotted.removeprefix("precision_lib.").split(".")[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    here = path.relative_to(ROOT).with_suffix("").parts[0]
    names = imported(path)
    imports_pytest = any(name.split(".")[0] in ("pytest", "_pytest") for name in names)
    assert here == "plugin" or not imports_pytest
    ours = {room(name) for name in names if name.startswith("precision_lib.")} & set(LEVEL)
    assert not {other for other in ours if LEVEL[other] > LEVEL[here]}
    if here in ("ppo", "oracle"):
        assert not ours & ({"ppo", "oracle"} - {here})


@pytest.mark.parametrize("folder", ["forensics", "sweep"])
def test_what_the_wheel_packs_imports_the_package_alone(folder: str) -> None:
    paths = sorted((ROOT.parent / "tests" / folder).glob("*.py"))
    assert len(paths) > 2
    for path in paths:
        assert not {name for name in imported(path) if name.split(".")[0] in ("tests", "tools")}


def test_nothing_in_the_package_needs_the_workshop() -> None:
    for path in MODULES:
        assert not {name for name in imported(path) if name.split(".")[0] in ("tests", "tools")}


def test_every_room_has_a_layer() -> None:
    rooms = {p.relative_to(ROOT).with_suffix("").parts[0] for p in MODULES}
    assert rooms == set(LEVEL)
