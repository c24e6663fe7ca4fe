"""The deterministic context sets every switch, repeats bit for bit, and restores what it found."""

import os
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from precision_lib import runtime
from precision_lib.casts import Float64Casts
from precision_lib.runtime import deterministic, numerical_state, state_put_back

WANTED = {
    "deterministic_algorithms": (True, False),
    "cudnn_deterministic": True,
    "cudnn_benchmark": False,
    "fill_uninitialized_memory": False,
    "allow_bf16_reduced_precision_reduction": False,
    "allow_fp16_reduced_precision_reduction": False,
}


def test_every_switch_is_set_inside_and_restored_outside() -> None:
    before = numerical_state()
    with deterministic(0):
        inside = numerical_state()
    assert {name: inside[name] for name in WANTED} == WANTED
    tf32 = {name: v for name, v in inside.items() if "fp32_precision" in name or "tf32" in name}
    assert tf32
    assert set(tf32.values()) <= {"ieee", False}
    assert numerical_state() == before
    assert before["cudnn_deterministic"] is False  # so restoring it was not a tautology


def test_autocast_around_it_is_switched_off() -> None:
    a = torch.ones(2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (a @ a).dtype == torch.bfloat16
        with deterministic():
            assert (a @ a).dtype == torch.float32
        assert (a @ a).dtype == torch.bfloat16


def test_a_softmax_that_cannot_widen_fp16_gets_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a ``dtype`` the input is cast first, and the kernel never sees two formats."""
    x = torch.linspace(-3, 3, 8, dtype=torch.float16)
    seen: list[tuple[torch.dtype, bool]] = []

    class Kernels(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func.overloadpacket is torch.ops.aten._softmax:
                seen.append((args[0].dtype, args[2]))
            return func(*args, **(kwargs or {}))

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(runtime, "_check_products", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", list)
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", lambda states: None)
    monkeypatch.setattr(runtime, "_softmax_widens", lambda: False)
    with deterministic(), Kernels():
        for softmax in (torch.softmax, torch.nn.functional.softmax, torch.Tensor.softmax):
            got = softmax(x, -1, dtype=torch.float32)
            assert torch.equal(got, x.float().softmax(-1))
        assert x.softmax(-1).dtype == torch.float16
    assert seen == [(torch.float32, False)] * 6 + [(torch.float16, False)]


def test_state_is_restored_after_an_exception_and_a_changed_switch() -> None:
    def meddle() -> None:
        with deterministic(0):
            torch.set_default_dtype(torch.float64)
            torch.rand(3)
            raise KeyError("inside")

    before = numerical_state()
    with pytest.raises(KeyError, match="inside"):
        meddle()
    assert numerical_state() == before


@pytest.mark.parametrize("value", [None, ":16:8"])
def test_the_workspace_of_cublas_is_set_and_never_taken_away(
    value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch looks for it once per process: without it every later product on CUDA would raise."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", value or "")
    if value is None:
        monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    for _ in range(2):
        with deterministic():
            assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == (value or ":4096:8")
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == (value or ":4096:8")


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (
            "Deterministic behavior was enabled, but this operation is not deterministic",
            "restart with CUBLAS_WORKSPACE_CONFIG=:4096:8",
        ),
        ("out of memory", "^out of memory$"),
    ],
)
def test_products_that_cuda_refuses_are_said_at_the_start(
    message: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every time, not only the first; and the state is left as it was."""

    def refused(*_: Any, **__: Any) -> None:
        raise RuntimeError(message)

    before = numerical_state()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", list)
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", lambda _: None)
    monkeypatch.setattr(runtime, "_product_on_cuda", refused)
    runtime._check_products.cache_clear()
    for _ in range(2):
        with pytest.raises(RuntimeError, match=said), deterministic():
            pytest.fail("entered")
    assert numerical_state() == before


def test_cuda_that_nobody_uses_is_not_initialised(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a forked child on a machine with a GPU. CUDA starts later with the caller's seed."""

    def refused(*_: Any) -> None:
        raise RuntimeError("Cannot re-initialize CUDA in forked subprocess")

    seeds: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    for name in ("get_rng_state_all", "set_rng_state_all", "_lazy_init"):
        monkeypatch.setattr(torch.cuda, name, refused)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    for context in (deterministic(5), state_put_back()):
        seeds.clear()
        with context:
            torch.manual_seed(6)
        assert seeds[-1] == torch.initial_seed() != 6


def test_the_generators_of_cuda_in_use_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    restored: list[Any] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: ["as found"])
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", restored.append)
    monkeypatch.setattr(runtime, "_check_products", lambda: None)
    for context in (deterministic(5), state_put_back()):
        with context:
            pass
        assert restored.pop() == ["as found"]


def test_the_same_seed_repeats_every_generator() -> None:
    def draw(seed: int) -> tuple[Any, ...]:
        with deterministic(seed):
            return random.random(), float(np.random.rand()), torch.rand(3).tolist()

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_a_16_bit_product_inside_is_fp32_accumulated() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(8, 256, generator=generator).bfloat16() for _ in range(2))
    with deterministic():
        assert torch.equal(a @ b.T, (a.float() @ b.float().T).bfloat16())


def test_numerical_state_sees_a_changed_switch_and_a_drawn_number() -> None:
    before = numerical_state()
    state = torch.get_rng_state()
    torch.rand(1)
    assert numerical_state()["generators"] != before["generators"]
    torch.set_rng_state(state)
    torch.backends.cudnn.benchmark = True
    assert numerical_state() != before
    torch.backends.cudnn.benchmark = False
    assert numerical_state() == before


class _Float32Seen(TorchDispatchMode):
    """Counts operations that produce an FP32 tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.dtype == torch.float32:
            self.seen.add(str(func))
        return out


def tiny(architecture: str) -> Any:
    """A random model of the architecture, float64, eager."""
    import transformers

    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    if architecture != "GPT2":
        sizes |= {"intermediate_size": 48, "num_key_value_heads": 1}
    tokens = {"bos_token_id": 1, "eos_token_id": 1}
    config = getattr(transformers, f"{architecture}Config")(**sizes, **tokens)
    config._attn_implementation = "eager"
    name = "GPT2LMHeadModel" if architecture == "GPT2" else f"{architecture}ForCausalLM"
    with deterministic(0):
        return getattr(transformers, name)(config).double().eval()


@pytest.mark.parametrize("architecture", ["Llama", "Qwen2", "Qwen3", "GPT2"])
def test_float64_forward_holds_no_float32(architecture: str) -> None:
    """Without the context a Llama in double() passes through FP32; with it nothing does."""
    model = tiny(architecture)
    tokens = torch.arange(20).view(2, 10)
    with torch.no_grad(), _Float32Seen() as bare:
        rounded = model(input_ids=tokens).logits
    with torch.no_grad(), Float64Casts(), _Float32Seen() as seen:
        exact = model(input_ids=tokens).logits
    assert not seen.seen, f"FP32 inside the float64 model: {sorted(seen.seen)}"
    assert exact.dtype == torch.float64
    if architecture != "GPT2":  # its layer norm and softmax do not cast
        assert bare.seen
        assert not torch.equal(rounded, exact)
