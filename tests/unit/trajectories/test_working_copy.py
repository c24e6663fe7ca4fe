"""The copies of a model that a replay casts: one for an architecture, and ties are kept."""

import pytest
import torch

from precision_lib.models.loading import set_parameters
from precision_lib.models.pipeline import Pipeline
from precision_lib.trajectories.working_copy import WorkingCopy, hollow_copy
from tests.unit.small_pipelines import random_checkpoint, random_pipeline


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    """A reference that is not the policy."""
    return random_pipeline("Qwen3", moved=2.0**-7)


def test_fp32_components_run_the_original_and_others_one_copy(pipeline: Pipeline) -> None:
    policy, reference = pipeline.policy.model, pipeline.reference.model
    working = WorkingCopy()
    assert working.of(policy, "fp32") is policy
    first = working.of(policy, "bf16")
    assert working.of(policy, "bf16") is first
    assert next(first.parameters()).dtype == torch.bfloat16
    assert next(policy.parameters()).dtype == torch.float32
    assert working.of(reference, "bf16") is first, "one architecture, one copy"
    want = reference.lm_head.weight.bfloat16()
    assert torch.equal(first.lm_head.weight, want)
    assert working.of(pipeline.reward.model, "bf16") is not first
    hollow = hollow_copy(policy)
    assert {p.untyped_storage().nbytes() for p in hollow.parameters()} == {4}


def test_tied_weights_stay_tied_in_the_working_copy() -> None:
    model = random_checkpoint("Qwen3", tie_word_embeddings=True).model
    assert model.lm_head.weight is model.get_input_embeddings().weight
    copy = hollow_copy(model)
    set_parameters(copy, model, "bf16")
    assert copy.lm_head.weight is copy.get_input_embeddings().weight
    assert copy.lm_head.weight.dtype == torch.bfloat16
