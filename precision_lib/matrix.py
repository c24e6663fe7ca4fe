"""The precision matrix: which number format each component of the pipeline computes in.

The hazard. An RLHF step has at least five places where the format can be chosen, and two that
disagree are often worse than both being low. So a configuration names all five, and a run records
what it observed.

Meaning of the columns, the same on every device:

- ``policy``, ``reference``, ``reward``: parameters cast once from the FP32 checkpoint; forward
  and backward in the format, matrix products with FP32 accumulation and one rounding.
- ``value``: the value head on the policy trunk; hidden states are cast to the format first.
- ``kl``: log-softmax, log-ratio and KL estimator; logits are cast to the format first.
- ``lm_head``: the product of hidden states and vocabulary matrix, of policy and reference. Both
  operands are cast to the format, the logits come out in it. Default: the format of the model.
- ``rollout``: the engine that samples and reports log-probs. Default: the policy's format.
  ``trainer`` is the trainer's own forward instead of an engine.
- ``master``: the weights that the optimizer updates. Default: FP32. In 16 bits there is no wider
  copy of the weights; Adam's moments stay FP32.

Everything else is FP32 in every configuration. This module is data: it imports neither torch nor
the rest of the package, so that tests can be collected without loading anything.
"""

import tomllib
from dataclasses import MISSING, dataclass, fields
from pathlib import Path

#: Formats that a component can be computed in.
COMPONENT_FORMATS = ("bf16", "fp16", "fp32", "fp64")
#: Formats of a rollout engine. fp8 and int8 are scaled products: ``precision_lib/quantized.py``.
ROLLOUT_FORMATS = ("bf16", "fp16", "fp32", "fp8", "int8")
#: A rollout on the trainer's own path and in its format: what is reported is a trainer's forward.
TRAINER = "trainer"
#: Formats that the optimizer's weights can be stored in; the first is the default.
MASTER_FORMATS = ("fp32", "bf16", "fp16")


#: Component to (what a format of it does, the formats), where that is not said of all of them.
_ALLOWED = {
    "rollout": ("a rollout can be computed in", (*ROLLOUT_FORMATS, TRAINER)),
    "master": ("the optimizer's weights can be stored in", MASTER_FORMATS),
}


@dataclass(frozen=True)
class PrecisionConfig:
    """One row of the matrix.

    A later column is a field with the default "", which stands for what the column follows. A
    format that says no more than that default becomes "".
    """

    name: str
    policy: str
    reference: str
    reward: str
    value: str
    kl: str
    tests: str = ""
    lm_head: str = ""
    rollout: str = ""
    master: str = ""

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("a precision configuration needs a name")
        for component in COMPONENTS:
            fmt = getattr(self, component)
            usual = "a component can be computed in", COMPONENT_FORMATS
            what, allowed = _ALLOWED.get(component, usual)
            if fmt not in allowed and (fmt or component in REQUIRED):
                raise ValueError(
                    f"configuration {self.name!r}: {component} = {fmt!r} is not a format that "
                    f"{what}; use one of {', '.join(allowed)}"
                )
        if self.lm_head == self.policy == self.reference:
            object.__setattr__(self, "lm_head", "")
        if self.rollout == self.policy:
            object.__setattr__(self, "rollout", "")
        if self.master == MASTER_FORMATS[0]:
            object.__setattr__(self, "master", "")

    @property
    def components(self) -> dict[str, str]:
        """Component name to format name, in the order of the columns.

        A later column is left out where it has its default, as in records of before.
        """
        named = ((component, getattr(self, component)) for component in COMPONENTS)
        return {component: fmt for component, fmt in named if fmt}

    @property
    def trainer_components(self) -> dict[str, str]:
        """:attr:`components` without the engine that samples."""
        return {name: fmt for name, fmt in self.components.items() if name != "rollout"}

    def format_of(self, component: str) -> str:
        """The format of a component; of a later column with its default, what it follows.

        The LM head follows two models. Where it has its default, "" says that each has its own.
        """
        fmt: str = getattr(self, component)
        default = {"rollout": self.policy, "master": MASTER_FORMATS[0]}.get(component, "")
        return fmt or default

    def decided_by(self, component: str) -> str:
        """What a component's figures depend on: two configurations that agree in it share them."""
        if component in ("policy", "reference"):
            return self.forward_format(component)
        return self.rollout_format if component == "rollout" else self.format_of(component)

    @property
    def rollout_format(self) -> str:
        """Format of the engine, as :meth:`forward_format` writes it: the LM head is the policy's.

        ``trainer`` where no engine is beside the trainer.
        """
        fmt = self.format_of("rollout")
        return f"{fmt}/{self.lm_head}" if self.lm_head not in ("", fmt) and fmt != TRAINER else fmt

    def forward_format(self, model: str) -> str:
        """What ``set_parameters`` takes for ``policy`` or ``reference``: ``bf16``, or with an LM
        head in another format ``bf16/fp32``."""
        fmt: str = getattr(self, model)
        return f"{fmt}/{self.lm_head}" if self.lm_head not in ("", fmt) else fmt


