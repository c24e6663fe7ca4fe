"""Settings of the frameworks: every format has an answer, and every key is one of the framework's.

What needs an installed framework is skipped without it: `bash .ci/frameworks` installs them.
"""

import argparse
import ast
import importlib
import importlib.util
from collections.abc import Callable
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from precision_lib.formats import FORMATS
from precision_lib.matrix import MATRIX, RECIPES, ROLLOUT_CONTRASTS, get_configuration
from precision_lib.recipes.cost import COUNTED
from precision_lib.recipes.settings import conditions, frameworks, instructions
from precision_lib.recipes.tables import operating_point, table

PPO, GRPO = operating_point("ppo", 2048, 1e-4), operating_point("grpo", 2048, 1e-4)
SHIPPED = MATRIX + RECIPES + ROLLOUT_CONTRASTS
PEERS = Path(__file__).parents[2] / "benchmarks" / "peers.txt"


@pytest.mark.parametrize("framework", frameworks())
def test_every_component_is_set_or_said_to_be_impossible(framework: str) -> None:
    for configuration in SHIPPED:
        given = instructions(framework, configuration, PPO)
        answered = {s.component for s in given.settings} | set(given.missing)
        assert answered == set(configuration.components) | {"rollout"}
        assert not [why for why in given.missing.values() if why.startswith("no setting")]


def test_a_format_without_a_row_is_missing_and_not_silent() -> None:
    given = instructions("slime", get_configuration("fp32_baseline"), PPO)
    assert given.missing == {"policy": "slime sets bf16 wherever fp16 is not set"}
    unknown = get_configuration("bf16_pure").__class__(
        "odd", *("bf16", "bf16", "fp64", "bf16", "fp32")
    )
    assert instructions("trl", unknown, GRPO).missing == {"reward": "no setting for fp64 is known"}


def test_what_the_algorithm_does_not_run_is_not_set() -> None:
    given = instructions("verl", get_configuration("bf16_pure"), operating_point("dapo", 1, 1e-4))
    assert {s.component for s in given.settings} == {"policy", "reward", "kl", "rollout"}


def test_a_follower_in_another_format_is_impossible() -> None:
    given = instructions("openrlhf", get_configuration("bf16_fp32_ref"), GRPO)
    assert given.missing == {"reference": "ds.param_dtype is one format for all models"}


def test_lines_are_what_a_user_writes() -> None:
    fp16 = get_configuration("fp16_fp32_kl")
    assert instructions("trl", fp16, GRPO).lines == (
        "fp16=True",
        "model_init_kwargs={'dtype': 'float32'}",
        "use_vllm=True",
        "vllm_mode='server'",
        "trl vllm-serve --dtype float16",
    )
    assert instructions("slime", fp16, GRPO).lines[0] == "--fp16"
    assert "actor_rollout_ref.rollout.dtype=float16" in instructions("verl", fp16, GRPO).lines
    assert "rollout" in instructions("openrlhf", fp16, GRPO).missing


def test_fp16_comes_with_its_conditions() -> None:
    said = " ".join(conditions(get_configuration("fp16_fp32_kl")))
    for word in ("65,504", "Loss scaling", "without a scale", "3e-8"):
        assert word in said
    assert not conditions(get_configuration("bf16_pure"))


def test_the_gradient_that_fp16_loses_is_half_its_smallest_number() -> None:
    kept, lost = torch.tensor([3.0e-8, 2.97e-8]).half().tolist()
    assert (kept, lost) == (FORMATS["fp16"].smallest_subnormal, 0.0)


@pytest.mark.parametrize("framework", frameworks())
def test_a_row_is_about_a_component_and_has_an_answer(framework: str) -> None:
    for row in table("frameworks")[framework]["rows"]:
        assert row["component"] in COUNTED
        assert ("set" in row) != ("cannot" in row)
        assert ("formats" in row) != ("follows" in row)


def test_the_releases_are_those_in_use() -> None:
    pinned = dict(line.split("==") for line in PEERS.read_text().splitlines() if "==" in line)
    known = table("frameworks")
    for name in ("trl", "verl", "openrlhf"):
        assert known[name]["release"] == pinned[name]
    assert known["slime"]["checked"] == "read in release 0.3.1, not run"


