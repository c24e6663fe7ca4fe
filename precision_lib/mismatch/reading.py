"""Read one dump, or one file of each side, into real tokens in float64.

The hazard. A value that is silently dropped or moved to its neighbour is what this program looks
for in others. So the shapes of all columns must agree, and every refusal names column and row.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from precision_lib.jsonio import JsonObject
from precision_lib.mismatch.columns import Rows, flat, flat_per_row, rows_of
from precision_lib.mismatch.containers import Table, read_table
from precision_lib.mismatch.layouts import SIDES, canonical
from precision_lib.mismatch.schema import Array, Claims, Dump, DumpError, parse_claims

#: exp of it is a finite float64. A normaliser that is wrong gives log-probs up to 100 or so.
LARGEST = 700.0
#: So many equal numbers are no coincidence.
FEWEST = 16


def read_dump(path: Path, claims: Mapping[str, Any] | None = None) -> Dump:
    """The dump of one file.

    Args:
        claims: replace those of the file, name by name.

    Raises:
        DumpError: the file cannot be read; the message names file, column, row and reason.
    """
    table = read_table(path)
    columns, notes = canonical(table, path)
    return _dump(columns, str(path), {**claimed(table, path), **(claims or {})}, notes)


def read_pair(rollout: Path, train: Path, claims: Mapping[str, Any] | None = None) -> Dump:
    """The dump of two files, one of each side; their rows are joined in order.

    Raises:
        DumpError: as :func:`read_dump`; the two files hold other rows, or other tokens.
    """
    tables = [read_table(path) for path in (rollout, train)]
    sides = [
        canonical(table, path, side)
        for table, path, side in zip(tables, (rollout, train), SIDES, strict=True)
    ]
    source = f"{rollout} and {train}"
    (engine, notes), (trainer, more) = sides
    _check_same(engine, trainer, source)
    both = {**claimed(tables[0], rollout), **claimed(tables[1], train), **(claims or {})}
    return _dump({**engine, **trainer}, source, both, [*notes, *more])


def _check_same(engine: Table, trainer: Table, source: str) -> None:
    """Refuse two files whose tokens differ, since nothing about them can be compared."""
    counts = [len(x[side]) for x, side in zip((engine, trainer), SIDES, strict=True)]
    if counts[0] != counts[1]:
        raise DumpError(f"{source}: {counts[0]} rows and {counts[1]} rows; give the same sequences")
    if "token_ids" not in engine or "token_ids" not in trainer:
        return
    for number, (one, other) in enumerate(
        zip(engine["token_ids"], trainer["token_ids"], strict=True)
    ):
        width = min(len(one), len(other))
        if not np.array_equal(np.asarray(one)[-width:], np.asarray(other)[-width:]):
            raise DumpError(
                f"{source}: column token_ids differs in row {number}; the two files hold other "
                "sequences, or the same in another order"
            )


def claimed(table: Table, path: Path) -> JsonObject:
    """The claims that a file holds; none where it holds none."""
    value = table.get("claimed")
    if value is None:
        return {}
    if isinstance(value, np.ndarray):
        value = value.item() if value.ndim == 0 else None
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            value = None
    if not isinstance(value, dict):
        raise DumpError(f"{path}: column claimed holds no JSON object; see docs/mismatch.md")
    return value


def _dump(columns: Table, source: str, claims: Mapping[str, Any], notes: list[str]) -> Dump:
    parsed, unknown = parse_claims(claims, source)
    if unknown:
        notes = [*notes, f"claims without a meaning here: {', '.join(unknown)}"]
    return dump_of(columns, source, parsed, tuple(notes))


def dump_of(columns: Table, source: str, claims: Claims, notes: tuple[str, ...] = ()) -> Dump:
    """The dump of the schema's columns.

    Raises:
        DumpError: columns of other shapes, no real token, or numbers that are no log-probs.
    """
    rollout = rows_of(columns["rollout_logprobs"], "rollout_logprobs", source)
    mask = mask_of(columns, rollout, source)
    if not mask.any():
        raise DumpError(f"{source}: column response_mask marks no real token; nothing to compare")
    row, slot = rollout.numbers()[mask], rollout.slots()[mask]
    stored, number = np.unique(row, return_inverse=True)

    def optional(name: str) -> Array | None:
        if name not in columns:
            return None
        return flat(columns[name], name, rollout, source)[mask].astype(np.float64)

    token = _tokens(columns, rollout, source)
    turn = optional("turn_ids")
    step = flat_per_row(columns.get("step"), "step", len(rollout.lengths), source)
    dump = Dump(
        source=source,
        rollout=rollout.values[mask].astype(np.float64),
        trainer=flat(columns["trainer_logprobs"], "trainer_logprobs", rollout, source)[mask].astype(
            np.float64
        ),
        row=number.astype(np.int64),
        slot=slot,
        token=None if token is None else token[mask],
        entropy=optional("trainer_entropy"),
        pit=optional("trainer_pit"),
        rollout_again=optional("rollout_logprobs_again"),
        trainer_again=optional("trainer_logprobs_again"),
        advantage=_advantages(columns, rollout, source, mask),
        turn=None if turn is None else turn.astype(np.int64),
        step=None if step is None else step[stored].astype(np.int64),
        claims=claims,
        notes=notes,
    )
    _check_numbers(dump)
    return dump


def mask_of(columns: Table, rollout: Rows, source: str) -> Array:
    """[all slots] bool; without a mask every slot of the rollout is real."""
    if "response_mask" not in columns:
        return np.ones(len(rollout.values), bool)
    values = flat(columns["response_mask"], "response_mask", rollout, source)
    wrong = np.flatnonzero((values != 0) & (values != 1))
    if len(wrong):
        row = rollout.numbers()[wrong[0]]
        raise DumpError(
            f"{source}: column response_mask holds {values[wrong[0]]} in row {row}; give 0 and 1"
        )
    return values.astype(bool)


def _tokens(columns: Table, rollout: Rows, source: str) -> Array | None:
    """Token ids; of rows that hold the prompt too, the last ones."""
    if "token_ids" not in columns:
        return None
    stored = rows_of(columns["token_ids"], "token_ids", source)
    if len(stored.lengths) == len(rollout.lengths) and (stored.lengths > rollout.lengths).any():
        stored = stored.last(rollout.lengths)
    return flat(stored, "token_ids", rollout, source).astype(np.int64)


def _advantages(columns: Table, rollout: Rows, source: str, mask: Array) -> Array | None:
    if "advantages" not in columns:
        return None
    first = columns["advantages"][0] if len(columns["advantages"]) else 0.0
    if np.ndim(first) == 0:
        values = flat_per_row(columns["advantages"], "advantages", len(rollout.lengths), source)
        assert values is not None
        return values[rollout.numbers()][mask].astype(np.float64)
    return flat(columns["advantages"], "advantages", rollout, source)[mask].astype(np.float64)


def _check_numbers(dump: Dump) -> None:
    """Refuse columns that hold no log-probs: NaN in most places, +inf, or mostly above 0."""
    for name, values in (("rollout_logprobs", dump.rollout), ("trainer_logprobs", dump.trainer)):
        bad = np.isnan(values)
        if bad.mean() > 0.5:
            raise DumpError(
                f"{dump.source}: column {name} is NaN for {bad.sum()} of {len(bad)} real tokens"
            )
        large = values > LARGEST
        if large.any():
            first = np.argmax(large)
            raise DumpError(
                f"{dump.source}: column {name} holds {values[first]:+g} in row {dump.row[first]}, "
                "which is no log-probability"
            )
        if len(values) >= FEWEST and (values == values[0]).all() and bad.sum() == 0:
            raise DumpError(
                f"{dump.source}: column {name} is {values[0]:g} for all {len(values)} real tokens; "
                "these are no log-probs of sampled tokens"
            )
        if (values > 0).mean() > 0.5:
            raise DumpError(
                f"{dump.source}: column {name} is above 0 for {(values > 0).sum()} of {len(bad)} "
                "real tokens; give natural logarithms of probabilities"
            )
    for name in ("entropy", "rollout_again", "trainer_again", "advantage"):
        values_or_none: Array | None = getattr(dump, name)
        if values_or_none is not None and not np.isfinite(values_or_none).all():
            row = dump.row[np.argmax(~np.isfinite(values_or_none))]
            column = {"entropy": "trainer_entropy", "advantage": "advantages"}.get(name, name)
            column = column.replace("_again", "_logprobs_again")
            raise DumpError(f"{dump.source}: column {column} is not finite in row {row}")


def without(dump: Dump, bad: Array) -> Dump:
    """The dump without the tokens of the bool array ``bad`` [M]."""
    return replace(dump) if not bad.any() else dump.only(~bad)
