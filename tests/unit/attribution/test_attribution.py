"""Attribution names the module that is wrong, its parts add up, and nothing escapes it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from precision_lib.attribution import places
from precision_lib.attribution.errors import BatchErrors, PlacesDifferError
from precision_lib.attribution.places import Place, UnknownModelError, places_of
from precision_lib.attribution.study import (
    Attribution,
    NoErrorError,
    NonfiniteError,
    attribute,
    number_of_forwards,
)
from precision_lib.faults.modules import MODULE_FAULTS, rope_table_in_bf16
from precision_lib.formats import get_format
from precision_lib.models.loading import set_parameters, working_copy
from precision_lib.runtime import deterministic
from precision_lib.scoring.forward import next_token_logits
from precision_lib.trajectories.sampling import Responses
from tests.unit.conftest import random_model

VOCABULARY = 96
KNOWN = ("Llama", "Qwen2", "Qwen3", "GPT2")


def model_of(architecture: str, **changes: Any) -> Any:
    model: Any = random_model(architecture, VOCABULARY, attn_implementation="eager", **changes)
    return model.requires_grad_(False)


def tokens_of(count: int = 8, length: int = 12) -> Responses:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, VOCABULARY, (count, length + 4), generator=generator)
    return Responses(tokens, torch.full((count,), 4), length)


def cast(model: Any, fmt: str = "bf16") -> Any:
    copy = working_copy(model)
    set_parameters(copy, model, fmt)
    return copy


def with_fault(model: Any, plant: Callable[[Any], None]) -> Any:
    copy = working_copy(model)
    plant(copy)
    return copy


def attributed(architecture: str, plant: Callable[[Any], None], **changes: Any) -> Attribution:
    model = model_of(architecture, **changes)
    return attribute(model, with_fault(model, plant), tokens_of())


@pytest.mark.parametrize("architecture", KNOWN)
def test_fp32_with_all_errors_added_is_the_bf16_model(architecture: str) -> None:
    """By induction over the places: adding back a difference of near numbers is exact."""
    model, responses = model_of(architecture), tokens_of(2)
    errors = BatchErrors(model, cast(model), responses, "bf16")
    again = errors.logprobs(places_of(model))
    power = (errors.tested - errors.exact).square().mean()
    distance = (again - errors.tested).square().mean()
    fp32, bf16 = (get_format(name).unit_roundoff for name in ("fp32", "bf16"))
    assert power > 0
    assert distance <= fp32 / bf16 * power


@pytest.mark.parametrize("architecture", KNOWN)
def test_what_is_seen_is_what_the_models_compute_without_being_looked_at(architecture: str) -> None:
    model, responses = model_of(architecture), tokens_of(2)
    copy = cast(model)
    errors = BatchErrors(model, copy, responses, "fp32")
    for seen, one in ((errors.exact, model), (errors.tested, copy)):
        with deterministic(), torch.no_grad():
            logits = next_token_logits(one, responses.tokens)[:, 3:-1].float()
        alone = logits.log_softmax(-1).gather(-1, responses.tokens[:, 4:, None]).squeeze(-1)
        assert torch.allclose(seen, alone, rtol=0, atol=VOCABULARY * 2**-20)


@pytest.mark.parametrize("architecture", ["Llama", "Qwen3", "GPT2"])
@pytest.mark.parametrize("fault", MODULE_FAULTS)
def test_a_planted_fault_is_the_top_entry_and_nothing_else_is_blamed(
    fault: str, architecture: str
) -> None:
    plant, kind = MODULE_FAULTS[fault]
    if architecture == "GPT2" and plant is rope_table_in_bf16:
        with pytest.raises(ValueError, match="has no RoPE table; plant another fault"):
            plant(model_of(architecture))
        return
    result = attributed(architecture, plant)
    assert result.kinds is not None
    top, *others = result.kinds.by_size
    assert top.name == kind
    assert top.promoted.value == pytest.approx(1, abs=2**-8)
    assert sum(part.demoted.value for part in others) < 2**-8
    assert result.closure < 2**-8


def test_a_fault_of_one_layer_is_found_in_that_layer() -> None:
    def plant(model: Any) -> None:
        places.layers_of(model)[1].register_forward_hook(lambda _m, _a, out: out.bfloat16().float())

    result = attributed("Llama", plant, num_hidden_layers=3)
    assert result.layers.by_size[0].name == "layer 1"
    assert result.layers.by_size[0].promoted.value == pytest.approx(1, abs=2**-8)


def test_an_unknown_architecture_is_attributed_by_layer_alone() -> None:
    def plant(model: Any) -> None:
        places.layers_of(model)[0].register_forward_hook(lambda _m, _a, out: out.bfloat16().float())

    result = attributed("Mistral", plant)
    assert result.kinds is None
    assert [part.name for part in result.layers.parts] == [
        "embedding",
        "layer 0",
        "layer 1",
        "LM head",
        "log-softmax",
    ]
    assert result.layers.by_size[0].name == "layer 0"


def test_parts_of_a_bf16_model_add_up_and_promotion_mirrors_demotion() -> None:
    """Independent errors add in power; the interval of the remainder is what 32 sequences allow."""
    model = model_of("Llama", initializer_range=0.05)
    responses, calls = tokens_of(32, 24), []
    result = attribute(
        model, cast(model), responses, kl_format="bf16", progress=lambda: calls.append(1)
    )
    assert result.kinds is not None
    for breakdown in (result.kinds, result.layers):
        assert breakdown.adds_up
        assert breakdown.remainder.high - breakdown.remainder.low < 1
    assert result.power.n == 32 * 24
    assert len(calls) == number_of_forwards(model, responses)


def test_fp32_against_itself_is_nothing_to_attribute() -> None:
    model = model_of("Llama")
    with pytest.raises(NoErrorError, match=r"on 96 tokens .* bit for bit"):
        attribute(model, working_copy(model), tokens_of())


def test_an_overflow_is_said_and_not_attributed() -> None:
    model = model_of("Llama")
    copy = working_copy(model)
    copy.model.norm.weight.data[0] = torch.inf
    with pytest.raises(NonfiniteError, match="NaN or inf in 8 of 8 sequences"):
        attribute(model, copy, tokens_of())


def test_too_few_sequences_are_refused() -> None:
    model = model_of("Llama")
    with pytest.raises(ValueError, match=r"7 prompts: .* at least 8"):
        attribute(model, cast(model), tokens_of(7))


def test_models_with_other_places_are_refused() -> None:
    model, wider = model_of("Llama"), model_of("Llama", intermediate_size=64)
    with pytest.raises(PlacesDifferError, match=r"value 0 of MLP gate in layer 0: FP32 has .* 48"):
        BatchErrors(model, wider, tokens_of(1), "fp32")
    deeper = model_of("Llama", num_hidden_layers=3)
    with pytest.raises(PlacesDifferError, match="norms in layer 2: FP32 has none"):
        BatchErrors(model, deeper, tokens_of(1), "fp32")
    with pytest.raises(PlacesDifferError, match="the tested model none; both models must be"):
        BatchErrors(deeper, model, tokens_of(1), "fp32")


def test_fused_attention_is_refused() -> None:
    model = model_of("Llama")
    model.set_attn_implementation("sdpa")
    with pytest.raises(UnknownModelError, match="use eager attention"):
        BatchErrors(model, model, tokens_of(1), "fp32")


def test_the_stage_of_a_place_outside_the_layers_is_named() -> None:
    assert Place("norms").stage == "final norm"
    assert Place("norms", 3).stage == "layer 3"
    assert Place("LM head").stage == "LM head"
