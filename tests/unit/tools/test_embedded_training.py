"""How the embedded model is made: tokenizer, optimizer, evaluation, training."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tools.embedded import (
    corpus,
    evaluation,
    optimizer,
    recipe,
    tokenizer,
    train,
)

pytestmark = pytest.mark.unit

EPS64 = float(np.finfo(np.float64).eps)
EPS32 = float(np.finfo(np.float32).eps)

WORDS = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu".split()  # noqa: SIM905


def tiny_corpus() -> corpus.Corpus:
    """Random word salad: enough for contexts of 32 tokens and a few prompts."""
    generator = np.random.default_rng(0)

    def documents(name: str, count: int) -> tuple[corpus.Document, ...]:
        texts = (" ".join(["A", *generator.choice(WORDS, size=40)]) for _ in range(count))
        return tuple(corpus.Document(name, (text,)) for text in texts)

    return corpus.Corpus(documents("train.py", 40), documents("held_out.py", 6))


TINY = recipe.Recipe(
    vocabulary=tokenizer.SMALLEST_VOCABULARY + 15,
    hidden=16,
    intermediate=24,
    layers=1,
    heads=2,
    positions=32,
    tokens_per_step=64,
    phases=((0.5, 16), (0.5, 32)),
    warmup_steps=1,
    sample_prompts=2,
    sample_tokens=4,
    held_out_sample_tokens=64,
)


# Tokenizer, optimizer, evaluation


def test_end_of_text_cannot_be_written_in_a_text() -> None:
    bpe = tokenizer.train_tokenizer(["some text"], tokenizer.SMALLEST_VOCABULARY)
    fast = tokenizer.as_transformers(bpe, 32)
    text = f"a {tokenizer.END_OF_TEXT}\n\té"
    ids = fast(text).input_ids
    assert ids.count(tokenizer.END_OF_TEXT_ID) == 1
    assert ids[0] == tokenizer.END_OF_TEXT_ID
    assert fast.decode(ids[1:]) == text
    stream = tokenizer.token_stream(fast.backend_tokenizer, [text, text])
    assert (stream == tokenizer.END_OF_TEXT_ID).sum() == 3


def test_orthogonalization_levels_singular_values() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((24, 24), (24, 60), (60, 24)):
        matrix = torch.randn(shape, generator=generator, dtype=torch.float64)
        u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
        want = s / matrix.norm()
        a, b, c = optimizer.NEWTON_SCHULZ
        for _ in range(optimizer.NEWTON_SCHULZ_STEPS):
            want = a * want + b * want**3 + c * want**5
        got = u.mT @ optimizer.orthogonalized(matrix) @ vt.mT
        # 15 products with inner length up to 60, early errors amplified by at most a per round.
        limit = 15 * 60 * EPS64 * a**optimizer.NEWTON_SCHULZ_STEPS
        assert float((got - torch.diag(want)).abs().max()) <= limit
    zero = optimizer.orthogonalized(torch.zeros(3, 4))
    assert zero.dtype == torch.float32
    assert zero.count_nonzero() == 0


def test_vectors_and_embeddings_follow_adamw() -> None:
    generator = torch.Generator().manual_seed(1)
    start = {"embed_tokens.weight": (4, 3), "norm.weight": (3,)}
    values = {n: torch.randn(shape, generator=generator) for n, shape in start.items()}
    mine = {n: v.clone().requires_grad_() for n, v in values.items()}
    theirs = {n: v.clone().requires_grad_() for n, v in values.items()}
    peer = torch.optim.AdamW(
        [
            {"params": [theirs["embed_tokens.weight"]], "weight_decay": 0.1},
            {"params": [theirs["norm.weight"]], "weight_decay": 0.0},
        ],
        lr=0.01,
        betas=(optimizer.BETA_1, optimizer.BETA_2),
        eps=optimizer.EPSILON,
    )
    state = optimizer.new_state(mine)
    steps = 5
    for step in range(1, steps + 1):
        for name in start:
            gradient = torch.randn(start[name], generator=generator)
            mine[name].grad, theirs[name].grad = gradient, gradient.clone()
        optimizer.apply_step(mine, state, step=step, learning_rate=0.01, weight_decay=0.1)
        peer.step()
    for name in start:
        # Two orders of the same operations: about ten roundings per step at the size of the values.
        limit = 10 * steps * EPS32 * float(values[name].abs().max())
        assert float((mine[name] - theirs[name]).detach().abs().max()) <= limit


def test_a_step_without_gradient_names_the_parameter() -> None:
    parameters = {"norm.weight": torch.ones(2)}
    with pytest.raises(ValueError, match=r"norm\.weight has no gradient"):
        optimizer.apply_step(
            parameters,
            optimizer.new_state(parameters),
            step=1,
            learning_rate=0.1,
            weight_decay=0.0,
        )


def test_every_target_is_scored_once_and_in_its_place() -> None:
    size, window = 7, 4

    def counting_model(input_ids: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        """Certain that the next token is the present one plus 1."""
        following = (input_ids + 1) % size
        one_hot = torch.nn.functional.one_hot(following, size).float()
        return SimpleNamespace(logits=torch.where(one_hot > 0, 0.0, -100.0))

    tokens = np.arange(15) % size
    tokens[9] = 0  # one surprise as a target, one as a context
    losses, entropies = evaluation.score_stream(counting_model, tokens, window)
    assert losses.shape == entropies.shape == (14,)
    assert np.flatnonzero(losses > 1).tolist() == [8, 9]
    rows = evaluation.by_position(window, cross_entropy=losses)
    assert sum(row["tokens"] for row in rows) == 14


def test_uniform_predictions_have_the_entropy_of_the_vocabulary() -> None:
    log_probs = evaluation.log_softmax64(torch.zeros(1, 1, 2048))
    # 2048 additions of p log p, each correct to a few units.
    limit = 2048 * EPS64 * np.log(2048)
    assert abs(float(evaluation.entropy64(log_probs)) - np.log(2048)) <= limit


# Training


def test_training_is_deterministic_and_leaves_no_other_files(tmp_path: Path) -> None:
    cards = []
    random_state = torch.get_rng_state()
    for name in ("one", "two"):
        card = train.train_embedded(tmp_path / name, steps=3, recipe=TINY, corpus=tiny_corpus())
        card["training"].pop("training_seconds")
        cards.append(card)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert cards[0] == cards[1]
    files = {p.relative_to(tmp_path / "one").as_posix() for p in (tmp_path / "one").rglob("*.*")}
    assert files == {
        "card.json",
        "held_out_sample.json",
        "prompts.json",
        "policy/config.json",
        "policy/generation_config.json",
        "policy/model.safetensors",
        "policy/tokenizer.json",
        "policy/tokenizer_config.json",
    }
    for file in files - {"card.json"}:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    assert json.loads((tmp_path / "one/card.json").read_text())["training"]["steps"] == 3


def test_text_without_prompts_is_refused_before_training(tmp_path: Path) -> None:
    text = tiny_corpus()
    lower = tuple(corpus.Document(d.path, (d.text.lower(),)) for d in text.held_out)
    with pytest.raises(ValueError, match="offers no prompt"):
        train.train_embedded(
            tmp_path, steps=1, recipe=TINY, corpus=corpus.Corpus(text.train, lower)
        )


def test_an_interrupted_training_continues_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments: dict[str, Any] = {"steps": 4, "recipe": TINY, "corpus": tiny_corpus()}
    train.train_embedded(tmp_path / "whole", **arguments)

    whole_step = optimizer.apply_step

    def interrupted(*args: Any, step: int, **kwargs: Any) -> None:
        if step == 4:
            raise KeyboardInterrupt
        whole_step(*args, step=step, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(optimizer, "apply_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train.train_embedded(tmp_path / "parts", checkpoint_every=2, **arguments)
    with pytest.raises(ValueError, match="belongs to another training"):
        train.train_embedded(tmp_path / "parts", seed=1, **arguments)
    done: list[int] = []

    def recorded(*args: Any, step: int, **kwargs: Any) -> None:
        done.append(step)
        whole_step(*args, step=step, **kwargs)

    monkeypatch.setattr(optimizer, "apply_step", recorded)
    train.train_embedded(tmp_path / "parts", checkpoint_every=2, **arguments)
    assert done == [3, 4]
    whole, parts = (tmp_path / n / "policy/model.safetensors" for n in ("whole", "parts"))
    assert whole.read_bytes() == parts.read_bytes()


def test_an_epoch_sees_adjoining_contexts_once() -> None:
    stream = np.arange(200, dtype=np.int64)
    batches = [recipe.batch_at(stream, step, 16, TINY, 0) for step in range(2)]
    per_epoch = (len(stream) - 1) // 16 - 1
    starts = torch.cat(batches)[:, 0].tolist()[:per_epoch]
    assert len(set(starts)) == len(starts)
    assert len({start % 16 for start in starts}) == 1
    assert not torch.equal(batches[0], batches[1])
    with pytest.raises(ValueError, match="too few for contexts of 128"):
        recipe.batch_at(stream, 0, 128, replace(TINY, tokens_per_step=128), 0)
    with pytest.raises(ValueError, match="no multiple of the context 24"):
        recipe.batch_at(stream, 0, 24, TINY, 0)


def test_learning_rate_warms_up_and_decays_to_almost_nothing() -> None:
    rates = [recipe.learning_rate_at(s, 100, recipe.DEFAULT_RECIPE) for s in range(100)]
    assert rates[0] < rates[10] < max(rates) <= recipe.DEFAULT_RECIPE.peak_learning_rate
    # One more step of the straight line would reach 0; 1 - step / steps rounds once.
    assert abs(rates[-2] - 2 * rates[-1]) <= 2 * EPS64 * recipe.DEFAULT_RECIPE.peak_learning_rate
