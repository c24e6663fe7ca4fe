"""``rollout-check`` with the embedded model: clean dumps pass, planted faults are caught."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from precision_lib.mismatch.judgement import EQUAL, PRECISION, SEMANTICS
from precision_lib.mismatch.report import ScoredInBoth
from precision_lib.mismatch.rollout import Rollout, read_rollout
from precision_lib.mismatch.saving import save_dump
from precision_lib.mismatch.schema import DumpError
from precision_lib.mismatch.verdict import judge
from precision_lib.models.embedded import load_prompts
from precision_lib.models.loading import Checkpoint, load_checkpoint, set_parameters, working_copy
from precision_lib.phases.rollout_check import run_rollout_check
from precision_lib.runtime import deterministic
from precision_lib.scoring.sampled import figures_of_tokens
from precision_lib.trajectories.prompts import encode
from precision_lib.trajectories.sampling import sample_responses

ROWS, LENGTH, PROMPT = 32, 48, 8


@dataclass(frozen=True)
class Engine:
    """What an engine sampled: N rows of T tokens, and their log-probs under an FP32 model."""

    prompts: list[list[int]]
    responses: Tensor
    logprobs: np.ndarray[Any, Any]

    def save(self, path: Path, claims: dict[str, Any], **changes: Any) -> Rollout:
        columns: dict[str, Any] = {
            "token_ids": self.responses.numpy(),
            "rollout_logprobs": self.logprobs,
            "prompt_ids": np.array(self.prompts),
            "prompt_mask": np.ones((ROWS, PROMPT), bool),
        }
        save_dump(path, claims, **{k: v for k, v in (columns | changes).items() if v is not None})
        return read_rollout(path)


def logprobs(model: Any, prompts: list[list[int]], responses: Tensor) -> np.ndarray[Any, Any]:
    rows = [torch.tensor(p + r.tolist()) for p, r in zip(prompts, responses, strict=True)]
    figures = figures_of_tokens(model, rows)
    return np.stack([f.logprobs[PROMPT - 1 :].numpy() for f in figures])


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return load_checkpoint()


class Changed(torch.nn.Module):
    """A model whose logits are changed before anything is drawn from them."""

    def __init__(self, model: Any, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.change = model, change
        self.config, self.device = model.config, model.device

    def forward(self, past_key_values: Any = None, **inputs: Any) -> Any:
        out = self.model(past_key_values=past_key_values, **inputs)
        return replace(out, logits=self.change(out.logits))


@pytest.fixture(scope="module")
def sampled(checkpoint: Checkpoint) -> Callable[..., Engine]:
    """Responses from changed logits, with the log-probs of the unchanged model."""

    def sample(change: Callable[[Tensor], Tensor] = lambda logits: logits) -> Engine:
        prompts = [encode(checkpoint, text)[:PROMPT] for text in load_prompts()]
        prompts = [p for p in prompts if len(p) == PROMPT][:ROWS]
        with deterministic(0):
            drawn = sample_responses(Changed(checkpoint.model, change), prompts, LENGTH, seed=0)
        responses = drawn.tokens[drawn.mask].view(ROWS, LENGTH)
        return Engine(prompts, responses, logprobs(checkpoint.model, prompts, responses))

    return sample


@pytest.fixture(scope="module")
def clean(sampled: Callable[..., Engine]) -> Engine:
    return sampled()


def in_format(checkpoint: Checkpoint, fmt: str) -> Any:
    model = working_copy(checkpoint.model)
    set_parameters(model, checkpoint.model, fmt)
    return model


def top_p(share: float) -> Callable[[Tensor], Tensor]:
    def cut(logits: Tensor) -> Tensor:
        ordered, order = logits.softmax(-1).sort(-1, descending=True)
        beyond = (ordered.cumsum(-1) - ordered) >= share
        return logits.masked_fill(beyond.gather(-1, order.argsort(-1)), -torch.inf)

    return cut


def test_what_this_model_gives_is_equal(
    checkpoint: Checkpoint, clean: Engine, tmp_path: Path
) -> None:
    rollout = clean.save(tmp_path / "d.npz", {"rollout_dtype": "fp32"})
    checked = run_rollout_check(checkpoint, rollout)
    assert checked.judgement.verdict == EQUAL
    assert checked.report.counters["tokens"] == ROWS * LENGTH
    assert set(checked.report.scored or {}) == {"fp32"}
    assert {"surprisal", "pit"} <= set(checked.report.fingerprints)


def test_an_engine_in_bf16_is_precision_and_its_halves_are_told(
    checkpoint: Checkpoint, clean: Engine, tmp_path: Path
) -> None:
    """torch's own bf16 products are another implementation of the format than the scorer's."""
    with deterministic(native_products=True):
        engine = logprobs(in_format(checkpoint, "bf16"), clean.prompts, clean.responses)
    rollout = clean.save(tmp_path / "d.npz", {"rollout_dtype": "bfloat16"}, rollout_logprobs=engine)
    checked = run_rollout_check(checkpoint, rollout)
    assert checked.judgement.verdict == PRECISION
    here = (checked.report.scored or {})["bf16"]
    assert isinstance(here, ScoredInBoth)
    # Both are bf16 of one model: sigmas within the spread that the limit allows.
    assert checked.judgement.size.limit is not None
    assert checked.judgement.size.limit.typical == here.trainer_sigma
    assert checked.judgement.size.sigma == here.engine_sigma < checked.judgement.size.usual
    assert -1 < here.correlation < 1


@pytest.mark.parametrize(
    ("change", "test"),
    [
        (lambda logits: logits / 0.8, "surprisal"),
        (top_p(0.8), "surprisal"),
        # Flatter, and then cut where the two cancel in the surprisal: the places show it.
        (lambda logits: top_p(0.9)(logits / 1.2), "pit"),
    ],
    ids=["temperature 0.8", "top-p 0.8", "temperature 1.2 and top-p 0.9"],
)
def test_a_silent_change_of_sampling_shows(
    checkpoint: Checkpoint,
    sampled: Callable[..., Engine],
    tmp_path: Path,
    change: Callable[[Tensor], Tensor],
    test: str,
) -> None:
    """The engine reports raw log-probs, so that d is 0 everywhere."""
    rollout = sampled(change).save(tmp_path / "d.npz", {"rollout_dtype": "fp32"})
    judgement = run_rollout_check(checkpoint, rollout).judgement
    assert (judgement.verdict, judgement.cause) == (SEMANTICS, "silent change of sampling")
    assert judgement.fingerprints[test].rejects


def test_log_probs_of_the_next_token_are_a_shift(
    checkpoint: Checkpoint, clean: Engine, tmp_path: Path
) -> None:
    shifted = np.roll(clean.logprobs, -1, 1)
    rollout = clean.save(tmp_path / "d.npz", {}, rollout_logprobs=shifted)
    judgement = run_rollout_check(checkpoint, rollout).judgement
    assert (judgement.verdict, judgement.cause) == ("alignment", "shift")


def test_an_adapter_that_is_missing_is_no_precision(
    checkpoint: Checkpoint, clean: Engine, tmp_path: Path
) -> None:
    """3 % of each matrix, of rank 4, in bf16: without the model this size proves nothing."""
    adapted = working_copy(checkpoint.model)
    generator = torch.Generator().manual_seed(0)
    for name, weight in adapted.named_parameters():
        if "proj" in name:
            rows, columns = weight.shape
            update = torch.randn(rows, 4, generator=generator) @ torch.randn(
                4, columns, generator=generator
            )
            weight.data.add_(update, alpha=float(0.03 * weight.norm() / update.norm()))
    model = working_copy(checkpoint.model)
    set_parameters(model, adapted, "bf16")
    with deterministic():
        other = logprobs(model, clean.prompts, clean.responses)
    rollout = clean.save(tmp_path / "d.npz", {"rollout_dtype": "bf16"}, rollout_logprobs=other)
    checked = run_rollout_check(checkpoint, rollout)
    assert checked.judgement.verdict == "model"
    assert "delivery" in checked.judgement.also_possible
    assert judge(checked.judgement.dump).verdict == "cannot say"


def test_processed_log_probs_are_scored_at_the_claimed_temperature(
    checkpoint: Checkpoint, sampled: Callable[..., Engine], tmp_path: Path
) -> None:
    engine = sampled(lambda logits: logits / 0.8)
    rows = [torch.tensor(p + r.tolist()) for p, r in zip(engine.prompts, engine.responses)]  # noqa: B905
    figures = figures_of_tokens(checkpoint.model, rows, 0.8)
    processed = np.stack([f.logprobs[PROMPT - 1 :].numpy() for f in figures])
    claims = {"rollout_dtype": "fp32", "temperature": 0.8, "logprobs": "processed"}
    rollout = engine.save(tmp_path / "d.npz", claims, rollout_logprobs=processed)
    judgement = run_rollout_check(checkpoint, rollout).judgement
    assert judgement.verdict == EQUAL
    assert not judgement.fingerprints["surprisal"].rejects
    assert not judgement.fingerprints["pit"].rejects


def test_prompts_in_front_of_the_tokens_are_the_same_as_a_column(
    checkpoint: Checkpoint, clean: Engine, tmp_path: Path
) -> None:
    """slime's layout: one list of prompt and response; rows of their own lengths."""
    path = tmp_path / "d.jsonl"
    rows = zip(clean.prompts, clean.responses.tolist(), clean.logprobs.tolist(), strict=True)
    with path.open("w") as file:
        for number, (prompt, tokens, logs) in enumerate(rows):
            length = LENGTH - number % 7
            row = {"tokens": prompt + tokens[:length], "logprobs": logs[:length]}
            file.write(json.dumps(row) + "\n")
    checked = run_rollout_check(checkpoint, read_rollout(path))
    assert checked.judgement.verdict == EQUAL
    assert checked.report.counters["tokens"] == sum(LENGTH - i % 7 for i in range(ROWS))


def test_what_the_model_cannot_score_is_refused(
    checkpoint: Checkpoint, clean: Engine, tmp_path: Path
) -> None:
    tokens = clean.responses.numpy().copy()
    tokens[3, 5] = 1_000_000
    for claims, changes, words in (
        ({}, {"token_ids": tokens}, "row 3 holds the token 1000000, and embedded has"),
        ({"temperature": 0.8}, {}, "nobody says whether the log-probs are raw or processed"),
        ({}, {"prompt_ids": np.ones((ROWS, 5000), int), "prompt_mask": np.ones((ROWS, 5000))},
         "positions; give the model that was sampled from"),
    ):  # fmt: skip
        rollout = clean.save(tmp_path / "d.npz", claims, **changes)
        with pytest.raises(DumpError, match=words):
            run_rollout_check(checkpoint, rollout)
