"""A rollout's side with its prompts: every layout, and what is refused by name."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from precision_lib.mismatch.rollout import read_rollout
from precision_lib.mismatch.saving import save_dump
from precision_lib.mismatch.schema import DumpError
from tests.unit.mismatch.dump_files import CLAIMED, json_lines

PROMPTS = np.array([[0, 0, 7], [5, 6, 7]])
PROMPT_MASK = np.array([[0, 0, 1], [1, 1, 1]])
TOKENS = np.array([[11, 12, 13, 0], [21, 22, 23, 24]])
MASK = np.array([[1, 1, 1, 0], [0, 1, 0, 1]])
LOGPROBS = np.array([[-0.1, -0.2, -0.3, 0.0], [-0.5, -0.6, -0.7, -0.8]])


def save(path: Path, **changes: Any) -> Path:
    columns = {
        "token_ids": TOKENS,
        "response_mask": MASK,
        "rollout_logprobs": LOGPROBS,
        "prompt_ids": PROMPTS,
        "prompt_mask": PROMPT_MASK,
    }
    save_dump(path, CLAIMED, **{k: v for k, v in (columns | changes).items() if v is not None})
    return path


def test_pads_of_prompt_and_response_are_left_out(tmp_path: Path) -> None:
    rollout = read_rollout(save(tmp_path / "d.npz"), {"rollout_dtype": "fp16"})
    assert [x.tolist() for x in rollout.sequences.values()] == [
        [7, 11, 12, 13],
        [5, 6, 7, 21, 22, 23, 24],
    ]
    assert rollout.claims.rollout_dtype == "fp16"


def test_figures_come_to_the_tokens_that_they_are_of(tmp_path: Path) -> None:
    """Token i of a sequence has the figure -i; holes of the mask are left out of the dump."""
    rollout = read_rollout(save(tmp_path / "d.npz"))
    figures = {n: -np.arange(1.0, len(x)) for n, x in rollout.sequences.items()}
    dump = rollout.dump({"trainer_logprobs": figures}, "fp32")
    assert dump.token is not None
    assert dump.token.tolist() == [11, 12, 13, 22, 24]
    assert dump.trainer.tolist() == [-1, -2, -3, -4, -6]
    assert dump.rollout.tolist() == [-0.1, -0.2, -0.3, -0.6, -0.8]
    assert dump.claims.trainer_dtype == "fp32"


def test_a_mask_over_the_whole_sequence_has_the_prompt_in_its_rows(tmp_path: Path) -> None:
    """The first token of a row is predicted by nothing, and is no real one."""
    tokens = np.array([[5, 6, 11, 12], [5, 7, 8, 21]])
    mask = np.array([[0, 0, 1, 1], [0, 1, 1, 1]])
    path = save(
        tmp_path / "d.npz", token_ids=tokens, response_mask=mask, prompt_ids=None, prompt_mask=None
    )
    rollout = read_rollout(path)
    figures = {n: -np.arange(1.0, len(x)) for n, x in rollout.sequences.items()}
    dump = rollout.dump({"trainer_logprobs": figures}, "fp32")
    assert dump.trainer.tolist() == [-2, -3, -1, -2, -3]


def test_verls_attention_mask_covers_prompt_and_response(tmp_path: Path) -> None:
    import torch

    names = {"prompts": PROMPTS, "responses": TOKENS, "response_mask": MASK}
    batch = names | {
        "attention_mask": np.concatenate([PROMPT_MASK, MASK], 1),
        "rollout_log_probs": LOGPROBS,
        "old_log_probs": LOGPROBS,
    }
    torch.save({k: torch.from_numpy(v) for k, v in batch.items()}, tmp_path / "d.pt")
    assert read_rollout(tmp_path / "d.pt").sequences[0].tolist() == [7, 11, 12, 13]


def test_pads_in_front_of_a_whole_sequence_are_refused(tmp_path: Path) -> None:
    """The mask of the response does not say what of its context is padding."""
    tokens = np.array([[0, 0, 11, 12], [5, 7, 8, 21]])
    mask = np.array([[0, 0, 1, 1], [0, 1, 1, 1]])
    changes = {"token_ids": tokens, "response_mask": mask, "prompt_ids": None, "prompt_mask": None}
    with pytest.raises(DumpError, match="row 0 begins with token 0 twice"):
        read_rollout(save(tmp_path / "d.npz", **changes))


def test_rows_of_different_lengths_are_saved_with_their_masks(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    save_dump(
        path,
        prompt_ids=[[7], [5, 6, 7]],
        token_ids=[[11, 12, 13], [21]],
        rollout_logprobs=[[-0.1, -0.2, -0.3], [-0.5]],
    )
    rollout = read_rollout(path)
    assert [x.tolist() for x in rollout.sequences.values()] == [[7, 11, 12, 13], [5, 6, 7, 21]]


def test_a_row_without_a_real_token_is_not_scored(tmp_path: Path) -> None:
    path = save(tmp_path / "d.npz", response_mask=np.array([[0, 0, 0, 0], [1, 1, 1, 1]]))
    rollout = read_rollout(path)
    assert list(rollout.sequences) == [1]
    dump = rollout.dump({"trainer_logprobs": {1: -np.arange(1.0, 7)}}, "fp32")
    assert dump.trainer.tolist() == [-3, -4, -5, -6]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"token_ids": None}, "column token_ids is missing"),
        ({"prompt_ids": None, "prompt_mask": None}, "row 0 has no token in front of its first"),
        ({"prompt_mask": None}, "the prompt in row 0 begins with token 0 twice"),
        ({"prompt_mask": PROMPT_MASK[:, :2]}, "prompt_mask does not fit the prompts"),
        ({"prompt_mask": None, "prompt_ids": PROMPTS[:, ::-1]}, "row 0 ends with token 0 twice"),
        ({"prompt_ids": PROMPTS[:1]}, "column prompt_ids has 1 rows, rollout_logprobs has 2"),
        ({"token_ids": TOKENS[:, :3]}, "column token_ids has 3 slots in row 0"),
        ({"token_ids": TOKENS - 100}, "row 0 holds token ids that are no whole numbers"),
        ({"token_ids": np.pad(TOKENS, ((0, 0), (1, 0)))}, "give the prompt once"),
        ({"rollout_logprobs": None}, "column rollout_logprobs is missing"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_what_cannot_be_scored_is_refused(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(DumpError, match=words):
        read_rollout(save(tmp_path / "d.npz", **changes))


def test_prompts_as_text_are_refused(tmp_path: Path) -> None:
    rows = [{"prompts": "Hello", "token_ids": [1, 2], "logprobs": [-0.1, -0.2]}]
    with pytest.raises(DumpError, match="column prompt_ids, row 0 is of type <U1; give numbers"):
        read_rollout(json_lines(tmp_path / "d.jsonl", rows))
