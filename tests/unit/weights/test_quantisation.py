"""Quantised copies: the recipe has no finding; wrong codes, scales and sources are named."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from precision_lib.weights.compare import compare
from precision_lib.weights.findings import Contract, Outcome
from precision_lib.weights.manifests import open_source, write_manifest
from tests.unit.weights.checkpoints import (
    MODELS,
    State,
    as_vllm,
    exported,
    quantised,
    quantised_state,
    save,
)
from tests.unit.weights.test_planted_faults import named, noisy

NAME = "model.layers.0.mlp.down_proj.weight"
SCALE = f"{NAME}_scale_inv"


def weight(rows: int = 300, columns: int = 260) -> Tensor:
    """Blocks of several sizes, the last block of rows all zero."""
    values = torch.randn(rows, columns, generator=torch.Generator().manual_seed(5))
    values = values * torch.linspace(0.01, 1, rows)[:, None]
    values[256:] = 0
    return values


def copied(values: Tensor) -> State:
    codes, scale = quantised(values)
    return {NAME: codes, SCALE: scale}


def against(
    folder: Path,
    engine: State,
    trainer: Tensor | None = None,
    contract: Contract | None = None,
    quantization_config: dict[str, object] | None = None,
    older: Tensor | None = None,
) -> Outcome:
    first = save(folder / "trainer", {NAME: weight() if trainer is None else trainer})
    second = save(folder / "engine", engine)
    (second / "config.json").write_text(json.dumps({"quantization_config": quantization_config}))
    before = [] if older is None else [open_source(save(folder / "older", {NAME: older}))]
    return compare(open_source(first), open_source(second), contract, before)


def only(outcome: Outcome) -> tuple[str, str]:
    [finding] = outcome.findings
    assert finding.tensor == NAME
    return finding.kind, finding.detail


def test_the_recipe_has_no_finding_by_either_arithmetic(tmp_path: Path) -> None:
    """w / scale, and w * (448 / amax) with the reciprocal stored, as transformers does."""
    assert against(tmp_path, copied(weight())).verdict == "equal"
    values = weight()[:256, :256]
    blocks = values.view(2, 128, 2, 128)
    factor = 448.0 / blocks.abs().amax(dim=(1, 3))
    codes = (blocks * factor[:, None, :, None]).reshape(values.shape).to(torch.float8_e4m3fn)
    engine = {NAME: codes, SCALE: factor.reciprocal()}
    assert against(tmp_path, engine, values).verdict == "equal"


@pytest.mark.parametrize("column", [True, False])
def test_int8_by_channel_has_no_finding(column: bool, tmp_path: Path) -> None:
    values = weight()
    size = values.abs().amax(dim=1, keepdim=True)
    scale = torch.where(size == 0, torch.ones_like(size), size / 127)
    codes = torch.round(values / scale).to(torch.int8)
    engine = {NAME: codes, f"{NAME}_scale": scale if column else scale[:, 0]}
    assert against(tmp_path, engine).verdict == "equal"
    engine[f"{NAME}_scale"] = engine[f"{NAME}_scale"] * 2
    assert only(against(tmp_path, engine))[0] == "scaled"


def test_a_zero_block_that_became_nan_is_named(tmp_path: Path) -> None:
    """slime#2256: 0/0 in a block of zeros."""
    engine = copied(weight())
    codes = engine[NAME].view(torch.uint8).clone()
    codes[256:] = 0x7F
    engine[NAME] = codes.view(torch.float8_e4m3fn)
    kind, detail = only(against(tmp_path, engine))
    assert kind == "non-finite"
    assert "groups are zero, where 0/0 is NaN" in detail
    engine = copied(weight())
    engine[SCALE][2, 0] = torch.nan
    assert only(against(tmp_path, engine))[0] == "non-finite"
    sources = []
    for side in ("trainer", "engine"):
        write_manifest(tmp_path / f"{side}.json", open_source(tmp_path / side))
        sources.append(open_source(tmp_path / f"{side}.json"))
    assert only(compare(sources[0], sources[1]))[0] == "non-finite"


