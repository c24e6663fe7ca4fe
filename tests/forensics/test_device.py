"""What the device in use is asked for, measured: FP32 sums, one rounding, exact steps, same bits.

With --gpu these are statements on the GPU. A run with NVIDIA_TF32_OVERRIDE=1 must end red there.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from precision_lib.forensics import device as checks
from precision_lib.forensics.device_inputs import INNER, OPERANDS
from precision_lib.formats import FORMATS, Format, get_format, round_to, ulp
from precision_lib.ppo import logprobs, masked
from precision_lib.runtime import deterministic

if TYPE_CHECKING:
    from precision_lib.models.loading import Checkpoint

#: Rows and columns: of drawing a token, and of a forward over sequences.
SHAPES = ((8, 256), (160, 256))
HINT = "unset NVIDIA_TF32_OVERRIDE and CUBLAS_EMULATE_SINGLE_PRECISION if they are set"
MATRIX_FORMATS = ("fp64", "fp32", "fp16", "bf16")


def native_cast(x: Tensor, fmt: Format) -> Tensor:
    """Through FP32, as a model's tensors are cast."""
    return x.to(torch.float32).to(fmt.dtype).double()


ON_FORMAT: dict[str, Callable[[Tensor, Format], Tensor]] = {
    "ulp": ulp,
    "round_to": round_to,
    "native_cast": native_cast,
}


def multiply_as_matrices(left: Tensor, right: Tensor) -> Tensor:
    """Element by element, as a batch of products of 1 x 1 matrices."""
    return torch.bmm(left.view(-1, 1, 1), right.view(-1, 1, 1)).flatten()


@pytest.mark.parametrize("fmt", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", list(checks.PRODUCTS))
def test_products_sum_in_fp32_and_round_once(name: str, fmt: str, device: str) -> None:
    """No TF32, no emulation in fewer bits, no 16-bit sum, at k from 64 to 4096."""
    product = checks.on_device(checks.PRODUCTS[name], device)
    with deterministic(0):
        outcomes = [
            checks.check_product(product, make(get_format(fmt), inner, shape, inner))
            for make in OPERANDS.values()
            for inner in INNER
            for shape in SHAPES
        ]
    wrong = [f"{name}: {outcome.message}" for outcome in outcomes if not outcome.passed]
    assert not wrong, "\n".join([*wrong, HINT])


@pytest.mark.parametrize("fmt", MATRIX_FORMATS)
@pytest.mark.parametrize("name", list(ON_FORMAT))
def test_steps_and_rounding_are_those_of_the_cpu(name: str, fmt: str, device: str) -> None:
    """Bit for bit at every exponent, both signs, subnormals included."""
    function = ON_FORMAT[name]
    moved = checks.on_device(function, device)
    with deterministic(0):
        outcome = checks.check_on_format(moved, function, FORMATS[fmt], name)
    assert outcome.passed, outcome.message


@pytest.mark.parametrize("fmt", MATRIX_FORMATS)
@pytest.mark.parametrize("multiply", [torch.mul, multiply_as_matrices])
def test_subnormals_are_kept(multiply: Callable[..., Tensor], fmt: str, device: str) -> None:
    """As operands and as results."""
    with deterministic(0):
        outcome = checks.check_subnormals(checks.on_device(multiply, device), FORMATS[fmt])
    assert outcome.passed, outcome.message


@pytest.mark.parametrize("name", ["whiten", "masked_mean", "token_logprobs"])
def test_reductions_repeat_bit_for_bit(name: str, device: str) -> None:
    with deterministic(0):
        logits = torch.randn(8, 64, 2048).to(device).requires_grad_()
        tokens = torch.randint(0, 2048, (8, 64)).to(device)
        x = torch.randn(64, 1024).to(device)

    def call() -> list[Tensor]:
        if name == "token_logprobs":
            chosen = logprobs.token_logprobs(logits, tokens)
            gradient = torch.autograd.grad(chosen.sum(), logits)[0]
            return [chosen.detach().cpu(), gradient.cpu()]
        return [getattr(masked, name)(x, x > -1).cpu()]

    with deterministic(0):
        outcome = checks.check_repeats(call, name)
    assert outcome.passed, outcome.message


@pytest.mark.parametrize("fmt", ["fp32", "bf16"])
def test_a_forward_and_its_gradient_repeat_bit_for_bit(
    fmt: str, checkpoint: "Checkpoint", device: str
) -> None:
    """Calls of the policy in one batch shape; backward reaches the embedding last."""
    from precision_lib.models.loading import set_parameters, working_copy

    model = working_copy(checkpoint.model)
    set_parameters(model, checkpoint.model, fmt)
    model.requires_grad_(True)
    with deterministic(0):
        tokens = torch.randint(0, model.config.vocab_size, (4, 64)).to(device)

        def call() -> list[Tensor]:
            logits = model(input_ids=tokens, use_cache=False).logits
            chosen = logprobs.token_logprobs(logits[:, :-1], tokens[:, 1:])
            gradient = torch.autograd.grad(chosen.mean(), next(model.parameters()))[0]
            return [logits.detach().cpu(), gradient.cpu()]

        outcome = checks.check_repeats(call, f"a forward in {fmt}")
    assert outcome.passed, outcome.message
