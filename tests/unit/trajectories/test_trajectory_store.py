"""Shards: whole ones come back bit by bit, every planted fault is refused with its file's name."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from precision_lib.trajectories import shards
from precision_lib.trajectories.shards import (
    Manifest,
    TrajectoryError,
    add_shard,
    read_manifest,
    read_shards,
    write_manifest,
)
from precision_lib.trajectories.store import Trajectories, from_tensors, to_tensors

FIELDS = [f.name for f in dataclasses.fields(Trajectories)]


def some_trajectories(seed: int = 0) -> Trajectories:
    """Three sequences of 8 tokens at most: prompts of 2, 3, 2, responses of 6, 2, 1."""
    generator = torch.Generator().manual_seed(seed)

    def positive(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator) + 0.5

    lengths = torch.tensor([2, 3, 2]), torch.tensor([6, 2, 1])
    empty = torch.zeros(3, 7)
    found = Trajectories(
        tokens=torch.randint(0, 50, (3, 8), generator=generator),
        prompt_lengths=lengths[0],
        response_lengths=lengths[1],
        prompt_ids=torch.tensor([4, 4, 9]),
        reward_tokens=torch.randint(0, 50, (3, 9), generator=generator),
        reward_lengths=torch.tensor([9, 5, 3]),
        logprobs=empty,
        ref_logprobs=empty,
        values=empty,
        rewards=positive(3),
    )
    names = ("logprobs", "ref_logprobs", "values", "rollout_logprobs")
    masked = {n: positive(3, 7) * found.mask for n in names}
    return dataclasses.replace(
        found,
        logprobs=-masked["logprobs"],
        ref_logprobs=-masked["ref_logprobs"],
        values=masked["values"],
        rollout_logprobs=-masked["rollout_logprobs"],
    )


def empty_manifest(num_batches: int = 2) -> Manifest:
    models = {role: {"name": "m", "sha256": "0"} for role in ("policy", "reference", "reward")}
    return Manifest({"seed": 0, "temperature": 1.0}, models, {"torch": "x"}, num_batches)


@pytest.fixture
def frozen(tmp_path: Path) -> Path:
    """A directory with two shards."""
    manifest = empty_manifest()
    for seed in (0, 1):
        manifest = add_shard(tmp_path, manifest, some_trajectories(seed), rows=3)
    return tmp_path


def test_shards_come_back_bit_by_bit(frozen: Path) -> None:
    read = list(read_shards(frozen))
    assert len(read) == 2
    for seed, found in enumerate(read):
        for name in FIELDS:
            assert torch.equal(getattr(found, name), getattr(some_trajectories(seed), name)), name
    manifest = read_manifest(frozen)
    assert manifest.complete
    assert [s.response_tokens for s in manifest.shards] == [9, 9]


def test_the_mask_is_that_of_the_shifted_tokens() -> None:
    """tokens[:, 1:]: a prompt of 2 leaves one masked column before the response."""
    t = some_trajectories()
    assert t.mask.int().tolist() == [
        [0, 1, 1, 1, 1, 1, 1],
        [0, 0, 1, 1, 0, 0, 0],
        [0, 1, 0, 0, 0, 0, 0],
    ]
    shifted = t.response(t.tokens[:, 1:].double())
    assert t.real.sum(1).tolist() == [6, 2, 1]
    assert shifted[1].tolist() == [*t.tokens[1, 3:5].tolist(), 0, 0, 0, 0]
    assert shifted[0].tolist() == t.tokens[0, 2:].tolist()


def test_reading_holds_one_shard_at_a_time(frozen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard is opened when it is asked for, not before."""
    opened: list[str] = []
    original = shards.read_shard

    def watched(directory: Path, shard: shards.Shard) -> Trajectories:
        opened.append(shard.file)
        return original(directory, shard)

    monkeypatch.setattr(shards, "read_shard", watched)
    reading = read_shards(frozen)
    assert isinstance(reading, Iterator)
    for count, _ in enumerate(reading, start=1):
        assert len(opened) == count


def changed(**changes: Any) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors.update(changes)


