"""Train the embedded policy from nothing but this interpreter's standard library.

The hazard is an artefact that nobody can make again, or a card that nobody measured. One function
goes from source files to checkpoint, prompts and card; every figure in the card is computed from
the finished model in the same run. Batches follow from seed and step alone, so a run that was
interrupted and is started again continues from its last checkpoint with the same batches.

FP32 throughout. The same seed, versions, thread count and processor type give the same weights;
elsewhere sums round in another order, and weights agree in quality rather than in bits.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from precision_lib.jsonio import write_json
from tools.embedded import artefacts, evaluation, optimizer, tokenizer
from tools.embedded.corpus import Corpus, Document, read_corpus
from tools.embedded.recipe import (
    DEFAULT_RECIPE,
    Recipe,
    batch_at,
    context_at,
    learning_rate_at,
)
from tools.embedded.trigram import fit_trigram, token_losses

logger = logging.getLogger(__name__)

DEFAULT_STEPS = 2100


def new_model(recipe: Recipe, seed: int) -> Any:
    """A `LlamaForCausalLM` with random FP32 weights; leaves torch's global generator alone."""
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    special = {f"{name}_token_id": tokenizer.END_OF_TEXT_ID for name in ("bos", "eos", "pad")}
    config = LlamaConfig(
        vocab_size=recipe.vocabulary,
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=recipe.positions,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        dtype="float32",
        **special,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(do_sample=True, temperature=1.0, top_k=0, **special)
    return model


def train_model(
    model: Any,
    stream: NDArray[np.int64],
    recipe: Recipe,
    *,
    steps: int,
    seed: int,
    checkpoint: artefacts.Checkpoint,
) -> float:
    """Train in place, from the last checkpoint if there is one; returns the seconds it took.

    Raises FloatingPointError when the loss is not finite.
    """
    from tqdm import tqdm

    parameters: dict[str, Tensor] = dict(model.named_parameters())
    state = optimizer.new_state(parameters)
    done, seconds_before = artefacts.restore(checkpoint, parameters, state)
    started = time.monotonic()
    model.train()
    for step in tqdm(range(done, steps), initial=done, total=steps, disable=None, unit="step"):
        loss = next_token_loss(
            model, batch_at(stream, step, context_at(step, steps, recipe), recipe, seed)
        )
        if not torch.isfinite(loss):
            raise FloatingPointError(f"loss {loss.item()} at step {step}; lower the learning rate")
        descend(parameters, state, loss, step, steps, recipe)
        seconds = seconds_before + time.monotonic() - started
        if (step + 1) % 25 == 0:
            logger.info("step %d of %d: loss %.3f, %.0f s", step + 1, steps, loss.item(), seconds)
        if (step + 1) % checkpoint.every == 0 and step + 1 < steps:
            artefacts.save(checkpoint, parameters, state, step=step + 1, seconds=seconds)
    model.eval()
    return seconds_before + time.monotonic() - started


def descend(
    parameters: dict[str, Tensor],
    state: dict[str, Tensor],
    loss: Tensor,
    step: int,
    steps: int,
    recipe: Recipe,
) -> None:
    """One step against the clipped gradient of `loss`, in place; `step` counts from 0."""
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters.values(), recipe.clip_norm)
    optimizer.apply_step(
        parameters,
        state,
        step=step + 1,
        learning_rate=learning_rate_at(step, steps, recipe),
        weight_decay=recipe.weight_decay,
    )
    for parameter in parameters.values():
        parameter.grad = None