def accepts_trl(keys: dict[str, Any], serve: dict[str, Any]) -> None:
    """GRPOConfig takes the keys, and trl vllm-serve its options."""
    server = importlib.import_module("trl.scripts.vllm_serve")
    config = importlib.import_module("trl").GRPOConfig(
        output_dir="none", use_cpu=True, report_to=[], **keys
    )
    assert {key: getattr(config, key) for key in keys} == keys
    server.ScriptArguments(model="none", **serve)


def accepts_verl(keys: dict[str, Any], _: dict[str, Any]) -> None:
    """The trainer's whole configuration holds each key; one with a plus is a field of FSDP's."""
    yaml = importlib.import_module("yaml")
    generated = verl_file("trainer/config/_generated_ppo_trainer.yaml")
    whole = yaml.safe_load(generated.read_text(encoding="utf-8"))
    for key in keys:
        *path, name = key.removeprefix("+").split(".")
        added = path.pop() if key.startswith("+") else None  # a table of the user's own
        node = whole
        for part in path:
            node = node[part]
        assert (added in fsdp_fields()) if added else (name in node), key


def fsdp_fields() -> set[str]:
    """Fields of verl's FSDPEngineConfig, read without importing verl."""
    source = verl_file("workers/config/engine.py").read_text(encoding="utf-8")
    classes = {c.name: c for c in ast.parse(source).body if isinstance(c, ast.ClassDef)}
    body = classes["FSDPEngineConfig"].body
    return {
        a.target.id for a in body if isinstance(a, ast.AnnAssign) and isinstance(a.target, ast.Name)
    }


def verl_file(name: str) -> Path:
    origin = importlib.util.find_spec("verl").origin  # type: ignore[union-attr]
    return Path(str(origin)).parent / name


def accepts_openrlhf(keys: dict[str, Any], _: dict[str, Any]) -> None:
    """The parser of train_ppo_ray takes each option with its value."""
    parser = openrlhf_parser()
    arguments = [part for key, value in keys.items() for part in (f"--{key}", str(value))]
    found = vars(parser.parse_args(arguments))
    assert {key: found[key] for key in keys} == keys


def openrlhf_parser() -> argparse.ArgumentParser:
    """The parser that train_ppo_ray builds when it is run, made from its source."""
    origin = Path(str(importlib.util.find_spec("openrlhf").origin))  # type: ignore[union-attr]
    source = (origin.parent / "cli" / "train_ppo_ray.py").read_text(encoding="utf-8")
    (main,) = [node for node in ast.parse(source).body if isinstance(node, ast.If)]
    ends = next(i for i, node in enumerate(main.body) if "parse_args" in ast.unparse(node))
    made: dict[str, Any] = {"argparse": argparse, "datetime": datetime}
    exec(compile(ast.Module(main.body[:ends], []), "train_ppo_ray", "exec"), made)
    parser: argparse.ArgumentParser = made["parser"]
    parser.exit_on_error = False
    return parser


ACCEPTS: dict[str, Callable[[dict[str, Any], dict[str, Any]], None]] = {
    "trl": accepts_trl,
    "verl": accepts_verl,
    "openrlhf": accepts_openrlhf,
}
#: What each of them imports for its configuration.
NEEDS = {"trl": ("trl", "accelerate", "datasets"), "verl": ("verl", "yaml"), "openrlhf": ()}


def need(framework: str) -> None:
    """Skip where the release that was looked up is not installed."""
    for module in (framework, *NEEDS[framework]):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    release = table("frameworks")[framework]["release"]
    if metadata.version(framework) != release:
        pytest.skip(f"{framework} {metadata.version(framework)} is installed, not {release}")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("framework", ACCEPTS)
def test_the_installed_release_takes_every_key(framework: str) -> None:
    need(framework)
    for configuration in SHIPPED:
        given = instructions(framework, configuration, PPO)
        keys = {key: value for s in given.settings for key, value in s.keys.items()}
        serve = {key: value for s in given.settings for key, value in s.serve.items()}
        ACCEPTS[framework](keys, serve)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("framework", "keys"),
    [
        ("trl", {"cast_lm_head_to_fp33": True}),
        ("verl", {"actor_rollout_ref.rollout.dtyp": "float16"}),
        ("verl", {"+actor_rollout_ref.actor.fsdp_config.mixed_precisio.param_dtype": "fp16"}),
        ("openrlhf", {"ds.param_dtype": "fp32"}),
    ],
)
def test_a_wrong_key_or_value_is_refused(framework: str, keys: dict[str, Any]) -> None:
    """The check above can fail."""
    need(framework)
    with pytest.raises((Exception, SystemExit)):
        ACCEPTS[framework](keys, {})
