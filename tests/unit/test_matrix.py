"""The matrix is the one of the study, and a user's file is read or refused with a reason."""

import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from precision_lib.formats import FORMATS
from precision_lib.matrix import (
    COMPONENT_FORMATS,
    COUNTERFACTUALS,
    MATRIX,
    RECIPES,
    REQUIRED,
    ROLLOUT_CONTRASTS,
    PrecisionConfig,
    all_configurations,
    get_configuration,
    load_matrix,
)
from precision_lib.training.settings import check_columns

GOOD = """
[mine]
policy = "bf16"
reference = "fp16"
reward = "fp32"
value = "fp32"
kl = "fp32"
tests = "what we train with"
"""


def test_the_seven_configurations() -> None:
    table = {c.name: "/".join(c.components.values()) for c in MATRIX}
    assert table == {
        "bf16_pure": "bf16/bf16/bf16/bf16/bf16",
        "bf16_fp32_kl": "bf16/bf16/bf16/bf16/fp32",
        "bf16_fp32_value": "bf16/bf16/bf16/fp32/bf16",
        "bf16_fp32_reward": "bf16/bf16/fp32/bf16/bf16",
        "bf16_fp32_ref": "bf16/fp32/bf16/bf16/bf16",
        "mixed_recommended": "bf16/bf16/bf16/fp32/fp32",
        "fp32_baseline": "fp32/fp32/fp32/fp32/fp32",
    }


def test_each_counterfactual_demotes_one_component_of_the_baseline() -> None:
    demoted = [[c for c, fmt in row.components.items() if fmt != "fp32"] for row in COUNTERFACTUALS]
    assert demoted == [[component] for component in REQUIRED]
    assert [row.components[c] for row, [c] in zip(COUNTERFACTUALS, demoted, strict=True)] == (
        ["bf16"] * len(REQUIRED)
    )


def test_a_later_column_with_its_default_is_not_there() -> None:
    """So records of before say the same as new ones, and a table may spell the default out."""
    five = dict.fromkeys(REQUIRED, "bf16")
    assert PrecisionConfig("bf16_pure", **five).components == five
    spelled = PrecisionConfig("bf16_pure", **five, lm_head="bf16", rollout="bf16")
    assert spelled == PrecisionConfig("bf16_pure", **five)
    assert (spelled.format_of("rollout"), spelled.format_of("lm_head")) == ("bf16", "")
    mixed = PrecisionConfig("mixed", **five | {"reference": "fp32"}, lm_head="fp32", rollout="fp8")
    assert mixed.components == five | {"reference": "fp32", "lm_head": "fp32", "rollout": "fp8"}
    assert [mixed.forward_format(x) for x in ("policy", "reference")] == ["bf16/fp32", "fp32"]


def test_recipes_are_known_by_name_and_join_a_run_when_asked_for() -> None:
    assert {c.name: "/".join(c.components.values()) for c in RECIPES} == {
        "bf16_fp32_head": "bf16/bf16/bf16/bf16/bf16/fp32",
        "bf16_fp32_head_kl": "bf16/bf16/bf16/bf16/fp32/fp32",
        "fp16_pure": "fp16/fp16/fp16/fp16/fp16",
        "fp16_fp32_kl": "fp16/fp16/fp16/fp16/fp32",
        "bf16_fp8_rollout": "bf16/bf16/bf16/bf16/bf16/fp8",
        "bf16_fp16_rollout": "bf16/bf16/bf16/bf16/bf16/fp16",
    }
    assert all_configurations(Path("recipes")) == (*MATRIX, *COUNTERFACTUALS, *RECIPES)
    assert all_configurations() == (*MATRIX, *COUNTERFACTUALS)
    for configuration in (*RECIPES, *ROLLOUT_CONTRASTS):
        assert get_configuration(configuration.name) == configuration


def test_training_refuses_a_column_that_it_does_not_apply() -> None:
    for name in ("fp16_pure", "bf16_fp8_rollout"):
        check_columns(get_configuration(name))
    with pytest.raises(ValueError, match=r"'bf16_fp32_head': lm_head = 'fp32' is not applied in"):
        check_columns(get_configuration("bf16_fp32_head"))


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        MATRIX[0].kl = "fp32"  # type: ignore[misc]


def test_component_formats_are_known_formats() -> None:
    assert set(COMPONENT_FORMATS) < set(FORMATS)


def test_a_users_configuration_comes_behind_the_matrix(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    mine = PrecisionConfig("mine", "bf16", "fp16", "fp32", "fp32", "fp32", "what we train with")
    assert all_configurations(path) == (*MATRIX, *COUNTERFACTUALS, mine)
    assert get_configuration("mine", path) == mine


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD.replace("fp16", "fp8_e4m3"), r"'mine': reference = 'fp8_e4m3' is not a format that"),
        (GOOD.replace("kl =", "head ="), r"unknown field 'head'; fields: policy, reference"),
        (GOOD + 'rollout = "fp4"', r"rollout = 'fp4' is not a format that a rollout can be"),
        (GOOD + 'lm_head = "int8"', r"lm_head = 'int8' is not a format that a component"),
        (GOOD.replace("[mine]", "[bf16_fp8_rollout]"), r"'bf16_fp8_rollout' is already defined"),
        (GOOD.replace('kl = "fp32"\n', ""), r"'mine': missing kl; name every component"),
        (GOOD.replace('"bf16"', "16"), r"policy = 16 must be a string such as 'bf16'"),
        (GOOD.replace("[mine]", "[mine"), r"mine.toml is not valid TOML"),
        (GOOD.replace("[mine]", "[bf16_pure]"), r"'bf16_pure' is already defined"),
        ("mine = 3", r"expected a \[mine\] table with fields, got 3"),
        ("", r"defines no configuration; add a \[name\] table"),
    ],
)
def test_a_bad_matrix_file_is_refused_with_the_reason(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        all_configurations(path)


def test_a_missing_file_and_an_unknown_name_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere.toml does not exist or is no file"):
        load_matrix(tmp_path / "nowhere.toml")
    with pytest.raises(ValueError, match=r"unknown precision configuration 'bf17'; known: bf16_p"):
        get_configuration("bf17")


def test_the_matrix_loads_neither_torch_nor_transformers() -> None:
    code = "import sys, precision_lib.matrix; print({'torch', 'transformers'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"
