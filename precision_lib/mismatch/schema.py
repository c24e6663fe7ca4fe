"""What a dump holds: log-probs of both sides for the sampled tokens, and what the user claims.

The columns' names are the schema. All but the two log-prob columns may be absent.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

#: Column, its shape, and its meaning.
COLUMNS = {
    "token_ids": ("[N, T]", "sampled tokens"),
    "response_mask": ("[N, T]", "true for a token that counts; holes are allowed"),
    "rollout_logprobs": ("[N, T]", "what the engine reported for the sampled token, nats"),
    "trainer_logprobs": ("[N, T]", "what the trainer computed for the same token, nats"),
    "trainer_entropy": ("[N, T]", "entropy of the trainer's distribution at the token, nats"),
    "rollout_logprobs_again": ("[N, T]", "the engine, asked a second time: its noise floor"),
    "trainer_logprobs_again": ("[N, T]", "a second forward of the trainer: its noise floor"),
    "advantages": ("[N] or [N, T]", "advantages of the loss, for the gradient cosine"),
    "turn_ids": ("[N, T]", "number of the assistant's turn of each token"),
    "step": ("[N]", "optimizer step at which the row was sampled"),
    "prompt_ids": ("[N, P]", "tokens in front of the response; only rollout-check needs them"),
    "prompt_mask": ("[N, P]", "true for a token of the prompt, false for padding on any side"),
}
FORMATS = ("fp32", "tf32", "bf16", "fp16", "fp8", "int8")
#: What the names of a format contain, in the order in which they are looked for: an FP8 engine may
#: be called ``fp8_w8a8``, an int8 engine ``w8a8`` or ``int8 (compressed-tensors)``.
_FORMAT_NAMES = (
    ("fp8", ("fp8", "float8", "e4m3", "e5m2")),
    ("int8", ("int8", "w8a8")),
    ("bf16", ("bf16", "bfloat16")),
    ("fp16", ("fp16", "float16", "half")),
    ("tf32", ("tf32",)),
    ("fp32", ("fp32", "float32", "float")),
)


class DumpError(ValueError):
    """A dump cannot be read; the message names file, column, row and reason."""


@dataclass(frozen=True)
class Claims:
    """What the user believes about the two sides; None where nothing is claimed.

    Attributes:
        rollout_dtype, trainer_dtype: one of :data:`FORMATS`.
        kv_cache_dtype: of the engine's KV cache; None for the rollout's own format.
        temperature, top_p, top_k: of the sampling; 1, 1 and 0 change nothing.
        logprobs: ``raw`` (before temperature and top-p) or ``processed`` (behind them).
    """

    rollout_dtype: str | None = None
    trainer_dtype: str | None = None
    kv_cache_dtype: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    logprobs: str | None = None


@dataclass(frozen=True)
class Dump:
    """Real tokens of a dump, one sequence after the other.

    Attributes:
        source: the file's name.
        rollout, trainer: [M] float64 log-probs, nats; NaN and -inf as they were stored.
        row: [M] int64, number of the sequence, 0 to N - 1.
        slot: [M] int64, place of the token in the stored row.
        token: [M] int64, or None.
        entropy, rollout_again, trainer_again, advantage: [M] float64, or None.
        pit: [M] float64, where the token lies in the trainer's distribution, 0 to 1, the most
            likely tokens first; uniform for tokens that were drawn from it. None without a model.
        turn: [M] int64, or None. step: [N] int64, or None.
        claims: what the user believes.
        notes: sentences about how the file was read.
    """

    source: str
    rollout: Array
    trainer: Array
    row: Array
    slot: Array
    token: Array | None = None
    entropy: Array | None = None
    pit: Array | None = None
    rollout_again: Array | None = None
    trainer_again: Array | None = None
    advantage: Array | None = None
    turn: Array | None = None
    step: Array | None = None
    claims: Claims = field(default_factory=Claims)
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """N, the number of sequences with a real token."""
        return int(self.row[-1]) + 1 if len(self.row) else 0

    def only(self, keep: Array) -> "Dump":
        """The tokens of the bool array ``keep`` [M]; sequences are numbered again."""
        per_token = [f.name for f in fields(self)][1:12]
        values = {name: getattr(self, name) for name in per_token}
        chosen = {name: x[keep] for name, x in values.items() if x is not None}
        stored, number = np.unique(self.row[keep], return_inverse=True)
        step = None if self.step is None else self.step[stored]
        return replace(self, **chosen | {"row": number.astype(np.int64), "step": step})


def parse_claims(values: Mapping[str, Any], source: str) -> tuple[Claims, tuple[str, ...]]:
    """Claims, and the names that are not understood.

    Raises:
        DumpError: a value that is no format, no number in its range, or no known word.
    """
    known = [f.name for f in fields(Claims)]
    parsed = {name: _claim(name, values[name], source) for name in known if name in values}
    return Claims(**parsed), tuple(sorted(set(values) - set(known)))


def _claim(name: str, value: Any, source: str) -> Any:
    where = f"{source}: claimed {name}"
    if value is None or value == "auto":
        return None
    if name.endswith("dtype"):
        text = str(value).lower()
        known = (fmt for fmt, parts in _FORMAT_NAMES if any(part in text for part in parts))
        fmt = next(known, None)
        if fmt is None:
            raise DumpError(f"{where} is {value!r}; known formats: {', '.join(FORMATS)}")
        return fmt
    if name == "logprobs":
        word = str(value).removesuffix("_logprobs")
        if word not in ("raw", "processed"):
            raise DumpError(f"{where} is {value!r}; give raw or processed")
        return word
    return _number(name, value, where)


def _number(name: str, value: Any, where: str) -> float | int:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise DumpError(f"{where} is {value!r}; give a number") from None
    if name == "top_k":
        if not number.is_integer():  # nor are NaN and inf
            raise DumpError(f"{where} is {value!r}; give a whole number, 0 or -1 for no limit")
        return max(int(number), 0)
    if not 0 < number <= (1.0 if name == "top_p" else 100.0):
        raise DumpError(
            f"{where} is {value!r}; give a number above 0" + " up to 1" * (name == "top_p")
        )
    return number
