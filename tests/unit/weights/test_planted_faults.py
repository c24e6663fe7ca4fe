"""Each planted fault is named with the right tensors; an unchanged export has no finding.

The hazard. A fault that is named after the wrong tensor sends its reader to the wrong place.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from precision_lib.jsonio import to_plain
from precision_lib.weights.compare import compare
from precision_lib.weights.findings import Contract, Outcome, as_json
from precision_lib.weights.manifests import load_manifest, open_source, write_manifest
from tests.unit.weights.checkpoints import (
    MODELS,
    State,
    as_vllm,
    cast,
    exported,
    quantised_state,
    save,
)

LAYER = "model.layers.1."
Named = tuple[str, set[str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exports")


@pytest.fixture(params=MODELS)
def trained(request: pytest.FixtureRequest, folder: Path) -> State:
    return exported(request.param, folder)


class Pairs:
    """Compares states through files, or through manifests of the files."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0

    def compare(
        self,
        trainer: State,
        engine: State,
        *older: State,
        by_manifest: bool = False,
        contract: Contract | None = None,
    ) -> Outcome:
        sources = []
        for state in (trainer, engine, *older):
            self.count += 1
            path = save(self.folder / str(self.count), state)
            source = open_source(path)
            if by_manifest:
                write_manifest(path / "manifest.json", source)
                source = load_manifest(path / "manifest.json")
            sources.append(source)
        return compare(sources[0], sources[1], contract, sources[2:])


@pytest.fixture
def pairs(tmp_path: Path) -> Pairs:
    return Pairs(tmp_path)


def named(outcome: Outcome) -> dict[str, set[str]]:
    """Kind -> names of the tensors."""
    kinds: dict[str, set[str]] = {}
    for finding in outcome.findings:
        kinds.setdefault(finding.kind, set()).add(finding.tensor)
    return kinds


def noisy(state: State) -> State:
    """Every tensor moved by about a third of its spread: an earlier step, in bf16 too."""
    generator = torch.Generator().manual_seed(7)
    return {
        k: v + 0.3 * v.std() * torch.randn(v.shape, generator=generator) for k, v in state.items()
    }


LAYOUTS: dict[str, Callable[[State], State]] = {
    "fp32": dict,
    "bf16": cast,
    "vllm": as_vllm,
    "vllm bf16": lambda state: as_vllm(cast(state)),
}


