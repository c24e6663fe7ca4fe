"""Tensors and files that are odd: the exact answer, or one clear error.

One table of states for NaN, integers, empty and padded tensors, constant and moved vectors.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from precision_lib.weights.compare import compare
from precision_lib.weights.files import SourceError
from precision_lib.weights.manifests import open_source, write_manifest
from precision_lib.weights.rank_files import open_ranks
from tests.unit.weights.checkpoints import State, quantised, save
from tests.unit.weights.test_planted_faults import Pairs, named

MATRIX, NORM, EMBEDDING = "layers.0.mlp.up_proj.weight", "norm.weight", "embed_tokens.weight"
OTHER = "position_ids"


@pytest.fixture
def pairs(tmp_path: Path) -> Pairs:
    return Pairs(tmp_path)


def state(**changes: Tensor) -> State:
    """A matrix, a norm and an embedding of 72 tokens; names may be given by their first word."""
    generator = torch.Generator().manual_seed(5)
    made = {
        MATRIX: torch.randn(16, 8, generator=generator),
        NORM: 1 + 0.1 * torch.randn(8, generator=generator),
        EMBEDDING: torch.randn(72, 8, generator=generator),
    }
    names = {"matrix": MATRIX, "norm": NORM, "embedding": EMBEDDING, "other": OTHER}
    return made | {names[key]: tensor for key, tensor in changes.items()}


def broken(value: float = torch.nan) -> Tensor:
    tensor = state()[MATRIX].clone()
    tensor[3, 4] = value
    return tensor


def truncated(tensor: Tensor) -> Tensor:
    return (tensor.view(torch.int32) >> 16).to(torch.int16).view(torch.bfloat16)


ROWS = state()[EMBEDDING]
CASES: dict[str, tuple[State, State, dict[str, set[str]]]] = {
    "NaN on both sides": (state(matrix=broken()), state(matrix=broken()), {}),
    "NaN on both sides, scaled": (
        state(matrix=broken()),
        state(matrix=broken() * 2),
        {"scaled": {MATRIX}},
    ),
    "NaN at the trainer alone": (state(matrix=broken()), state(), {"different": {MATRIX}}),
    "integers": (
        state(other=torch.arange(9)),
        state(other=torch.arange(9) + 1),
        {"different": {OTHER}},
    ),
    "integers of another type": (
        state(other=torch.arange(9)),
        state(other=torch.arange(9).int()),
        {"cast": {OTHER}},
    ),
    "fp8 of another kind": (
        state(),
        state(matrix=state()[MATRIX].to(torch.float8_e5m2)),
        {"cast": {MATRIX}},
    ),
    "empty on both sides": (state(other=torch.zeros(0, 4)), state(other=torch.zeros(0, 4)), {}),
    "empty at the trainer": (
        state(other=torch.zeros(0, 4)),
        state(other=torch.ones(2, 4)),
        {"different": {OTHER}},
    ),
    "one value": (
        state(other=torch.tensor(2.5)),
        state(other=torch.tensor(3.0)),
        {"different": {OTHER}},
    ),
    "a norm that was never loaded": (
        state(),
        state(norm=torch.ones(8)),
        {"different": {NORM}},
    ),
    "a norm plus one": (state(), state(norm=state()[NORM] + 1), {"different": {NORM}}),
    "tokens that were not delivered": (
        state(),
        state(embedding=ROWS[:70]),
        {"missing": {EMBEDDING}},
    ),
    "masters beside a bf16 trainer": (
        {name: tensor.bfloat16() for name, tensor in state().items()},
        state(),
        {"cast": set(state())},
    ),
    "through fp8 without a scale": (
        state(),
        state(matrix=state()[MATRIX].to(torch.float8_e4m3fn).float()),
        {"cast": {MATRIX}},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_an_odd_tensor_has_its_exact_answer(case: str, pairs: Pairs) -> None:
    trainer, engine, wanted = CASES[case]
    outcome = pairs.compare(trainer, engine)
    assert (named(outcome), outcome.unread) == (wanted, {})
    assert outcome.verdict == ("different" if wanted else "equal")
    if case == "NaN on both sides":
        assert f"NaN or infinity on both sides: {MATRIX}" in outcome.notes


def test_nan_whose_bits_a_cast_changes_is_equal_by_values_and_unknown_by_hashes(
    pairs: Pairs,
) -> None:
    """Vectors of torch make NaN 0xffff in bf16, single values 0x7fc0."""
    engine = {name: tensor.bfloat16() for name, tensor in state(matrix=broken()).items()}
    engine[MATRIX].view(torch.int16)[3, 4] = -1
    trainer = state(matrix=broken())
    assert pairs.compare(trainer, engine).verdict == "equal"
    outcome = pairs.compare(trainer, engine, by_manifest=True)
    assert outcome.verdict == "cannot say"
    assert list(outcome.unread) == [MATRIX]


def test_a_truncated_export_is_named_by_hashes_alone(pairs: Pairs) -> None:
    engine = {name: truncated(tensor) for name, tensor in state().items()}
    outcome = pairs.compare(state(), engine, by_manifest=True)
    assert named(outcome) == {"cast": set(state())}
    assert all(finding.exact for finding in outcome.findings)


def test_some_wrong_rows_are_named_and_the_rest_is_said_to_be_equal(pairs: Pairs) -> None:
    engine = state(matrix=broken(9.0))
    [finding] = pairs.compare(state(), engine).findings
    assert (finding.kind, finding.exact) == ("different", True)
    assert finding.detail.endswith("in rows 3:4; the others are equal")


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (lambda scale: 1 / scale, "scaled", "its reciprocal"),
        (lambda scale: scale**2, "scaled", "its square"),
    ],
)
def test_a_wrong_scale_of_a_whole_tensor_is_told_apart(
    change: Callable[[Tensor], Tensor], kind: str, words: str, tmp_path: Path
) -> None:
    values = state()[MATRIX]
    scale = values.abs().max() / 448
    engine = {MATRIX: (values / scale).to(torch.float8_e4m3fn), f"{MATRIX}_scale": change(scale)}
    [finding] = _compared({MATRIX: values}, engine, tmp_path)
    assert finding.kind == kind
    assert words in finding.detail


def test_scales_along_the_wrong_axis_are_named(tmp_path: Path) -> None:
    values = torch.randn(32, 32, generator=torch.Generator().manual_seed(1))
    for shape, kind in (((32,), "quantised wrongly"), ((1, 32), "quantised wrongly")):
        scale = values.abs().amax(0) / 448
        codes = (values / scale).to(torch.float8_e4m3fn)
        engine = {MATRIX: codes, f"{MATRIX}_scale": scale.reshape(shape)}
        [finding] = _compared({MATRIX: values}, engine, tmp_path / str(len(shape)))
        assert finding.kind == kind
        assert "of columns, the recipe's of rows" in finding.detail
    wide = torch.randn(256, 384, generator=torch.Generator().manual_seed(1))
    codes, scale = quantised(wide)
    engine = {MATRIX: codes, f"{MATRIX}_scale_inv": scale.T}
    [finding] = _compared({MATRIX: wide}, engine, tmp_path / "blocks")
    assert finding.kind == "transposed"


def _compared(trainer: State, engine: State, folder: Path) -> list[Any]:
    left, right = save(folder / "trainer", trainer), save(folder / "engine", engine)
    return list(compare(open_source(left), open_source(right)).findings)


INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"weight_map": {NORM: "lost.safetensors"}}, "lists lost.safetensors, which is not there"),
        ({"weight_map": {"lost": "model.safetensors"}}, "the index lists lost, which no shard"),
        ({"weight_map": []}, "has no weight_map"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(
    table: dict[str, Any], message: str, tmp_path: Path
) -> None:
    save(tmp_path, state())
    (tmp_path / INDEX).write_text(json.dumps(table))
    with pytest.raises(SourceError, match=message):
        open_source(tmp_path)


def test_a_name_that_comes_twice_is_refused(tmp_path: Path) -> None:
    entry = '"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    header = f"{{{entry},{entry}}}".encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(SourceError, match="a comes twice"):
        open_source(file)


def test_a_damaged_manifest_names_file_and_tensor(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    write_manifest(path, open_source(save(tmp_path / "t", state())))
    manifest = json.loads(path.read_text())
    del manifest["tensors"][NORM]["sha256"]
    path.write_text(json.dumps(manifest))
    with pytest.raises(SourceError, match=r"m\.json is damaged \(norm\.weight lacks sha256\)"):
        open_source(path)


def test_a_side_without_tensors_is_said_to_be_empty(pairs: Pairs, tmp_path: Path) -> None:
    outcome = pairs.compare(state(), {})
    assert outcome.verdict == "cannot say"
    assert outcome.notes == ["the engine holds no tensor that can be compared"]
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SourceError, match=r"holds no \*\.safetensors"):
        open_ranks([tmp_path])
