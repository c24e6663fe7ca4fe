"""A recipe in the words of a framework: what to set, and what the framework cannot do."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from precision_lib.forensics.operating import OperatingPoint
from precision_lib.matrix import PrecisionConfig
from precision_lib.recipes.tables import table


@dataclass(frozen=True)
class Setting:
    """What one component takes.

    Attributes:
        keys: of the framework's configuration to values; empty where it does so by itself.
        serve: options of a server that the framework starts.
        note: what else to know; "" where nothing.
    """

    component: str
    fmt: str
    keys: Mapping[str, Any]
    serve: Mapping[str, Any]
    note: str


@dataclass(frozen=True)
class Instructions:
    """A recipe for one framework.

    Attributes:
        checked: how the keys were looked up, in which release.
        missing: component to why the framework cannot give it that format.
        lines: the settings as a user writes them.
    """

    framework: str
    title: str
    release: str
    checked: str
    settings: tuple[Setting, ...]
    missing: Mapping[str, str]
    lines: tuple[str, ...]


def frameworks() -> tuple[str, ...]:
    """Names of the frameworks that the table knows."""
    return tuple(table("frameworks"))


def instructions(
    framework: str, configuration: PrecisionConfig, point: OperatingPoint
) -> Instructions:
    """A configuration in a framework's words; a component without a row is missing, never silent.

    Raises:
        ValueError: a framework that the table does not know.
    """
    if framework not in frameworks():
        raise ValueError(f"framework {framework!r} is unknown; known: {', '.join(frameworks())}")
    known = table("frameworks")[framework]
    settings, missing = [], {}
    for component, fmt in _formats(configuration, point).items():
        answer = _row(known["rows"], configuration, component, fmt)
        if isinstance(answer, Setting):
            settings.append(answer)
        else:
            missing[component] = answer
    return Instructions(
        framework=framework,
        title=known["title"],
        release=known["release"],
        checked=known["checked"],
        settings=tuple(settings),
        missing=missing,
        lines=tuple(_lines(settings, known["template"])),
    )


def conditions(configuration: PrecisionConfig) -> tuple[str, ...]:
    """Sentences on what must also be true for a recipe's formats, each once."""
    rows = table("conditions")
    sentences = [
        sentence
        for component in rows
        for sentence in rows[component].get(configuration.format_of(component), ())
    ]
    return tuple(dict.fromkeys(sentences))


def _formats(configuration: PrecisionConfig, point: OperatingPoint) -> dict[str, str]:
    """Component to format, without what the algorithm does not run; the rollout is always named."""
    left_out = {"value": not point.critic, "reference": not point.reference}
    formats = configuration.components | {"rollout": configuration.format_of("rollout")}
    return {name: fmt for name, fmt in formats.items() if not left_out.get(name, False)}


def _row(
    rows: list[dict[str, Any]], configuration: PrecisionConfig, component: str, fmt: str
) -> Setting | str:
    for row in rows:
        if row["component"] != component:
            continue
        leader = row.get("follows")
        if leader and configuration.format_of(leader) == fmt:
            return Setting(component, fmt, {}, {}, f"follows the {leader}")
        if leader:
            return str(row["cannot"])
        if fmt in row["formats"]:
            if "cannot" in row:
                return str(row["cannot"])
            serve = row.get("serve", {})
            return Setting(component, fmt, row["set"], serve, row.get("note", ""))
    return f"no setting for {fmt} is known"


def _lines(settings: list[Setting], template: str) -> list[str]:
    """One line per key; where two components set it, the later value is taken."""
    keys = {key: value for setting in settings for key, value in setting.keys.items()}
    lines = [template.format(key=key, value=_Value(value)) for key, value in keys.items()]
    served = [f"--{k} {v}" for setting in settings for k, v in setting.serve.items()]
    if served:
        lines.append(f"trl vllm-serve {' '.join(served)}")
    return [line.rstrip() for line in lines]


class _Value:
    """A value as a template writes it: ``{value!r}`` like Python, ``{value}`` like a shell."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __repr__(self) -> str:
        return repr(self.value)

    def __str__(self) -> str:
        return "" if self.value is True else str(self.value)  # a flag stands alone
