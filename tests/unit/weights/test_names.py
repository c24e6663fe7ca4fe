"""Names meet through wrappers, frameworks and layouts; what has no rule is listed, not guessed."""

from pathlib import Path

import pytest
import torch

from precision_lib.weights import manifest, names
from precision_lib.weights.compare import compare
from precision_lib.weights.findings import Contract
from precision_lib.weights.manifests import from_manifest, load_manifest, open_source
from tests.unit.weights.checkpoints import SIZES, State, as_vllm, exported, model, save
from tests.unit.weights.test_planted_faults import Pairs, named


@pytest.fixture
def pairs(tmp_path: Path) -> Pairs:
    return Pairs(tmp_path)


@pytest.mark.parametrize(
    ("stored", "clean"),
    [
        ("module._orig_mod.model.norm.weight", "model.norm.weight"),
        ("_fsdp_wrapped_module.model.layers.0._checkpoint_wrapped_module.mlp.gate.weight",
         "model.layers.0.mlp.gate.weight"),
        ("base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight",
         "model.layers.0.self_attn.q_proj.weight"),
        ("base_model.model.lm_head.modules_to_save.default.weight", "lm_head.weight"),
    ],
)  # fmt: skip
def test_wrappers_are_removed(stored: str, clean: str) -> None:
    assert names.clean(stored) == clean
    assert names.key(stored) == names.key(clean)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_fsdp_wrapped_module."])
def test_a_wrapped_trainer_has_no_finding(prefix: str, tmp_path: Path, pairs: Pairs) -> None:
    trained = exported("Qwen3Moe", tmp_path)
    wrapped = {
        prefix + name.replace("layers.1.", "layers.1._checkpoint_wrapped_module."): tensor
        for name, tensor in trained.items()
    }
    assert pairs.compare(wrapped, as_vllm(trained)).verdict == "equal"


