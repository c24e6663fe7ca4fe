"""``python -m tools.scaling``: the bf16 error of a log-prob against depth, width and vocabulary.

``python -m tools.scaling [--model DIR --prompts FILE] --json docs/records/scaling.json``

The hazard. A measurement on a small model says nothing about a large one without a law, and a law
that was fitted to everything predicts nothing. So the law is fitted on random Llama models alone.
Qwen3, GPT-2 and trained models only test it.

Expected before measuring, with the unit roundoff u = 2**-8 of bf16. A rounding has a mean squared
relative error of c u**2, where c = 1 / (8 ln 2) for mantissas that are uniform in the logarithm.
Each of D layers rounds the residual stream twice, and its parts round besides. Independent errors
add in squares, so the squared relative error of the hidden state that the LM head reads is::

    e**2 = u**2 * (a + b * D)

A log-prob sees it through the rows w of the LM head, where p are the model's probabilities::

    lever_t**2 = mean(h**2) * |w_t - sum_v p_v w_v|**2
    rounding_t**2 = c u**2 * (z_t**2 * (1 - p_t)**2 + sum_{v != t} p_v**2 z_v**2)
    sigma**2 = mean(lever**2) * e**2 + mean(rounding**2)

The second sum is that of the logits z, which come out in bf16. Width and vocabulary enter through
the lever alone, and nothing in the last line is fitted.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from precision_lib.environment import set_environment
from precision_lib.exit_codes import OK, USAGE
from precision_lib.forensics.statistics import estimate, resample
from precision_lib.jsonio import write_json
from precision_lib.metrics.measure import Array, root_mean_square
from precision_lib.models.loading import (
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    set_parameters,
    working_copy,
)
from precision_lib.record.codec import encode
from precision_lib.record.context import run_context
from precision_lib.runtime import deterministic
from precision_lib.scoring.forward import rows_per_forward, trunk_and_logits
from precision_lib.trajectories.prompt_file import PromptsError, with_prompts
from precision_lib.trajectories.prompts import encoded_prompts, prompt_order
from precision_lib.trajectories.sampling import Responses, sample_responses

SCHEMA = "precision-forensics scaling 1"
#: Unit roundoff of bf16, and the mean squared relative error of a rounding in its square.
ROUNDOFF, ROUNDING = 2.0**-8, 1 / (8 * math.log(2))
#: Standard deviation of a random model's logits, nats. Around the mean of a token's logits the
#: embedded model's have 3.6 and SmolLM2's 3.0. The law takes rows and states as measured.
LOGIT_SPREAD = 2.5
#: Standard deviation of a product's result over that of its input, in a random model. With weights
#: of one standard deviation it would grow with the width, and the hidden error with it.
GAIN = 0.32
FITTED, TESTED = "fitted", "tested"


@dataclass(frozen=True)
class Shape:
    """Sizes of a model.

    Attributes:
        architecture: name of the transformers family.
        depth: D, layers.
        width: of the residual stream.
        vocabulary: V, entries.
    """

    architecture: str
    depth: int
    width: int
    vocabulary: int


@dataclass(frozen=True)
class Size:
    """How much is measured on a model.

    Attributes:
        sequences: each of a prompt of its own.
        prompt_tokens: of a random model's prompts, drawn uniformly.
        response_tokens: of each sequence.
        seed: of weights, prompts, responses and resampling.
    """

    sequences: int = 16
    prompt_tokens: int = 8
    response_tokens: int = 32
    seed: int = 0


#: One size varies at a time: depth, width, vocabulary.
RANDOM_LLAMAS = (
    *(Shape("Llama", depth, 256, 8192) for depth in (2, 4, 8, 16, 32)),
    *(Shape("Llama", 8, width, 8192) for width in (128, 512, 768)),
    *(Shape("Llama", 8, 256, vocabulary) for vocabulary in (1024, 49152)),
)
#: What the law has not seen: other architectures, and a Llama of over 100 million parameters.
RANDOM_OTHERS = (
    Shape("Llama", 14, 768, 16384),
    Shape("Qwen3", 8, 256, 8192),
    Shape("Qwen3", 24, 512, 8192),
    Shape("GPT2", 8, 256, 8192),
    Shape("GPT2", 12, 768, 16384),
)


def random_model(shape: Shape, seed: int) -> Any:
    """A model with random weights, whose logits have :data:`LOGIT_SPREAD`."""
    import transformers

    sizes: dict[str, Any] = {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.width,
        "num_hidden_layers": shape.depth,
        "num_attention_heads": shape.width // 64,
        "tie_word_embeddings": False,
        "attn_implementation": "eager",
        "initializer_range": GAIN / math.sqrt(shape.width),
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    if shape.architecture != "GPT2":
        sizes |= {"intermediate_size": 3 * shape.width, "head_dim": 64}
        sizes |= {"num_key_value_heads": shape.width // 64}
    config = getattr(transformers, f"{shape.architecture}Config")(**sizes)
    name = "GPT2LMHeadModel" if shape.architecture == "GPT2" else f"{shape.architecture}ForCausalLM"
    with deterministic(seed, native_products=True), torch.no_grad():
        model = getattr(transformers, name)(config).eval().requires_grad_(False)
        _, logits = trunk_and_logits(model, torch.randint(shape.vocabulary, (4, 16)))
        model.get_output_embeddings().weight.mul_(LOGIT_SPREAD / float(logits.std()))
    return model


def random_responses(model: Any, size: Size) -> Responses:
    """Responses of a model to random prompts of one length."""
    vocabulary = model.get_input_embeddings().num_embeddings
    generator = np.random.default_rng(size.seed)
    prompts = generator.integers(vocabulary, size=(size.sequences, size.prompt_tokens)).tolist()
    with deterministic(size.seed, native_products=True):
        return sample_responses(model, prompts, size.response_tokens, seed=size.seed)


def prompted_responses(checkpoint: Checkpoint, size: Size) -> Responses:
    """Responses of a trained model to its own prompts."""
    numbers = prompt_order(checkpoint, size.sequences, size.seed)
    with deterministic(size.seed, native_products=True):
        return sample_responses(
            checkpoint.model,
            encoded_prompts(checkpoint, numbers),
            size.response_tokens,
            seed=size.seed,
            pad=checkpoint.tokenizer.pad_token_id or 0,
        )


def measured(model: Any, responses: Responses, seed: int) -> dict[str, Any]:
    """Errors of a model in bf16 against itself in FP32, on the same tokens.

    Returns:
        ``sigma`` (RMS error of a log-prob, nats, with its interval), ``hidden_error`` (e, relative,
        RMS), ``lever`` and ``rounding`` (nats RMS), and ``parameters``.
    """
    tested = working_copy(model)
    set_parameters(tested, model, "bf16")
    rows = max(1, rows_per_forward(responses.tokens.shape[1], model) // 4)
    parts = [_sums(model, tested, part) for _, part in responses.micro_batches(rows)]
    sums = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    resampling = resample(np.arange(len(responses.tokens)), seed)
    tokens = int(sums["tokens"].sum())

    def rms(name: str) -> float:
        return math.sqrt(float(sums[name].sum()) / tokens)

    sigma = estimate(sums, root_mean_square("error", "tokens"), resampling, n=tokens, unit="nats")
    return {
        "sigma": encode(sigma),
        "hidden_error": rms("hidden"),
        "lever": rms("lever"),
        "rounding": rms("rounding"),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


@torch.no_grad()
def _sums(model: Any, tested: Any, part: Responses) -> dict[str, Array]:
    """Per sequence: squares of the errors, and of what the law predicts them from."""
    mask = part.mask[:, 1:]
    with deterministic(native_products=True):
        states, logits = trunk_and_logits(model, part.tokens)
    with deterministic():
        rounded_states, rounded = trunk_and_logits(tested, part.tokens)
    states, rounded_states = states[:, :-1], rounded_states[:, :-1].float()
    logits, targets = logits[:, :-1].double(), part.tokens[:, 1:]
    logprobs = logits.log_softmax(-1)
    error = _of(rounded[:, :-1].double().log_softmax(-1), targets) - _of(logprobs, targets)
    head = model.get_output_embeddings().weight
    probabilities = logprobs.exp()
    away = head[targets] - probabilities.float() @ head
    relative = (rounded_states - states).square().sum(-1) / states.square().sum(-1)
    weights = probabilities.scatter(
        -1, targets[..., None], 1 - _of(probabilities, targets)[..., None]
    )
    squares = {
        "error": error.square(),
        "hidden": relative,
        "lever": states.square().mean(-1) * away.square().sum(-1),
        "rounding": ROUNDING * ROUNDOFF**2 * (weights * logits).square().sum(-1),
        "tokens": torch.ones_like(error),
    }
    return {k: torch.where(mask, x.double(), 0.0).sum(1).numpy() for k, x in squares.items()}


def _of(values: Tensor, targets: Tensor) -> Tensor:
    return values.gather(-1, targets[..., None])[..., 0]


def fitted(models: Sequence[dict[str, Any]]) -> dict[str, float]:
    """a and b of e**2 = u**2 (a + b D), by least squares of the relative deviation.

    Raises:
        ValueError: models of fewer than three depths, which any line would fit.
    """
    chosen = [m for m in models if m["use"] == FITTED]
    depths = np.array([m["depth"] for m in chosen], dtype=np.float64)
    if len(set(depths)) < 3:
        raise ValueError(
            f"models of {len(set(depths))} depths: a line needs at least 3 to be tested"
        )
    squares = np.array([(m["hidden_error"] / ROUNDOFF) ** 2 for m in chosen])
    columns = np.stack([np.ones_like(depths), depths], 1) / squares[:, None]
    (a, b), *_ = np.linalg.lstsq(columns, np.ones_like(squares), rcond=None)
    return {"a": float(a), "b": float(b)}


def predicted(model: dict[str, Any], law: dict[str, float]) -> dict[str, float]:
    """What the law says of a model: its hidden error, and sigma from that and the measured one."""
    hidden = ROUNDOFF * math.sqrt(law["a"] + law["b"] * model["depth"])

    def sigma(e: float) -> float:
        return math.hypot(model["lever"] * e, model["rounding"])

    return {
        "hidden_error": hidden,
        "sigma": sigma(hidden),
        "sigma_of_measured_hidden_error": sigma(model["hidden_error"]),
    }


def shape_of(model: Any) -> Shape:
    """Sizes of a loaded model."""
    config = model.config
    return Shape(
        type(model).__name__,
        int(config.num_hidden_layers),
        int(config.hidden_size),
        int(model.get_input_embeddings().num_embeddings),
    )


def study(trained: Sequence[Checkpoint], size: Size) -> dict[str, Any]:
    """Measure all models, fit the law, and predict each from it; the record, JSON-ready."""
    models: list[dict[str, Any]] = []
    bar = tqdm(total=len(RANDOM_LLAMAS) + len(RANDOM_OTHERS) + len(trained), unit="model")

    def add(name: str, use: str, model: Any, responses: Responses) -> None:
        figures = measured(model, responses, size.seed)
        models.append({"name": name, "use": use, **asdict(shape_of(model)), **figures})
        bar.update()

    for use, shapes in ((FITTED, RANDOM_LLAMAS), (TESTED, RANDOM_OTHERS)):
        for shape in shapes:
            model = random_model(shape, size.seed)
            add("random", use, model, random_responses(model, size))
    for checkpoint in trained:
        add(checkpoint.name, TESTED, checkpoint.model, prompted_responses(checkpoint, size))
    bar.close()
    law = fitted(models)
    return {
        "schema": SCHEMA,
        "context": run_context("cpu", size.seed),
        "settings": asdict(size),
        "law": law,
        "models": [model | {"predicted": predicted(model, law)} for model in models],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(prog="python -m tools.scaling")
    parser.add_argument("--model", help="a trained model beside the embedded one")
    parser.add_argument("--prompts", type=Path, help="of that model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args(arguments)
    set_environment()
    try:
        trained = [load_checkpoint()]
        if options.model:
            trained.append(with_prompts(load_checkpoint(options.model), options.prompts))
    except (CheckpointError, PromptsError) as error:
        print(error, file=sys.stderr)  # noqa: T201
        return USAGE
    write_json(options.json, study(trained, Size(seed=options.seed)))
    return OK


if __name__ == "__main__":
    sys.exit(main())
