"""A verdict that another seed changes is no verdict: H1 to H3 on a small budget, two seeds each.

Other prompts, responses, directions and resamples. H4's small budget is too short
for a verdict (`inconclusive`, and rightly); five whole runs of all four are in `docs/records`.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from precision_lib.matrix import COUNTERFACTUALS, MATRIX

if TYPE_CHECKING:
    from precision_lib.forensics.causal import Study
    from precision_lib.models.pipeline import Pipeline

CONFIGURATIONS = MATRIX + COUNTERFACTUALS
SEEDS = (0, 1)


@pytest.fixture(scope="module")
def embedded() -> "Pipeline":
    from precision_lib.models.pipeline import load_pipeline

    return load_pipeline()


def words(study: "Study") -> dict[str, str]:
    """The verdict of every cell and of the hypothesis."""
    cells = {c.name: study.cell(c).verdict for c in CONFIGURATIONS}
    return cells | {"hypothesis": study.verdict().verdict}


def test_h1_says_the_same_for_other_seeds(embedded: "Pipeline") -> None:
    from precision_lib.forensics.h1.study import open_study
    from precision_lib.forensics.probe import ProbeSettings
    from precision_lib.forensics.verdicts import H1_OPERATING_KL

    def said(seed: int) -> dict[str, str]:
        settings = ProbeSettings(
            num_prompts=8, seq_lengths=(64, 128), target_kls=(H1_OPERATING_KL,), seed=seed
        )
        return words(open_study(embedded.policy, settings, CONFIGURATIONS))

    assert len({tuple(sorted(said(seed).items())) for seed in SEEDS}) == 1


def test_h2_and_h3_say_the_same_for_other_seeds(embedded: "Pipeline", tmp_path: Path) -> None:
    from precision_lib.forensics.budget import budget
    from precision_lib.forensics.frozen import freeze_and_read
    from precision_lib.forensics.h2.study import open_h2_study
    from precision_lib.forensics.h3.study import open_h3_study

    def said(seed: int) -> tuple[dict[str, str], dict[str, str]]:
        small = budget(quick=True, seed=seed)
        frozen = freeze_and_read(embedded, small.freeze, tmp_path / str(seed))
        h2 = open_h2_study(embedded.reward, frozen.shards, seed)
        h3 = open_h3_study(embedded.policy, frozen.head, frozen.shards, small.h3)
        return words(h2), words(h3)

    found = [said(seed) for seed in SEEDS]
    assert all(other == found[0] for other in found[1:]), found