def shift_lengths(by: int) -> Callable[[dict[str, Tensor]], None]:
    """Every prompt ``by`` tokens longer, a response cut where it leaves the row; so the mask."""

    def plant(tensors: dict[str, Tensor]) -> None:
        t = Trajectories(**{k: v for k, v in tensors.items() if k != "mask"})
        t = dataclasses.replace(
            t,
            prompt_lengths=t.prompt_lengths + by,
            response_lengths=t.response_lengths.minimum(8 - t.prompt_lengths - by),
        )
        tensors |= {n: getattr(t, n) for n in ("prompt_lengths", "response_lengths", "mask")}

    return plant


GOOD = to_tensors(some_trajectories())
#: Name of the fault to (what it does to the tensors of a shard, what the message says).
FAULTS: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "prompts one token longer": (shift_lengths(1), "logprobs is not 0 outside the mask"),
    "responses begin one token early": (shift_lengths(-1), "logprobs is not 0 outside the mask"),
    "mask shifted alone": (
        changed(mask=GOOD["mask"].roll(-1, 1)),
        "the mask is not what prompt_lengths and response_lengths say",
    ),
    "hole in the mask": (
        changed(mask=GOOD["mask"] & (torch.arange(7) != 3)),
        "the mask is not what prompt_lengths and response_lengths say",
    ),
    "extra tensor": (changed(advantages=torch.zeros(3)), r"unknown tensors \['advantages'\]"),
    "missing tensor": (lambda t: t.pop("values"), r"missing tensors \['values'\]"),
    "bf16 log-probs": (
        changed(logprobs=GOOD["logprobs"].bfloat16()),
        r"logprobs is torch.bfloat16 \(3, 7\), expected torch.float32 \(3, 7\)",
    ),
    "int32 tokens": (changed(tokens=GOOD["tokens"].int()), "tokens is torch.int32"),
    "log-probs of the sampler on the prompt": (
        changed(rollout_logprobs=GOOD["rollout_logprobs"].roll(-1, 1)),
        "rollout_logprobs is not 0 outside the mask",
    ),
    "unshifted log-probs": (
        changed(logprobs=torch.zeros(3, 8)),
        r"logprobs is torch.float32 \(3, 8\), expected torch.float32 \(3, 7\)",
    ),
    "one reward too few": (changed(rewards=torch.zeros(2)), r"rewards is .* \(2,\), expected"),
    "flat tokens": (changed(tokens=torch.zeros(3, dtype=torch.int64)), "two dimensions"),
    "no sequence": (lambda t: t.update({k: v[:0] for k, v in t.items()}), "holds no sequence"),
    "empty response": (
        lambda t: t["response_lengths"].fill_(0),
        r"response_lengths: \[0, 0, 0\] must lie between 1 and 7",
    ),
    "response beyond the row": (
        lambda t: t["response_lengths"].fill_(7),
        "prompt and response together",
    ),
    "negative token": (lambda t: t["tokens"].fill_(-1), "tokens holds the negative token -1"),
    "NaN value": (lambda t: t["values"].fill_(float("nan")), "values holds 21 inf or NaN"),
    "positive log-prob": (lambda t: t["ref_logprobs"].neg_(), "no log-probability is above 0"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_refused_by_name_of_file_and_tensor(fault: str, tmp_path: Path) -> None:
    """With a manifest that fits the file: the content has to give the fault away."""
    plant, message = FAULTS[fault]
    manifest = add_shard(tmp_path, empty_manifest(1), some_trajectories(), rows=3)
    tensors = {name: x.clone() for name, x in GOOD.items()}
    plant(tensors)
    with pytest.raises(ValueError, match=message):
        from_tensors(tensors)
    path = tmp_path / manifest.shards[0].file
    save_file(tensors, path)
    rename_in_manifest(tmp_path, manifest, path)
    with pytest.raises(TrajectoryError, match=message) as caught:
        list(read_shards(tmp_path))
    assert str(path) in str(caught.value)
    assert "freeze again into another one" in str(caught.value)


def rename_in_manifest(directory: Path, manifest: Manifest, path: Path) -> None:
    """Make the manifest agree with the bytes of ``path``."""
    import hashlib

    content = path.read_bytes()
    entry = dataclasses.replace(
        manifest.shards[0], sha256=hashlib.sha256(content).hexdigest(), size=len(content)
    )
    write_manifest(directory, dataclasses.replace(manifest, shards=(entry,)))


def test_the_same_content_under_a_new_hash_passes(frozen: Path) -> None:
    """The clean case of the faults above: what refuses them is not the rewriting."""
    manifest = read_manifest(frozen)
    path = frozen / manifest.shards[0].file
    tensors = load_file(path)
    save_file(tensors, path, metadata={"written": "again"})
    rename_in_manifest(frozen, manifest, path)
    assert len(list(read_shards(frozen))) == 1


def test_counts_that_the_manifest_gets_wrong_are_refused(frozen: Path) -> None:
    manifest = read_manifest(frozen)
    wrong = dataclasses.replace(manifest.shards[0], response_tokens=10)
    write_manifest(frozen, dataclasses.replace(manifest, shards=(wrong,)))
    with pytest.raises(TrajectoryError, match=r"3 sequences with 9 response tokens, .* 3 with 10"):
        list(read_shards(frozen))


def alter_one_byte(directory: Path) -> None:
    path = directory / "shard-00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def cut(directory: Path) -> None:
    path = directory / "shard-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


def swap(directory: Path) -> None:
    first, second = (directory / f"shard-0000{i}.safetensors" for i in (0, 1))
    a, b = first.read_bytes(), second.read_bytes()
    first.write_bytes(b)
    second.write_bytes(a)


def rewrite_manifest(**changes: Any) -> Callable[[Path], None]:
    def plant(directory: Path) -> None:
        path = directory / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return plant


FILE_FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "altered byte": (alter_one_byte, "shard-00001.safetensors has SHA-256 .* altered or exchanged"),
    "cut": (cut, r"shard-00001.safetensors has \d+ bytes, manifest.json says \d+: it was cut"),
    "swapped": (swap, "shard-00000.safetensors has SHA-256"),
    "missing shard": (
        lambda d: (d / "shard-00001.safetensors").unlink(),
        "shard-00001.safetensors: No such file or directory, but manifest.json names it",
    ),
    "missing manifest": (
        lambda d: (d / "manifest.json").unlink(),
        "holds no manifest.json, so no frozen trajectories; make them with",
    ),
    "another schema": (
        rewrite_manifest(schema="someone-else/3"),
        "manifest.json has schema 'someone-else/3', expected 'precision-forensics/trajectories/2'",
    ),
    "another seed in the manifest": (
        rewrite_manifest(settings={"seed": 1}),
        "manifest.json was altered",
    ),
    "half a manifest": (
        lambda d: (d / "manifest.json").write_text('{"schema"'),
        "manifest.json cannot be read",
    ),
    "a manifest that is a list": (
        lambda d: (d / "manifest.json").write_text("[]"),
        "manifest.json has schema None",
    ),
}


