"""Files that are read, and files that are refused with column, row and reason."""

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch_file

from precision_lib.mismatch.reading import read_dump, read_pair
from precision_lib.mismatch.saving import save_dump
from precision_lib.mismatch.schema import Claims, DumpError
from tests.unit.mismatch.dump_files import CLAIMED, columns, json_lines, npz, row_dictionaries

BF16 = Claims("bf16", "bf16", temperature=1.0)


def test_what_save_dump_writes_is_read_back(tmp_path: Path) -> None:
    values = columns()
    dump = read_dump(npz(tmp_path / "d.npz"))
    mask = values["response_mask"]
    assert dump.claims == BF16
    assert (dump.rows, len(dump.row)) == (16, mask.sum())
    assert np.array_equal(dump.rollout, values["rollout_logprobs"][mask].astype(np.float64))
    assert dump.token is not None
    assert np.array_equal(dump.token, values["token_ids"][mask])
    assert dump.slot.max() == 31
    with pytest.raises(ValueError, match=r"no such column: logprobs; known: token_ids"):
        save_dump(tmp_path / "e.npz", logprobs=np.zeros((1, 1)))
    empty: list[list[list[float]]] = [[], [[], []]]
    for rows in empty:
        with pytest.raises(ValueError, match="rollout_logprobs holds no value"):
            save_dump(tmp_path / "e.npz", rollout_logprobs=rows)


def _safetensors(path: Path) -> Path:
    arrays = {k: np.ascontiguousarray(v) for k, v in columns().items()}
    save_file(arrays, path, metadata={"claimed": json.dumps(CLAIMED)})
    return path


def _json_lines(path: Path) -> Path:
    return json_lines(path, [{"claimed": CLAIMED}, *row_dictionaries(columns())])


def _torch(path: Path) -> Path:
    tensors = {k: torch.tensor(v) for k, v in columns().items()}
    torch.save({**tensors, "claimed": CLAIMED}, path)
    return path


@pytest.mark.parametrize(
    ("name", "write"),
    [("d.safetensors", _safetensors), ("d.jsonl", _json_lines), ("d.pt", _torch)],
)
def test_every_kind_of_file_gives_the_same_dump(
    name: str, write: Callable[[Path], Path], tmp_path: Path
) -> None:
    want, got = read_dump(npz(tmp_path / "d.npz")), read_dump(write(tmp_path / name))
    assert got.claims == want.claims
    for field in ("rollout", "trainer", "row", "slot", "token"):
        assert np.array_equal(getattr(got, field), getattr(want, field)), field


def test_bf16_columns_of_safetensors_are_widened_exactly(tmp_path: Path) -> None:
    values = {k: torch.tensor(v) for k, v in columns().items() if "logprobs" in k}
    half = {k: v.to(torch.bfloat16) for k, v in values.items()}
    save_torch_file(half, tmp_path / "d.safetensors")
    dump = read_dump(tmp_path / "d.safetensors")
    assert np.array_equal(dump.rollout, half["rollout_logprobs"].double().flatten().numpy())


def test_parquet_without_its_extra_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (tmp_path / "d.parquet").write_bytes(b"PAR1")
    with pytest.raises(DumpError, match=r'rlhf-precision-forensics\[parquet\]"'):
        read_dump(tmp_path / "d.parquet")


def test_the_layout_of_verl(tmp_path: Path) -> None:
    """Tensors of one batch: prompt and response ids, response-sized log-probs."""
    values = columns()
    batch = {
        "responses": torch.tensor(values["token_ids"]),
        "response_mask": torch.tensor(values["response_mask"]).long(),
        "rollout_log_probs": torch.tensor(values["rollout_logprobs"]),
        "old_log_probs": torch.tensor(values["trainer_logprobs"]),
        "entropys": torch.ones(16, 32),
        "global_steps": torch.tensor(7),
    }
    torch.save(batch, tmp_path / "d.pt")
    dump = read_dump(tmp_path / "d.pt")
    assert dump.token is not None
    assert np.array_equal(dump.token, values["token_ids"][values["response_mask"]])
    assert dump.entropy is not None
    assert dump.step is not None
    assert set(dump.step) == {7}
    assert "d.pt: old_log_probs is read as trainer_logprobs" in dump.notes


def test_the_layout_of_trl(tmp_path: Path) -> None:
    values = columns()
    names = ("completion_ids", "completion_mask", "sampling_per_token_logps", "old_per_token_logps")
    stored = {n: torch.tensor(v) for n, v in zip(names, values.values(), strict=True)}
    torch.save(stored, tmp_path / "d.pt")
    assert len(read_dump(tmp_path / "d.pt").row) == values["response_mask"].sum()


