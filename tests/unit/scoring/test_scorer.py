"""A forward is run once, kept, and run again for another owner or run, each with its own seed."""

import torch

from precision_lib.scoring.micro import (
    AGAIN,
    FIRST,
    REBATCHED,
    batch_shapes_exchanged,
    batches_of_run,
    micro_batches,
)
from precision_lib.scoring.scorer import Scorer, Weights
from tests.unit.small_pipelines import random_checkpoint


def scorer() -> tuple[Scorer[tuple[str, float]], list[str]]:
    """One that draws a random number, as a dropout would, and counts its forwards."""
    forwards: list[str] = []

    def score(model: torch.nn.Module, weights: Weights, run: str) -> tuple[str, float]:
        forwards.append(run)
        return str(next(model.parameters()).dtype), float(torch.rand(()))

    return Scorer(random_checkpoint(num_hidden_layers=1).model, score), forwards


def test_a_forward_is_run_once_in_its_format() -> None:
    own, forwards = scorer()
    first = own.scored(Weights("policy", "bf16"))
    assert own.scored(Weights("policy", "bf16"), FIRST) is first
    assert forwards == [FIRST]
    assert first[0] == "torch.bfloat16"


def test_what_must_differ_draws_other_numbers() -> None:
    """A dropout left on then shows: owner, run and scale each have a seed of their own."""
    own, _ = scorer()
    drawn = {
        own.scored(weights, run)[1]
        for weights in (Weights("policy", "fp32"), Weights("reference", "fp32"))
        for run in (FIRST, AGAIN)
    }
    assert len(drawn) == 4


def test_a_pair_holds_both_weights_at_once() -> None:
    own, _ = scorer()
    own.direction = {n: torch.ones_like(p) for n, p in own.original.named_parameters()}

    def apart(first: torch.nn.Module, second: torch.nn.Module) -> set[float]:
        pairs = zip(first.parameters(), second.parameters(), strict=True)
        return {float((a - b).abs().max().round(decimals=4)) for a, b in pairs}

    moved, still = Weights("policy", "fp32", 0.5), Weights("reference", "fp32")
    assert own.pair(moved, still, apart) == {0.5}
    assert own.pair(Weights("policy", "fp32", 0.0), still, apart) == {0.0}


def test_another_run_takes_other_rows_in_another_order() -> None:
    usual, other = (batches_of_run(6, 7, run) for run in (FIRST, REBATCHED))
    assert (usual.rows, usual.order.tolist()) == (6, list(range(7)))
    assert (other.rows, other.order.tolist()) == (2, list(range(7))[::-1])
    assert batches_of_run(1, 7, REBATCHED).rows == 2
    with batch_shapes_exchanged():
        assert batches_of_run(6, 7, FIRST).rows == 2
        assert batches_of_run(6, 7, REBATCHED).rows == 6
        assert micro_batches(6, 7).rows == 6, "what is frozen does not change"
