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
    {"bounds", "casts", "matmul", "oracle", "quantized"},
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


def against_the_rules(path: Path) -> list[str]:
    """What a module imports although its room may not."""
    here = path.relative_to(ROOT).with_suffix("").parts[0]
    names = imported(path)
    wrong = [name for name in names if name.split(".")[0] in ("tests", "tools")]
    if here != "plugin":
        wrong += [name for name in names if name.split(".")[0] in ("pytest", "_pytest")]
    ours = {room(name) for name in names if name.startswith("precision_lib.")} & set(LEVEL)
    wrong += [other for other in ours if LEVEL[other] > LEVEL[here]]
    if here in ("ppo", "oracle"):
        wrong += ours & ({"ppo", "oracle"} - {here})
    return sorted(wrong)


def test_imports_run_one_way() -> None:
    """And nothing in the package needs the tests or the workshop."""
    wrong = {str(path.relative_to(ROOT)): against_the_rules(path) for path in MODULES}
    assert len(wrong) > 100
    assert not {path: names for path, names in wrong.items() if names}


def test_an_import_against_the_rules_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A room below, the workshop, pytest, and the core in the oracle."""
    names = {"precision_lib.cli.main", "tools.tables", "pytest.fixture", "precision_lib.ppo.gae"}
    monkeypatch.setitem(globals(), "imported", lambda path: names)
    assert against_the_rules(ROOT / "oracle" / "gae.py") == sorted(
        ["cli", "ppo", "ppo", "pytest.fixture", "tools.tables"]
    )


@pytest.mark.parametrize("folder", ["forensics", "sweep"])
def test_what_the_wheel_packs_imports_the_package_alone(folder: str) -> None:
    paths = sorted((ROOT.parent / "tests" / folder).glob("*.py"))
    assert len(paths) > 2
    for path in paths:
        assert not {name for name in imported(path) if name.split(".")[0] in ("tests", "tools")}


def test_every_room_has_a_layer() -> None:
    rooms = {p.relative_to(ROOT).with_suffix("").parts[0] for p in MODULES}
    assert rooms == set(LEVEL)
