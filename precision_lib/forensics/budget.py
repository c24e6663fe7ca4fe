"""How much the main job measures: the whole of it, or a first look.

Tests and commands take the settings of every hypothesis from here, and the record names them.
"""

from dataclasses import dataclass, replace
from typing import Any

from precision_lib.forensics.hypotheses import HYPOTHESES
from precision_lib.models.loading import Checkpoint
from precision_lib.trajectories.batches import FreezeSettings

_WHOLE = FreezeSettings(num_batches=4, batch_size=64, max_new_tokens=64, samples_per_prompt=8)
_QUICK = replace(_WHOLE, num_batches=1, max_new_tokens=32)


@dataclass(frozen=True)
class Budget:
    """Settings of everything that the main job runs.

    Attributes:
        seed: of all of it.
        freeze: of the trajectories that some hypotheses are measured on: groups of 8 responses.
        settings: hypothesis to what it measures on.
        step_sequences: sequences of the whole PPO step, each of another prompt.
    """

    seed: int
    freeze: FreezeSettings
    settings: dict[str, Any]
    step_sequences: int = 16

    def changed(self, hypothesis: str, **changes: Any) -> "Budget":
        """The same with other settings of one hypothesis."""
        other = {hypothesis: replace(self.settings[hypothesis], **changes)}
        return replace(self, settings=self.settings | other)

    def check_fits(self, policy: Checkpoint) -> None:
        """Raise ValueError where a hypothesis cannot be measured on the model."""
        for name, settings in self.settings.items():
            HYPOTHESES[name].check(policy, settings)


def budget(*, quick: bool = False, seed: int = 0) -> Budget:
    """The whole of it (about 3 minutes on 2 cores), or a first look (1 minute)."""
    settings = {name: h.settings(quick, seed) for name, h in HYPOTHESES.items()}
    freeze = replace(_QUICK if quick else _WHOLE, seed=seed)
    return Budget(seed, freeze, settings, 6 if quick else Budget.step_sequences)
