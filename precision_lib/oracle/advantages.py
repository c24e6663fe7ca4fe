"""Generalised advantage estimation by its recurrence, one token after the other.

The hazard. The value after the last real token is 0: a bootstrap from a padded slot, or a
recurrence that runs through the padding, gives plausible numbers that are wrong everywhere.
"""

import numpy as np
from numpy.typing import NDArray


def gae(
    rewards: NDArray[np.floating],
    values: NDArray[np.floating],
    mask: NDArray[np.bool_],
    gamma: float,
    lam: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(advantages, returns), both [B, T]; masked slots 0.

    delta_t = r_t + gamma V_{t+1} - V_t, A_t = delta_t + gamma lam A_{t+1}, return_t = A_t + V_t,
    with V and A after the last real token 0 (Schulman et al., 2016, equations 11 and 16).

    Args:
        rewards, values, mask: [B, T]; masked slots may hold anything.
    """
    advantages, returns = np.zeros(rewards.shape), np.zeros(rewards.shape)
    with np.errstate(all="ignore"):
        for b in range(rewards.shape[0]):
            next_value = next_advantage = np.float64(0.0)
            for t in reversed(range(rewards.shape[1])):
                if not mask[b, t]:
                    next_value = next_advantage = np.float64(0.0)
                    continue
                value = np.float64(values[b, t])
                delta = np.float64(rewards[b, t]) + gamma * next_value - value
                next_advantage = delta + gamma * lam * next_advantage
                next_value = value
                advantages[b, t] = next_advantage
                returns[b, t] = next_advantage + value
    return advantages, returns
