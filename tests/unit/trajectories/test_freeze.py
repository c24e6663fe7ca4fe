"""Frozen once: the same bytes whether killed or not, a plain forward's figures, no mixtures."""

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from precision_lib.bounds import gamma
from precision_lib.bounds.softmax import log_softmax_bound
from precision_lib.formats import FORMATS
from precision_lib.models.pipeline import Pipeline
from precision_lib.models.reward_model import score_tokens
from precision_lib.models.value_head import load_value_head, save_value_head
from precision_lib.runtime import deterministic
from precision_lib.scoring.forward import trunk_and_logits
from precision_lib.trajectories.batches import (
    FreezeSettings,
    sample_batch,
    score_batch,
    usual_samples_per_prompt,
)
from precision_lib.trajectories.freeze import freeze
from precision_lib.trajectories.shards import MANIFEST, TrajectoryError, read_shards
from precision_lib.trajectories.store import to_tensors
from tests.unit.small_pipelines import (
    files_of,
    random_checkpoint,
    random_pipeline,
    random_reward,
)

ROOT = Path(__file__).parents[3]


def settings(**changes: Any) -> FreezeSettings:
    small = FreezeSettings(num_batches=3, batch_size=4, max_new_tokens=6, samples_per_prompt=2)
    return dataclasses.replace(small, **changes)


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return random_pipeline(moved=2.0**-7)


