"""Small checkpoints of several architectures, saved locally as a user's would be."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from precision_lib.models.loading import Checkpoint

ARCHITECTURES = ("GPT2", "Llama", "Qwen2", "Qwen3")
POSITIONS = 256
#: Whether transformers was imported when the tests of a run were collected.
MODEL_LIBRARY_AT_COLLECTION = pytest.StashKey[bool]()


def pytest_collection_finish(session: pytest.Session) -> None:
    session.config.stash[MODEL_LIBRARY_AT_COLLECTION] = "transformers" in sys.modules


def byte_tokenizer() -> Any:
    """A byte-level tokenizer without merges: 256 bytes and an end-of-text token."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: i for i, symbol in enumerate(["<|endoftext|>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    end = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **end)


def random_model(architecture: str, vocabulary: int, **changes: Any) -> Any:
    """A random model of the architecture; GPT-2 through its own names of the same sizes."""
    import transformers

    from precision_lib.runtime import deterministic

    sizes: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": POSITIONS,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "initializer_range": 0.2,
    }
    if architecture != "GPT2":
        sizes |= {"intermediate_size": 48, "num_key_value_heads": 1}
    config = getattr(transformers, f"{architecture}Config")(**sizes | changes)
    name = "GPT2LMHeadModel" if architecture == "GPT2" else f"{architecture}ForCausalLM"
    with deterministic(0):
        return getattr(transformers, name)(config).eval()


@pytest.fixture(scope="session")
def saved_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Directory of a saved checkpoint of an architecture, made once."""
    made: dict[str, Path] = {}

    def save(architecture: str) -> Path:
        if architecture not in made:
            directory = tmp_path_factory.mktemp(architecture)
            tokenizer = byte_tokenizer()
            random_model(architecture, len(tokenizer)).save_pretrained(directory)
            tokenizer.save_pretrained(directory)
            made[architecture] = directory
        return made[architecture]

    return save


@pytest.fixture(scope="session")
def tiny_llama(saved_checkpoint: Callable[[str], Path]) -> "Checkpoint":
    """A loaded checkpoint of two layers, for tests that need some model."""
    from precision_lib.models.loading import load_checkpoint

    return load_checkpoint(str(saved_checkpoint("Llama")))
