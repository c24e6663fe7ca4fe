"""The policy lies where it was asked to lie, in a direction that lowers the loss."""

import pytest
import torch

from precision_lib.forensics import policy_shift
from precision_lib.forensics.hypotheses import DECISIONS
from precision_lib.models.loading import Checkpoint, parameter_digest, set_parameters, working_copy
from precision_lib.runtime import deterministic
from precision_lib.trajectories.sampling import sample_responses

TEXTS = [[0, *range(k, k + 40)] for k in range(1, 30)]


def test_scales_reach_their_targets_over_six_decades(tiny_llama: Checkpoint) -> None:
    """KL ~ scale^2, so two corrections leave only higher orders.

    The limit is half of the error power that H1's threshold calls impaired: a policy that is
    further off would move the operating point by as much as the decision is about.
    """
    tolerance = DECISIONS["H1"].limit ** 2 / 2
    model = tiny_llama.model
    targets = (1e-7, 1e-5, 1e-3, 1e-1)
    with deterministic():
        responses = sample_responses(model, [[0], [0, 5]], 40, seed=0)
        direction = policy_shift.training_direction(model, TEXTS, seed=0)
        scales = policy_shift.solve_scales(model, direction, responses, targets)
        working, golden = working_copy(model), policy_shift.aligned_logits(model, responses)
        for target, scale in zip(targets, scales, strict=True):
            set_parameters(working, model, "fp32", direction, scale)
            assert policy_shift.mean_kl(working, golden, responses) == pytest.approx(
                target, tolerance
            )
    assert scales == sorted(scales)


def test_the_direction_lowers_the_loss_and_leaves_the_model_alone(
    tiny_llama: Checkpoint,
) -> None:
    model = tiny_llama.model
    before = parameter_digest(model)
    with deterministic():
        direction = policy_shift.training_direction(model, TEXTS, seed=0)
        working = working_copy(model)
        set_parameters(working, model, "fp32", direction, 1.0)
        with torch.no_grad():
            losses = [policy_shift._next_token_loss(m, TEXTS) for m in (model, working)]
    assert losses[1] < losses[0]
    assert parameter_digest(model) == before
    assert all(d.dtype == torch.float32 for d in direction.values())


def test_seeds_choose_other_texts(tiny_llama: Checkpoint) -> None:
    with deterministic():
        first, second = (
            policy_shift.training_direction(tiny_llama.model, TEXTS, seed=s) for s in (0, 1)
        )
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_a_policy_that_does_not_move_is_refused(tiny_llama: Checkpoint) -> None:
    still = {n: torch.zeros_like(p) for n, p in tiny_llama.model.named_parameters()}
    with deterministic():
        responses = sample_responses(tiny_llama.model, [[0]], 5, seed=0)
        with pytest.raises(ValueError, match="the policy does not differ from the reference"):
            policy_shift.solve_scales(tiny_llama.model, still, responses, (1e-4,))


def test_no_text_is_refused(tiny_llama: Checkpoint) -> None:
    with pytest.raises(ValueError, match="no text to train on: 1 given"):
        policy_shift.training_direction(tiny_llama.model, [[1]], seed=0)