@pytest.fixture(scope="module")
def frozen(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three batches, frozen without interruption."""
    directory = tmp_path_factory.mktemp("frozen")
    freeze(pipeline, settings(), directory)
    return directory


def test_the_directory_holds_shards_manifest_and_value_head(frozen: Path) -> None:
    assert list(files_of(frozen)) == [
        "manifest.json",
        *(f"shard-0000{i}.safetensors" for i in range(3)),
        "value_head.safetensors",
    ]


def test_golden_figures_are_those_of_a_plain_fp32_forward(pipeline: Pipeline, frozen: Path) -> None:
    """Against float64 from the same FP32 logits and states, within FP32's derived bounds."""
    head, fp32 = load_value_head(frozen / "value_head.safetensors"), FORMATS["fp32"]
    weight, bias = head.weight.double(), head.bias.double()
    for t in read_shards(frozen):
        assert t.mask.any()
        for checkpoint, got in (
            (pipeline.policy, t.logprobs),
            (pipeline.reference, t.ref_logprobs),
        ):
            with torch.no_grad(), deterministic():
                hidden, logits = trunk_and_logits(checkpoint.model, t.tokens)
            exact = torch.log_softmax(logits[:, :-1].double(), -1)
            want = exact.gather(-1, t.tokens[:, 1:].unsqueeze(-1)).squeeze(-1)
            limit = log_softmax_bound(logits[:, :-1], want)
            assert ((got.double() - want).abs() <= limit)[t.mask].all()
            if checkpoint is pipeline.policy:
                state = hidden[:, :-1].double()
                limit = gamma(33, fp32) * (state.abs() @ weight.abs() + bias.abs())
                assert ((t.values - (state @ weight + bias)).abs() <= limit)[t.mask].all()


def test_scores_are_the_reward_models_at_the_last_token(pipeline: Pipeline, frozen: Path) -> None:
    """The random models share a vocabulary, so the reward model reads the policy's own ids."""
    for t in read_shards(frozen):
        lengths = t.prompt_lengths + t.response_lengths
        assert torch.equal(t.reward_lengths, lengths)
        for row in range(len(t.tokens)):
            end = int(lengths[row])
            assert torch.equal(t.reward_tokens[row, :end], t.tokens[row, :end])
        with torch.no_grad(), deterministic():
            want = score_tokens(pipeline.reward.model, t.reward_tokens, t.reward_lengths)
        assert torch.equal(t.rewards, want)


def test_a_group_shares_its_prompt_and_no_prompt_comes_twice(frozen: Path) -> None:
    ids = [t.prompt_ids.view(2, 2) for t in read_shards(frozen)]
    for groups in ids:
        assert (groups[:, 0] == groups[:, 1]).all()
    assert len(torch.cat(ids)[:, 0].unique()) == 6
    for t in read_shards(frozen):
        for a, b in ((0, 1), (2, 3)):
            length = int(t.prompt_lengths[a])
            assert torch.equal(t.tokens[a, :length], t.tokens[b, :length])
            assert not torch.equal(t.tokens[a, length:], t.tokens[b, length:])


def test_more_batches_later_give_the_same_bytes(
    pipeline: Pipeline, frozen: Path, tmp_path: Path
) -> None:
    done: list[int] = []
    freeze(pipeline, settings(num_batches=1), tmp_path)
    freeze(pipeline, settings(), tmp_path, resume=True, progress=done.append)
    assert files_of(tmp_path) == files_of(frozen)
    assert done == [1, 1, 1], "one that was there, two that were made"


def test_a_value_head_whose_file_is_written_anew_meanwhile_stays_what_it_was(
    pipeline: Pipeline, frozen: Path, tmp_path: Path
) -> None:
    """A loaded safetensors tensor is a map of its file: writing into that changes the tensor."""
    kept, other = tmp_path / "head.safetensors", tmp_path / "other.safetensors"
    shutil.copyfile(frozen / "value_head.safetensors", kept)
    head = load_value_head(kept)
    save_value_head(dataclasses.replace(head, bias=head.bias + 1), other)
    with_head = dataclasses.replace(pipeline, value_head=head)
    freeze(
        with_head,
        settings(),
        tmp_path / "frozen",
        progress=lambda done: done and shutil.copyfile(other, kept),
    )
    assert files_of(tmp_path / "frozen") == files_of(frozen)


#: Freezes in children that kill themselves at the n-th rename, before or after it.
KILLED = """
import os, signal, sys, torch
from pathlib import Path
torch.set_num_threads(int(sys.argv[2]))
from precision_lib.trajectories.freeze import freeze
from tests.unit.small_pipelines import random_pipeline
from tests.unit.trajectories.test_freeze import settings

pipeline, rename = random_pipeline(moved=2.0**-7), os.replace
for point in range(12):
    if child := os.fork():
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        continue
    renames = 0
    def killing(*arguments, **options):
        global renames
        renames += 1
        if point == 2 * renames - 2:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(*arguments, **options)
        if point == 2 * renames - 1:
            os.kill(os.getpid(), signal.SIGKILL)
    os.replace = killing
    freeze(pipeline, settings(num_batches=2), Path(sys.argv[1]) / str(point))
    os._exit(0)
"""


def test_killed_at_any_rename_it_leaves_a_valid_beginning_and_resumes_to_the_same_bytes(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    """Six renames: value head, manifest, then shard and manifest twice; twelve kills."""
    arguments = [sys.executable, "-c", KILLED, str(tmp_path), str(torch.get_num_threads())]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    freeze(pipeline, settings(num_batches=2), tmp_path / "whole")
    whole = files_of(tmp_path / "whole")
    found = []
    for point in range(12):
        directory = tmp_path / str(point)
        found.append(len(list(read_shards(directory))) if (directory / MANIFEST).exists() else None)
        freeze(pipeline, settings(num_batches=2), directory, resume=True)
        assert files_of(directory) == whole, f"kill {point}"
    assert found == [None, None, None, 0, 0, 0, 0, 1, 1, 1, 1, 2]


def test_a_directory_with_trajectories_is_left_alone_without_resume(
    pipeline: Pipeline, frozen: Path
) -> None:
    before = files_of(frozen)
    with pytest.raises(TrajectoryError, match="holds frozen trajectories already; continue them"):
        freeze(pipeline, settings(), frozen)
    assert files_of(frozen) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "made with seed = 0, asked for 1"),
        ({"batch_size": 2}, "made with batch_size = 4, asked for 2"),
        ({"max_new_tokens": 7}, "made with max_new_tokens = 6, asked for 7"),
        ({"samples_per_prompt": 4}, "made with samples_per_prompt = 2, asked for 4"),
        ({"ignore_eos": True}, "made with ignore_eos = False, asked for True"),
        ({"num_batches": 2}, "holds 3 batches, 2 were asked for"),
    ],
)
def test_resuming_with_other_settings_is_refused(
    changes: dict[str, int], message: str, pipeline: Pipeline, frozen: Path
) -> None:
    before = files_of(frozen)
    with pytest.raises(TrajectoryError, match=message):
        freeze(pipeline, settings(**{"num_batches": 4} | changes), frozen, resume=True)
    assert files_of(frozen) == before