_COLUMNS = tuple(f for f in fields(PrecisionConfig) if f.name not in ("name", "tests"))
COMPONENTS = tuple(f.name for f in _COLUMNS)
#: Components that a user's table must name; a later column has a default.
REQUIRED = tuple(f.name for f in _COLUMNS if f.default is MISSING)


def _row(name: str, formats: str, tests: str, **later: str) -> PrecisionConfig:
    components = dict(zip(REQUIRED, formats.split(), strict=True))
    return PrecisionConfig(name=name, tests=tests, **components, **later)


#: The seven configurations of the study.       policy ref  reward value kl
MATRIX: tuple[PrecisionConfig, ...] = (
    _row("bf16_pure", "bf16 bf16 bf16 bf16 bf16", "the fast baseline"),
    _row("bf16_fp32_kl", "bf16 bf16 bf16 bf16 fp32", "H1: promote the KL arithmetic"),
    _row("bf16_fp32_value", "bf16 bf16 bf16 fp32 bf16", "H3: promote the value head"),
    _row("bf16_fp32_reward", "bf16 bf16 fp32 bf16 bf16", "H2: promote the reward model"),
    _row("bf16_fp32_ref", "bf16 fp32 bf16 bf16 bf16", "H4: promote the reference"),
    _row("mixed_recommended", "bf16 bf16 bf16 fp32 fp32", "expected best"),
    _row("fp32_baseline", "fp32 fp32 fp32 fp32 fp32", "golden reference"),
)

#: Single demotions from FP32: promotion shows what heals, demotion shows what harms.
COUNTERFACTUALS: tuple[PrecisionConfig, ...] = (
    _row("fp32_bf16_policy", "bf16 fp32 fp32 fp32 fp32", "demote the policy"),
    _row("fp32_bf16_ref", "fp32 bf16 fp32 fp32 fp32", "demote the reference"),
    _row("fp32_bf16_reward", "fp32 fp32 bf16 fp32 fp32", "demote the reward model"),
    _row("fp32_bf16_value", "fp32 fp32 fp32 bf16 fp32", "demote the value head"),
    _row("fp32_bf16_kl", "fp32 fp32 fp32 fp32 bf16", "demote the KL arithmetic"),
)

#: What H5 compares: no engine at all, and the one demotion that FP32 has left.
ROLLOUT_CONTRASTS: tuple[PrecisionConfig, ...] = (
    _row(
        *("bf16_trainer_rollout", "bf16 bf16 bf16 bf16 bf16", "H5: no engine beside the trainer"),
        rollout=TRAINER,
    ),
    _row("fp32_bf16_rollout", "fp32 fp32 fp32 fp32 fp32", "demote the rollout", rollout="bf16"),
)

#: What H6 compares: no FP32 copy of the weights, in bf16 training and in FP32 training.
MASTER_CONTRASTS: tuple[PrecisionConfig, ...] = (
    _row(
        *("bf16_bf16_master", "bf16 bf16 bf16 bf16 bf16", "weights stored in bf16 alone"),
        master="bf16",
    ),
    _row(
        *("bf16_bf16_master_fp32_reward", "bf16 bf16 fp32 bf16 bf16", "H6: promote the reward"),
        master="bf16",
    ),
    _row("fp32_bf16_master", "fp32 fp32 fp32 fp32 fp32", "demote the masters", master="bf16"),
)

