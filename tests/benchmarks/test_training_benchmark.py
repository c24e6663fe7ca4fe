"""What a PPO step costs: against its forwards and backwards alone, and by the size of the model.

The hazard. A trainer's own work (bookkeeping, copies, checks, diagnostics) hides in a time per
step, which grows with the machine's load anyway. So the step is measured beside the bare model
calls that it cannot do without, on the same tokens in the same process; the ratio is the result.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

    from precision_lib.models.pipeline import Pipeline
    from precision_lib.training.trainer import Run

#: Layers and width of the models by whose size the cost is shown; the embedded one is 4 x 256.
SIZES = {"0.7M": (2, 128), "3.7M": (4, 256), "11M": (6, 384), "49M": (8, 704)}
CONFIGURATIONS = ("fp32_baseline", "bf16_pure")


def opened(configuration: str, pipeline: "Pipeline", **settings: Any) -> "Run":
    """A run after two steps, so that all buffers are there. Call it inside deterministic()."""
    from precision_lib.matrix import get_configuration
    from precision_lib.training.settings import PPOSettings
    from precision_lib.training.trainer import open_run, ppo_step

    run = open_run(
        pipeline, get_configuration(configuration), PPOSettings(max_steps=100, **settings)
    )
    for _ in range(2):
        ppo_step(run)
    return run


def bare_calls(run: "Run") -> Callable[[], None]:
    """The model calls of one step and nothing else: decoding, scoring, forward and backward."""
    import torch

    from precision_lib.models.kv_cache import forward_with_cache
    from precision_lib.training.forward import sequences_of
    from precision_lib.training.rollout import draw, minibatch_rows

    policy, models, settings = run.weights.working, run.models, run.settings
    sampled = draw(models, run.weights.working, settings, run.step)
    given = sequences_of(sampled, run.weights.master.device)
    rows = minibatch_rows(given, settings, policy)
    first, reward_tokens = given.tokens[:, :1], sampled.reward_tokens.to(given.tokens.device)

    def calls() -> None:
        with torch.no_grad():
            cache = None
            width = given.tokens.shape[1] - settings.max_new_tokens
            ids = given.tokens[:, :width]
            for _ in range(settings.max_new_tokens):
                _, cache = forward_with_cache(policy, cache, input_ids=ids)
                ids = first
            for part in rows:
                policy(input_ids=given.tokens[part], use_cache=False)
                models.reference(input_ids=given.tokens[part], use_cache=False)
            models.reward.base_model(input_ids=reward_tokens, use_cache=False)
        for part in rows * settings.epochs:
            logits = policy(input_ids=given.tokens[part], use_cache=False).logits
            logits.backward(torch.full_like(logits, 1e-3))
            for parameter in policy.parameters():
                parameter.grad = None

    return calls


@pytest.mark.parametrize("part", ["forwards_and_backwards", "step"])
@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_step_of_the_embedded_model(
    configuration: str, part: str, benchmark: "BenchmarkFixture", device: str
) -> None:
    """16 sequences of 24 new tokens. Target: the step at most 1.3 times its model calls."""
    from precision_lib.matrix import get_configuration
    from precision_lib.models.pipeline import load_pipeline
    from precision_lib.runtime import deterministic
    from precision_lib.training.trainer import ppo_step

    pipeline = load_pipeline(device=device)
    low = "bf16" in get_configuration(configuration).components.values()
    with deterministic(native_products=not low or device != "cpu"):
        run = opened(configuration, pipeline)
        call = bare_calls(run) if part == "forwards_and_backwards" else (lambda: ppo_step(run))
        benchmark.group = f"PPO step, embedded model, {configuration}"
        benchmark.pedantic(call, rounds=6, warmup_rounds=1)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_step_by_model_size(
    configuration: str, size: str, benchmark: "BenchmarkFixture", device: str
) -> None:
    """Seconds and memory of a step of random Llamas with the embedded model's vocabulary."""
    from precision_lib.matrix import get_configuration
    from precision_lib.runtime import deterministic
    from precision_lib.training.trainer import ppo_step
    from tests.benchmarks.measure import peak_mib

    low = "bf16" in get_configuration(configuration).components.values()
    with deterministic(native_products=not low or device != "cpu"):
        run = opened(configuration, random_llama_pipeline(*SIZES[size], device))
        benchmark.group = f"PPO step by model size, {configuration}"
        peak = peak_mib(lambda: ppo_step(run), device)
        benchmark.pedantic(lambda: ppo_step(run), rounds=3, warmup_rounds=0)
        parameters = len(run.weights.low)
        benchmark.extra_info |= {
            "parameters": parameters,
            "transient_peak_mib": peak,
            "resident_bytes_per_parameter": resident_bytes(run) / parameters,
        }


def resident_bytes(run: "Run") -> int:
    """Bytes of the tensors that a run keeps between two steps, the reward model's left out."""
    weights, pipeline = run.weights, run.models.pipeline
    state = weights.optimizer.state[weights.master]
    tensors = [weights.master, weights.gradient, state["exp_avg"], state["exp_avg_sq"]]
    if weights.low.dtype != weights.master.dtype:
        tensors.append(weights.low)
    tensors += list(pipeline.policy.model.parameters())
    if run.models.reference is not pipeline.reference.model:
        tensors += list(run.models.reference.parameters())
    return sum(t.numel() * t.element_size() for t in tensors)


def random_llama_pipeline(layers: int, width: int, device: str) -> "Pipeline":
    """The embedded pipeline with a random Llama of another size as the policy."""
    import dataclasses

    import transformers

    from precision_lib.models.loading import load_checkpoint, parameter_digest
    from precision_lib.models.pipeline import load_pipeline

    embedded = load_checkpoint(device=device)
    config = transformers.LlamaConfig(
        vocab_size=embedded.model.config.vocab_size,
        hidden_size=width,
        intermediate_size=width * 43 // 16,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        attn_implementation="eager",
    )
    model = transformers.LlamaForCausalLM(config).to(device).eval().requires_grad_(False)
    policy = dataclasses.replace(
        embedded, model=model, name="random", sha256=parameter_digest(model)
    )
    pipeline = load_pipeline(device=device)
    return dataclasses.replace(pipeline, policy=policy, reference=policy, value_head=None)
