"""Prompts of a user's own: how a file is read, and who is asked them."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from precision_lib.forensics.h4.long_sequences import H4Settings, prepare_long
from precision_lib.forensics.probe import QUICK, check_fits, prepare
from precision_lib.models.loading import Checkpoint
from precision_lib.record.codec import decode
from precision_lib.record.context import Context
from precision_lib.reporting.table import measured_models
from precision_lib.trajectories.batches import FreezeSettings
from precision_lib.trajectories.batches import check_fits as check_freeze
from precision_lib.trajectories.freeze import freeze
from precision_lib.trajectories.prompt_file import PromptsError, asking, with_prompts
from precision_lib.trajectories.prompts import (
    MAX_PROMPT_TOKENS,
    encoded_prompts,
    longest_prompt,
    prompt_order,
    prompts_context,
)
from precision_lib.trajectories.shards import TrajectoryError
from tests.unit.small_pipelines import random_checkpoint, random_pipeline

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def written(tmp_path: Path, *lines: Any, name: str = "prompts.jsonl") -> Path:
    file = tmp_path / name
    text = (json.dumps(x) if name.endswith(".jsonl") else x for x in lines)
    file.write_text("\n".join(text) + "\n\n")
    return file


def texts_of(checkpoint: Checkpoint) -> list[str]:
    assert checkpoint.prompts is not None
    return [checkpoint.tokenizer.decode(list(ids)) for ids in checkpoint.prompts.tokens]


def chat_checkpoint() -> Checkpoint:
    checkpoint = random_checkpoint()
    checkpoint.tokenizer.chat_template = TEMPLATE
    return checkpoint


def test_lines_of_a_text_are_prompts_behind_the_start_token(tmp_path: Path) -> None:
    file = written(tmp_path, "Hello.", "", "Twice.", "Twice.", name="prompts.txt")
    asked = with_prompts(random_checkpoint(), file)
    assert texts_of(asked) == ["<|endoftext|>Hello.", "<|endoftext|>Twice."]
    assert prompts_context(asked)["chat_template"] is False
    assert prompts_context(asked)["count"] == 2


def test_json_lines_of_each_form_go_through_the_tokenizers_own_template(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "b"}]
    file = written(tmp_path, "a", {"prompt": "b"}, {"messages": messages})
    asked = with_prompts(chat_checkpoint(), file)
    assert texts_of(asked) == [
        "<user>a<assistant>",
        "<user>b<assistant>",
        "<system>Be kind.<user>b<assistant>",
    ]
    bare = with_prompts(chat_checkpoint(), file, "none")
    assert texts_of(bare)[2] == "<|endoftext|>Be kind.\nb"
    assert prompts_context(asked)["sha256"] != prompts_context(bare)["sha256"]


def test_a_template_of_ones_own_is_read_from_a_file(tmp_path: Path) -> None:
    jinja = tmp_path / "mine.jinja"
    jinja.write_text("Q: {{ messages[0].content }} A:")
    file = written(tmp_path, "why", name="p.txt")
    assert texts_of(with_prompts(random_checkpoint(), file, str(jinja))) == ["Q: why A:"]


@pytest.mark.parametrize(
    ("lines", "template", "message"),
    [
        ([], None, "holds no prompt with a token"),
        (["a", 7], None, "line 2 is no prompt; write a string"),
        ([{"messages": [{"role": "user"}]}], None, "each message has a role and a content"),
        (["a"], "missing.jinja", "give auto, none or a Jinja file"),
        ([{"prompt": "a"}], "broken", "the chat template refuses a prompt"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(
    lines: list[Any], template: str | None, message: str, tmp_path: Path
) -> None:
    (tmp_path / "broken").write_text("{{ raise_exception('no') }}")
    given = str(tmp_path / template) if template else None
    with pytest.raises(PromptsError, match=message):
        with_prompts(random_checkpoint(), written(tmp_path, *lines), given)


def test_broken_json_a_missing_file_and_a_template_without_prompts_are_refused(
    tmp_path: Path,
) -> None:
    (tmp_path / "p.jsonl").write_text("{")
    with pytest.raises(PromptsError, match=r"p.jsonl, line 1 is not JSON"):
        with_prompts(random_checkpoint(), tmp_path / "p.jsonl")
    with pytest.raises(PromptsError, match="cannot be read"):
        with_prompts(random_checkpoint(), tmp_path / "missing.txt")
    with pytest.raises(PromptsError, match="give --prompts FILE too"):
        with_prompts(random_checkpoint(), None, "none")


def own_prompts(tmp_path: Path, count: int = 8) -> Path:
    lines = (f"{'word ' * 9}number {i} of the prompts" for i in range(count))
    return written(tmp_path, *lines, name="own.txt")


def test_own_prompts_are_not_cut_and_each_comes_once_before_any_comes_twice(
    tmp_path: Path,
) -> None:
    asked = with_prompts(random_checkpoint(), own_prompts(tmp_path))
    assert longest_prompt(asked) > MAX_PROMPT_TOKENS
    order = prompt_order(asked, 16, seed=0)
    assert sorted(order[:8]) == list(range(8))
    assert {len(ids) for ids in encoded_prompts(asked, order)} == {longest_prompt(asked)}


def test_every_phase_asks_them_and_says_so(tmp_path: Path) -> None:
    pipeline = asking(random_pipeline(), own_prompts(tmp_path))
    policy = pipeline.policy
    assert pipeline.reference is policy
    assert policy.prompts is not None
    begins = {tuple(ids) for ids in policy.prompts.tokens}
    length = longest_prompt(policy)

    settings = dataclasses.replace(QUICK, seq_lengths=(4,))
    [sampled] = prepare(policy, settings).responses
    long = prepare_long(policy, H4Settings(length=96, sequences=8, text_windows=8, checked=2))
    for tokens in (sampled.tokens, long.sampled.responses[0].tokens):
        assert {tuple(row[:length].tolist()) for row in tokens} == begins
    assert long.sampled.responses[0].length == 96 - 1

    frozen = FreezeSettings(num_batches=1, batch_size=4, max_new_tokens=4, samples_per_prompt=2)
    manifest = freeze(pipeline, frozen, tmp_path / "frozen")
    assert manifest.settings["prompts"] == policy.prompts.as_json()
    other = asking(random_pipeline(), own_prompts(tmp_path, count=9))
    with pytest.raises(TrajectoryError, match="made with prompts"):
        freeze(other, frozen, tmp_path / "frozen", resume=True)


def test_too_few_or_too_long_prompts_are_refused_before_anything_is_computed(
    tmp_path: Path,
) -> None:
    few = with_prompts(random_checkpoint(), own_prompts(tmp_path, count=7))
    with pytest.raises(ValueError, match=r"own.txt holds 7 different prompts, 8 are needed"):
        check_fits(few, dataclasses.replace(QUICK, seq_lengths=(4,)))
    enough = with_prompts(random_checkpoint(), own_prompts(tmp_path))
    with pytest.raises(ValueError, match=f"with a prompt of up to {longest_prompt(enough)}"):
        check_fits(enough, dataclasses.replace(QUICK, seq_lengths=(220,)))
    with pytest.raises(ValueError, match=f"with a prompt of up to {longest_prompt(enough)}"):
        check_freeze(enough, FreezeSettings(max_new_tokens=220))


@pytest.mark.parametrize(
    ("context", "said"),
    [
        (
            {"checkpoint": {"name": "embedded"}, "reward_model": {"name": "embedded"}},
            "policy, reward model and prompts embedded, not yours",
        ),
        (
            {"checkpoint": {"name": "mine"}, "reward_model": {"name": "embedded"}},
            "policy mine, reward model and prompts embedded, not yours",
        ),
        ({"checkpoint": {"name": "mine"}}, "policy mine, prompts embedded, not yours"),
        (
            {
                "checkpoint": {"name": "mine"},
                "reward_model": {"name": "score"},
                "prompts": {"name": "chat.jsonl"},
            },
            "policy mine, reward model score, prompts chat.jsonl",
        ),
    ],
)
def test_the_header_says_what_is_not_the_users(context: dict[str, Any], said: str) -> None:
    assert measured_models(decode(Context, context)) == said
