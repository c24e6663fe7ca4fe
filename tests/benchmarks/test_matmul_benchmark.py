"""Time and error of 16-bit steps on the CPU: this suite's path, the native one, and FP32.

The three run in one process. A time alone says little; the table's ratio column against
``fp32`` is the result. Nothing here asserts a time.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture


def forward_backward(
    model: Any, tokens: Any, context: Callable[[], AbstractContextManager[Any]]
) -> Callable[[], None]:
    """One training step's forward and backward of ``model`` inside ``context``."""
    from precision_lib.ppo import logprobs

    def step() -> None:
        with context():
            logits = model(input_ids=tokens, use_cache=False).logits
            logprobs.token_logprobs(*logprobs.shift(logits, tokens)).sum().backward()
        model.zero_grad(set_to_none=True)

    return step


@pytest.mark.parametrize("path", ["fp32", "bf16", "bf16_native"])
def test_forward_backward_of_the_embedded_model(path: str, benchmark: "BenchmarkFixture") -> None:
    """8 sequences of 256 tokens. Target: bf16 at most twice fp32."""
    import torch

    from precision_lib.matmul import FP32AccumulatedMatmul
    from precision_lib.models.loading import load_checkpoint, set_parameters, working_copy

    reference = load_checkpoint().model
    model = working_copy(reference)
    set_parameters(model, reference, "fp32" if path == "fp32" else "bf16")
    model.requires_grad_(True)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, model.config.vocab_size, (8, 256), generator=generator)
    context = FP32AccumulatedMatmul if path == "bf16" else nullcontext
    rounds = 2 if path == "bf16_native" else 5
    benchmark.group = "forward and backward, embedded model, 8 x 256 tokens"
    benchmark.pedantic(forward_backward(model, tokens, context), rounds=rounds, warmup_rounds=1)


@pytest.mark.parametrize("path", ["fp32", "bf16", "bf16_native"])
def test_forward_of_one_token(path: str, benchmark: "BenchmarkFixture") -> None:
    """8 sequences, one token each, as when decoding: the interpreter's overhead dominates."""
    import torch

    from precision_lib.matmul import FP32AccumulatedMatmul
    from precision_lib.models.loading import load_checkpoint, set_parameters, working_copy

    reference = load_checkpoint().model
    model = working_copy(reference)
    set_parameters(model, reference, "fp32" if path == "fp32" else "bf16")
    tokens = torch.arange(8).view(8, 1)

    def step() -> None:
        with torch.no_grad(), FP32AccumulatedMatmul() if path == "bf16" else nullcontext():
            model(input_ids=tokens, use_cache=False)

    benchmark.group = "forward, embedded model, 8 x 1 token"
    benchmark.pedantic(step, rounds=50, warmup_rounds=5)


@pytest.mark.parametrize("path", ["fp32", "bf16", "bf16_native"])
def test_product_768_512_512(path: str, benchmark: "BenchmarkFixture") -> None:
    """One product, with its largest error as a share of the certificate's limit."""
    import torch

    from precision_lib.bounds import gamma, rounding_bound
    from precision_lib.formats import FORMATS
    from precision_lib.matmul import FP32AccumulatedMatmul

    generator = torch.Generator().manual_seed(0)
    shapes = ((768, 512), (512, 512))
    a, b = (torch.randn(*s, generator=generator).bfloat16() for s in shapes)
    exact = a.double() @ b.double()
    accumulation = gamma(512, FORMATS["fp32"]) * (a.double().abs() @ b.double().abs())
    limit = accumulation + rounding_bound(exact.abs() + accumulation, FORMATS["bf16"])
    if path == "fp32":
        a, b = a.float(), b.float()
    with FP32AccumulatedMatmul() if path == "bf16" else nullcontext():
        got = benchmark.pedantic(torch.mm, args=(a, b), rounds=20, warmup_rounds=2)
    share = float(((got.double() - exact).abs() / limit).max())
    benchmark.group = "mm 768 x 512 x 512"
    benchmark.extra_info["largest_error_over_limit"] = share
    if path != "bf16_native":  # the native kernel is measured here, not judged
        assert share <= 1
