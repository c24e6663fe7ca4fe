"""Where the error of a log-prob is born: its power by kind of module and by layer.

The power of an error is the mean of its square over response tokens, nats squared. Errors that are
born independently add in power, so the parts should add up to the whole. The remainder says whether
they do: it is the whole less the sum of the parts, each demoted alone.

N sequences, T response tokens of each.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from precision_lib.attribution.breakdown import Breakdown, Part
from precision_lib.attribution.errors import BatchErrors
from precision_lib.attribution.places import KINDS, Place, knows_kinds, places_of
from precision_lib.forensics.probe import MIN_PROMPTS
from precision_lib.forensics.statistics import (
    Metric,
    NothingComparedError,
    Resampling,
    estimate,
    resample,
)
from precision_lib.metrics.measure import Array, Totals
from precision_lib.scoring.forward import rows_per_forward
from precision_lib.trajectories.sampling import Responses

#: Rows of one forward at most: the errors of every place of a micro-batch are kept.
MOST_ROWS = 4
DEMOTED, PROMOTED, WHOLE, TOKENS = "demoted:", "promoted:", "whole", "tokens"
SHARE = "share of the error power"


class NoErrorError(NothingComparedError):
    """The tested model gives the log-probs of FP32, bit for bit: there is nothing to attribute."""


class NonfiniteError(ValueError):
    """The tested model left its format; the message says on how many tokens."""


@dataclass(frozen=True)
class Attribution:
    """The error power of a log-prob and where it is born.

    Attributes:
        power: of the whole, nats squared.
        kinds: by kind of module; None for an architecture whose modules are not known.
        layers: by layer, with what lies outside of the layers.
        closure: how far FP32 with all errors added is from the tested model, as a share of the
            whole power. It measures the method: 0 means that no error escaped.
    """

    power: Metric
    kinds: Breakdown | None
    layers: Breakdown
    closure: float


def groups_of(model: Any) -> tuple[dict[str, frozenset[Place]], dict[str, frozenset[Place]]]:
    """(places by kind, places by layer), each in the order of the model.

    Places by kind are empty where the kinds are not known.
    """
    places = places_of(model)
    by_kind = _grouped(places, attrgetter("kind")) if knows_kinds(model) else {}
    in_order = {kind: by_kind[kind] for kind in KINDS if kind in by_kind}
    return in_order, _grouped(places, attrgetter("stage"))


def _grouped(places: Iterable[Place], label: Callable[[Place], str]) -> dict[str, frozenset[Place]]:
    groups: dict[str, frozenset[Place]] = {}
    for place in places:
        groups[label(place)] = groups.get(label(place), frozenset()) | {place}
    return groups


def number_of_forwards(model: Any, responses: Responses) -> int:
    """How often :func:`attribute` calls its ``progress``."""
    kinds, layers = groups_of(model)
    groups = len({*kinds.values(), *layers.values()})
    batches = -(-len(responses.tokens) // rows_of(model, responses))
    return batches * (2 * groups + 2)


def rows_of(model: Any, responses: Responses) -> int:
    """Rows of one forward."""
    return min(MOST_ROWS, rows_per_forward(responses.tokens.shape[1], model))


def attribute(
    reference: Any,
    tested: Any,
    responses: Responses,
    *,
    kl_format: str = "fp32",
    prompts: list[int] | None = None,
    seed: int = 0,
    progress: Callable[[], object] = lambda: None,
) -> Attribution:
    """Attribute the error of ``tested`` against ``reference`` on the response tokens.

    Args:
        reference: FP32 causal LM with eager attention.
        tested: the same architecture; its parameters in another format, or a part of it wrong.
        responses: N sequences, at least :data:`MIN_PROMPTS`, on the device of the models.
        kl_format: format of the tested log-softmax.
        prompts: number of the prompt of each sequence (default: each has its own).
        seed: of the resampling. progress: called once for each set of places, and twice more.

    Raises:
        ValueError: too few sequences.
        NoErrorError: the tested model gives the bits of FP32.
        NonfiniteError: an overflow of the tested model.
        UnknownModelError, PlacesDifferError: as :class:`BatchErrors`.
    """
    clusters = np.arange(len(responses.tokens)) if prompts is None else np.array(prompts)
    clusters = np.unique(clusters, return_inverse=True)[1]
    if len(set(clusters)) < MIN_PROMPTS:
        raise ValueError(
            f"{len(set(clusters))} prompts: an interval over sequences needs at least {MIN_PROMPTS}"
        )
    kinds, layers = groups_of(reference)
    squares: dict[str, list[Tensor]] = {}
    closure = 0.0
    for _, batch in responses.micro_batches(rows_of(reference, responses)):
        errors = BatchErrors(reference, tested, batch, kl_format)
        closure += _add_squares(squares, errors, kinds | layers, progress)
    return _attribution(squares, kinds, layers, closure, clusters, responses.length, seed)


def _add_squares(
    squares: dict[str, list[Tensor]],
    errors: BatchErrors,
    groups: dict[str, frozenset[Place]],
    progress: Callable[[], object],
) -> float:
    """Append [n] sums of squared errors of each group; the squared distance of the closure."""
    everything = frozenset[Place]().union(*groups.values())
    progress()

    def add(name: str, logprobs: Tensor) -> None:
        square = (logprobs - errors.exact).double().square().sum(1)
        squares.setdefault(name, []).append(square.cpu())

    add(WHOLE, errors.tested)
    distance = errors.logprobs(everything) - errors.tested
    progress()
    for name, places in groups.items():
        add(DEMOTED + name, errors.logprobs(places))
        add(PROMOTED + name, errors.logprobs(everything - places))
        progress()
        progress()
    return float(distance.double().square().sum())


def _attribution(
    squares: dict[str, list[Tensor]],
    kinds: dict[str, frozenset[Place]],
    layers: dict[str, frozenset[Place]],
    closure: float,
    clusters: np.ndarray[Any, np.dtype[np.int64]],
    length: int,
    seed: int,
) -> Attribution:
    sums = {name: torch.cat(parts).numpy() for name, parts in squares.items()}
    whole, n = sums[WHOLE], len(clusters) * length
    if not np.isfinite(whole).all():
        wrong = int((~np.isfinite(whole)).sum())
        raise NonfiniteError(
            f"the tested model gives NaN or inf in {wrong} of {len(whole)} sequences: its numbers "
            "left its format; use a wider format, or look for the overflow first"
        )
    if not whole.sum():
        raise NoErrorError(
            f"on {n} tokens the tested model gives the log-probs of FP32, bit for bit: no error "
            "to attribute; give a configuration whose policy or KL is not fp32"
        )
    shares = _Shares(sums, resample(clusters, seed), n)
    return Attribution(
        power=shares.estimate(lambda t: t[WHOLE] / t[TOKENS], "nats^2"),
        kinds=shares.breakdown(list(kinds)) if kinds else None,
        layers=shares.breakdown(list(layers)),
        closure=closure / float(whole.sum()),
    )


@dataclass
class _Shares:
    """Estimates from sums of squares per sequence."""

    sums: dict[str, Array]
    resampling: Resampling
    n: int

    def __post_init__(self) -> None:
        count = len(self.sums[WHOLE])
        self.sums = self.sums | {TOKENS: np.full(count, self.n / count)}
        self._totals = self.resampling.totals(self.sums)

    def estimate(self, metric: Callable[[Totals], Array], unit: str) -> Metric:
        return estimate(
            self.sums, metric, self.resampling, n=self.n, unit=unit, totals=self._totals
        )

    def breakdown(self, names: list[str]) -> Breakdown:
        remainder = self.estimate(
            lambda t: 1 - sum(t[DEMOTED + name] for name in names) / t[WHOLE], SHARE
        )
        adds_up = remainder.low <= 0 <= remainder.high
        return Breakdown(tuple(map(self._part, names)), remainder, adds_up)

    def _part(self, name: str) -> Part:
        alone, without = DEMOTED + name, PROMOTED + name
        return Part(
            name,
            demoted=self.estimate(lambda t: t[alone] / t[WHOLE], SHARE),
            promoted=self.estimate(lambda t: 1 - t[without] / t[WHOLE], SHARE),
            power=self.estimate(lambda t: t[alone] / t[TOKENS], "nats^2"),
        )