@pytest.mark.parametrize("fault", FILE_FAULTS)
def test_a_file_that_is_not_what_the_manifest_says_is_refused(fault: str, frozen: Path) -> None:
    plant, message = FILE_FAULTS[fault]
    plant(frozen)
    with pytest.raises(TrajectoryError, match=message):
        list(read_shards(frozen))


def test_shards_of_a_release_that_kept_no_log_probs_of_the_sampler_are_read(tmp_path: Path) -> None:
    before = dataclasses.replace(some_trajectories(), rollout_logprobs=None)
    assert "rollout_logprobs" not in to_tensors(before)
    add_shard(tmp_path, empty_manifest(1), before, rows=3)
    path = tmp_path / "manifest.json"
    content = json.loads(path.read_text())
    del content["rollout"], content["sha256"]
    content["schema"] = "precision-forensics/trajectories/1"
    path.write_text(json.dumps(content | {"sha256": shards._digest(content)}))
    assert read_manifest(tmp_path).rollout == ""
    [found] = read_shards(tmp_path)
    assert found.rollout_logprobs is None
    assert torch.equal(found.logprobs, before.logprobs)


def test_what_no_manifest_names_is_not_read(frozen: Path) -> None:
    """What a kill leaves between the shard and the manifest."""
    (frozen / "shard-00002.safetensors").write_bytes(b"half")
    assert len(list(read_shards(frozen))) == 2


def test_broken_trajectories_are_not_written(tmp_path: Path) -> None:
    broken = dataclasses.replace(some_trajectories(), rewards=torch.full((3,), float("inf")))
    with pytest.raises(ValueError, match="rewards holds 3 inf or NaN"):
        add_shard(tmp_path, empty_manifest(), broken, rows=3)
    assert list(tmp_path.iterdir()) == []
