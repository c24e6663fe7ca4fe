"""Series over steps: what moved, what did not, and the share of changed 16-bit codes."""

from pathlib import Path

import pytest
import torch

from precision_lib.weights.files import Source
from precision_lib.weights.manifests import load_manifest, open_source, write_manifest
from precision_lib.weights.series import check_series, movements
from tests.unit.weights.checkpoints import save

MOVED, STILL = "model.layers.0.mlp.down_proj.weight", "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(params=["files", "manifests"])
def steps(request: pytest.FixtureRequest, tmp_path: Path) -> list[Source]:
    """Three steps; one matrix moves half of its bf16 codes in the first, none in the second."""
    values = torch.linspace(1, 2, 64).view(8, 8)
    moved = values.clone()
    moved[:4] *= 1.5
    tiny = moved * (1 + 2**-20)
    sources = []
    for i, first in enumerate((values, moved, tiny)):
        source = open_source(save(tmp_path / str(i), {MOVED: first, STILL: values}))
        if request.param == "manifests":
            write_manifest(tmp_path / f"{i}.json", source)
            source = load_manifest(tmp_path / f"{i}.json")
        sources.append(source)
    return sources


def test_what_does_not_move_is_found_at_a_rate_and_what_moves_at_rate_0(
    steps: list[Source],
) -> None:
    unmoved = check_series(steps, 1e-6)
    assert [(f.kind, f.tensor) for f in unmoved] == [("unmoved", STILL)]
    assert [(f.kind, f.tensor) for f in check_series(steps, 0.0)] == [("moved", MOVED)]
    assert unmoved[0].detail.endswith("in 2 of 2 steps")
    with pytest.raises(ValueError, match="1 manifests are no series"):
        check_series(steps[:1], 0.0)


def test_the_share_of_changed_codes_is_that_of_bf16(steps: list[Source]) -> None:
    first, second = movements(*steps[:2]), movements(*steps[1:])
    assert [m.moved for m in first] == [m.moved for m in second] == [True, False]
    from_files = first[0].share is not None
    if from_files:
        assert [m.share for m in first] == [0.5, 0.0]
        assert second[0].share is not None
        assert second[0].share < 0.1
    assert first[1].share == 0
