"""One side's dump with the tokens in front: what a trainer's forward is to be made of.

The hazard. A pad that the engine did not see, or a prompt that is missing, is another context, and
then another distribution is scored. So every row needs a prompt, and an array of prompts needs its
mask where pads may stand in it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from precision_lib.mismatch.columns import Rows, rows_of
from precision_lib.mismatch.containers import Table, read_table
from precision_lib.mismatch.layouts import canonical
from precision_lib.mismatch.reading import claimed, dump_of, mask_of
from precision_lib.mismatch.schema import Array, Claims, Dump, DumpError, parse_claims


@dataclass(frozen=True)
class Rollout:
    """What an engine sampled and reported. N rows, of which those with a real token are scored.

    Attributes:
        source: the file's name.
        columns: of the schema, as stored. claims: what the user believes. notes: of reading.
        sequences: row number to [L] int64, prompt and response up to the last real token.
        starts: [N] int64, tokens of each row's prompt.
        slots: response slots of each row, one row after the other (of the log-probs).
    """

    source: str
    columns: Table
    claims: Claims
    notes: tuple[str, ...]
    sequences: dict[int, Array]
    starts: Array
    slots: Rows

    def dump(self, figures: Mapping[str, Mapping[int, Array]], trainer_dtype: str) -> Dump:
        """The dump of both sides.

        Args:
            figures: column to row number to [L - 1] figures of tokens 1 to L - 1.
            trainer_dtype: the format in which they were scored.
        """
        scored = {name: self._in_slots(rows) for name, rows in figures.items()}
        others = {k: v for k, v in self.columns.items() if not k.startswith("trainer_")}
        claims = replace(self.claims, trainer_dtype=trainer_dtype)
        return dump_of({**others, **scored}, self.source, claims, self.notes)

    def _in_slots(self, rows: Mapping[int, Array]) -> Rows:
        """Figures at their slots; 0 in slots that were not scored, which are not real tokens."""
        values = np.zeros(len(self.slots.values))
        ends = np.cumsum(self.slots.lengths)
        for number, figures in rows.items():
            first = ends[number] - self.slots.lengths[number]
            of_response = figures[max(self.starts[number] - 1, 0) :]
            skipped = int(self.starts[number] == 0)  # nothing predicts the very first token
            values[first + skipped : first + skipped + len(of_response)] = of_response
        return Rows(values, self.slots.lengths)


def read_rollout(path: Path, claims: Mapping[str, Any] | None = None) -> Rollout:
    """The rollout's side of a file; a trainer's side in it is ignored.

    Args:
        claims: replace those of the file, name by name.

    Raises:
        DumpError: the file cannot be read, or holds no token ids or no prompts.
    """
    table, source = read_table(path), str(path)
    columns, notes = canonical(table, path, "rollout_logprobs")
    parsed, unknown = parse_claims({**claimed(table, path), **(claims or {})}, source)
    if unknown:
        notes = [*notes, f"claims without a meaning here: {', '.join(unknown)}"]
    if "token_ids" not in columns:
        raise DumpError(
            f"{source}: column token_ids is missing; the trainer's side is scored on these tokens"
        )
    slots = rows_of(columns["rollout_logprobs"], "rollout_logprobs", source)
    prompts, responses = _prompts_and_responses(columns, slots, source)
    real = Rows(mask_of(columns, slots, source), slots.lengths).split()
    sequences = {}
    for number, (prompt, response, mask) in enumerate(zip(prompts, responses, real, strict=True)):
        if not mask.any():
            continue
        if len(prompt) + int(mask.argmax()) == 0:
            raise DumpError(
                f"{source}: row {number} has no token in front of its first real one, so that "
                "nothing predicts it; add the column prompt_ids"
            )
        context = np.concatenate([prompt, response[: int(mask.argmax())]])
        if not _has_mask(columns):
            _check_unpadded(context, prompt, number, source)
        last = len(mask) - int(mask[::-1].argmax())
        sequences[number] = _integers(np.concatenate([prompt, response[:last]]), number, source)
    starts = np.array([len(prompt) for prompt in prompts], np.int64)
    return Rollout(source, columns, parsed, tuple(notes), sequences, starts, slots)


def _integers(tokens: Array, row: int, source: str) -> Array:
    if (tokens != np.floor(tokens)).any() or (tokens < 0).any() or (tokens >= 2**63).any():
        raise DumpError(
            f"{source}: row {row} holds token ids that are no whole numbers from 0 on; store the "
            "tokens as integers, and leave padding out with response_mask or prompt_mask"
        )
    return tokens.astype(np.int64)


def _prompts_and_responses(
    columns: Table, slots: Rows, source: str
) -> tuple[list[Array], list[Array]]:
    tokens = rows_of(columns["token_ids"], "token_ids", source)
    _same_count(tokens, "token_ids", slots, source)
    short = np.flatnonzero(tokens.lengths < slots.lengths)
    if len(short):
        row = int(short[0])
        raise DumpError(
            f"{source}: column token_ids has {tokens.lengths[row]} slots in row {row}, "
            f"rollout_logprobs has {slots.lengths[row]}; give a token for each log-prob"
        )
    responses = tokens.last(slots.lengths).split()
    in_front = tokens.lengths - slots.lengths
    if "prompt_ids" not in columns:
        rows = zip(tokens.split(), in_front, strict=True)
        prompts = [row[:count] for row, count in rows]
        return _without_pads(prompts, columns, source), responses
    if in_front.any():
        raise DumpError(
            f"{source}: rows of token_ids are longer than those of rollout_logprobs, and there is "
            "a column prompt_ids too; give the prompt once"
        )
    given = rows_of(columns["prompt_ids"], "prompt_ids", source)
    _same_count(given, "prompt_ids", slots, source)
    return _without_pads(given.split(), columns, source), responses


def _same_count(rows: Rows, name: str, slots: Rows, source: str) -> None:
    if len(rows.lengths) != len(slots.lengths):
        raise DumpError(
            f"{source}: column {name} has {len(rows.lengths)} rows, rollout_logprobs has "
            f"{len(slots.lengths)}; give a row for each response"
        )


def _without_pads(prompts: list[Array], columns: Table, source: str) -> list[Array]:
    """The prompts' real tokens."""
    if "prompt_mask" not in columns:
        return prompts
    masks = rows_of(columns["prompt_mask"], "prompt_mask", source).split()
    fits = len(masks) == len(prompts)
    if not fits or any(len(m) < len(p) for m, p in zip(masks, prompts, strict=True)):
        raise DumpError(
            f"{source}: column prompt_mask does not fit the prompts; give one number for each "
            "token of a prompt"
        )
    # verl's attention mask covers prompt and response; the prompt comes first.
    return [p[m[: len(p)].astype(bool)] for p, m in zip(prompts, masks, strict=True)]


def _has_mask(columns: Table) -> bool:
    """Whether pads are known; rows of a list have lengths of their own and hold none."""
    name = "prompt_ids" if "prompt_ids" in columns else "token_ids"
    return "prompt_mask" in columns or not isinstance(columns[name], np.ndarray)


def _check_unpadded(context: Array, prompt: Array, row: int, source: str) -> None:
    """Refuse what looks like padding: one token twice in front of all, or behind the prompt."""
    for end, pair in (("begins", context[:2]), ("ends", prompt[-2:])):
        if len(pair) == 2 and pair[0] == pair[1]:
            raise DumpError(
                f"{source}: the prompt in row {row} {end} with token {pair[0]:g} twice, which "
                "looks like padding; give the prompts as prompt_ids, with prompt_mask"
            )
