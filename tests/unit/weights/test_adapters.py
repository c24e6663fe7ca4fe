"""LoRA: a merge has no finding; a lost, doubled or misplaced adapter is named."""

import json
from pathlib import Path

import pytest
import torch

from precision_lib.weights.compare import compare
from precision_lib.weights.findings import Contract, Outcome
from precision_lib.weights.manifests import open_source, write_manifest
from tests.unit.weights.checkpoints import MODELS, State, as_vllm, exported, save
from tests.unit.weights.test_planted_faults import named

RANK, ALPHA = 4, 8
LAYERS = ("self_attn.q_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
PREFIX = "base_model.model."


def adapted(state: State) -> tuple[State, State]:
    """The state as PEFT names it with an adapter, and the adapter's matrices alone."""
    generator = torch.Generator().manual_seed(3)
    wrapped, adapter = {}, {}
    for name, tensor in state.items():
        layer = name.removesuffix(".weight")
        if not layer.endswith(LAYERS) or ".experts." in name:
            wrapped[PREFIX + name] = tensor
            continue
        wrapped[f"{PREFIX}{layer}.base_layer.weight"] = tensor
        for matrix, shape in (("A", (RANK, tensor.shape[1])), ("B", (tensor.shape[0], RANK))):
            values = 0.1 * torch.randn(shape, generator=generator)
            adapter[f"{PREFIX}{layer}.lora_{matrix}.default.weight"] = values
    return wrapped, adapter


def merged(state: State, adapter: State, scale: float, dtype: torch.dtype) -> State:
    """The merge as PEFT makes it, in ``dtype``."""
    made = {name: tensor.to(dtype) for name, tensor in state.items()}
    for name, b in adapter.items():
        if ".lora_B." in name:
            a = adapter[name.replace("lora_B", "lora_A")]
            target = name.removeprefix(PREFIX).replace("lora_B.default.", "")
            made[target] = made[target] + (scale * (b.to(dtype) @ a.to(dtype))).to(dtype)
    return made


class Lora:
    def __init__(self, folder: Path, name: str, *, stated: bool = True) -> None:
        self.folder = folder
        self.state = exported(name, folder)
        self.wrapped, self.adapter = adapted(self.state)
        self.path = save(folder / "trainer", self.wrapped | self.adapter)
        if stated:
            config = {"lora_alpha": ALPHA, "r": RANK}
            (self.path / "adapter_config.json").write_text(json.dumps(config))

    def against(self, engine: State, contract: Contract | None = None) -> Outcome:
        path = save(self.folder / "engine", engine)
        return compare(open_source(self.path), open_source(path), contract)


@pytest.fixture(params=MODELS)
def lora(request: pytest.FixtureRequest, tmp_path: Path) -> Lora:
    return Lora(tmp_path, request.param)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_merge_has_no_finding(lora: Lora, dtype: torch.dtype) -> None:
    engine = merged(lora.state, lora.adapter, ALPHA / RANK, dtype)
    for layout in (engine, as_vllm(engine)):
        outcome = lora.against(layout)
        assert (outcome.verdict, named(outcome)) == ("equal", {})
        assert outcome.equal["after a LoRA merge, scale 2"] == len(lora.adapter) // 2


def test_an_adapter_that_was_never_sent_is_undelivered(lora: Lora) -> None:
    """verl#7495: the frozen base was sent each step, the adapter never."""
    matrices = {n.removeprefix(PREFIX).replace(".default", "") for n in lora.adapter}
    assert named(lora.against(lora.state)) == {
        "undelivered": {name.replace(".weight", ".default.weight") for name in matrices}
    }


def test_one_adapter_that_was_not_sent_is_named(lora: Lora) -> None:
    some = {n: t for n, t in lora.adapter.items() if "layers.1.self_attn.q_proj" not in n}
    engine = merged(lora.state, some, 2.0, torch.float32)
    names = {"model.layers.1.self_attn.q_proj.lora_A.default.weight",
             "model.layers.1.self_attn.q_proj.lora_B.default.weight"}  # fmt: skip
    assert named(lora.against(engine)) == {"undelivered": names}


def test_a_scale_that_is_applied_twice_is_named(lora: Lora) -> None:
    outcome = lora.against(merged(lora.state, lora.adapter, 4.0, torch.float32))
    assert set(named(outcome)) == {"scaled"}
    assert len(outcome.findings) == len(lora.adapter) // 2
    assert "scale 4, 2 times the stated 2" in outcome.findings[0].detail


def test_an_adapter_in_another_layer_is_swapped(tmp_path: Path) -> None:
    lora = Lora(tmp_path, "Llama")
    gate, up = (f"{PREFIX}model.layers.1.mlp.{x}_proj.lora_" for x in ("gate", "up"))
    turned = {
        n.replace(gate, "@").replace(up, gate).replace("@", up): t for n, t in lora.adapter.items()
    }
    outcome = lora.against(merged(lora.state, turned, 2.0, torch.float32))
    names = {f"model.layers.1.mlp.{x}_proj.weight" for x in ("gate", "up")}
    assert named(outcome) == {"swapped": names}


def test_without_a_stated_scale_the_common_one_is_noted_and_the_odd_one_is_found(
    tmp_path: Path,
) -> None:
    lora = Lora(tmp_path, "Qwen3", stated=False)
    engine = merged(lora.state, lora.adapter, 0.5, torch.float32)
    outcome = lora.against(engine)
    assert outcome.verdict == "equal"
    assert "0.5 is what most layers hold" in outcome.notes[0]
    name = "model.layers.0.mlp.gate_proj.weight"
    engine[name] = merged(lora.state, lora.adapter, 1.0, torch.float32)[name]
    assert named(lora.against(engine)) == {"scaled": {name}}
    stated = lora.against(engine, Contract(lora_scale=1.0))
    assert len(stated.findings) == len(lora.adapter) // 2 - 1


def test_adapters_on_both_sides_are_compared_one_by_one(tmp_path: Path) -> None:
    lora = Lora(tmp_path, "Llama")
    engine = lora.state | {n.removeprefix(PREFIX): t for n, t in lora.adapter.items()}
    assert lora.against(engine).verdict == "equal"
    both = engine | merged(lora.state, lora.adapter, ALPHA / RANK, torch.float32)
    layers = {n.removeprefix(PREFIX).replace("lora_B.default.", "") for n in lora.adapter}
    outcome = lora.against(both)
    assert named(outcome) == {"scaled": {n for n in layers if "lora_A" not in n}}
    assert all("is merged too, with scale 2" in finding.detail for finding in outcome.findings)
    [name, *_] = sorted(n for n in engine if "lora_B" in n)
    engine[name] = torch.zeros_like(engine[name])
    assert named(lora.against(engine)) == {"zero": {name}}


def test_hashes_alone_see_a_lost_adapter_and_cannot_check_a_merge(tmp_path: Path) -> None:
    lora = Lora(tmp_path, "Llama")
    write_manifest(tmp_path / "m.json", open_source(lora.path))
    trainer = open_source(tmp_path / "m.json")
    base = compare(trainer, open_source(save(tmp_path / "base", lora.state)))
    assert set(named(base)) == {"undelivered"}
    engine = merged(lora.state, lora.adapter, 2.0, torch.float32)
    outcome = compare(trainer, open_source(save(tmp_path / "merged", engine)))
    assert (outcome.verdict, outcome.findings) == ("cannot say", [])
    assert len(outcome.unread) == len(lora.adapter) // 2


def test_an_adapter_directory_finds_its_base(tmp_path: Path) -> None:
    lora = Lora(tmp_path, "Llama")
    base = save(tmp_path / "base", lora.state)
    alone = save(
        tmp_path / "adapter", {n.replace(".default", ""): t for n, t in lora.adapter.items()}
    )
    (alone / "model.safetensors").rename(alone / "adapter_model.safetensors")
    config = {"lora_alpha": ALPHA, "r": RANK, "base_model_name_or_path": str(base)}
    (alone / "adapter_config.json").write_text(json.dumps(config))
    engine = save(tmp_path / "merged", merged(lora.state, lora.adapter, 2.0, torch.float32))
    assert compare(open_source(alone), open_source(engine)).verdict == "equal"
    assert set(named(compare(open_source(alone), open_source(base)))) == {"undelivered"}


def test_half_an_adapter_and_one_without_its_weight_are_not_passed_over(tmp_path: Path) -> None:
    lora = Lora(tmp_path, "Llama")
    engine = lora.state | {n.removeprefix(PREFIX): t for n, t in lora.adapter.items()}
    [name, *_] = sorted(n for n in engine if "lora_B" in n)
    del engine[name]
    assert named(lora.against(engine)) == {"undelivered": {name}}
    foreign = {f"{PREFIX}model.layers.9.mlp.up_proj.lora_{x}.default.weight": torch.ones(2, 2)
               for x in "AB"}  # fmt: skip
    trainer = open_source(save(tmp_path / "t", lora.state | foreign))
    outcome = compare(trainer, open_source(save(tmp_path / "e", lora.state)))
    assert named(outcome) == {"undelivered": {n.removeprefix(PREFIX) for n in foreign}}
    weight = {"model.layers.9.mlp.up_proj.weight": torch.ones(2, 2)}
    outcome = compare(trainer, open_source(save(tmp_path / "f", lora.state | weight)))
    assert list(outcome.unread) == [f"{PREFIX}model.layers.9.mlp.up_proj.lora_A.default.weight"]


def test_a_merge_into_the_embedding_and_into_a_fused_layer_has_no_finding(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(2)
    embedding = torch.randn(20, 8, generator=generator)
    fused = torch.randn(16, 8, generator=generator)
    a, b = torch.randn(2, 20, generator=generator), torch.randn(8, 2, generator=generator)
    up, down = torch.randn(2, 8, generator=generator), torch.randn(16, 2, generator=generator)
    state = {
        "model.embed_tokens.weight": embedding,
        "model.embed_tokens.lora_embedding_A.default": a,
        "model.embed_tokens.lora_embedding_B.default": b,
        "model.layers.0.mlp.gate_up_proj.weight": fused,
        "model.layers.0.mlp.gate_up_proj.lora_A.default.weight": up,
        "model.layers.0.mlp.gate_up_proj.lora_B.default.weight": down,
    }
    merged_fused = fused + 0.5 * (down @ up)
    engine = {
        "model.embed_tokens.weight": embedding + 0.5 * (b @ a).T,
        "model.layers.0.mlp.gate_proj.weight": merged_fused[:8],
        "model.layers.0.mlp.up_proj.weight": merged_fused[8:],
    }
    paths = [save(tmp_path / n, s) for n, s in (("t", state), ("e", engine))]
    contract = Contract(lora_scale=0.5)
    outcome = compare(open_source(paths[0]), open_source(paths[1]), contract)
    assert (outcome.verdict, outcome.findings) == ("equal", [])
