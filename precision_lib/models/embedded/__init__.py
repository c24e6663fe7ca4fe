"""A small Llama-family language model that ships with the project; ``tools/embedded`` made it.

The hazard is a random stand-in. Rounding errors depend on what is rounded: an untrained model has
almost uniform predictions (7.6 nats of entropy here), near-zero logits and no outlier features, so
precision effects measured on it say nothing about a real policy. This one was really trained; what
it reached, and on what text, is written in `card.json`. The same holds for the reward model and the
value head beside it, and `reward_card.json`.

Importing this package loads neither torch nor transformers.
"""

from __future__ import annotations

import json
from pathlib import Path

EMBEDDED_DIR = Path(__file__).parent
POLICY_DIR = EMBEDDED_DIR / "policy"
PROMPTS_FILE = EMBEDDED_DIR / "prompts.json"
CARD_FILE = EMBEDDED_DIR / "card.json"
SAMPLE_FILE = EMBEDDED_DIR / "held_out_sample.json"
REWARD_DIR = EMBEDDED_DIR / "reward"
VALUE_HEAD_FILE = EMBEDDED_DIR / "value_head.safetensors"
REWARD_CARD_FILE = EMBEDDED_DIR / "reward_card.json"
PAIRS_FILE = EMBEDDED_DIR / "held_out_pairs.json"


def load_prompts() -> list[str]:
    """The openings of held-out documentation texts, distinct, 8 to 32 tokens each."""
    return _strings(PROMPTS_FILE)


def load_held_out_sample() -> list[str]:
    """Whole held-out documents: text that a policy can be trained on, and to check the card."""
    return _strings(SAMPLE_FILE)


def _strings(path: Path) -> list[str]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path.name} is missing from the embedded model; install the package again, or"
            " make it with `python -m tools.embedded train --output_dir DIR` in the checkout"
        ) from None
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{path.name} must hold a list of strings; train the model again")
    return values