def _slime_samples(values: dict[str, Any], prompt: int = 5) -> list[dict[str, Any]]:
    """Samples whose tokens hold the prompt, too."""
    return [
        {
            "tokens": [1] * prompt + values["token_ids"][i].tolist(),
            "response_length": 32,
            "loss_mask": values["response_mask"][i].astype(int).tolist(),
            "rollout_log_probs": values["rollout_logprobs"][i].tolist(),
            "metadata": {},
        }
        for i in range(16)
    ]


def test_the_debug_files_of_slime_are_a_pair(tmp_path: Path) -> None:
    values = columns()
    rollout, train = tmp_path / "rollout_3.pt", tmp_path / "train_3_0.pt"
    torch.save({"rollout_id": 3, "samples": _slime_samples(values)}, rollout)
    scored = {
        "tokens": [torch.tensor([1] * 5 + x.tolist()) for x in values["token_ids"]],
        "log_probs": [torch.tensor(x) for x in values["trainer_logprobs"]],
        "loss_masks": [torch.tensor(x).int() for x in values["response_mask"]],
    }
    torch.save({"rollout_id": 3, "rank": 0, "rollout_data": scored}, train)
    dump = read_pair(rollout, train)
    assert dump.step is not None
    assert dump.step[0] == 3
    assert dump.token is not None
    assert np.array_equal(dump.token, values["token_ids"][values["response_mask"]])
    assert np.allclose(dump.trainer, values["trainer_logprobs"][values["response_mask"]])


def test_two_files_of_other_sequences_are_refused(tmp_path: Path) -> None:
    rows = row_dictionaries(columns())
    train = [{"token_ids": r["token_ids"], "logprobs": r["trainer_logprobs"]} for r in rows]
    rollout = [{"token_ids": r["token_ids"], "logprobs": r["rollout_logprobs"]} for r in rows]
    one = json_lines(tmp_path / "rollout.jsonl", rollout)
    assert read_pair(one, json_lines(tmp_path / "train.jsonl", train)).rows == 16
    train[4]["token_ids"] = train[5]["token_ids"]
    with pytest.raises(DumpError, match=r"train.jsonl: column token_ids differs in row 4"):
        read_pair(one, json_lines(tmp_path / "train.jsonl", train))
    with pytest.raises(DumpError, match="16 rows and 3 rows"):
        read_pair(one, json_lines(tmp_path / "train.jsonl", train[:3]))