def router(dtype: torch.dtype = torch.float32) -> State:
    """A router bias of mean 7: in bf16 its values fall together."""
    bias = 7 + 0.25 * torch.randn(64, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(64, 16, generator=torch.Generator().manual_seed(1))
    return {
        "model.layers.0.mlp.gate.e_score_correction_bias": bias.to(dtype),
        "model.layers.0.mlp.gate.weight": weight,
        "model.layers.0.mixer.A_log": bias[:8].to(dtype),
    }


def test_what_must_stay_fp32_is_found_through_a_wrapper_prefix(pairs: Pairs) -> None:
    """torchtitan#3861: under activation checkpointing the list no longer matched the name."""
    wrapped = {
        name.replace("layers.0.", "layers.0._checkpoint_wrapped_module."): tensor
        for name, tensor in router().items()
    }
    engine = router(torch.bfloat16) | {"model.layers.0.mlp.gate.weight": router()[
        "model.layers.0.mlp.gate.weight"].bfloat16()}  # fmt: skip
    for by_manifest in (False, True):
        outcome = pairs.compare(wrapped, engine, by_manifest=by_manifest)
        bias = "model.layers.0.mlp.gate.e_score_correction_bias"
        assert named(outcome) == {"cast": {bias, "model.layers.0.mixer.A_log"}}
        assert outcome.must_stay[bias] == ("fp32", "bf16")
        assert "it must stay fp32" in outcome.findings[0].detail
    asked = pairs.compare(wrapped, engine, contract=Contract(keep_fp32=("router",)))
    assert "model.layers.0.mlp.gate.weight" in named(asked)["cast"]


def test_a_tensor_that_the_trainer_keeps_wider_than_the_rest_must_arrive_so(pairs: Pairs) -> None:
    weight = torch.linspace(-1, 1, 256).view(16, 16).bfloat16()
    trainer = {
        "model.layers.0.mlp.down_proj.weight": weight,
        "model.norm.weight": torch.linspace(0, 1, 16),
    }
    engine = trainer | {"model.norm.weight": trainer["model.norm.weight"].bfloat16()}
    assert named(pairs.compare(trainer, engine)) == {"cast": {"model.norm.weight"}}
    assert pairs.compare(trainer, trainer).verdict == "equal"


def test_casts_that_are_not_one_rounding_are_named(pairs: Pairs) -> None:
    state = {"model.layers.0.mlp.down_proj.weight": torch.linspace(-1, 1, 40000).view(200, 200)}
    truncated = {k: (v.view(torch.int32) & -65536).view(torch.float32).bfloat16()
                 for k, v in state.items()}  # fmt: skip
    twice = {k: v.half().bfloat16() for k, v in state.items()}
    assert "truncated" in pairs.compare(state, truncated).findings[0].detail
    assert "through fp16" in pairs.compare(state, twice).findings[0].detail
    for outcome in (pairs.compare(state, truncated), pairs.compare(state, twice)):
        assert set(named(outcome)) == {"cast"}


def test_a_live_model_meets_its_export_and_its_engine(tmp_path: Path) -> None:
    for name in ("Llama", "Qwen3", "Qwen3Moe"):
        live = manifest(model(name), tmp_path / f"{name}.json", step=3)
        assert load_manifest(tmp_path / f"{name}.json").step == 3
        trainer = from_manifest(live, "trainer")
        state = exported(name, tmp_path)
        for path in (save(tmp_path / name, state), save(tmp_path / f"v{name}", as_vllm(state))):
            outcome = compare(trainer, open_source(path))
            assert (outcome.verdict, outcome.unread) == ("equal", {})
        streamed = manifest(iter(state.items()))
        assert compare(trainer, from_manifest(streamed, "stream")).verdict == "equal"


def test_a_padded_vocabulary_has_no_finding_unless_rows_are_not_zero(
    tmp_path: Path, pairs: Pairs
) -> None:
    trained = exported("Llama", tmp_path)
    padding = torch.zeros(32, 32)
    engine = dict(trained)
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        engine[name] = torch.cat([trained[name], padding])
    for by_manifest in (False, True):
        assert pairs.compare(trained, engine, by_manifest=by_manifest).verdict == "equal"
        assert pairs.compare(engine, trained, by_manifest=by_manifest).verdict == "equal"
    engine["lm_head.weight"][-1] = 1
    assert named(pairs.compare(trained, engine)) == {"extra": {"lm_head.weight"}}


NORMS = ("input_layernorm", "post_attention_layernorm")


def as_megatron(state: State) -> State:
    """Megatron core's names of a Llama, q, k and v interleaved by group."""
    size, groups = SIZES["head_dim"], SIZES["num_key_value_heads"]
    made = {
        "embedding.word_embeddings.weight": state["model.embed_tokens.weight"],
        "decoder.final_layernorm.weight": state["model.norm.weight"],
        "output_layer.weight": state["lm_head.weight"],
    }
    for i in range(SIZES["num_hidden_layers"]):
        old, new = f"model.layers.{i}.", f"module.decoder.layers.{i}."
        q, k, v = (state[f"{old}self_attn.{x}_proj.weight"] for x in "qkv")
        grouped = [w.view(groups, -1, size, w.shape[1]) for w in (q, k, v)]
        made |= {
            f"{new}self_attention.linear_qkv.weight": torch.cat(grouped, 1).flatten(0, 2),
            f"{new}self_attention.linear_proj.weight": state[f"{old}self_attn.o_proj.weight"],
            f"{new}self_attention.linear_qkv.layer_norm_weight": state[f"{old}{NORMS[0]}.weight"],
            f"{new}mlp.linear_fc1.layer_norm_weight": state[f"{old}{NORMS[1]}.weight"],
            f"{new}mlp.linear_fc1.weight": torch.cat(
                [state[f"{old}mlp.{x}_proj.weight"] for x in ("gate", "up")]
            ),
            f"{new}mlp.linear_fc2.weight": state[f"{old}mlp.down_proj.weight"],
        }  # fmt: skip
    return made


def test_megatrons_names_and_groups_meet_vllms(tmp_path: Path) -> None:
    trained = exported("Llama", tmp_path)
    trainer = save(tmp_path / "megatron", as_megatron(trained))
    engine = save(tmp_path / "vllm", as_vllm(trained), "Llama")
    assert compare(open_source(trainer), open_source(engine)).verdict == "equal"
    unknown = compare(open_source(trainer), open_source(save(tmp_path / "hf", trained)))
    assert list(unknown.unread) == [
        f"module.decoder.layers.{i}.self_attention.linear_qkv.weight" for i in (0, 1)
    ]


def test_mixtrals_names_meet_the_live_models() -> None:
    stored = "model.layers.0.block_sparse_moe.experts.3.w1.weight"
    assert names.key(stored) == "layers.0.mlp.experts.3.gate_proj.weight"


def test_a_tensor_twice_at_the_engine_is_named(tmp_path: Path, pairs: Pairs) -> None:
    trained = exported("Llama", tmp_path)
    engine = trained | {"module.model.norm.weight": trained["model.norm.weight"]}
    assert named(pairs.compare(trained, engine)) == {"duplicated": {"model.norm.weight"}}
    engine["module.model.norm.weight"] = 3 * trained["model.norm.weight"]
    assert named(pairs.compare(trained, engine)) == {"scaled": {"model.norm.weight"}}


def test_a_prefix_of_all_names_is_left_out_and_noted(tmp_path: Path, pairs: Pairs) -> None:
    trained = exported("Llama", tmp_path)
    engine = {f"worker.runner.{name}": tensor for name, tensor in as_vllm(trained).items()}
    for outcome in (pairs.compare(trained, engine), pairs.compare(engine, trained)):
        assert outcome.verdict == "equal"
        assert outcome.notes == ["one side's names have a prefix that was left out"]


def test_what_one_side_may_have_alone_depends_on_the_side(tmp_path: Path, pairs: Pairs) -> None:
    """A critic's head stays at the trainer; a KV scale that the trainer has must arrive."""
    trained = exported("Llama", tmp_path)
    head = {"v_head.summary.weight": torch.ones(1, 32)}
    scale = {"model.layers.0.self_attn.k_scale": torch.ones(1)}
    table = {"model.layers.0.self_attn.rotary_emb.cos_sin_cache": torch.ones(4, 8)}
    assert pairs.compare(trained | head, trained | scale | table).verdict == "equal"
    assert named(pairs.compare(trained | scale, trained)) == {"undelivered": set(scale)}
    assert named(pairs.compare(trained, trained | head)) == {"extra": set(head)}


def test_infinities_of_a_cast_and_signs_of_zeros(pairs: Pairs) -> None:
    name = "model.layers.0.mlp.down_proj.weight"
    large = {name: torch.tensor([[1e5, 0.0], [1.0, 2.0]])}
    assert named(pairs.compare(large, {name: large[name].half()})) == {"non-finite": {name}}
    signed = {name: torch.tensor([[1e5, -0.0], [1.0, 2.0]])}
    outcome = pairs.compare(large, signed)
    way = "up to the sign of zeros or the bits of NaN"
    assert (outcome.verdict, outcome.equal) == ("equal", {way: 1})


def test_shards_are_joined(tmp_path: Path) -> None:
    trained = exported("Qwen3Moe", tmp_path)
    model("Qwen3Moe").save_pretrained(tmp_path / "shards", max_shard_size="30KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    engine = open_source(tmp_path / "shards")
    assert compare(open_source(save(tmp_path / "one", trained)), engine).verdict == "equal"


def test_a_weight_that_the_engine_packed_is_listed_and_not_judged(
    tmp_path: Path, pairs: Pairs
) -> None:
    """vLLM's CPU build packs matrices after loading and leaves empty weights behind."""
    trained = exported("Llama", tmp_path)
    engine = {
        name: torch.empty(0) if "proj" in name else tensor
        for name, tensor in as_vllm(trained).items()
    }
    for by_manifest in (False, True):
        outcome = pairs.compare(trained, engine, by_manifest=by_manifest)
        assert (outcome.verdict, outcome.findings) == ("cannot say", [])
        assert len(outcome.unread) == 2 * 4


def test_a_live_tensor_with_two_names_is_listed_once() -> None:
    """vLLM's experts hold the router too; a tied head is the embedding."""
    layer = torch.nn.Module()
    layer.mlp = torch.nn.Module()
    layer.mlp.gate = torch.nn.LayerNorm(2, bias=False)
    layer.mlp.experts = torch.nn.Module()
    layer.mlp.experts.gate = layer.mlp.gate
    assert list(manifest(layer)["tensors"]) == ["mlp.gate.weight"]
    assert names.key("layers.0.mlp.experts.gate.weight") == "layers.0.mlp.gate.weight"
