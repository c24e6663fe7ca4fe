"""Ranks of a tensor-parallel engine against the trainer's whole tensors, from files and manifests.

The layout is vLLM's: q, k, v and gate, up joined within a rank, key-value heads shared where there
are more ranks, the vocabulary padded to 64 rows before it is cut.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from precision_lib import cli
from precision_lib.weights import manifest
from precision_lib.weights.files import SourceError
from precision_lib.weights.findings import Outcome
from precision_lib.weights.manifests import open_source, write_manifest
from precision_lib.weights.rank_files import open_ranks
from precision_lib.weights.ranks import compare_engine
from tests.unit.weights.checkpoints import MODELS, State, as_vllm, cast, exported, model, save
from tests.unit.weights.test_adapters import ALPHA, RANK, Lora, merged
from tests.unit.weights.test_planted_faults import named

LAYER = "model.layers.1."
KV_HEADS = 2


def shard(name: str, tensor: Tensor, rank: int, ranks: int) -> Tensor:
    """What a rank of vLLM holds of a tensor."""
    part = name.split(".")[-2]
    if part in ("embed_tokens", "lm_head"):
        padded = torch.zeros(-(-len(tensor) // 64) * 64, tensor.shape[1], dtype=tensor.dtype)
        padded[: len(tensor)] = tensor
        return padded.chunk(ranks)[rank]
    if part in ("k_proj", "v_proj"):
        groups = min(ranks, KV_HEADS)
        return tensor.chunk(groups)[rank * groups // ranks]
    if part in ("q_proj", "gate_proj", "up_proj"):
        return tensor.chunk(ranks)[rank]
    return tensor.chunk(ranks, dim=1)[rank] if part in ("o_proj", "down_proj") else tensor


def sharded(state: State, ranks: int) -> list[State]:
    return [
        {name: shard(name, tensor, rank, ranks).clone() for name, tensor in state.items()}
        for rank in range(ranks)
    ]


class Ranks:
    """Compares a state with ranks through files, or through manifests."""

    def __init__(self, folder: Path, trainer: State, name: str, *, by_manifest: bool) -> None:
        self.folder, self.by_manifest = folder, by_manifest
        self.trainer = open_source(save(folder / "trainer", trainer, name))

    def compare(self, states: list[State], *older: State) -> Outcome:
        trainer, engine = self.trainer, self.folder / "engine"
        for rank, state in enumerate(states):
            if self.by_manifest:
                manifest(state, engine / f"r{rank}.json", rank=rank)
            else:
                save(self.folder / f"rank-{rank}", state)
        if self.by_manifest:
            write_manifest(self.folder / "t.json", trainer, tensor_parallel=len(states))
            trainer = open_source(self.folder / "t.json")
        paths = [self.folder / f"rank-{rank}" for rank in range(len(states))]
        before = [open_source(save(self.folder / "older", state)) for state in older]
        ranks = open_ranks([engine] if self.by_manifest else paths)
        return compare_engine(trainer, ranks, None, before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exports")


@pytest.fixture(params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    value: str = request.param
    return value


@pytest.fixture
def trained(name: str, folder: Path) -> State:
    return exported(name, folder)


@pytest.fixture(params=[False, True], ids=["files", "manifests"])
def pairs(request: pytest.FixtureRequest, name: str, trained: State, tmp_path: Path) -> Ranks:
    return Ranks(tmp_path, trained, name, by_manifest=request.param)


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_of_an_unchanged_export_have_no_finding(
    ranks: int, trained: State, pairs: Ranks
) -> None:
    outcome = pairs.compare([as_vllm(cast(state)) for state in sharded(trained, ranks)])
    assert (outcome.verdict, outcome.findings, outcome.unread) == ("equal", [], {})
    assert sum(outcome.equal.values()) == ranks * len(trained)


Plant = Callable[[list[State]], tuple[str, set[str], str]]


def plant_exchanged_ranks(states: list[State]) -> tuple[str, set[str], str]:
    name = f"{LAYER}self_attn.q_proj.weight"
    states[0][name], states[1][name] = states[1][name], states[0][name]
    return "swapped", {name}, "rank 0: holds the shard of rank 1"


def plant_column_shard_of_another_rank(states: list[State]) -> tuple[str, set[str], str]:
    name = f"{LAYER}self_attn.o_proj.weight"
    states[1][name] = states[0][name]
    return "duplicated", {name}, "rank 1: holds the shard of rank 0"


def plant_one_rank_not_updated(states: list[State]) -> tuple[str, set[str], str]:
    names = {name for name in states[1] if name.startswith(LAYER)}
    states[1] |= {name: older(states[1][name]) for name in names}
    return "stale", names, "rank 1: "


def plant_vocabulary_cut_before_padding(states: list[State]) -> tuple[str, set[str], str]:
    name = "model.embed_tokens.weight"
    whole = torch.cat([state[name] for state in states])
    states[1][name] = torch.cat([whole[48:96], whole[96:112]])
    return "different", {name}, "rank 1: "


def plant_norm_of_one_rank_scaled(states: list[State]) -> tuple[str, set[str], str]:
    name = f"{LAYER}input_layernorm.weight"
    states[1][name] = states[1][name] * 2
    return "scaled", {name}, "rank 1: "


def plant_exchanged_gate_and_up(states: list[State]) -> tuple[str, set[str], str]:
    [gate, *_] = sorted(n for n in states[0] if n.startswith(LAYER) and "gate_proj" in n)
    up = gate.replace("gate_proj", "up_proj")
    states[0][gate], states[0][up] = states[0][up], states[0][gate]
    return "swapped", {gate, up}, "rank 0: "


def older(tensor: Tensor) -> Tensor:
    noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(7))
    return tensor + 0.3 * tensor.std() * noise


PLANTED = [value for key, value in dict(globals()).items() if key.startswith("plant_")]


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__.removeprefix("plant_"))
def test_a_fault_of_one_rank_is_named_with_tensor_and_rank(
    plant: Plant, trained: State, pairs: Ranks
) -> None:
    states = sharded(trained, 2)
    kind, names, words = plant(states)
    outcome = pairs.compare([as_vllm(state) for state in states])
    assert set().union(*named(outcome).values()) == names
    assert all(words in finding.detail for finding in outcome.findings)
    if not pairs.by_manifest or kind in ("swapped", "duplicated"):
        assert named(outcome) == {kind: names}


def test_a_stale_rank_is_proven_by_older_weights(name: str, folder: Path, tmp_path: Path) -> None:
    trained, before = exported(name, folder), exported(name, folder, seed=1)
    states = [sharded(trained, 2)[0], sharded(before, 2)[1]]
    outcome = Ranks(tmp_path, trained, name, by_manifest=False).compare(states, before)
    assert named(outcome) == {"stale": set(trained)}
    assert all(finding.exact for finding in outcome.findings)


def test_expert_parallel_ranks_hold_whole_experts(folder: Path, tmp_path: Path) -> None:
    trained = exported("Qwen3Moe", folder)

    def held(rank: int, of: int) -> State:
        """Two of four experts, numbered from 0: those of rank ``of``."""
        experts = {f".experts.{2 * of + e}.": f".experts.{e}." for e in (0, 1)}
        state = {n: x for n, x in sharded(trained, 2)[rank].items() if ".experts." not in n}
        for whole, local in experts.items():
            state |= {n.replace(whole, local): x for n, x in trained.items() if whole in n}
        return as_vllm(state)

    pairs = Ranks(tmp_path, trained, "Qwen3Moe", by_manifest=False)
    assert pairs.compare([held(0, 0), held(1, 1)]).verdict == "equal"
    outcome = pairs.compare([held(0, 0), held(1, 0)])
    experts = {n for n in trained if ".experts.2." in n or ".experts.3." in n}
    assert named(outcome) == {"duplicated": experts}
    assert "rank 1: holds the shard of rank 0" in outcome.findings[0].detail


def test_a_merged_adapter_is_cut_as_its_layer(tmp_path: Path) -> None:
    lora = Lora(tmp_path, "Llama")
    for factor, kinds in ((1, set()), (2, {"scaled"})):
        state = merged(lora.state, lora.adapter, factor * ALPHA / RANK, torch.float32)
        folders = [
            save(tmp_path / f"{factor}-rank-{i}", as_vllm(x))
            for i, x in enumerate(sharded(state, 2))
        ]
        outcome = compare_engine(open_source(lora.path), open_ranks(folders))
        assert set(named(outcome)) == kinds
        assert outcome.unread == {}


def test_a_manifest_without_shards_cannot_say_and_names_the_option(
    folder: Path, tmp_path: Path
) -> None:
    trained = exported("Llama", folder)
    write_manifest(tmp_path / "t.json", open_source(save(tmp_path / "t", trained, "Llama")))
    for rank, state in enumerate(sharded(trained, 2)):
        manifest(as_vllm(state), tmp_path / f"engine_rank{rank}.json")
    ranks = open_ranks([tmp_path / "engine_rank1.json", tmp_path / "engine_rank0.json"])
    outcome = compare_engine(open_source(tmp_path / "t.json"), ranks)
    assert outcome.verdict == "cannot say"
    assert any("tensor_parallel=2" in reason for reason in outcome.unread.values())


def test_a_missing_rank_is_refused(tmp_path: Path) -> None:
    for rank in (0, 2):
        manifest({"norm.weight": torch.ones(4)}, tmp_path / f"{rank}.json", rank=rank)
    with pytest.raises(SourceError, match="rank 1 is not there"):
        open_ranks([tmp_path])
    with pytest.raises(SourceError, match="has rank 0 again"):
        open_ranks([tmp_path / "0.json"] * 2)


def test_the_command_takes_several_files_and_hashes_shards(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = exported("Llama", folder)
    save(tmp_path / "t", trained, "Llama")
    file = str(tmp_path / "t.json")
    write = ["--write-manifest", file, "--tensor-parallel", "2"]
    assert cli.main(["weights", str(tmp_path / "t"), *write]) == 0
    files = []
    for rank, state in enumerate(sharded(cast(trained), 2)):
        files.append(str(tmp_path / f"engine_{rank}.json"))
        manifest(as_vllm(state), files[-1], rank=rank, config=model("Llama").config)
    assert cli.main(["weights", file, *files]) == 0
    assert "2 ranks" in capsys.readouterr().out
