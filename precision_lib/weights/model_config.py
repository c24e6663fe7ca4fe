"""What a model's configuration says about shapes."""

from collections.abc import Mapping
from typing import Any


def heads(config: Mapping[str, Any]) -> tuple[int, int, int] | None:
    """Query heads, key-value heads and head size of a configuration, None where it names none."""
    config = config.get("text_config") or config
    count = config.get("num_attention_heads")
    if not count:
        return None
    groups = config.get("num_key_value_heads") or count
    size = config.get("head_dim") or config.get("hidden_size", 0) // count
    return (int(count), int(groups), int(size)) if size else None


def vocabulary(config: Mapping[str, Any]) -> int | None:
    """Number of tokens of a configuration, None where it names none."""
    count = (config.get("text_config") or config).get("vocab_size")
    return int(count) if count else None
