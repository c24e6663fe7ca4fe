"""Rewards for rloo_advantages: the mean of the others, at the group sizes that trainers use.

The hazard. The mean of all and the mean of the others agree as K grows, and differ by a factor of
two at K = 2. G groups, K samples.
"""

from precision_lib.conformance.inputs import Arguments
from precision_lib.conformance.strategies.primitives import Build, Draws, region


def _build(sizes: tuple[int, ...], offset: bool) -> Build:
    def inputs(draws: Draws) -> Arguments:
        groups, size = draws.integer("G", 1, 3), draws.choice("K", sizes)
        rewards = 2.0 ** draws.integer("log2_rewards", -3, 3) * draws.units(
            "rewards", groups * size
        )
        rewards = draws.planted(rewards) + (draws.integer("offset", 10, 1000) if offset else 0)
        return {"rewards": draws.tensor(rewards).view(groups, size)}

    return inputs


RLOO_ADVANTAGES = {
    "ordinary": region("groups of 2 to 8", _build((2, 3, 4, 8), False)),
    "large_offset": region("rewards of 10 to 1,000 that differ by little", _build((2, 3, 8), True)),
    "as_trained": region("groups of 16, 64 and 257", _build((16, 64, 257), True), cost=0.3),
}