@pytest.mark.parametrize("role", ["policy", "reference", "reward"])
def test_resuming_with_another_model_is_refused(
    role: str, pipeline: Pipeline, frozen: Path
) -> None:
    made: Any = random_reward() if role == "reward" else random_checkpoint()
    changes = {role: dataclasses.replace(made, name="other", sha256="f" * 64)}
    other = dataclasses.replace(pipeline, **changes)
    with pytest.raises(TrajectoryError, match=f"the {role} was .* 'other' has ffffffffffff"):
        freeze(other, settings(num_batches=4), frozen, resume=True)


def test_resuming_elsewhere_is_refused(
    pipeline: Pipeline, frozen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "__version__", "9.9")
    with pytest.raises(TrajectoryError, match=r"made with torch = .*, this is 9\.9"):
        freeze(pipeline, settings(num_batches=4), frozen, resume=True)


def test_a_broken_shard_is_noticed_before_anything_is_added(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    freeze(pipeline, settings(num_batches=1), tmp_path)
    path = tmp_path / "shard-00000.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    before = files_of(tmp_path)
    with pytest.raises(TrajectoryError, match="it was cut"):
        freeze(pipeline, settings(), tmp_path, resume=True)
    assert files_of(tmp_path) == before


def test_a_response_ends_with_the_first_end_of_text_unless_told_otherwise() -> None:
    """The cut changes lengths alone: the tokens before it are those of the uncut run."""
    pipeline = random_pipeline()
    model = pipeline.policy.model
    usual = settings(batch_size=64, max_new_tokens=20)
    with torch.no_grad(), deterministic():
        model.lm_head.weight[0] = model.lm_head.weight[1:].mean(0)  # end-of-text becomes likely
        cut, whole = (
            sample_batch(pipeline, dataclasses.replace(usual, ignore_eos=ignore), 0)
            for ignore in (False, True)
        )
    assert whole.response_lengths.tolist() == [20] * 64
    shorter = cut.response_lengths < 20
    assert shorter.any()
    assert not shorter.all()
    for row in range(64):
        start, length = int(cut.prompt_lengths[row]), int(cut.response_lengths[row])
        response = whole.tokens[row, start : start + 20].tolist()
        assert cut.tokens[row, start : start + length].tolist() == response[:length]
        assert 0 not in response[: length - 1]
        assert length == 20 or response[length - 1] == 0


def test_ids_beyond_the_tokenizer_are_scored_by_the_policy_and_not_read_by_the_reward(
    tmp_path: Path,
) -> None:
    """An embedding padded from 257 to 600 rows, as many published models have."""
    padded = random_checkpoint("Qwen3", vocab_size=600)
    pipeline = dataclasses.replace(random_pipeline(), policy=padded, reference=padded)
    freeze(pipeline, settings(num_batches=1), tmp_path)
    [t] = read_shards(tmp_path)
    assert (t.tokens >= 257).any()
    assert (t.reward_tokens < 257).all()
    for row, tokens in enumerate(t.tokens):
        real = tokens[: int(t.prompt_lengths[row] + t.response_lengths[row])]
        read = t.reward_tokens[row, : int(t.reward_lengths[row])]
        assert torch.equal(read, real[real < 257])


def test_a_batch_in_memory_is_the_frozen_one(pipeline: Pipeline, frozen: Path) -> None:
    head = load_value_head(frozen / "value_head.safetensors")
    with deterministic():
        made = to_tensors(score_batch(pipeline, head, sample_batch(pipeline, settings(), 2)))
    *_, read = read_shards(frozen)
    for name, x in to_tensors(read).items():
        assert torch.equal(made[name], x), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_batches": 0}, "num_batches = 0 must be at least 1"),
        ({"samples_per_prompt": 3}, "batch_size = 4 is no multiple of samples_per_prompt = 3"),
        ({"max_new_tokens": 500}, "and the model has 256 positions; use fewer"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_anything_is_written(
    changes: dict[str, int], message: str, pipeline: Pipeline, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        freeze(pipeline, settings(**changes), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("batch_size", range(1, 9))
def test_the_usual_group_divides_the_batch(batch_size: int) -> None:
    samples = usual_samples_per_prompt(batch_size)
    assert batch_size % samples == 0
    assert samples == {1: 1, 2: 2, 3: 3, 4: 4, 5: 1, 6: 3, 7: 1, 8: 4}[batch_size]
