"""Every metric of H2 with its interval, or the one that is left where no score is finite."""

from precision_lib.forensics.causal import Paired, Sums
from precision_lib.forensics.h2.declaration import H2
from precision_lib.forensics.statistics import Metric, NothingComparedError


def measured(paired: Paired, sums: Sums) -> dict[str, Metric]:
    """Every metric with its interval and with the number of elements that it compared.

    Where no score is finite, the share of those that are not is all there is to say.

    Raises:
        NothingComparedError: when golden tells no pair of finite scores apart.
    """
    if not sums["sequences"].any():
        return {H2.nonfinite: paired.estimate(sums, H2.nonfinite)}
    if not sums["pairs"].any():
        raise NothingComparedError(
            "zero compared pairs: in every group all golden rewards are equal, so no ranking can "
            "be lost; freeze several different answers per prompt"
        )
    return paired.estimates(sums)
