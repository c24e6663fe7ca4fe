"""Defaults of a PPO run that depend on the size of the policy.

The hazard. AdamW moves every weight by about the learning rate, so a log-prob moves by about the
learning rate times the sum of the magnitudes of its gradient, over all weights. With the rate
of a model of 4 million parameters, one of 135 million loses its reward in two steps. On
SmolLM2-135M one update at 1e-6 moves the log-probs of its own sequences by 0.021 nats RMS, and in
proportion: two updates at 3e-6 move them by at most 0.13, and the clip range of 0.2 is 0.18 nats.
"""

from dataclasses import dataclass, replace
from typing import Any

from precision_lib.training.settings import PPOSettings


@dataclass(frozen=True)
class SizedDefaults:
    """What is used for policies of up to so many ``parameters``."""

    parameters: float
    learning_rate: float
    kl_coefficient: float


_SMALLEST = PPOSettings()
BY_SIZE = (
    # Tried on the embedded policy of 3.7 million parameters.
    SizedDefaults(1e7, _SMALLEST.learning_rate, _SMALLEST.kl_coefficient),
    # The rate: so that a step stays within the clip range on SmolLM2-135M. The KL: TRL's PPO.
    SizedDefaults(1e9, 3e-6, 0.05),
    # OpenRLHF 0.11.2.
    SizedDefaults(float("inf"), 1e-6, 0.01),
)
NAMES = ("learning_rate", "kl_coefficient")


def parameters_of(policy: Any) -> int:
    """Number of parameters of a model; a tied matrix counts once."""
    return sum(parameter.numel() for parameter in policy.parameters())


def sized(settings: PPOSettings, parameters: int, given: set[str]) -> tuple[PPOSettings, str]:
    """``settings`` with the defaults for a policy of so many parameters, and a sentence about them.

    Args:
        given: settings that were asked for by name; they stay. The sentence is "" for all.
    """
    row = next(row for row in BY_SIZE if parameters <= row.parameters)
    chosen = {name: getattr(row, name) for name in NAMES if name not in given}
    if not chosen:
        return settings, ""
    text = ", ".join(f"{name} {value:g}" for name, value in chosen.items())
    return replace(settings, **chosen), (
        f"defaults for a policy of {parameters / 1e6:.3g} million parameters: {text} "
        "(sources: docs/training.md)"
    )
