"""Every function of the core gives the same bits whatever its inputs' layout in memory.

B = 3 sequences, T = 4 tokens, V = 50 vocabulary entries.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from precision_lib import ppo
from precision_lib.ppo.kl import full_kl
from precision_lib.ppo.rewards import assemble_rewards
from tests.unit.ppo.layouts import LAYOUTS, layout_does_not_matter, ragged, random

B, T, V = 3, 4, 50
MASK = ragged(4, 2, 3)
TOKENS = torch.randint(V, (B, T), generator=torch.Generator().manual_seed(0))
CLIPS: dict[str, Any] = {"clip_low": 0.2, "clip_high": 0.28}
ROWS = [random(B, T, seed=seed) for seed in range(3)]
TABLE = random(B, T, V)


def _gspo(new: Tensor, old: Tensor, advantages: Tensor) -> Tensor:
    return ppo.gspo_loss(new, old, advantages[:, 0], MASK, **CLIPS)


#: Name to the function and its inputs.
CASES: dict[str, tuple[Callable[..., Any], list[Tensor]]] = {
    "token_logprobs": (ppo.token_logprobs, [TABLE, TOKENS]),
    "entropy": (ppo.entropy, [TABLE]),
    "full_kl": (full_kl, [TABLE, random(B, T, V, seed=1)]),
    "jsd": (partial(ppo.jsd, beta=0.3), [TABLE, random(B, T, V, seed=1)]),
    "linear_token_logprobs": (ppo.linear_token_logprobs, [random(B, T, 6), random(V, 6), TOKENS]),
    **{
        estimator: (partial(ppo.kl_penalty, estimator=estimator), ROWS[:2])
        for estimator in ("k1", "k2", "k3")
    },
    "policy_loss": (partial(ppo.policy_loss, clip_range=0.2), [*ROWS, MASK]),
    "value_loss": (partial(ppo.value_loss, clip_range=0.2), [*ROWS, MASK]),
    "dapo_loss": (partial(ppo.dapo_loss, **CLIPS), [*ROWS, MASK]),
    "cispo_loss": (partial(ppo.cispo_loss, **CLIPS), [*ROWS, MASK]),
    "gspo_loss": (_gspo, ROWS),
    "importance_weights": (
        partial(ppo.importance_weights, level="geometric", mode="truncate", cap=2.0),
        [*ROWS[:2], MASK],
    ),
    "sequence_ratio": (ppo.sequence_ratio, [*ROWS[:2], MASK]),
    "aggregate": (partial(ppo.aggregate, mode="sequence_mean"), [ROWS[0], MASK]),
    "masked_mean": (ppo.masked_mean, [ROWS[0], MASK]),
    "whiten": (ppo.whiten, [ROWS[0], MASK]),
    "gae": (partial(ppo.gae, gamma=0.99, lam=0.95), [*ROWS[:2], MASK]),
    "group_advantages": (ppo.group_advantages, [ROWS[0]]),
    "rloo_advantages": (ppo.rloo_advantages, [ROWS[0]]),
    "assemble_rewards": (
        lambda kl, mask: assemble_rewards(torch.tensor([1.0, -2.0, 8.0]), kl, mask, 0.1),
        [ROWS[0], MASK],
    ),
}


def results_and_gradients(function: Callable[..., Any], *inputs: Tensor) -> list[Tensor]:
    """What a function returns, and the gradients that flow to its floating-point inputs."""
    leaves = [x.detach().requires_grad_(x.is_floating_point()) for x in inputs]
    returned = function(*leaves)
    results = returned if isinstance(returned, tuple) else (returned,)
    gradients: tuple[Tensor | None, ...] = ()
    if results[0].requires_grad:
        moving = [x for x in leaves if x.requires_grad]
        upstream = torch.linspace(1, 2, results[0].numel()).view_as(results[0])
        gradients = torch.autograd.grad(results[0], moving, upstream, allow_unused=True)
    return [*(x.detach() for x in results), *(x for x in gradients if x is not None)]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_in_memory_changes_no_bit(layout: str, name: str) -> None:
    function, inputs = CASES[name]
    layout_does_not_matter(layout, partial(results_and_gradients, function), *inputs)


def test_gradients_are_among_what_is_compared() -> None:
    without = {"full_kl", "whiten", "gae", "importance_weights", "assemble_rewards"}
    without |= {"group_advantages", "rloo_advantages"}
    for name, (function, inputs) in CASES.items():
        results = 2 if name == "gae" else 1
        assert (len(results_and_gradients(function, *inputs)) > results) == (name not in without)


def test_every_function_is_a_case() -> None:
    """But ``dpo_loss``, whose inputs have one dimension."""
    names = {"kl_penalty" if name in ("k1", "k2", "k3") else name for name in CASES}
    assert names >= {*ppo.__all__} - {"dpo_loss"}
