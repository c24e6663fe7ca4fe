"""Cutting a batch into parts: every token once, and mistakes are called by their names."""

from typing import Any

import pytest
import torch
from hypothesis import Phase, settings
from torch import Tensor

from precision_lib import ppo
from precision_lib.conformance import splits
from precision_lib.conformance.checks import find_check
from precision_lib.conformance.failure import ConformanceFailure
from precision_lib.conformance.inputs import Inputs
from precision_lib.conformance.profiles import CI
from precision_lib.conformance.runner import run

CUTS = {
    cut.__name__: cut
    for cut in (
        splits.whole,
        splits.micro_batches,
        splits.ranks,
        splits.packed,
        splits.left_padded,
        splits.without_masked_slots,
        splits.doubled_masked_slots,
        splits.context_shards,
    )
}
each_cut = pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
#: Lengths 1, 3, 2, 2 with losses of 4, 1, 2, 3 a token: the mean is 17 / 8.
MASK = torch.tensor([[1, 0, 0, 0], [1, 0, 1, 1], [0, 1, 1, 0], [1, 1, 0, 0]], dtype=torch.bool)
TERMS = torch.tensor([[4.0], [1.0], [2.0], [3.0]], dtype=torch.float64).expand(4, 4)
UNSHRUNK = settings(CI, phases=[phase for phase in CI.phases if phase is not Phase.shrink])


@each_cut
def test_every_real_token_is_in_one_part_once(cut: splits.Cut) -> None:
    parts = cut(MASK)
    seen = torch.cat([part[part >= 0] for part in parts])
    assert sorted(seen[MASK.flatten()[seen]].tolist()) == MASK.flatten().nonzero()[:, 0].tolist()
    assert len(seen.unique()) == len(seen)


@each_cut
def test_a_gradient_is_put_back_where_it_came_from(cut: splits.Cut) -> None:
    whole = torch.arange(1.0, 17, dtype=torch.float64).view(4, 4)
    parts = cut(MASK)
    given = [splits.part_of(Inputs({"x": whole, "mask": MASK}), part, torch.nan) for part in parts]
    gradients = [torch.where(one["mask"], one["x"], 0) for one in given]
    assert torch.equal(splits.put_back(gradients, parts, MASK), torch.where(MASK, whole, 0))


def test_new_slots_are_masked_and_hold_the_filler() -> None:
    part = torch.tensor([[-1, 4, 6]])
    tensors = {"x": TERMS, "mask": MASK, "advantages": torch.arange(4.0)}
    given = splits.part_of(Inputs(tensors, {"mode": "m"}), part, 9.0)
    assert given["x"].tolist() == [[9.0, 1.0, 1.0]]
    assert given["mask"].tolist() == [[False, True, True]]
    assert given["advantages"].tolist() == [1.0]
    assert given.word("mode") == "m"


@pytest.mark.parametrize(
    ("got", "name"),
    [
        (10.0, "sum of micro-batch means: the denominator is ignored"),
        (2.5, "mean of micro-batch means"),
        (17 / 8 / 4, "divided by the number of parts as well"),
        (17 / 16, "padding is counted"),
        (17.0, "a sum without its denominator"),
        (17 / 64, "the denominator is used twice"),
        (6 / 8, "the last part alone"),
        (1.0, "0.470588 times the whole"),
        (float("nan"), "the sum of the parts is NaN"),
    ],
)
def test_a_mistake_is_called_by_its_name(got: float, name: str) -> None:
    parts = [row[None] for row in torch.arange(16).view(4, 4)]
    defects = splits.known_defects(TERMS, MASK, parts, 8.0, of_sequences=False)
    assert splits.name_of(got, 17 / 8, defects).startswith(name)


def test_chunks_inside_the_function_are_called_so() -> None:
    terms = TERMS * torch.tensor([[1.0], [2.0], [1.0], [1.0]])
    defects = splits.known_defects(terms, MASK, splits.whole(MASK), 8.0, of_sequences=False)
    got = (10 / 4 + 10 / 4) / 2  # (4 + 2 + 2 + 2) / 4 and (2 + 2 + 3 + 3) / 4; the mean is 20 / 8
    assert splits.name_of(got + 0.5, 20 / 8, defects) == "1.2 times the whole"
    uneven = splits.known_defects(
        TERMS[:3], MASK[:3], splits.whole(MASK[:3]), 6.0, of_sequences=False
    )
    name = splits.name_of((7 / 4 + 2) / 2, 11 / 6, uneven)
    assert name == "mean of micro-batch means, in chunks of 2 sequences"


def test_a_gradient_is_described_by_its_parts() -> None:
    want = torch.where(MASK, TERMS, 0)
    parts = [row[None] for row in torch.arange(16).view(4, 4)]
    factors = torch.tensor([[1.0], [0.5], [0.25], [1.0]])
    described = splits.defect_of_gradient(want * factors, want, parts)
    assert described == "the gradient of each part has a factor of its own: 1, 0.5, 0.25, 1"
    assert splits.defect_of_gradient(want / 4, want, parts).startswith("the gradient is 0.25 times")
    lost = want * (factors == 1)
    assert splits.defect_of_gradient(lost, want, parts).startswith("5 of 8 tokens")
    another = want * torch.arange(1, 5)
    assert splits.defect_of_gradient(another, want, parts) == "the gradient is another one"


def _fails(check: str, function: Any, message: str) -> None:
    with pytest.raises(ConformanceFailure, match=message):
        run(find_check(f"test_property_holds[{check}]"), function, UNSHRUNK)


def test_the_check_names_the_defect_of_a_target() -> None:
    def chunked(values: Tensor, mask: Tensor, mode: str, denominator: float | None) -> Tensor:
        pairs = zip(values.split(4), mask.split(4), strict=True)
        losses = [ppo.aggregate(v, m, mode) for v, m in pairs if m.any()]
        own = mask.sum() if mode == "token_mean" else mask.any(1).sum()
        return torch.stack(losses).mean() * own / (denominator or own)

    def own_count(values: Tensor, mask: Tensor, mode: str, denominator: float | None) -> Tensor:
        return ppo.aggregate(values, mask, mode, denominator if mode == "constant" else None)

    said = r"mean of micro-batch means, in chunks of 4 sequences"
    _fails("aggregate-any_split_whole_batch-fp32", chunked, said)
    said = "sum of micro-batch means: the denominator is ignored"
    _fails("aggregate-any_split_micro_batches-fp32", own_count, said)
