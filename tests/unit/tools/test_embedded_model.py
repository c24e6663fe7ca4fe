"""The shipped model is what its card says: figures, prompts, sizes, and the text it never saw."""

import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from precision_lib.models import embedded
from tests.unit.small_blocks import read
from tools.embedded import artefacts, corpus, evaluation, recipe, tokenizer, trigram

pytestmark = pytest.mark.unit

# Decisions, not tolerances: what the project asks of its embedded model.
MARGIN_NATS = 0.5
ENTROPY_NATS = (1.5, 4.0)
POLICY_BYTES = 17_000_000
EMBEDDED_BYTES = 40_000_000
PROMPTS = 256

POSITIONS = recipe.DEFAULT_RECIPE.positions


@pytest.fixture(scope="module")
def card() -> dict[str, Any]:
    return read(embedded.CARD_FILE)


@pytest.fixture(scope="module")
def fast() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(embedded.POLICY_DIR)


@pytest.fixture(scope="module")
def model() -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        return AutoModelForCausalLM.from_pretrained(embedded.POLICY_DIR, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def sample(fast: Any) -> Any:
    """Token stream of the shipped held-out documents."""
    return tokenizer.token_stream(fast.backend_tokenizer, embedded.load_held_out_sample())


@pytest.fixture(scope="module")
def sample_scores(model: Any, sample: Any) -> tuple[Any, Any]:
    return evaluation.score_stream(model, sample, POSITIONS)


@pytest.fixture(scope="module")
def text(card: dict[str, Any]) -> corpus.Corpus:
    """The very text of the card, where this interpreter has it."""
    local = corpus.read_corpus()
    if local.sha256 != card["training"]["corpus_sha256"]:
        made_with = card["versions"]["python"]
        pytest.skip(
            f"Python {platform.python_version()} has other documentation than {made_with},"
            " with which the model was made"
        )
    return local


def fp32_limit(model: Any, tokens: Any) -> float:
    """How far two FP32 evaluations of a log-prob may differ, in nats.

    Two runs, two logits each, of error sqrt(k) u max|logit|: k roundings in a row on the longest
    path through the layers, u = 2^-24 (the probabilistic bound of Higham and Mary 2019).
    """
    import torch

    c = model.config
    per_layer = 3 * c.hidden_size + c.hidden_size // c.num_attention_heads
    per_layer += POSITIONS + c.intermediate_size
    roundings = c.num_hidden_layers * per_layer + c.hidden_size
    with torch.no_grad():
        largest = model(input_ids=torch.from_numpy(tokens[:256])[None]).logits.abs().max()
    limit: float = 4 * float(largest) * roundings**0.5 * 2.0**-24
    return limit


def test_card_belongs_to_this_checkpoint(card: dict[str, Any], model: Any) -> None:
    assert artefacts.file_sha256(embedded.POLICY_DIR / "model.safetensors") == card["model_sha256"]
    assert sum(p.numel() for p in model.parameters()) == card["parameters"]
    assert {str(p.dtype) for p in model.parameters()} == {"torch.float32"}


def test_card_gives_the_loss_and_entropy_that_the_checkpoint_really_has(
    card: dict[str, Any], model: Any, sample: Any, sample_scores: tuple[Any, Any]
) -> None:
    losses, entropies = sample_scores
    written = card["held_out_sample"]
    limit = fp32_limit(model, sample)
    assert len(losses) == written["tokens"] >= POSITIONS
    assert abs(losses.mean() - written["cross_entropy"]) <= limit
    # d entropy = -sum dp log p: the largest -log p of a distribution multiplies the error.
    assert abs(entropies.mean() - written["entropy"]) <= limit * losses.max()


def test_a_damaged_checkpoint_would_not_agree_with_the_card(
    card: dict[str, Any], model: Any, sample: Any
) -> None:
    weight = model.model.layers[1].mlp.down_proj.weight.data
    original = weight.clone()
    try:
        weight[:8] = 0
        losses, _ = evaluation.score_stream(model, sample, POSITIONS)
    finally:
        weight.copy_(original)
    difference = abs(losses.mean() - card["held_out_sample"]["cross_entropy"])
    assert difference > fp32_limit(model, sample)


def test_model_beats_the_trigram_model_by_half_a_nat_on_the_same_tokens(
    card: dict[str, Any],
) -> None:
    held_out = card["held_out"]
    assert held_out["cross_entropy"] <= held_out["trigram_cross_entropy"] - MARGIN_NATS
    assert sum(row["tokens"] for row in held_out["by_position"]) == held_out["tokens"]


@pytest.mark.parametrize("name", ["held_out", "held_out_sample", "own_samples"])
def test_predictions_are_neither_certain_nor_uniform(card: dict[str, Any], name: str) -> None:
    low, high = ENTROPY_NATS
    assert low <= card[name]["entropy"] <= high


def test_card_knows_positions_up_to_the_end_of_the_context(card: dict[str, Any]) -> None:
    rows = card["held_out"]["by_position"]
    assert (rows[0]["first"], rows[-1]["last"]) == (0, POSITIONS - 1)
    for row in rows:
        assert row["cross_entropy"] < row["trigram_cross_entropy"], f"positions of {row}"


def test_long_contexts_do_no_harm(model: Any, sample: Any, sample_scores: tuple[Any, Any]) -> None:
    short, _ = evaluation.score_stream(model, sample, 256)
    difference = (sample_scores[0] - short)[1024:POSITIONS]
    assert difference.size == 1024
    # Two standard errors of the paired mean: worse by more would not be chance.
    assert difference.mean() <= 2 * difference.std(ddof=1) / difference.size**0.5


def test_trigram_figure_of_the_card_comes_from_the_training_text(
    card: dict[str, Any], fast: Any, text: corpus.Corpus, sample: Any
) -> None:
    train_stream = tokenizer.token_stream(fast.backend_tokenizer, (d.text for d in text.train))
    assert len(train_stream) == card["training"]["train_tokens"]
    fitted = trigram.fit_trigram(train_stream, len(fast))
    got = trigram.token_losses(fitted, sample).mean()
    # float64: a mean of n losses, each from a dozen roundings.
    limit = (len(sample) + 12) * float(np.finfo(np.float64).eps) * got
    assert abs(got - card["held_out_sample"]["trigram_cross_entropy"]) <= limit
    pairs = np.tile(sample[500:502], (len(fast), 1))
    total = trigram.token_probabilities(fitted, pairs, np.arange(len(fast))).sum()
    assert abs(total - 1) <= (len(fast) + 12) * float(np.finfo(np.float64).eps)


def _long_lines(documents: tuple[corpus.Document, ...]) -> Iterator[str]:
    for document in documents:
        for line in document.text.splitlines():
            if len(line.split()) >= corpus.SHINGLE_WORDS:
                yield " ".join(line.split())


def test_held_out_text_was_never_seen(text: corpus.Corpus) -> None:
    held_out, train = ({d.path for d in split} for split in (text.held_out, text.train))
    assert not held_out & train
    assert all(corpus.is_held_out(path) for path in held_out)
    lines = set(_long_lines(text.held_out))
    assert len(lines) > 100
    assert not lines & set(_long_lines(text.train))


def test_held_out_sample_and_prompts_are_held_out_text(text: corpus.Corpus) -> None:
    assert set(embedded.load_held_out_sample()) <= {d.text for d in text.held_out}
    units = tuple(unit for d in text.held_out for unit in d.units)
    assert all(any(u.startswith(prompt) for u in units) for prompt in embedded.load_prompts())


def test_prompts_are_many_distinct_and_of_useful_length(fast: Any) -> None:
    prompts = embedded.load_prompts()
    assert len(set(prompts)) == len(prompts) >= PROMPTS
    low, high = tokenizer.PROMPT_TOKENS
    for prompt in prompts:
        ids = fast(prompt).input_ids
        assert low <= len(ids) <= high, prompt
        assert ids[0] == fast.bos_token_id, prompt
        assert fast.decode(ids[1:]) == prompt


def test_files_are_small_and_hold_no_pickle() -> None:
    def size(directory: Path) -> int:
        return sum(f.stat().st_size for f in directory.rglob("*") if "__pycache__" not in f.parts)

    assert size(embedded.POLICY_DIR) <= POLICY_BYTES
    assert size(embedded.EMBEDDED_DIR) < EMBEDDED_BYTES
    suffixes = {f.suffix for f in embedded.POLICY_DIR.iterdir()}
    assert suffixes == {".json", ".safetensors"}


def test_importing_the_package_loads_no_model_library() -> None:
    import subprocess
    import sys

    code = (
        "import sys, precision_lib.models.embedded as e; e.load_prompts();"
        " assert not {'torch', 'transformers', 'tokenizers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_artefact_says_how_to_make_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "PROMPTS_FILE", tmp_path / "prompts.json")
    missing = r"prompts\.json is missing .*tools\.embedded train"
    with pytest.raises(FileNotFoundError, match=missing):
        embedded.load_prompts()
    (tmp_path / "prompts.json").write_text("{}")
    with pytest.raises(ValueError, match="must hold a list of strings"):
        embedded.load_prompts()