def next_token_loss(model: Any, batch: Tensor) -> Tensor:
    """Mean cross-entropy of batch[:, 1:] in nats, FP32 scalar; `batch` is int64 [rows, L + 1]."""
    logits = model(input_ids=batch[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


def train_embedded(
    output_dir: Path | str,
    *,
    steps: int = DEFAULT_STEPS,
    seed: int = 0,
    recipe: Recipe = DEFAULT_RECIPE,
    corpus: Corpus | None = None,
    checkpoint_every: int = 50,
) -> dict[str, Any]:
    """Train, evaluate and write the embedded model; returns the card.

    Writes `policy/` (safetensors FP32, tokenizer, configuration), `prompts.json`,
    `held_out_sample.json` and `card.json` below `output_dir`, each under a temporary name first.
    `corpus` defaults to this interpreter's standard library. Global random state and thread count
    are left as they were. Raises ValueError for fewer than one step or too little text.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    output = Path(output_dir)
    output.mkdir(parents=True, exist_ok=True)
    corpus = read_corpus() if corpus is None else corpus
    bpe = tokenizer.train_tokenizer((d.text for d in corpus.train), recipe.vocabulary)
    if not tokenizer.opening_prompts(bpe, corpus.held_out):
        raise ValueError("the held-out text offers no prompt to sample from; give more text")
    train_stream = _stream(bpe, corpus.train)
    model = new_model(recipe, seed)
    identity = {"recipe": asdict(recipe), "steps": steps, "seed": seed, "corpus": corpus.sha256}
    checkpoint = artefacts.Checkpoint(
        output / ".training.safetensors", json.dumps(identity, sort_keys=True), checkpoint_every
    )
    seconds = train_model(
        model, train_stream, recipe, steps=steps, seed=seed, checkpoint=checkpoint
    )
    card = finish(output, model, bpe, corpus, recipe, seed)
    card["training"] = {
        "steps": steps,
        "seed": seed,
        "corpus_sha256": corpus.sha256,
        "train_tokens": len(train_stream),
        "tokens_seen": steps * recipe.tokens_per_step,
        "training_seconds": seconds,
        "recipe": asdict(recipe),
    }
    write_json(output / "card.json", card)
    checkpoint.path.unlink(missing_ok=True)
    return card


def finish(
    output: Path, model: Any, bpe: Any, corpus: Corpus, recipe: Recipe, seed: int
) -> dict[str, Any]:
    """Write policy, prompts and held-out sample of a trained model; returns the card's figures."""
    fast = tokenizer.as_transformers(bpe, recipe.positions)
    prompts = tokenizer.opening_prompts(bpe, corpus.held_out)
    sample = held_out_sample(bpe, corpus.held_out, recipe.held_out_sample_tokens)
    figures = measure(model, fast, corpus, sample, prompts, recipe, seed)
    artefacts.write_model(output / "policy", model, fast)
    write_json(output / "prompts.json", prompts)
    write_json(output / "held_out_sample.json", [d.text for d in sample])
    return {
        "unit": "nats/token",
        **figures,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "model_sha256": artefacts.file_sha256(output / "policy" / "model.safetensors"),
        "versions": artefacts.versions(),
    }


def _stream(bpe: Any, documents: Sequence[Document]) -> NDArray[np.int64]:
    return tokenizer.token_stream(bpe, (document.text for document in documents))


def held_out_sample(bpe: Any, documents: Sequence[Document], tokens: int) -> list[Document]:
    """Evenly spaced held-out documents with at least `tokens` tokens in all, or every one."""
    for stride in range(len(documents), 1, -1):
        chosen = list(documents[::stride])
        if len(_stream(bpe, chosen)) > tokens:
            return chosen
    return list(documents)


def measure(
    model: Any,
    fast: Any,
    corpus: Corpus,
    sample: Sequence[Document],
    prompts: list[str],
    recipe: Recipe,
    seed: int,
) -> dict[str, Any]:
    """The card's figures: held-out text, its shipped sample, and the model's own samples."""
    bpe = fast.backend_tokenizer
    trigram = fit_trigram(_stream(bpe, corpus.train), recipe.vocabulary)
    figures: dict[str, Any] = {}
    for name, documents in (("held_out", corpus.held_out), ("held_out_sample", sample)):
        tokens = _stream(bpe, documents)
        losses, entropies = evaluation.score_stream(model, tokens, recipe.positions)
        arrays = {
            "cross_entropy": losses,
            "trigram_cross_entropy": token_losses(trigram, tokens),
            "entropy": entropies,
        }
        figures[name] = {"tokens": len(losses)} | {k: float(v.mean()) for k, v in arrays.items()}
        if name == "held_out":
            figures[name]["by_position"] = evaluation.by_position(recipe.positions, **arrays)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        figures["own_samples"] = evaluation.sample_statistics(
            model, fast, prompts[: recipe.sample_prompts], max_new_tokens=recipe.sample_tokens
        )
    return figures
