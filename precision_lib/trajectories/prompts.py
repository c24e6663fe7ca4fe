"""Which prompts are answered: chosen by the seed, the same for every phase.

The hazard. Prompts taken in the order of a file, or drawn with replacement, give responses that
look like independent sequences and are not: intervals over them come out too narrow. So each
prompt is used once before any comes twice, and its number travels with its sequences.
"""

import torch

from precision_lib.models.embedded import load_prompts
from precision_lib.models.loading import Checkpoint

MAX_PROMPT_TOKENS = 32


def encode(checkpoint: Checkpoint, text: str) -> list[int]:
    """Tokens of ``text`` behind the model's start token, if it has one."""
    start = checkpoint.start_token
    ids: list[int] = checkpoint.tokenizer.encode(text, add_special_tokens=False)
    return ([] if start is None else [start]) + ids


def prompt_order(count: int, seed: int) -> list[int]:
    """Numbers of ``count`` shipped prompts by ``seed``, each once before any comes twice.

    A larger ``count`` only appends.
    """
    prompts = load_prompts()
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    while len(order) < count:
        order += torch.randperm(len(prompts), generator=generator).tolist()
    return order[:count]


def encoded_prompts(checkpoint: Checkpoint, numbers: list[int]) -> list[list[int]]:
    """Tokens of the prompts of these numbers, at most :data:`MAX_PROMPT_TOKENS` of each."""
    prompts = load_prompts()
    return [encode(checkpoint, prompts[i])[:MAX_PROMPT_TOKENS] for i in numbers]
