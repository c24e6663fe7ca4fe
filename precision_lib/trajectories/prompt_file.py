"""Read prompts of a user's own from a file.

The hazard. The noise of a log-prob goes with 1 - p, so prompts of another kind than the policy
meets in training give another noise. A chat model that reads bare text is off its distribution. So
prompts go through the tokenizer's chat template where it has one.
"""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from precision_lib.models.loading import Checkpoint
from precision_lib.models.pipeline import Pipeline
from precision_lib.models.prompts import Prompts
from precision_lib.trajectories.prompts import encode

#: ``--chat-template``: the tokenizer's own where it has one; none.
OWN_TEMPLATE, NO_TEMPLATE = "auto", "none"


class PromptsError(ValueError):
    """A file of prompts cannot be used; the message says why and what to do."""


def asking(pipeline: Pipeline, file: Path | None, chat_template: str | None = None) -> Pipeline:
    """``pipeline`` whose policy is asked the prompts of ``file``, see :func:`with_prompts`.

    A reference that is the policy's very object stays so.
    """
    policy = with_prompts(pipeline.policy, file, chat_template)
    same = pipeline.reference is pipeline.policy
    return replace(pipeline, policy=policy, reference=policy if same else pipeline.reference)


def with_prompts(
    checkpoint: Checkpoint, file: Path | None, chat_template: str | None = None
) -> Checkpoint:
    """``checkpoint`` with the prompts of ``file``; the same object where there is no file.

    Args:
        file: JSON lines (``.jsonl``, ``.json``), each a string, ``{"prompt": "..."}`` or
            ``{"messages": [{"role": ..., "content": ...}]}``; otherwise text, one prompt a line.
        chat_template: :data:`OWN_TEMPLATE` (or None), :data:`NO_TEMPLATE`, or a file in Jinja.

    Raises:
        PromptsError: an unreadable or empty file, a line of another form, a template that the
            tokenizer lacks or refuses, or a template without prompts.
    """
    if file is None:
        if chat_template is not None:
            raise PromptsError(
                "--chat-template has prompts of your own to format; give --prompts FILE too"
            )
        return checkpoint
    asked = read_prompts(file)
    template = _template(checkpoint.tokenizer, chat_template or OWN_TEMPLATE)
    ids = [_tokens(checkpoint, prompt, template, file) for prompt in asked]
    tokens = tuple(dict.fromkeys(tuple(x) for x in ids if x))
    if not tokens:
        raise PromptsError(f"{file} holds no prompt with a token; write one prompt a line")
    digest = hashlib.sha256(json.dumps(tokens).encode()).hexdigest()
    return replace(
        checkpoint, prompts=Prompts(file.name, tokens, chat=template is not None, sha256=digest)
    )


def read_prompts(file: Path) -> list[list[dict[str, str]]]:
    """The conversations of a file; a prompt that is a text is one message of a user.

    Raises:
        PromptsError: an unreadable file, or a line of another form.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PromptsError(f"{file} cannot be read as UTF-8 text: {error}") from None
    as_json = file.suffix in (".jsonl", ".json")
    return [
        _conversation(line, f"{file}, line {number}") if as_json else _said(line.strip())
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]


def _said(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _conversation(line: str, where: str) -> list[dict[str, str]]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise PromptsError(f"{where} is not JSON ({error}); write one JSON value a line") from None
    if isinstance(value, dict):
        value = value.get("prompt", value.get("messages"))
    if isinstance(value, str):
        return _said(value)
    if isinstance(value, list) and value and all(_is_message(x) for x in value):
        return value
    raise PromptsError(
        f'{where} is no prompt; write a string, {{"prompt": "..."}} or {{"messages": [...]}}, '
        "where each message has a role and a content"
    )


def _is_message(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(value.get(key), str) for key in ("role", "content")
    )


def _template(tokenizer: Any, wanted: str) -> str | None:
    """The Jinja text of a template; None for none."""
    if wanted == NO_TEMPLATE:
        return None
    if wanted == OWN_TEMPLATE:
        own: str | None = tokenizer.chat_template
        return own
    try:
        return Path(wanted).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PromptsError(
            f"--chat-template {wanted}: {error}; give auto, none or a Jinja file"
        ) from None


def _tokens(
    checkpoint: Checkpoint, messages: list[dict[str, str]], template: str | None, file: Path
) -> list[int]:
    tokenizer = checkpoint.tokenizer
    if template is None:
        text = "\n".join(message["content"] for message in messages)
        return encode(checkpoint, text) if text.strip() else []
    try:
        text = tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # Jinja and transformers each raise their own kind
        raise PromptsError(f"{file}: the chat template refuses a prompt: {error}") from error
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids
