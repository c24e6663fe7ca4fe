"""The columns' names in other frameworks, and where one table holds them.

slime's names were read in its source in November 2026. The others were not looked up again.
docs/mismatch.md says which file of a framework holds what.
"""

from pathlib import Path

from precision_lib.mismatch.containers import Table
from precision_lib.mismatch.schema import COLUMNS, DumpError

#: Other names of a column, the schema's own first.
ALIASES = {
    "rollout_logprobs": (
        "rollout_log_probs",  # verl, slime, miles, OpenRLHF
        "sampling_per_token_logps",  # TRL
        "generation_logprobs",  # NeMo-RL
        "inference_logprobs",  # prime-rl
        "vllm_logprobs",
    ),
    "trainer_logprobs": (
        "train_log_probs",
        "old_log_probs",  # verl
        "old_per_token_logps",  # TRL
        "action_log_probs",  # OpenRLHF
        "prev_logprobs",  # NeMo-RL
        "log_probs",  # slime, miles
    ),
    "token_ids": (
        "responses",
        "completion_ids",
        "response_ids",
        "output_ids",
        "tokens",
        "sequences",
    ),
    "response_mask": ("loss_mask", "loss_masks", "completion_mask", "action_mask", "token_mask"),
    "trainer_entropy": ("entropys", "entropies", "entropy"),
    "step": ("steps", "global_steps", "global_step", "rollout_id"),
    "advantages": ("advantage",),
    "turn_ids": ("turns",),
    "prompt_ids": ("prompts", "prompt_token_ids"),  # verl, vLLM
    "prompt_mask": ("prompt_masks", "attention_mask"),
}
#: In a file that holds one side alone, the side's log-probs may bear these names.
ONE_SIDE = ("logprobs", "log_probs", "token_logprobs", "logps")
#: Columns that are ignored without a word: text, and what the trainer keeps beside.
SIDES = ("rollout_logprobs", "trainer_logprobs")


def canonical(table: Table, path: Path, side: str | None = None) -> tuple[Table, list[str]]:
    """The schema's columns of a table, and a note for every name that was translated.

    Args:
        side: the log-prob column of a file that holds one side alone; None for a whole dump.

    Raises:
        DumpError: a log-prob column is missing.
    """
    columns: Table = {}
    notes = []
    for name in COLUMNS:
        names = (name, *ALIASES.get(name, ()))
        if name == side:
            names = (*names, *ONE_SIDE)
        stored = next((n for n in names if n in table and table[n] is not None), None)
        if stored is None or (side and name in SIDES and name != side):
            continue
        columns[name] = table[stored]
        if stored != name:
            notes.append(f"{path.name}: {stored} is read as {name}")
    for name in (side,) if side else SIDES:
        if name not in columns:
            raise DumpError(_missing(path, name, table))
    return columns, notes


def _missing(path: Path, name: str, table: Table) -> str:
    others = ", ".join((name, *ALIASES[name]))
    has = ", ".join(sorted(map(str, table))[:12]) or "no column"
    return f"{path}: column {name} is missing (known names: {others}); the file holds {has}"