def _nan(share: float) -> np.ndarray[Any, Any]:
    values: np.ndarray[Any, Any] = columns()["trainer_logprobs"].copy()
    values[: int(16 * share)] = np.nan
    return values


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no trainer": ({"trainer_logprobs": None}, "column trainer_logprobs is missing"),
    "NaN in most places": ({"trainer_logprobs": _nan(0.8)}, "column trainer_logprobs is NaN for"),
    "+inf": ({"rollout_logprobs": np.full((16, 32), np.inf)}, "holds .inf in row 0, which is no"),
    "probabilities": ({"rollout_logprobs": np.linspace(0.1, 1, 512).reshape(16, 32)}, "logarithms"),
    "other rows": ({"trainer_logprobs": -np.ones((15, 32))}, "trainer_logprobs has 15 rows"),
    "other width": ({"trainer_logprobs": np.zeros((16, 31))}, "has 31 slots in row 0"),
    "one dimension": ({"rollout_logprobs": np.zeros(512)}, r"has the shape \[512\]"),
    "one number": ({"trainer_logprobs": -np.ones((16, 32))}, "trainer_logprobs is -1 for all 496"),
    "empty mask": ({"response_mask": np.zeros((16, 32))}, "response_mask marks no real token"),
    "a mask of 2": ({"response_mask": np.full((16, 32), 2)}, "response_mask holds 2 in row 0"),
    "text": ({"trainer_logprobs": np.full((16, 32), "x")}, "trainer_logprobs is of type <U1"),
    "NaN entropy": ({"trainer_entropy": np.full((16, 32), np.nan)}, "entropy is not finite"),
    "NaN again": ({"trainer_logprobs_again": _nan(0.1)}, "trainer_logprobs_again is not finite"),
    "no rows": ({k: np.zeros((0, 32)) for k in columns()}, "marks no real token"),
    "steps": ({"step": np.zeros(3)}, r"column step has the shape \[3\], not \[16\]"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_column_is_refused_by_name(case: str, tmp_path: Path) -> None:
    changes, message = REFUSED[case]
    path = npz(tmp_path / "d.npz", **changes)
    with pytest.raises(DumpError, match=message) as error:
        read_dump(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("claimed", "message"),
    [
        ({"rollout_dtype": "bf17"}, "claimed rollout_dtype is 'bf17'; known formats: fp32"),
        ({"temperature": "hot"}, "claimed temperature is 'hot'; give a number"),
        ({"top_p": 1.5}, "claimed top_p is 1.5; give a number above 0 up to 1"),
        ({"logprobs": "cooked"}, "give raw or processed"),
    ],
)
def test_a_wrong_claim_is_refused(claimed: dict[str, Any], message: str, tmp_path: Path) -> None:
    save_dump(tmp_path / "d.npz", claimed, **columns())
    with pytest.raises(DumpError, match=message):
        read_dump(tmp_path / "d.npz")


@pytest.mark.parametrize(
    ("written", "fmt"),
    [
        ("torch.bfloat16", "bf16"),
        ("FP8_W8A8", "fp8"),
        ("int8 (compressed-tensors)", "int8"),
        ("float32", "fp32"),
        ("auto", None),
    ],
)
def test_formats_are_known_by_many_names(written: str, fmt: str | None, tmp_path: Path) -> None:
    save_dump(tmp_path / "d.npz", {"rollout_dtype": written}, **columns())
    assert read_dump(tmp_path / "d.npz").claims.rollout_dtype == fmt


def _broken_files(folder: Path) -> dict[str, tuple[Path, str]]:
    whole = npz(folder / "whole.npz").read_bytes()

    def written(name: str, content: bytes) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    objects = folder / "objects.npz"
    np.savez(objects, rollout_logprobs=np.array([{}], dtype=object))
    torch.save({"rollout_log_probs": Path("x")}, folder / "objects.pt")
    altered = bytearray(whole)
    with zipfile.ZipFile(folder / "whole.npz") as archive:
        info = archive.getinfo("trainer_logprobs.npy")
    altered[info.header_offset + 200] ^= 0xFF
    line = json.dumps({"rollout_logprobs": [-1.0], "trainer_logprobs": [-1.0]})
    return {
        "missing": (folder / "none.npz", "No such file"),
        "empty": (written("empty.npz", b""), "is empty"),
        "truncated npz": (written("cut.npz", whole[: len(whole) // 2]), "truncated or no npz"),
        "altered npz": (written("altered.npz", bytes(altered)), "column trainer_logprobs is alt"),
        "pickled npz": (objects, "column rollout_logprobs holds Python objects"),
        "a pickle": (written("d.pkl", pickle.dumps({})), "files that end in '.pkl' are not read"),
        "a pickle called npz": (written("p.npz", pickle.dumps({})), "no npz"),
        "pickled pt": (folder / "objects.pt", "needs pickle"),
        "truncated pt": (written("cut.pt", b"PK\x03\x04"), "no torch file"),
        "truncated safetensors": (written("c.safetensors", b"\x08\0\0\0"), "truncated or no safe"),
        "half a line": (written("h.jsonl", (line + "\n" + line[:20]).encode()), "line 2 is no w"),
        "no object": (written("n.jsonl", b"[1, 2]\n"), "line 1 holds no object"),
        "no text": (written("b.jsonl", b"\xff\xfe"), "no UTF-8"),
        "a directory": (folder, "not read|directory"),
    }  # fmt: skip


def test_a_broken_file_is_refused_by_name(tmp_path: Path) -> None:
    for case, (path, message) in _broken_files(tmp_path).items():
        with pytest.raises(DumpError, match=message) as error:
            read_dump(path)
        assert str(path) in str(error.value), case


@pytest.mark.parametrize("suffix", ["npz", "safetensors", "jsonl", "pt"])
def test_a_file_altered_anywhere_is_read_or_refused_but_never_crashes(
    suffix: str, tmp_path: Path
) -> None:
    """Fuzz: one to eight bytes changed, or the end cut off, 60 times."""
    writers = {"safetensors": _safetensors, "jsonl": _json_lines, "pt": _torch, "npz": npz}
    whole = writers[suffix](tmp_path / f"whole.{suffix}").read_bytes()
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        content = bytearray(whole)
        if random.random() < 0.3:
            del content[random.integers(1, len(content)) :]
        else:
            for place in random.integers(0, len(content), random.integers(1, 9)):
                content[place] = random.integers(0, 256)
        path = tmp_path / f"fuzzed.{suffix}"
        path.write_bytes(bytes(content))
        message = ""
        try:
            read_dump(path)
        except DumpError as error:
            message = str(error)
            refused += 1
        assert str(path) in message or not message
    assert refused > 10
