"""Decoding passes the KV cache under the name that the model's forward has for it."""

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from precision_lib.models.kv_cache import forward_with_cache
from precision_lib.trajectories.sampling import sample_responses
from tests.unit.conftest import random_model

ROOT = Path(__file__).parents[3]


class Counting:
    """A model that predicts token n after n tokens; its cache is the number of tokens seen."""

    config, device = SimpleNamespace(), torch.device("cpu")
    forward: Any

    def __call__(self, **inputs: Any) -> Any:
        return self.forward(**inputs)

    @staticmethod
    def logits(ids: Tensor, seen: int) -> Tensor:
        position = seen + torch.arange(ids.shape[1])
        return torch.where(torch.arange(16) == position.unsqueeze(1) + 1, 0.0, -torch.inf)[None]


class OldName(Counting):
    """As transformers 5.17 to 5.23."""

    def forward(
        self,
        input_ids: Tensor,
        past_key_values: int | None = None,
        use_cache: bool = False,
        **_: Any,
    ) -> Any:
        seen = past_key_values or 0
        after = seen + input_ids.shape[1] if use_cache else None
        return SimpleNamespace(logits=self.logits(input_ids, seen), past_key_values=after)


class NewName(Counting):
    """As transformers 5.24, which warns of the old name."""

    def forward(
        self, input_ids: Tensor, cache: Any = None, use_cache: bool = False, **others: Any
    ) -> Any:
        if "past_key_values" in others:
            warnings.warn("`past_key_values` is deprecated", FutureWarning, stacklevel=2)
        after = (cache or 0) + input_ids.shape[1] if use_cache else None
        return SimpleNamespace(logits=self.logits(input_ids, cache or 0), cache=after)


@pytest.mark.parametrize("model", [OldName(), NewName()])
def test_sampling_passes_the_cache_from_token_to_token(model: Counting) -> None:
    """Without its cache the model predicts 1 for ever; with the old name the new model warns."""
    assert sample_responses(model, [[0, 0]], 4, seed=0).tokens.tolist() == [[0, 0, 2, 3, 4, 5]]
    begun = sample_responses(model, [[0, 0]], 4, seed=0, new_cache=lambda: 5)
    assert begun.tokens.tolist() == [[0, 0, 7, 8, 9, 10]]


def test_the_installed_transformers_takes_its_own_cache_again() -> None:
    """A token's logits after its cached predecessors are those of the whole sequence."""
    model = random_model("Llama", 32)
    ids = torch.arange(6).view(1, 6)
    with torch.no_grad():
        _, cache = forward_with_cache(model, None, input_ids=ids[:, :5])
        last, _ = forward_with_cache(model, cache, input_ids=ids[:, 5:])
        whole = model(input_ids=ids).logits[:, 5:]
        alone = model(input_ids=ids[:, 5:]).logits
    error, missed = (float((x - whole).abs().max()) for x in (last, alone))
    assert error < 2**-12 * missed, "FP32 rounds to 2^-24; the limit is half way to forgetting"


def test_no_other_file_names_the_argument() -> None:
    """The name stands in one place, so that the next renaming is one change."""
    files = [
        p for room in ("precision_lib", "tests/benchmarks") for p in (ROOT / room).rglob("*.py")
    ]
    naming = [p.name for p in files if "past_key_values" in p.read_text(encoding="utf-8")]
    assert naming == ["kv_cache.py"]
