"""What a configuration costs: bytes per policy parameter, and time of its matrix products.

Both are counted, not measured: bytes from the formats, times from the vendor's peak rates. Real
products reach a share of the peak, and a decoder that reads more bytes than it multiplies is bound
by the bytes. So a time is a ratio for comparing recipes, never a forecast. Tables: ``cost.toml``,
``hardware.toml``.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from precision_lib.forensics.operating import OperatingPoint
from precision_lib.matrix import TRAINER, PrecisionConfig
from precision_lib.recipes.shape import Shape
from precision_lib.recipes.tables import table

#: Columns of the matrix whose cost is below: value and KL are a vector and element by element.
COUNTED = ("policy", "reference", "reward", "value", "kl", "lm_head", "rollout", "master")


@dataclass(frozen=True)
class Cost:
    """The cost of one configuration.

    Attributes:
        trainer_bytes: per policy parameter: weights, FP32 masters, gradients, Adam's two moments.
        reference_bytes, reward_bytes, engine_bytes: weights of the three, per policy parameter; the
            reward model is counted as large as the policy.
        kv_bytes_per_token: of the engine's cache.
        time: products of one step per response token over those of ``bf16_pure``; None where the
            hardware has no products in one of the formats.
    """

    trainer_bytes: float
    reference_bytes: float
    reward_bytes: float
    engine_bytes: float
    kv_bytes_per_token: int
    time: float | None

    @property
    def bytes_per_parameter(self) -> float:
        return self.trainer_bytes + self.reference_bytes + self.reward_bytes + self.engine_bytes


def cost_of(
    configuration: PrecisionConfig,
    pure: PrecisionConfig,
    shape: Shape,
    point: OperatingPoint,
    hardware: str,
) -> Cost:
    """The cost of a configuration at an operating point.

    Args:
        pure: the configuration that times are relative to.
        hardware: a name of ``hardware.toml``.

    Raises:
        ValueError: unknown hardware, or a column of the configuration whose cost is not counted.
    """
    unknown = [name for name in configuration.components if name not in COUNTED]
    if unknown:
        raise ValueError(f"{configuration.name}: the cost of {', '.join(unknown)} is not known")
    devices = table("hardware")
    if hardware not in devices:
        raise ValueError(f"hardware {hardware!r} is unknown; known: {', '.join(devices)}")
    rates = devices[hardware]["rates"]
    own, usual = (_time(c, shape, point, rates) for c in (configuration, pure))
    return Cost(
        trainer_bytes=_trainer_bytes(configuration, shape),
        reference_bytes=_weights(configuration.reference, configuration.lm_head, shape)
        if point.reference
        else 0.0,
        reward_bytes=_bytes(configuration.reward),
        engine_bytes=_engine_bytes(configuration, shape),
        kv_bytes_per_token=shape.kv_numbers_per_token * _bytes(_rest(_engine(configuration))),
        time=None if own is None or usual is None else own / usual,
    )


def _bytes(fmt: str) -> int:
    return int(table("cost")["bytes"][fmt])


def _rest(fmt: str) -> str:
    """Format of what an engine in ``fmt`` does not scale, its KV cache too."""
    return str(table("cost")["rest_of_engine"].get(fmt, fmt))


def _engine(configuration: PrecisionConfig) -> str:
    fmt = configuration.format_of("rollout")
    return configuration.policy if fmt == TRAINER else fmt


def _weights(fmt: str, head: str, shape: Shape) -> float:
    """Bytes per parameter of a model in ``fmt``; an LM head of its own is one more copy if tied."""
    if head in ("", fmt):
        return float(_bytes(fmt))
    extra = _bytes(head) if shape.tied else _bytes(head) - _bytes(fmt)
    return _bytes(fmt) + extra * shape.lm_head / shape.parameters


def _trainer_bytes(configuration: PrecisionConfig, shape: Shape) -> float:
    """Weights, a copy of their own for masters in another format, gradients, Adam."""
    rows = table("cost")["trainer"]
    master = configuration.components.get("master", rows["masters"])
    copy = 0 if master == configuration.policy else _bytes(master)
    own = _weights(configuration.policy, configuration.lm_head, shape)
    return float(own + copy + rows["gradients"] + rows["adam"])


def _engine_bytes(configuration: PrecisionConfig, shape: Shape) -> float:
    if configuration.format_of("rollout") == TRAINER:
        return 0.0
    fmt = _engine(configuration)
    scaled = shape.trunk_linear / shape.parameters if _rest(fmt) != fmt else 0.0
    rest = _rest(fmt)
    return _weights(rest, configuration.lm_head, shape) - scaled * (_bytes(rest) - _bytes(fmt))


def _time(
    configuration: PrecisionConfig, shape: Shape, point: OperatingPoint, rates: Mapping[str, float]
) -> float | None:
    """Products of one response token over the rates; None where a format has none."""
    engine = _engine(configuration)
    head = configuration.lm_head
    work = [
        ("policy", configuration.policy, head or configuration.policy),
        ("reward", configuration.reward, None),
        ("rollout", engine, head or _rest(engine)),
    ]
    if point.reference:
        work.append(("reference", configuration.reference, head or configuration.reference))
    if any(fmt not in rates for _, *formats in work for fmt in formats if fmt):
        return None
    forwards, total = table("cost")["forwards"], 0.0
    for part, fmt, head_format in work:
        once = shape.trunk_linear / rates[fmt]
        once += shape.lm_head / rates[head_format] if head_format else 0.0
        total += forwards[part] * once
    return total