def test_wrong_scales_are_told_apart(tmp_path: Path) -> None:
    good = copied(weight())
    wrong = {
        "scaled": [good[SCALE] * 2, good[SCALE] ** 2, good[SCALE].reciprocal()],
        "transposed": [good[SCALE].T.contiguous()],
        "quantised wrongly": [good[SCALE].roll(1, 0), good[SCALE][:1]],
    }
    for kind, scales in wrong.items():
        for scale in scales:
            assert only(against(tmp_path, good | {SCALE: scale}))[0] == kind
    kind, detail = only(against(tmp_path, {NAME: good[NAME]}))
    assert (kind, detail) == ("missing", "fp8_e4m3 codes without a scale")


def test_scales_that_are_powers_of_two_need_a_contract_that_says_so(tmp_path: Path) -> None:
    """prime-rl#3112: one side used UE8M0 scales, the other one free scales."""
    values = weight()[:256, :256]
    blocks = values.view(2, 128, 2, 128)
    scale = torch.exp2(torch.ceil(torch.log2(blocks.abs().amax(dim=(1, 3)) / 448)))
    codes = (blocks / scale[:, None, :, None]).reshape(values.shape).to(torch.float8_e4m3fn)
    engine = {NAME: codes, SCALE: scale}
    kind, detail = only(against(tmp_path, engine, values))
    assert kind == "quantised wrongly"
    assert "powers of two" in detail
    stated = against(tmp_path, engine, values, quantization_config={"scale_fmt": "ue8m0"})
    assert stated.verdict == "equal"


def test_the_source_of_the_codes_is_part_of_the_contract(tmp_path: Path) -> None:
    """xtuner#2044: quantising the FP32 master or its bf16 export differs."""
    for values, source in ((weight(), "master"), (weight().bfloat16().float(), "bf16")):
        engine = copied(values)
        assert against(tmp_path, engine).verdict == "equal"
        assert against(tmp_path, engine, contract=Contract((), source)).verdict == "equal"
        other = {"master": "bf16", "bf16": "master"}[source]
        kind, detail = only(against(tmp_path, engine, contract=Contract((), other)))
        assert kind == "quantised wrongly"
        assert f"made of the {source} values" in detail


def test_truncated_codes_and_one_wrong_code_are_named(tmp_path: Path) -> None:
    engine = copied(weight())
    codes = engine[NAME].view(torch.uint8).clone()
    codes[0, 0] ^= 1
    kind, detail = only(against(tmp_path, engine | {NAME: codes.view(torch.float8_e4m3fn)}))
    assert kind == "quantised wrongly"
    assert "the scales agree" in detail


def test_an_older_copy_is_stale(tmp_path: Path) -> None:
    older = weight() + 0.01
    assert only(against(tmp_path, copied(older), older=older))[0] == "stale"


@pytest.fixture(params=MODELS)
def trained(request: pytest.FixtureRequest, tmp_path: Path) -> State:
    return exported(request.param, tmp_path)


def test_swapped_and_stale_copies_in_a_model_are_named(trained: State, tmp_path: Path) -> None:
    engine = quantised_state(trained)
    first, second = (f"model.layers.{i}.self_attn.q_proj.weight" for i in (0, 1))
    for end in ("", "_scale_inv"):
        engine[first + end], engine[second + end] = engine[second + end], engine[first + end]
    paths = [save(tmp_path / n, s) for n, s in (("t", trained), ("e", engine))]
    outcome = compare(open_source(paths[0]), open_source(paths[1]))
    assert named(outcome) == {"swapped": {first, second}}
    stale = quantised_state(trained)
    value = quantised_state(noisy(trained))
    stale |= {second + end: value[second + end] for end in ("", "_scale_inv")}
    older = open_source(save(tmp_path / "o", noisy(trained)))
    outcome = compare(
        open_source(paths[0]), open_source(save(tmp_path / "s", stale)), None, [older]
    )
    assert named(outcome) == {"stale": {second}}


