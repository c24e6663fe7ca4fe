"""Generalised advantage estimation by its recurrence, one real token after the other.

The hazard. The value after the last real token is 0: a bootstrap from a padded slot, or a
recurrence that runs through masked slots, gives plausible numbers that are wrong everywhere.
"""

import math

import numpy as np
from numpy.typing import NDArray


def gae(
    rewards: NDArray[np.floating],
    values: NDArray[np.floating],
    mask: NDArray[np.bool_],
    gamma: float,
    lam: float,
    bootstrap: NDArray[np.floating] | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(advantages, returns), both [B, T]; masked slots 0.

    delta_t = r_t + gamma V_{t+1} - V_t, A_t = delta_t + gamma lam A_{t+1}, return_t = A_t + V_t,
    with V after the last real token ``bootstrap`` [B] or 0, and A 0 (Schulman et al., 2016,
    equations 11 and 16). t + 1 is the next real token: masked slots are skipped.

    Args:
        rewards, values, mask: [B, T]; masked slots may hold anything.
    """
    advantages, returns = np.zeros(rewards.shape), np.zeros(rewards.shape)
    for b in range(rewards.shape[0]):
        next_value = 0.0 if bootstrap is None else float(bootstrap[b])
        next_advantage = 0.0
        row_rewards, row_values = rewards[b].tolist(), values[b].tolist()
        for t in np.flatnonzero(mask[b])[::-1].tolist():
            delta = row_rewards[t] + gamma * next_value - row_values[t]
            next_advantage = delta + gamma * lam * next_advantage
            next_value = row_values[t]
            advantages[b, t] = next_advantage
            returns[b, t] = next_advantage + next_value
    return advantages, returns


def rloo_advantages(rewards: NDArray[np.floating]) -> NDArray[np.float64]:
    """Each reward minus the mean of the others of its group; [G, K], K >= 2, sums exact."""
    rows = [[float(r) for r in row] for row in rewards]
    return np.array(
        [
            [math.fsum(((len(row) - 1) * r, r, *(-x for x in row))) / (len(row) - 1) for r in row]
            for row in rows
        ]
    ).reshape(rewards.shape)
