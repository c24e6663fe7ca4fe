"""Which prompts are answered: chosen by the seed, the same for every phase.

The hazard. Prompts taken in the order of a file, or drawn with replacement, give responses that
look like independent sequences and are not: intervals over them come out too narrow. So each
prompt is used once before any comes twice, and its number travels with its sequences.

A checkpoint brings prompts of a user's own, or none; then the shipped ones are used.
"""

import torch

from precision_lib.models.embedded import load_prompts
from precision_lib.models.loading import EMBEDDED, Checkpoint
from precision_lib.models.prompts import PromptsContext

#: Of a shipped prompt. Prompts of a user's own are not cut: a chat template ends with a turn.
MAX_PROMPT_TOKENS = 32


def encode(checkpoint: Checkpoint, text: str) -> list[int]:
    """Tokens of ``text`` behind the model's start token, if it has one."""
    start = checkpoint.start_token
    ids: list[int] = checkpoint.tokenizer.encode(text, add_special_tokens=False)
    return ([] if start is None else [start]) + ids


def prompt_count(checkpoint: Checkpoint) -> int:
    """How many different prompts there are."""
    return len(load_prompts() if checkpoint.prompts is None else checkpoint.prompts.tokens)


def longest_prompt(checkpoint: Checkpoint) -> int:
    """Tokens of a prompt at most."""
    if checkpoint.prompts is None:
        return MAX_PROMPT_TOKENS
    return max(map(len, checkpoint.prompts.tokens))


def prompts_context(checkpoint: Checkpoint) -> PromptsContext:
    """What a record says about the prompts: name, count, template and digest of own ones."""
    own = checkpoint.prompts
    return {"name": EMBEDDED} if own is None else own.as_json()


def check_enough(checkpoint: Checkpoint, count: int) -> None:
    """Refuse fewer different prompts than are needed.

    Raises:
        ValueError: an interval over ``count`` prompts would rest on fewer.
    """
    if checkpoint.prompts is not None and prompt_count(checkpoint) < count:
        raise ValueError(
            f"{checkpoint.prompts.name} holds {prompt_count(checkpoint)} different prompts, "
            f"{count} are needed; add more"
        )


def prompt_order(checkpoint: Checkpoint, count: int, seed: int) -> list[int]:
    """Numbers of ``count`` prompts by ``seed``, each once before any comes twice.

    A larger ``count`` only appends.
    """
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    while len(order) < count:
        order += torch.randperm(prompt_count(checkpoint), generator=generator).tolist()
    return order[:count]


def encoded_prompts(checkpoint: Checkpoint, numbers: list[int]) -> list[list[int]]:
    """Tokens of the prompts of these numbers; a shipped one is cut to MAX_PROMPT_TOKENS."""
    if checkpoint.prompts is not None:
        return [list(checkpoint.prompts.tokens[i]) for i in numbers]
    prompts = load_prompts()
    return [encode(checkpoint, prompts[i])[:MAX_PROMPT_TOKENS] for i in numbers]
