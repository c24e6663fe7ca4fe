"""The magnitude at which predictions stop moving, from stagnation rates at a grid of magnitudes.

R resamples.
"""

import numpy as np

from precision_lib.metrics.measure import Array, Totals

_STAGNANT, _MOVED = "stagnant@", "twin_moved@"


def stagnation_at(magnitude: float) -> tuple[str, str]:
    """Names of the two sums behind the stagnation rate at a magnitude."""
    return f"{_STAGNANT}{magnitude!r}", f"{_MOVED}{magnitude!r}"


def magnitudes_of(totals: Totals) -> list[float]:
    """The magnitudes that are summed, in their order."""
    return [float(n.removeprefix(_STAGNANT)) for n in totals if n.startswith(_STAGNANT)]


def stagnation_rates(totals: Totals) -> Array:
    """[magnitudes, ...] stagnation rate at each magnitude.

    Where no golden prediction moved there is nothing to say, and the rate is that of the magnitude
    before (0 before the first).
    """
    rates: list[Array] = []
    for stagnant, moved in map(stagnation_at, magnitudes_of(totals)):
        some = np.asarray(totals[moved]) > 0
        rate = totals[stagnant] / np.where(some, totals[moved], 1)
        rates.append(np.where(some, rate, rates[-1] if rates else 0.0))
    return np.stack(rates)


def critical_magnitude(totals: Totals) -> Array:
    """Magnitude at which the stagnation rate passes one half, log-linear between grid points.

    The first crossing from below; the end of the grid where there is none.
    """
    rates, grid = stagnation_rates(totals), magnitudes_of(totals)
    logs = np.log10(np.array(grid))
    above = rates >= 0.5
    first = np.where(above.any(0), above.argmax(0), len(grid) - 1)
    before = np.maximum(first - 1, 0)
    low, high = (np.take_along_axis(rates, i[None], 0)[0] for i in (before, first))
    rise = np.where(high > low, high - low, 1.0)
    share = np.clip(np.where(high > low, (0.5 - low) / rise, 1.0), 0.0, 1.0)
    crossing: Array = 10 ** (logs[before] + share * (logs[first] - logs[before]))
    return crossing
