"""Scenes of the size that a trainer has: each is drawn once, its truth is that of a small case."""

import pytest
import torch
from hypothesis import Phase, given, settings

from precision_lib.conformance.strategies import REGIONS, Case
from precision_lib.conformance.strategies.as_trained import IN_ONE_FORMAT, SCENES
from precision_lib.conformance.truth import truths, truths_of
from precision_lib.formats import FORMATS
from precision_lib.targets import INTERFACE

EMBEDDED = [
    ("token_logprobs", "first_block_of_1_100_excluded"),
    ("entropy", "first_block_of_1_100_excluded"),
    ("kl_penalty", "batch_of_17_by_257"),
    ("gae", "batch_of_17_by_257"),
]


def drawn(function: str, fmt: str) -> list[Case]:
    cases: list[Case] = []

    @settings(max_examples=25, derandomize=True, database=None, phases=[Phase.generate])
    @given(REGIONS[function]["as_trained"].cases(FORMATS[fmt]))
    def collect(case: Case) -> None:
        cases.append(case)

    collect()
    return cases


@pytest.mark.parametrize("function", SCENES)
def test_every_scene_is_drawn_once_and_is_a_call_of_the_function(function: str) -> None:
    cases = drawn(function, "fp32")
    asked = [name for name in SCENES[function] if name not in IN_ONE_FORMAT]
    assert sorted(case.recipe for case in cases) == sorted(f"scene={name}" for name in asked)
    for case in cases:
        assert list(case.inputs.keywords()) == list(INTERFACE[function])
        assert next(iter(case.inputs.tensors.values())).numel() >= 300


@pytest.mark.parametrize(("function", "scene"), EMBEDDED)
def test_the_truth_of_an_embedded_case_is_that_of_the_large_one(function: str, scene: str) -> None:
    region = REGIONS[function]["as_trained"]
    case = next(case for case in drawn(function, "bf16") if case.recipe == f"scene={scene}")
    assert region.every_way
    assert case.embedded is not None
    direct, embedded = truths(function, case.inputs), truths_of(function, case)
    assert direct.keys() == embedded.keys()
    for part, truth in direct.items():
        torch.testing.assert_close(embedded[part].want, truth.want, rtol=1e-13, atol=0)
        assert (embedded[part].limit <= truth.limit * (1 + 1e-9) + 1e-44).all()
