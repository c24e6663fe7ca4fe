"""Differences between two scorings of the same sequences, summed as they stream by.

The hazards. A mean over padded slots is diluted by zeros that were never compared; an RMS over all
tokens hides that an error grows along the sequence; and a NaN, once added, makes every later figure
a NaN. So only real tokens are summed, by position as well, and what is not finite is counted.

N sequences, L tokens, T response tokens of the longest; errors are float64, got minus want.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from precision_lib.ppo.kl import kl_penalty
from precision_lib.ppo.masked import real_or_zero
from precision_lib.trajectories.replay_record import AllErrors, Bin, Errors, Summary, SummedBin
from precision_lib.trajectories.store import Trajectories

#: Quantity to (unit, whether its errors add up along a sequence).
QUANTITIES: dict[str, tuple[str, bool]] = {
    "policy_logprob": ("nats", True),
    "reference_logprob": ("nats", True),
    "log_ratio": ("nats", True),
    "value": ("value", False),
    "reward": ("score", False),
}


@dataclass(frozen=True)
class ReplayFigures:
    """What one configuration makes of one shard, each in the format that it was computed in.

    [N, L-1] each, 0 where masked, log-probs and log-ratio in nats; the reward is [N].
    """

    policy_logprob: Tensor
    reference_logprob: Tensor
    log_ratio: Tensor
    value: Tensor
    reward: Tensor


def figures(policy: Tensor, reference: Tensor, value: Tensor, reward: Tensor) -> ReplayFigures:
    """ReplayFigures with the log-ratio taken in the log-probs' own format."""
    return ReplayFigures(
        policy, reference, kl_penalty(policy, reference, "k1", policy.dtype), value, reward
    )


def golden_figures(trajectories: Trajectories) -> ReplayFigures:
    """The frozen FP32 figures of a shard."""
    t = trajectories
    return figures(t.logprobs, t.ref_logprobs, t.values, t.rewards)


def errors(got: ReplayFigures, want: ReplayFigures, mask: Tensor) -> dict[str, Tensor]:
    """Quantity to ``got - want`` in float64, 0 where masked and where both are the same inf or NaN.

    [N, L-1] each, [N] for the reward.
    """
    by_quantity = {}
    for name in QUANTITIES:
        a, b = getattr(got, name).double(), getattr(want, name).double()
        same = (a == b) | (a.isnan() & b.isnan())
        error = torch.where(same, torch.zeros_like(a), a - b)
        by_quantity[name] = error if name == "reward" else real_or_zero(error, mask)
    return by_quantity


def bitwise_equal(got: ReplayFigures, want: ReplayFigures) -> dict[str, bool]:
    """Quantity to whether format and every number are the same."""
    pairs = {name: (getattr(got, name), getattr(want, name)) for name in QUANTITIES}
    return {name: a.dtype == b.dtype and torch.equal(a, b) for name, (a, b) in pairs.items()}


@dataclass
class Sums:
    """Running sums of one kind of error, by bin of position.

    Attributes:
        bins: bin to [finite errors, sum, sum of squares, errors that are inf or NaN].
        largest: largest finite absolute error.
    """

    bins: dict[int, Tensor] = field(default_factory=dict)
    largest: float = 0.0

    def add(self, number: int, error: Tensor) -> None:
        """Add errors [m] of one bin."""
        good = error[torch.isfinite(error)]
        row = [len(good), float(good.sum()), float(good.square().sum()), len(error) - len(good)]
        self.bins[number] = self.bins.get(number, 0) + torch.tensor(row, dtype=torch.float64)
        if len(good):
            self.largest = max(self.largest, float(good.abs().max()))

    def total(self, unit: str) -> AllErrors:
        """Over all bins."""
        rows = list(self.bins.values()) or [torch.zeros(4)]
        errors = _errors(torch.stack(rows).sum(0))
        return AllErrors(**vars(errors), max_abs=self.largest if errors.n else None, unit=unit)


def _errors(row: Tensor) -> Errors:
    n, total, squares, nonfinite = row.tolist()
    mean, rms = (total / n, (squares / n) ** 0.5) if n else (None, None)
    return Errors(n=int(n), nonfinite=int(nonfinite), mean=mean, rms=rms)


@dataclass
class Comparison:
    """Errors of every quantity, over all shards that were added; its size does not grow with them.

    A bin b holds the response positions 1, 2, 3-4, 5-8, ...: b = 0, 1, 2, 3, ...
    """

    single: dict[str, Sums] = field(default_factory=lambda: {q: Sums() for q in QUANTITIES})
    accumulated: dict[str, Sums] = field(
        default_factory=lambda: {q: Sums() for q, (_, adds_up) in QUANTITIES.items() if adds_up}
    )

    def add(self, found: dict[str, Tensor], trajectories: Trajectories) -> None:
        """Add the :func:`errors` of one shard, real tokens only."""
        real = trajectories.real
        places = torch.tensor([position.bit_length() for position in range(real.shape[1])])
        self.single["reward"].add(0, found["reward"])
        for name, sums in self.single.items():
            if name == "reward":
                continue
            error = trajectories.response(found[name])
            _add_by_place(sums, error, real, places)
            if name in self.accumulated:
                _add_by_place(self.accumulated[name], error.cumsum(1), real, places)

    def summary(self) -> Summary:
        """Quantity to its errors."""
        return {q: s.total(QUANTITIES[q][0]) for q, s in self.single.items()}

    def by_position(self) -> dict[str, list[Bin]]:
        """Quantity to its bins of response position, the error and the accumulated error."""
        return {q: self._bins(q) for q in QUANTITIES if q != "reward"}

    def _bins(self, quantity: str) -> list[Bin]:
        rows: list[Bin] = []
        for number, row in sorted(self.single[quantity].bins.items()):
            first, last = (1, 1) if number == 0 else (2 ** (number - 1) + 1, 2**number)
            errors = vars(_errors(row))
            if quantity in self.accumulated:
                sums = _errors(self.accumulated[quantity].bins[number])
                rows.append(SummedBin(first, last, **errors, accumulated=sums))
            else:
                rows.append(Bin(first, last, **errors))
        return rows


def _add_by_place(sums: Sums, error: Tensor, real: Tensor, places: Tensor) -> None:
    for number in places.unique().tolist():
        columns = places == number
        sums.add(number, error[:, columns][real[:, columns]])
