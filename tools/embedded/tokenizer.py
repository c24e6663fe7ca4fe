"""Byte-level BPE tokenizer of the embedded model, and the token streams made with it.

The hazard is a token that means two things. One special token ends every text, starts every text
and pads batches; no text can produce it, because special tokens are not parsed out of plain text
here. Byte-level means that every string can be encoded and comes back unchanged.

The tokenizer puts the end-of-text token before each text, which is what the model saw in training:
an encoded prompt continues a document that has just begun.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tools.embedded.corpus import Document

END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_ID = 0
SMALLEST_VOCABULARY = 257  # one end-of-text token and 256 bytes
PROMPT_TOKENS = (8, 32)

_CONNECTIVE = re.compile(r"\s+(that|which|if|when|and|or|for|with|from|by|as|to|in|of)\b")


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Any:
    """A `tokenizers.Tokenizer` with at most `vocabulary` entries, end of text being number 0."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    if vocabulary < SMALLEST_VOCABULARY:
        raise ValueError(f"vocabulary must be at least {SMALLEST_VOCABULARY}, got {vocabulary}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A",
        pair=f"{END_OF_TEXT} $A {END_OF_TEXT} $B",
        special_tokens=[(END_OF_TEXT, END_OF_TEXT_ID)],
    )
    return tokenizer


def as_transformers(tokenizer: Any, positions: int) -> Any:
    """The same tokenizer as a `PreTrainedTokenizerFast` for contexts of `positions` tokens."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=positions,
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,
        padding_side="left",
    )


def token_stream(tokenizer: Any, texts: Iterable[str]) -> NDArray[np.int64]:
    """All texts in order as one int64 stream: end of text, first text, end of text, ..."""
    stream = [END_OF_TEXT_ID]
    for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False):
        stream += [*encoding.ids, END_OF_TEXT_ID]
    return np.array(stream, dtype=np.int64)


def opening_prompts(tokenizer: Any, documents: Sequence[Document]) -> list[str]:
    """Distinct openings of the documents' units: about the first clause, `PROMPT_TOKENS` long.

    The length counts the end-of-text token that the tokenizer puts in front. Units that begin like
    a sentence give one, if they are long enough; what follows the opening is left to the model.
    """
    prompts: dict[str, None] = {}
    for document in documents:
        for unit in document.units:
            prompt = _opening(tokenizer, unit)
            if prompt is not None:
                prompts.setdefault(prompt)
    return list(prompts)


def _opening(tokenizer: Any, unit: str) -> str | None:
    """The shortest opening of legal length that ends a clause, else the longest legal one."""
    first_line = unit.split("\n", 1)[0].strip()
    if not re.match(r"[A-Z][a-z]*\b", first_line):
        return None
    longest_yet = None
    for match in list(re.finditer(r"\S+", first_line))[:-1]:
        opening, rest = first_line[: match.end()], first_line[match.end() :]
        length = len(tokenizer.encode(opening).ids)
        if length > PROMPT_TOKENS[1]:
            break
        if length >= PROMPT_TOKENS[0] and opening.count("(") == opening.count(")"):
            longest_yet = opening
            if opening[-1] in ",;:." or _CONNECTIVE.match(rest):
                break
    return longest_yet
