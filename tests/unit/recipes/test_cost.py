"""Costs against figures worked out by hand."""

from dataclasses import replace
from pathlib import Path

import pytest

from precision_lib.forensics.causal import PURE
from precision_lib.matrix import MATRIX, RECIPES, ROLLOUT_CONTRASTS, get_configuration
from precision_lib.models.loading import load_checkpoint
from precision_lib.recipes.cost import COUNTED, Cost, cost_of
from precision_lib.recipes.shape import Shape, UnknownShapeError, shape_of
from precision_lib.recipes.tables import operating_point, table
from tests.unit.recipes.made_records import SHAPE

GRPO, DAPO = operating_point("grpo", 2048, 1e-4), operating_point("dapo", 2048, 1e-4)


def cost(name: str, shape: Shape = SHAPE, hardware: str = "h100") -> Cost:
    return cost_of(get_configuration(name), PURE, shape, GRPO, hardware)


@pytest.mark.parametrize(
    ("name", "trainer", "total"),
    [
        ("bf16_pure", 2 + 4 + 4 + 8, 18 + 2 + 2 + 2),
        ("fp16_pure", 2 + 4 + 4 + 8, 18 + 2 + 2 + 2),
        ("fp32_baseline", 4 + 4 + 8, 16 + 4 + 4 + 4),  # the weights are the masters
        ("bf16_fp32_ref", 18, 18 + 4 + 2 + 2),
        ("bf16_trainer_rollout", 18, 18 + 2 + 2),
        ("bf16_fp8_rollout", 18, 18 + 2 + 2 + (0.8 * 1 + 0.2 * 2)),
        # A tied head in FP32 is one more copy of a fifth of the weights, of three models.
        ("bf16_fp32_head", 18 + 0.2 * 4, 24 + 3 * 0.2 * 4),
    ],
)
def test_bytes_per_parameter(name: str, trainer: float, total: float) -> None:
    found = cost(name)
    assert found.trainer_bytes == pytest.approx(trainer)
    assert found.bytes_per_parameter == pytest.approx(total)


def test_an_untied_head_is_no_copy() -> None:
    found = cost("bf16_fp32_head", replace(SHAPE, tied=False))
    assert found.trainer_bytes == pytest.approx(18 + 0.2 * 2)


def test_times_follow_the_rates() -> None:
    rates = table("hardware")["h100"]["rates"]
    assert cost("bf16_pure").time == 1
    assert cost("fp32_baseline").time == pytest.approx(rates["bf16"] / rates["fp32"])
    # Of 7 forwards (the reward model's without a head) the engine's is one, four fifths in fp8.
    whole, saved = 6 * 1000 + 800, 800 * (1 - rates["bf16"] / rates["fp8"])
    assert cost("bf16_fp8_rollout").time == pytest.approx(1 - saved / whole)


def test_without_a_reference_nobody_pays_for_one() -> None:
    found = cost_of(get_configuration("bf16_fp32_ref"), PURE, SHAPE, DAPO, "h100")
    assert found.reference_bytes == 0
    assert found.time == 1


def test_a_device_without_fp8_gives_no_time() -> None:
    assert cost("bf16_fp8_rollout", hardware="a100").time is None
    assert cost("bf16_pure", hardware="a100").time == 1


def test_every_shipped_configuration_has_a_cost_on_the_newest_hardware() -> None:
    for configuration in MATRIX + RECIPES + ROLLOUT_CONTRASTS:
        assert set(configuration.components) <= set(COUNTED)
        assert cost_of(configuration, PURE, SHAPE, GRPO, "h200").time is not None


def test_unknown_hardware_is_refused() -> None:
    with pytest.raises(ValueError, match="hardware 'tpu' is unknown; known: h100"):
        cost("bf16_pure", hardware="tpu")


def test_every_rate_says_where_it_is_from() -> None:
    for device in table("hardware").values():
        assert "data sheet" in device["source"]
        assert all(page.startswith("https://") for page in device["read_in"])
        assert device["read_in"]
        assert device["rates"]["bf16"] > device["rates"]["fp32"] > 0


def test_the_shape_of_the_embedded_model_is_that_of_its_weights() -> None:
    model = load_checkpoint().model
    shape = shape_of("embedded")
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert shape.tied
    assert shape.lm_head == model.lm_head.weight.numel()
    assert shape.kv_numbers_per_token == 2048  # 2 x 8 layers x 128 numbers


def test_a_directory_of_another_kind_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "model-q4.gguf").touch()
    with pytest.raises(UnknownShapeError, match=r"load model-q4\.gguf with gguf_file="):
        shape_of(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UnknownShapeError, match="give a causal LM with --model"):
        shape_of(str(tmp_path))
