"""Train the embedded reward model and value head from the embedded policy and its own text.

The hazard is a reward that is right at one length. A reward model is read at the last token of
sequences of any length, and its score may drift with the position for no reason at all, because
the Bradley-Terry loss of two texts of one length does not see a drift that both share. So the loss
is taken at every prefix of a pair, and between prefixes of different length:

    loss = -mean log sigmoid(s_chosen[t] - s_rejected[t']),  half of it over t' = t,
                                                             half over all t, t'

over positions t from the first on that a prompt can end at, and t' from the first damaged one on.

The model is the policy's embedding, first layers and final norm with a score head; all weights are
trained, in FP32. Scores are not normalised: where they lie and how far they spread is what training
gave, as with any reward model. The same seed, versions, thread count and processor type give the
same weights.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from precision_lib.jsonio import write_json
from precision_lib.models.loading import EMBEDDED, Checkpoint, load_checkpoint
from precision_lib.models.value_head import save_value_head
from tools.embedded import artefacts, reward_evaluation
from tools.embedded.corpus import Corpus, read_corpus
from tools.embedded.preferences import (
    Pair,
    batch_at,
    held_out_pairs,
    hot_pairs,
    padded,
    passages,
    small_selection,
    unigram,
    write_pairs,
)
from tools.embedded.tokenizer import PROMPT_TOKENS, as_transformers, opening_prompts

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RewardRecipe:
    """Everything that decides the result besides policy, text and seed."""

    layers: int = 2
    steps: int = 1000
    pairs_per_step: int = 16
    peak_learning_rate: float = 1e-3
    warmup_steps: int = 40
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    hot_passages: int = 2048
    held_out_hot: int = 256
    shipped_pairs: int = 128
    sample_prompts: int = 256
    value_prompts: int = 3072
    value_samples: int = 4


DEFAULT_RECIPE = RewardRecipe()


def train_reward(
    output_dir: Path | str,
    *,
    policy: str = EMBEDDED,
    seed: int = 0,
    recipe: RewardRecipe = DEFAULT_RECIPE,
    corpus: Corpus | None = None,
) -> dict[str, Any]:
    """Train, evaluate and write reward model and value head; returns the card.

    Writes `reward/` (safetensors FP32, tokenizer, configuration), `value_head.safetensors`,
    `held_out_pairs.json` and `reward_card.json` below `output_dir`, each under a temporary name
    first. `policy` is the embedded one, or a directory that `train_embedded` wrote; `corpus`
    defaults to this interpreter's standard library and should be the policy's. Global random state
    and thread count are left as they were. Raises ValueError for too little text.
    """
    output = Path(output_dir)
    output.mkdir(parents=True, exist_ok=True)
    corpus = read_corpus() if corpus is None else corpus
    checkpoint = load_checkpoint(policy)
    bpe = checkpoint.tokenizer.backend_tokenizer
    train, held_out = passages(bpe, corpus.train), passages(bpe, corpus.held_out)
    openings = [bpe.encode(prompt).ids for prompt in opening_prompts(bpe, corpus.train)]
    prompts = [bpe.encode(prompt).ids for prompt in opening_prompts(bpe, corpus.held_out)]
    if not train or not openings or min(len(held_out), len(prompts)) < 2:
        raise ValueError(
            f"{len(train)} passages and {len(openings)} prompts to train on, {len(held_out)} "
            f"passages and {len(prompts)} prompts held out are too few; give more text"
        )
    order = np.random.default_rng(seed).permutation(len(openings))
    openings = [openings[i] for i in order[: recipe.value_prompts]]
    started = time.monotonic()
    hot = hot_pairs(checkpoint.model, train, recipe.hot_passages, seed)
    logger.info("%d hot continuations, %.0f s", len(hot), time.monotonic() - started)
    model = new_reward_model(checkpoint.model, recipe.layers, seed)
    train_model(model, train, hot, recipe, seed)
    seconds = time.monotonic() - started
    pairs = held_out_pairs(
        held_out,
        hot_pairs(checkpoint.model, held_out, recipe.held_out_hot, seed + 1),
        unigram(train, model.config.vocab_size),
        seed,
    )
    card = finish(output, model, checkpoint, pairs, openings, prompts, recipe, seed)
    card["training"] = {
        "seed": seed,
        "policy_sha256": checkpoint.sha256,
        "corpus_sha256": corpus.sha256,
        "train_passages": len(train),
        "held_out_passages": len(held_out),
        "training_seconds": seconds,
        "recipe": asdict(recipe),
    }
    write_json(output / "reward_card.json", card)
    return card


def finish(
    output: Path,
    model: Any,
    checkpoint: Checkpoint,
    pairs: Sequence[Pair],
    train_prompts: Sequence[list[int]],
    prompts: Sequence[list[int]],
    recipe: RewardRecipe,
    seed: int,
) -> dict[str, Any]:
    """Write reward model, value head and held-out pairs; returns the card's figures."""
    shipped = small_selection(pairs, recipe.shipped_pairs)
    figures = {
        "unit": "log odds",
        "held_out": reward_evaluation.pair_figures(model, pairs),
        "held_out_pairs": reward_evaluation.pair_figures(model, shipped),
        "own_samples": reward_evaluation.sample_figures(
            model, checkpoint.model, prompts[: recipe.sample_prompts], seed + 2
        ),
    }
    head, figures["value_head"] = reward_evaluation.fit_embedded_value_head(
        checkpoint.model, model, train_prompts, prompts, recipe.value_samples, seed + 3
    )
    fast = as_transformers(
        checkpoint.tokenizer.backend_tokenizer, model.config.max_position_embeddings
    )
    artefacts.write_model(output / "reward", model, fast)
    save_value_head(head, output / "value_head.safetensors")
    write_pairs(output / "held_out_pairs.json", shipped)
    return {
        **figures,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "model_sha256": artefacts.file_sha256(output / "reward" / "model.safetensors"),
        "value_head_sha256": artefacts.file_sha256(output / "value_head.safetensors"),
        "versions": artefacts.versions(),
    }


