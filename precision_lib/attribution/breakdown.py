"""The error power of a model by its parts."""

from dataclasses import dataclass

from precision_lib.forensics.statistics import Metric


@dataclass(frozen=True)
class Part:
    """What is born in one part of the model.

    Attributes:
        name: a kind of module, a layer, or what lies outside of the layers.
        demoted: share of the whole error power that this part makes alone, all else in FP32.
        promoted: share of it that goes when this part alone is FP32; below 0 where it grows.
        power: error power that the part makes alone, nats squared.
    """

    name: str
    demoted: Metric
    promoted: Metric
    power: Metric


@dataclass(frozen=True)
class Breakdown:
    """The whole model as parts.

    Attributes:
        parts: in the order in which a token passes them.
        remainder: share of the whole that the parts, each demoted alone, do not add up to.
        adds_up: whether the interval of the remainder holds 0.
    """

    parts: tuple[Part, ...]
    remainder: Metric
    adds_up: bool

    @property
    def by_size(self) -> tuple[Part, ...]:
        """The parts, the largest demoted share first."""
        return tuple(sorted(self.parts, key=lambda part: -part.demoted.value))
