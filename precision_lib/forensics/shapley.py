"""How much of a damage each component makes: Shapley values over all promotions.

The hazard. Promote one component and the damage hardly falls; promote it last and nearly all of it
falls. Either number alone credits a component with what two do together. The Shapley value is the
mean over all orders in which the components can be promoted. It is the only split that adds up,
treats equal components alike and gives 0 to one that never matters.

k components, R resamples.

Source: Shapley, "A Value for n-Person Games", 1953.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from math import factorial
from typing import Any

from precision_lib.forensics.statistics import Metric

Coalition = frozenset[str]


@dataclass(frozen=True)
class ErrorBudget:
    """A damage, split among components.

    Attributes:
        whole: the damage with every component in 16 bits.
        remaining: with every one of them in FP32; ``whole`` is the sum of it and ``shares``.
        shares: component to its Shapley value, in the unit of the damage; below 0 where promoting
            it does more harm than good.
    """

    whole: Metric
    remaining: Metric
    shares: Mapping[str, Metric]


def coalitions(players: tuple[str, ...]) -> Iterator[Coalition]:
    """All 2^k sets of players, the empty one first, the whole last."""
    for size in range(len(players) + 1):
        yield from map(frozenset, combinations(players, size))


def shapley(values: Mapping[Coalition, Any], player: str) -> Any:
    """Shapley value of a player: the mean of what it adds over all orders of joining.

    sum over S without the player of |S|! (k - |S| - 1)! / k! * (v(S + player) - v(S)).

    Args:
        values: every set of players to its value: numbers, fractions or [R] arrays.

    Raises:
        KeyError: a set of players without a value.
    """
    players = sorted(frozenset().union(*values))  # one order, so that the same bits come out
    others, k = tuple(p for p in players if p != player), len(players)
    total = 0 * values[frozenset()]
    for before in coalitions(others):
        orders = factorial(len(before)) * factorial(k - len(before) - 1)
        total = total + orders * (values[before | {player}] - values[before])
    return total / factorial(k)
