"""Names of a training step's figures: those of release 0.1 are read too.

The hazard. In release 0.1 five figures of a step had the name of a metric of the main job and
another meaning.
"""

from collections.abc import Mapping
from typing import Any

#: Name to what it was called in release 0.1.
FORMER = {
    "gae_rms_error": "advantage_rms_error",
    "gae_sign_flip_frac": "advantage_sign_flip_frac",
    "score_tie_frac": "reward_tie_frac",
    "score_kendall_tau": "reward_kendall_tau",
    "values_unchanged_frac": "value_stagnation_rate",
}


def figure(figures: Mapping[str, Any], name: str) -> Any:
    """A figure of a step line, or of a record's curves, under its name or its former one.

    None where there is neither.
    """
    return figures.get(name, figures.get(FORMER.get(name, name)))