@pytest.mark.parametrize("by_manifest", [False, True], ids=["files", "manifests"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_unchanged_export_has_no_finding(
    layout: str, by_manifest: bool, trained: State, pairs: Pairs
) -> None:
    outcome = pairs.compare(trained, LAYOUTS[layout](trained), by_manifest=by_manifest)
    assert (outcome.verdict, outcome.findings, outcome.unread) == ("equal", [], {})
    assert outcome.elements == sum(tensor.numel() for tensor in trained.values())
    assert sum(outcome.equal.values()) == len(trained)


def plant_stale_layer(state: State, older: State) -> Named:
    names = {name for name in state if name.startswith(LAYER)}
    state |= {name: older[name] for name in names}
    return "stale", names


def plant_swapped_layers(state: State, older: State) -> Named:
    names = {name for name in state if name.startswith("model.layers.")}
    state |= {name: state[_other_layer(name)] for name in names}
    return "swapped", names


def _other_layer(name: str) -> str:
    first, second = "model.layers.0.", "model.layers.1."
    return name.replace(first, second) if first in name else name.replace(second, first)


def plant_exchanged_gate_and_up(state: State, older: State) -> Named:
    [gate, *_] = sorted(n for n in state if n.startswith(LAYER) and n.endswith("gate_proj.weight"))
    up = gate.replace("gate_proj", "up_proj")
    state[gate], state[up] = state[up], state[gate]
    return "swapped", {gate, up}


def plant_shard_of_another_rank(state: State, older: State) -> Named:
    name = f"{LAYER}self_attn.q_proj.weight"
    first = state[name].chunk(2)[0]
    state[name] = torch.cat([first, first])
    return "duplicated", {name}


def plant_column_shards_exchanged(state: State, older: State) -> Named:
    name = f"{LAYER}self_attn.o_proj.weight"
    first, second = state[name].chunk(2, dim=1)
    state[name] = torch.cat([second, first], dim=1)
    return "swapped", {name}


def plant_stale_shard(state: State, older: State) -> Named:
    name = f"{LAYER}self_attn.o_proj.weight"
    state[name] = torch.cat([state[name].chunk(4)[0], *older[name].chunk(4)[1:]])
    return "stale", {name}


def plant_copy_of_another_tensor(state: State, older: State) -> Named:
    name = f"{LAYER}self_attn.k_proj.weight"
    state[name] = state[name.replace("k_proj", "v_proj")]
    return "duplicated", {name}


def plant_scale_applied_twice(state: State, older: State) -> Named:
    name = f"{LAYER}self_attn.v_proj.weight"
    state[name] = state[name] * 0.7 * 0.7
    return "scaled", {name}


def plant_factor_of_each_row(state: State, older: State) -> Named:
    name = f"{LAYER}self_attn.o_proj.weight"
    state[name] = state[name] * torch.linspace(0.5, 2, len(state[name]))[:, None]
    return "scaled", {name}


def plant_changed_sign(state: State, older: State) -> Named:
    state["model.norm.weight"] = -state["model.norm.weight"]
    return "scaled", {"model.norm.weight"}


def plant_transposed(state: State, older: State) -> Named:
    name = f"{LAYER}self_attn.q_proj.weight"
    state[name] = state[name].T.contiguous()
    return "transposed", {name}


def plant_zeros(state: State, older: State) -> Named:
    name = f"{LAYER}self_attn.q_proj.weight"
    state[name] = torch.zeros_like(state[name])
    return "zero", {name}


def plant_zero_rows(state: State, older: State) -> Named:
    name = "model.embed_tokens.weight"
    state[name] = state[name].clone()
    state[name][5:9] = 0
    return "zero", {name}


def plant_nan(state: State, older: State) -> Named:
    name = f"{LAYER}self_attn.q_proj.weight"
    state[name] = state[name].clone()
    state[name][3, 4] = torch.nan
    return "non-finite", {name}


def plant_rounded_tensor(state: State, older: State) -> Named:
    name = f"{LAYER}input_layernorm.weight"
    state[name] = state[name].bfloat16().float()
    return "cast", {name}


def plant_dropped_names(state: State, older: State) -> Named:
    names = {n for n in state if "self_attn.v_proj" in n}
    for name in names:
        del state[name]
    return "undelivered", names


def plant_extra(state: State, older: State) -> Named:
    state["model.layers.7.self_attn.q_proj.weight"] = torch.ones(4, 4)
    return "extra", {"model.layers.7.self_attn.q_proj.weight"}


def plant_one_shard_only(state: State, older: State) -> Named:
    name = f"{LAYER}self_attn.q_proj.weight"
    state[name] = state[name].chunk(2)[1]
    return "missing", {name}


def plant_permuted_heads(state: State, older: State) -> Named:
    """The row order of another RoPE convention."""
    name = f"{LAYER}self_attn.q_proj.weight"
    weight = state[name]
    heads = weight.view(4, 2, 4, 32)
    state[name] = heads.transpose(1, 2).reshape(weight.shape)
    return "swapped", {name}


PLANTED = [value for name, value in dict(globals()).items() if name.startswith("plant_")]
#: What a manifest of hashes can say of them; the others are named with another kind.
BY_HASH = {
    "stale_layer",
    "swapped_layers",
    "exchanged_gate_and_up",
    "copy_of_another_tensor",
    "transposed",
    "zeros",
    "nan",
    "rounded_tensor",
    "dropped_names",
    "extra",
}


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__.removeprefix("plant_"))
def test_a_planted_fault_is_named_with_its_tensors(
    plant: Callable[[State, State], Named], trained: State, pairs: Pairs
) -> None:
    older, engine = noisy(trained), dict(trained)
    kind, names = plant(engine, older)
    assert named(pairs.compare(trained, engine, older)) == {kind: names}
    by_hash = plant.__name__.removeprefix("plant_") in BY_HASH
    hashed = named(pairs.compare(trained, engine, older, by_manifest=True))
    assert set().union(*hashed.values()) == names
    assert not by_hash or hashed == {kind: names}


#: Faults that a cast to bf16 and vLLM's layout leave as they are.
THROUGH_ENGINE = [
    plant_stale_layer,
    plant_swapped_layers,
    plant_exchanged_gate_and_up,
    plant_shard_of_another_rank,
    plant_copy_of_another_tensor,
    plant_scale_applied_twice,
    plant_zeros,
    plant_zero_rows,
    plant_nan,
    plant_permuted_heads,
    plant_column_shards_exchanged,
]


@pytest.mark.parametrize("plant", THROUGH_ENGINE, ids=lambda plant: plant.__name__)
def test_a_fault_is_named_through_vllms_layout_in_bf16(
    plant: Callable[[State, State], Named], trained: State, pairs: Pairs
) -> None:
    older, engine = noisy(trained), dict(trained)
    kind, names = plant(engine, older)
    assert named(pairs.compare(trained, as_vllm(cast(engine)), older)) == {kind: names}


def test_masters_of_a_random_initialisation_are_unrelated(folder: Path, pairs: Pairs) -> None:
    for name in MODELS:
        trained, random = exported(name, folder), exported(name, folder, seed=1)
        for by_manifest in (False, True):
            outcome = pairs.compare(random, trained, by_manifest=by_manifest)
            assert named(outcome) == {"different": set(trained)}
            assert not any(finding.exact for finding in outcome.findings)


def test_an_earlier_step_without_proof_is_said_to_be_a_guess(trained: State, pairs: Pairs) -> None:
    outcome = pairs.compare(trained, noisy(trained))
    assert named(outcome) == {"stale": set(trained)}
    assert not any(finding.exact for finding in outcome.findings)


def test_a_tied_head_that_is_served_stale_is_named(folder: Path, pairs: Pairs) -> None:
    trained = exported("Qwen3", folder)
    assert "lm_head.weight" not in trained
    older = noisy(trained)
    engine = trained | {"lm_head.weight": trained["model.embed_tokens.weight"]}
    assert pairs.compare(trained, engine, older).verdict == "equal"
    stale = trained | {"lm_head.weight": older["model.embed_tokens.weight"]}
    for by_manifest in (False, True):
        outcome = pairs.compare(trained, stale, older, by_manifest=by_manifest)
        assert named(outcome) == {"stale": {"lm_head.weight"}}


def test_a_head_that_is_tied_at_the_engine_alone_is_named(folder: Path, pairs: Pairs) -> None:
    trained = exported("Llama", folder)
    engine = trained | {"lm_head.weight": trained["model.embed_tokens.weight"]}
    assert named(pairs.compare(trained, engine)) == {"duplicated": {"lm_head.weight"}}
    del engine["lm_head.weight"]
    assert named(pairs.compare(trained, engine)) == {"duplicated": {"lm_head.weight"}}


def test_a_copy_by_the_recipe_has_no_finding(trained: State, pairs: Pairs) -> None:
    for source in (trained, cast(trained)):
        outcome = pairs.compare(trained, quantised_state(source))
        assert (outcome.verdict, outcome.findings) == ("equal", [])
        assert any(way.startswith("quantised to fp8_e4m3") for way in outcome.equal)


def test_findings_are_json(trained: State, pairs: Pairs) -> None:
    outcome = pairs.compare(trained, noisy(trained))
    record = json.loads(json.dumps(to_plain(as_json(outcome)), allow_nan=False))
    assert record["verdict"] == "different"
    assert all(finding["kind"] and finding["tensor"] for finding in record["findings"])