def new_reward_model(policy: Any, layers: int, seed: int) -> Any:
    """A sequence classifier with one label on the policy's first layers; FP32, random score head.

    Shares no tensor with `policy`. Leaves torch's global generator alone.
    """
    from transformers import AutoModelForSequenceClassification

    config = copy.deepcopy(policy.config)
    config.num_hidden_layers, config.num_labels = layers, 1
    config.tie_word_embeddings = False
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager")
    own = model.base_model.state_dict()
    theirs = policy.base_model.state_dict()
    model.base_model.load_state_dict({name: theirs[name] for name in own})
    return model.requires_grad_(True)


def prefix_scores(model: Any, tokens: Tensor) -> Tensor:
    """[N, R] FP32: the score of every prefix of `tokens` [N, R] int64."""
    hidden = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
    scores: Tensor = model.score(hidden).squeeze(-1)
    return scores


def preference_loss(
    chosen: Tensor, rejected: Tensor, chosen_real: Tensor, rejected_real: Tensor
) -> Tensor:
    """The loss of the module docstring, a mean over pairs, FP32 scalar.

    Scores [N, R] of prefixes; the masks are True where a prefix counts. A pair without a prefix
    that counts on both sides has loss 0.
    """
    both = chosen_real.unsqueeze(2) & rejected_real.unsqueeze(1)
    losses = -torch.nn.functional.logsigmoid(chosen.unsqueeze(2) - rejected.unsqueeze(1))
    losses = torch.where(both, losses, 0.0)
    same = both.diagonal(dim1=1, dim2=2)
    at_same = losses.diagonal(dim1=1, dim2=2).sum(1) / same.sum(1).clamp(min=1)
    at_any = losses.sum((1, 2)) / both.sum((1, 2)).clamp(min=1)
    return (0.5 * at_same + 0.5 * at_any).mean()


def pair_loss(model: Any, pairs: Sequence[Pair]) -> Tensor:
    """:func:`preference_loss` of one batch of pairs, from one forward."""
    tokens, lengths = padded([p.chosen for p in pairs] + [p.rejected for p in pairs])
    scores = prefix_scores(model, tokens)
    n = len(pairs)
    position = torch.arange(tokens.shape[1])
    real = (position < lengths.unsqueeze(1)) & (position >= PROMPT_TOKENS[0] - 1)
    damaged = (tokens[:n] != tokens[n:]).cumsum(1) > 0
    return preference_loss(scores[:n], scores[n:], real[:n], real[n:] & damaged)


def train_model(
    model: Any, texts: Sequence[list[int]], hot: Sequence[Pair], recipe: RewardRecipe, seed: int
) -> float:
    """Train in place with AdamW; returns the seconds it took.

    Raises FloatingPointError when the loss is not finite.
    """
    from tqdm import tqdm

    shares = unigram(texts, model.config.vocab_size)
    started = time.monotonic()
    model.train()
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": recipe.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        betas=(0.9, 0.95),
    )
    for step in tqdm(range(recipe.steps), disable=None, unit="step"):
        pairs = batch_at(
            step, pairs=recipe.pairs_per_step, texts=texts, hot=hot, shares=shares, seed=seed
        )
        loss = pair_loss(model, pairs)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"loss {loss.item()} at step {step}; lower the learning rate")
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, recipe)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        optimizer.step()
        if (step + 1) % 25 == 0:
            seconds = time.monotonic() - started
            logger.info(
                "step %d of %d: loss %.3f, %.0f s", step + 1, recipe.steps, loss.item(), seconds
            )
    model.eval().requires_grad_(False)
    return time.monotonic() - started


def learning_rate_at(step: int, recipe: RewardRecipe) -> float:
    """Linear warm-up, then linear decay that would reach 0 just after the last step."""
    warm_up = min(1.0, (step + 1) / (recipe.warmup_steps + 1))
    return recipe.peak_learning_rate * min(warm_up, 1 - step / recipe.steps)
