"""Shapley values of games whose answer is known, and of damages that were made up."""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from itertools import permutations

import numpy as np
import pytest

from precision_lib.forensics.causal import Paired, Sums
from precision_lib.forensics.shapley import Coalition, coalitions, shapley
from precision_lib.forensics.statistics import resample
from precision_lib.metrics.measure import Measure, root_mean_square
from precision_lib.record.codec import encode

PLAYERS = ("policy", "reference", "kl")


def game(value: Callable[[Coalition], Fraction]) -> dict[Coalition, Fraction]:
    return {s: value(s) for s in coalitions(PLAYERS)}


def glove(s: Coalition) -> Fraction:
    """One left glove (the KL), two right ones: a pair is worth 1. Known: 2/3, 1/6 and 1/6."""
    return Fraction("kl" in s and len(s) > 1)


def uneven(s: Coalition) -> Fraction:
    """Every set has a value of its own."""
    return Fraction(sum(3 ** PLAYERS.index(p) for p in s) ** 2, 7)


def values_of(game: dict[Coalition, Fraction]) -> dict[str, Fraction]:
    return {p: shapley(game, p) for p in PLAYERS}


def test_the_glove_game_has_the_values_of_the_book() -> None:
    sixth = Fraction(1, 6)
    assert values_of(game(glove)) == {"kl": Fraction(2, 3), "policy": sixth, "reference": sixth}


def test_the_values_are_the_means_over_all_orders() -> None:
    played = game(uneven)
    for player, value in values_of(played).items():
        gains = []
        for order in permutations(PLAYERS):
            before = frozenset(order[: order.index(player)])
            gains.append(played[before | {player}] - played[before])
        assert value == sum(gains, Fraction()) / len(gains)


@pytest.mark.parametrize("value", [glove, uneven])
def test_the_values_add_up_to_the_whole_exactly(value: Callable[[Coalition], Fraction]) -> None:
    played = game(value)
    whole = played[frozenset(PLAYERS)] - played[frozenset()]
    assert sum(values_of(played).values(), Fraction()) == whole


def test_equal_players_have_equal_values_and_a_null_player_has_none() -> None:
    symmetric = values_of(game(lambda s: Fraction(len(s - {"kl"}) ** 3)))
    assert symmetric["policy"] == symmetric["reference"] == 4
    assert symmetric["kl"] == 0


def test_a_split_that_credits_the_first_to_join_is_not_symmetric() -> None:
    """The checks above can fail: the gain of joining first is another split of the glove game."""
    played = game(glove)
    alone = {p: played[frozenset({p})] - played[frozenset()] for p in PLAYERS}
    assert sum(alone.values()) != played[frozenset(PLAYERS)]


def test_a_set_without_a_value_is_an_error() -> None:
    played = game(glove)
    del played[frozenset({"kl", "policy"})]
    with pytest.raises(KeyError):
        shapley(played, "kl")


# A damage


def paired() -> Paired:
    measure = Measure(root_mean_square("error2", "tokens"), "nats")
    return Paired({"damage": measure}, resample(np.arange(12), 0))


def measured(variances: dict[str, float]) -> dict[Coalition, Sums]:
    """Independent errors of the components that are not promoted, on 12 sequences."""
    draws = np.random.default_rng(0).standard_exponential((len(PLAYERS), 12))
    of = {p: variances.get(p, 0.0) * draws[i] for i, p in enumerate(PLAYERS)}
    return {
        s: {
            "error2": 1e-6 + sum((of[p] for p in PLAYERS if p not in s), np.zeros(12)),
            "tokens": np.ones(12),
        }
        for s in coalitions(PLAYERS)
    }


def test_a_damage_is_split_among_components() -> None:
    budget = paired().error_budget(measured({"policy": 4.0, "reference": 1.0}), "damage")
    shares = {name: share.value for name, share in budget.shares.items()}
    assert list(shares) == list(PLAYERS)
    terms = len(shares) + 1
    assert abs(budget.remaining.value + sum(shares.values()) - budget.whole.value) <= (
        2 * terms * 2**terms * 2.0**-53 * budget.whole.value
    )
    assert shares["policy"] > shares["reference"] > shares["kl"] == 0.0
    assert (budget.shares["kl"].low, budget.shares["kl"].high) == (0.0, 0.0)
    for share in (*budget.shares.values(), budget.whole, budget.remaining):
        assert share.low <= share.value <= share.high
        assert (share.n, share.unit, share.clusters) == (12, "nats", 12)
    assert budget.whole.value == pytest.approx(
        paired().estimate(measured({"policy": 4.0, "reference": 1.0})[frozenset()], "damage").value
    )


def test_intervals_come_from_paired_resamples() -> None:
    """A component that makes the same error in every sequence has a share without width."""
    sums = {
        s: {"error2": np.full(12, 4.0 if "policy" not in s else 1.0), "tokens": np.ones(12)}
        for s in coalitions(PLAYERS)
    }
    share = paired().error_budget(sums, "damage").shares["policy"]
    assert (share.low, share.value, share.high) == (1.0, 1.0, 1.0)


def test_a_promotion_that_does_harm_has_a_share_below_zero() -> None:
    sums = {
        s: {"error2": np.full(12, 1.0 + 8 * ("kl" in s)), "tokens": np.ones(12)}
        for s in coalitions(PLAYERS)
    }
    budget = paired().error_budget(sums, "damage")
    assert budget.shares["kl"].value == -2.0
    assert encode(replace(budget, shares={}))["shares"] == {}
