"""How much the main job measures: the whole of it, or a first look.

Tests and commands take the settings of every hypothesis from here, and the record names them.
"""

from dataclasses import dataclass, replace

from precision_lib.forensics import probe
from precision_lib.forensics.h3 import study as h3_study
from precision_lib.forensics.h3.study import H3Settings
from precision_lib.forensics.h4 import long_sequences
from precision_lib.forensics.h4.long_sequences import H4Settings
from precision_lib.forensics.probe import ProbeSettings
from precision_lib.trajectories.batches import FreezeSettings


@dataclass(frozen=True)
class Budget:
    """Settings of everything that the main job runs.

    Attributes:
        probe: of H1.
        freeze: of the trajectories that H2 and H3 are measured on: groups of 8 responses.
        h3, h4: of the hypotheses.
    """

    probe: ProbeSettings
    freeze: FreezeSettings
    h3: H3Settings
    h4: H4Settings


def budget(*, quick: bool = False, seed: int = 0) -> Budget:
    """The whole of it (about 5 minutes on 2 cores), or a first look (1 minute)."""
    whole = Budget(
        probe=ProbeSettings(),
        freeze=FreezeSettings(
            num_batches=4, batch_size=64, max_new_tokens=64, samples_per_prompt=8
        ),
        h3=H3Settings(),
        h4=H4Settings(),
    )
    first_look = Budget(
        probe=probe.QUICK,
        freeze=FreezeSettings(
            num_batches=1, batch_size=64, max_new_tokens=32, samples_per_prompt=8
        ),
        h3=h3_study.QUICK,
        h4=long_sequences.QUICK,
    )
    chosen = first_look if quick else whole
    return Budget(
        probe=replace(chosen.probe, seed=seed),
        freeze=replace(chosen.freeze, seed=seed),
        h3=replace(chosen.h3, seed=seed),
        h4=replace(chosen.h4, seed=seed),
    )