def test_stacked_and_fused_copies_are_split_with_their_scales(tmp_path: Path) -> None:
    """w13 [E, 2 I, H] in blocks, and gate_up_proj by channel; one expert's scale is doubled."""
    generator = torch.Generator().manual_seed(0)
    experts = {
        f"model.layers.0.mlp.experts.{e}.{part}_proj.weight": torch.randn(
            *((128, 256) if part != "down" else (256, 128)), generator=generator
        )
        for e in range(2)
        for part in ("gate", "up", "down")
    }
    made = {name: quantised(tensor) for name, tensor in experts.items()}
    owner = "model.layers.0.mlp.experts"
    engine = {}
    for i, ending in ((0, ""), (1, "_scale_inv")):
        engine[f"{owner}.w13_weight{ending}"] = torch.stack(
            [
                torch.cat([made[f"{owner}.{e}.{x}_proj.weight"][i].float() for x in ("gate", "up")])
                for e in range(2)
            ]
        )
        engine[f"{owner}.w2_weight{ending}"] = torch.stack(
            [made[f"{owner}.{e}.down_proj.weight"][i].float() for e in range(2)]
        )
    for name in ("w13_weight", "w2_weight"):
        engine[f"{owner}.{name}"] = engine[f"{owner}.{name}"].to(torch.float8_e4m3fn)
    trainer = open_source(save(tmp_path / "t", experts))
    assert compare(trainer, open_source(save(tmp_path / "e", engine))).verdict == "equal"
    engine[f"{owner}.w13_weight_scale_inv"][1, 1] *= 2
    outcome = compare(trainer, open_source(save(tmp_path / "f", engine)))
    assert named(outcome) == {"scaled": {f"{owner}.1.up_proj.weight"}}


def test_two_quantised_sides_are_compared_by_codes_and_scales(tmp_path: Path) -> None:
    first = copied(weight())
    paths = [save(tmp_path / "a", first)]
    for name, scale in (("b", first[SCALE]), ("c", first[SCALE] * 3)):
        paths.append(save(tmp_path / name, first | {SCALE: scale}))
    a, b, c = (open_source(path) for path in paths)
    assert compare(a, b).verdict == "equal"
    assert only(compare(a, c))[0] == "scaled"


def test_one_scale_of_a_fused_tensor_is_the_largest_of_its_parts(tmp_path: Path) -> None:
    """Small q, k, v share a block; a scale for each of them would be another copy."""
    trained = exported("Qwen3Moe", tmp_path)
    engine: State = {}
    for name, tensor in as_vllm(trained).items():
        if "qkv_proj" in name or "w13" in name or "w2" in name:
            matrices = tensor if tensor.ndim == 3 else tensor[None]
            pairs = [quantised(matrix) for matrix in matrices]
            codes = torch.stack([c.view(torch.uint8) for c, _ in pairs])
            scales = torch.stack([scale for _, scale in pairs])
            engine[name] = codes.reshape(tensor.shape).view(torch.float8_e4m3fn)
            engine[f"{name}_scale_inv"] = scales if tensor.ndim == 3 else scales[0]
        else:
            engine[name] = tensor.bfloat16()
    trainer = open_source(save(tmp_path / "t", trained))
    outcome = compare(trainer, open_source(save(tmp_path / "e", engine)))
    assert (outcome.verdict, outcome.findings) == ("equal", [])
    engine["model.layers.0.self_attn.qkv_proj.weight_scale_inv"] *= 2
    outcome = compare(trainer, open_source(save(tmp_path / "f", engine)))
    assert set().union(*named(outcome).values()) == {
        f"model.layers.0.self_attn.{x}_proj.weight" for x in "qkv"
    }


@pytest.mark.parametrize(
    ("power", "kind"), [(1, None), (0, "scaled"), (2, "scaled"), (3, "different")]
)
def test_decoded_values_of_a_quantised_trainer(
    power: int, kind: str | None, tmp_path: Path
) -> None:
    """A scale that was applied twice, or not at all, is named so."""
    trainer = copied(weight())
    spread = trainer[SCALE].repeat_interleave(128, 0)[:300].repeat_interleave(128, 1)[:, :260]
    engine = {NAME: (trainer[NAME].float() * spread**power).bfloat16()}
    paths = [save(tmp_path / n, s) for n, s in (("t", trainer), ("e", engine))]
    outcome = compare(open_source(paths[0]), open_source(paths[1]))
    if kind is None:
        assert outcome.verdict == "equal"
    else:
        assert only(outcome)[0] == kind