#: What people propose against mismatch and lost KL, beside the matrix: ``--matrix recipes``.
RECIPES: tuple[PrecisionConfig, ...] = (
    _row("bf16_fp32_head", "bf16 bf16 bf16 bf16 bf16", "promote the LM head", lm_head="fp32"),
    _row("bf16_fp32_head_kl", "bf16 bf16 bf16 bf16 fp32", "LM head and KL", lm_head="fp32"),
    _row("fp16_pure", "fp16 fp16 fp16 fp16 fp16", "three bits more, a smaller range"),
    _row("fp16_fp32_kl", "fp16 fp16 fp16 fp16 fp32", "fp16 with an FP32 KL"),
    _row("bf16_fp8_rollout", "bf16 bf16 bf16 bf16 bf16", "a fast rollout", rollout="fp8"),
    _row("bf16_fp16_rollout", "bf16 bf16 bf16 bf16 bf16", "a finer rollout", rollout="fp16"),
)
#: Tables that are shipped, by the name that ``--matrix`` takes.
SHIPPED = {"recipes": RECIPES}

#: The control of a training sweep: the baseline's formats, started one FP32 rounding away from it.
#: No configuration of the matrix, because it has no format of its own.
TWIN = _row("fp32_twin", "fp32 fp32 fp32 fp32 fp32", "chaos: one rounding away from FP32")


def all_configurations(matrix_file: Path | None = None) -> tuple[PrecisionConfig, ...]:
    """The seven, the five counterfactuals, and those of ``matrix_file`` behind them.

    Args:
        matrix_file: a TOML file, or a name of :data:`SHIPPED`.

    Raises:
        FileNotFoundError, ValueError: as :func:`load_matrix`; also for a name that is taken.
    """
    extra = load_matrix(matrix_file) if matrix_file is not None else ()
    configurations = MATRIX + COUNTERFACTUALS + extra
    names = [c.name for c in configurations + _beside(extra)]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"{matrix_file}: configuration {name!r} is already defined; give it another name"
            )
    return configurations


def _beside(extra: tuple[PrecisionConfig, ...]) -> tuple[PrecisionConfig, ...]:
    """Shipped configurations that are in no run unless they are asked for; not ``extra`` itself."""
    return tuple(c for c in RECIPES + ROLLOUT_CONTRASTS + MASTER_CONTRASTS if c not in extra)


def get_configuration(name: str, matrix_file: Path | None = None) -> PrecisionConfig:
    """The configuration called ``name``: of a run, a recipe, or what H5 or H6 compares with.

    Raises:
        ValueError: when there is none of that name.
    """
    configurations = all_configurations(matrix_file)
    configurations += _beside(configurations)
    for configuration in configurations:
        if configuration.name == name:
            return configuration
    known = ", ".join(c.name for c in configurations)
    raise ValueError(f"unknown precision configuration {name!r}; known: {known}")


def load_matrix(path: Path) -> tuple[PrecisionConfig, ...]:
    """Read configurations of a user's own from a TOML file, or take a table of :data:`SHIPPED`.

    The file has one table per configuration, each naming every component::

        [my_run]
        policy = "bf16"
        reference = "bf16"
        reward = "fp32"
        value = "fp32"
        kl = "fp32"
        lm_head = "fp32"    # may be left out
        rollout = "fp8"     # may be left out
        master = "bf16"     # may be left out
        tests = "what we train with"

    A file that is called like a shipped table is given by its absolute path.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: for broken TOML, an empty file, or a missing, unknown or ill-typed field;
            the message names the file, the configuration and the field.
    """
    if str(path) in SHIPPED:
        return SHIPPED[str(path)]
    if not path.is_file():
        raise FileNotFoundError(
            f"matrix file {path} does not exist or is no file; give a TOML file or "
            f"{' or '.join(SHIPPED)}"
        )
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"matrix file {path} is not valid TOML: {error}") from None
    if not tables:
        raise ValueError(f"matrix file {path} defines no configuration; add a [name] table")
    return tuple(_from_table(path, name, table) for name, table in tables.items())


def _from_table(path: Path, name: str, table: object) -> PrecisionConfig:
    where = f"matrix file {path}, configuration {name!r}"
    if not isinstance(table, dict):
        raise ValueError(f"{where}: expected a [{name}] table with fields, got {table!r}")
    for field, value in table.items():
        if field not in (*COMPONENTS, "tests"):
            raise ValueError(f"{where}: unknown field {field!r}; fields: {', '.join(COMPONENTS)}")
        if not isinstance(value, str):
            raise ValueError(f"{where}: {field} = {value!r} must be a string such as 'bf16'")
    missing = [c for c in REQUIRED if c not in table]
    if missing:
        raise ValueError(f"{where}: missing {', '.join(missing)}; name every component")
    try:
        return PrecisionConfig(name, **table)
    except ValueError as error:
        raise ValueError(f"matrix file {path}: {error}") from None
