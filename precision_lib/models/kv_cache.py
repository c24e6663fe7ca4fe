"""One forward with a KV cache, whatever transformers calls that argument.

transformers 5.24 renamed ``past_key_values`` to ``cache``, in the forward and in its result. The
old name still works there, with a FutureWarning. So the name is read from the model's signature.

n sequences, L tokens of this forward, V vocabulary.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor


def forward_with_cache(model: Any, cache: Any, **inputs: Any) -> tuple[Tensor, Any]:
    """Logits of the new tokens, and the cache that holds these tokens too.

    Args:
        model: causal LM.
        cache: as the forward before returned it; None for an empty one of the model's own kind.
        inputs: ``input_ids`` [n, L], and whatever else the forward takes.

    Returns:
        ([n, L, V] in the model's format, cache for the next forward).
    """
    name = _argument_name(type(model).forward)
    out = model(**inputs, **{name: cache}, use_cache=True)
    return out.logits, getattr(out, name)


@functools.cache
def _argument_name(forward: Callable[..., Any]) -> str:
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"
