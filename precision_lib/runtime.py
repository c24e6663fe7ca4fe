"""One context that makes a run deterministic and gives every format its stated meaning.

The hazard. TF32, reduced-precision reductions, autotuned kernels and fused attention change
results between machines, between runs, and between the two forwards whose difference is the
measurement. Each is a global switch that somebody else may have set. :func:`deterministic` sets
them all, seeds every generator, and puts back what it found, so that a test leaves the numerical
state as it was; :func:`numerical_state` is what a guard compares to prove it.

Attention: models are loaded with ``attn_implementation="eager"`` (``models/loading.py``); inside
the context a direct call of ``scaled_dot_product_attention`` gets the plain kernel as well.
"""

import functools
import hashlib
import json
import os
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from precision_lib.casts import WidenedSoftmax
from precision_lib.environment import VARIABLES
from precision_lib.matmul import FP32AccumulatedMatmul

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


class Switch(NamedTuple):
    """A global setting: how it is read and written, and the value that a measurement needs."""

    read: Callable[[], Any]
    write: Callable[[Any], None]
    wanted: Any = None


def _attribute(owner: object, name: str, wanted: object) -> Switch:
    return Switch(lambda: getattr(owner, name), lambda value: setattr(owner, name, value), wanted)


def _set_deterministic(state: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(state[0], warn_only=state[1])


def _set_grad_enabled(enabled: bool) -> None:
    torch.set_grad_enabled(enabled)


def _switches() -> dict[str, Switch]:
    """Name to each global switch that changes numbers."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    switches = {
        "default_dtype": Switch(torch.get_default_dtype, torch.set_default_dtype, torch.float32),
        "deterministic_algorithms": Switch(
            lambda: (
                torch.are_deterministic_algorithms_enabled(),
                torch.is_deterministic_algorithms_warn_only_enabled(),
            ),
            _set_deterministic,
            (True, False),
        ),
        "cudnn_deterministic": _attribute(cudnn, "deterministic", True),
        "cudnn_benchmark": _attribute(cudnn, "benchmark", False),
        # No number changes, and on a GPU every new tensor would cost one launch more.
        "fill_uninitialized_memory": _attribute(
            torch.utils.deterministic, "fill_uninitialized_memory", False
        ),
    }
    switches |= _fp32_switches()
    for name in (
        "allow_bf16_reduced_precision_reduction",
        "allow_fp16_reduced_precision_reduction",
        "allow_fp16_accumulation",  # torch >= 2.7
    ):
        if hasattr(matmul, name):
            switches[name] = _attribute(matmul, name, False)
    return switches


def _fp32_switches() -> dict[str, Switch]:
    """TF32 and its like, through the one of torch's two interfaces that this release prefers.

    torch refuses to mix them: once ``fp32_precision`` was written (torch >= 2.9), reading
    ``allow_tf32`` can raise.
    """
    backends = torch.backends
    if not hasattr(backends.cuda.matmul, "fp32_precision"):
        return {
            "float32_matmul_precision": Switch(
                torch.get_float32_matmul_precision,
                torch.set_float32_matmul_precision,
                "highest",
            ),
            "cudnn_allow_tf32": _attribute(backends.cudnn, "allow_tf32", False),
        }
    owners: dict[str, object] = {"cuda_matmul": backends.cuda.matmul}
    for library in ("cudnn", "mkldnn"):
        for operation in ("matmul", "conv", "rnn"):
            owner = getattr(getattr(backends, library), operation, None)
            if hasattr(owner, "fp32_precision"):
                owners[f"{library}_{operation}"] = owner
    return {
        f"{name}_fp32_precision": _attribute(owner, "fp32_precision", "ieee")
        for name, owner in owners.items()
    }


def _flushes_denormals() -> bool:
    """Whether the CPU takes subnormal numbers for 0; torch can set this and not read it."""
    return bool((torch.full((1,), 2.0**-149, dtype=torch.float32, device="cpu") * 1.0 == 0).item())


def _set_flush_denormal(flush: bool) -> None:
    torch.set_flush_denormal(flush)


def set_default_device(device: torch.device) -> None:
    """Make ``device`` torch's default; for the CPU, as in a process that never set a default."""
    torch.set_default_device(None if device.type == "cpu" else device)
    # torch 2.6 keeps None here, and its get_default_device raises on it from then on.
    per_thread: Any = getattr(torch, "_GLOBAL_DEVICE_CONTEXT", None)
    if getattr(per_thread, "device_context", device) is None:
        del per_thread.device_context


def _autocast(device: str) -> Switch:
    return Switch(
        lambda: torch.is_autocast_enabled(device),
        lambda enabled: torch.set_autocast_enabled(device, enabled),
    )


def _modes() -> dict[str, Switch]:
    """Name to what else decides how a call computes."""
    return {
        "grad_enabled": Switch(torch.is_grad_enabled, _set_grad_enabled),
        "num_threads": Switch(torch.get_num_threads, torch.set_num_threads),
        "autocast_cpu": _autocast("cpu"),
        "autocast_cuda": _autocast("cuda"),
        "flush_denormal": Switch(_flushes_denormals, _set_flush_denormal),
        "default_device": Switch(torch.get_default_device, set_default_device),
    }


def _generator_states() -> list[tuple[Callable[[Any], None], Any]]:
    """(restore, state) of each global random generator."""
    states: list[tuple[Callable[[Any], None], Any]] = [
        (random.setstate, random.getstate()),
        (np.random.set_state, np.random.get_state()),
        (torch.set_rng_state, torch.get_rng_state()),
    ]
    if torch.cuda.is_initialized():
        states.append((torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all()))
    else:  # a read would initialise CUDA, for seconds, and raise in a forked child
        states.append((torch.cuda.manual_seed_all, torch.initial_seed()))
    return states


def seed_everything(seed: int) -> None:
    """Seed python's, numpy's and torch's global generators (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def numerical_state() -> dict[str, object]:
    """Every switch that changes numbers, and a digest of the random generators.

    Two equal states mean that the code between them left nothing behind. Reading changes nothing.
    """
    state = {name: switch.read() for name, switch in (_switches() | _modes()).items()}
    digest = hashlib.sha256(repr(random.getstate()).encode())
    numpys = np.random.get_state(legacy=False)
    digest.update(json.dumps(numpys, default=np.ndarray.tolist).encode())  # its repr takes 0.7 ms
    digest.update(bytes(torch.get_rng_state().numpy()))
    state["generators"] = digest.hexdigest()
    return state


@contextmanager
def state_put_back() -> Iterator[dict[str, tuple[Any, Any]]]:
    """Put every switch and generator back that the code inside changes, also after an exception.

    Yields:
        A dict that holds, on leaving, name to (before, after) of each switch that was changed.
    """
    with _put_back(_switches() | _modes()) as changed:
        yield changed


@contextmanager
def _put_back(switches: dict[str, Switch]) -> Iterator[dict[str, tuple[Any, Any]]]:
    """:func:`state_put_back` of these switches and all generators."""
    before = {name: switch.read() for name, switch in switches.items()}
    generators = _generator_states()
    changed: dict[str, tuple[Any, Any]] = {}
    try:
        yield changed
    finally:
        for name, switch in switches.items():
            if switch.read() != before[name]:
                changed[name] = (before[name], switch.read())
                switch.write(before[name])
        for restore, state in generators:
            restore(state)


@contextmanager
def deterministic(seed: int = 0, *, native_products: bool = False) -> Iterator[None]:
    """Run reproducibly: seeds, deterministic kernels, no TF32, no autocast, full reductions.

    On the CPU 16-bit products accumulate in FP32 (:mod:`precision_lib.matmul`); backward passes
    must run inside. Everything found is restored on leaving, also after an exception, but for
    ``CUBLAS_WORKSPACE_CONFIG``, which torch would miss at a later product.

    Args:
        seed: for python's, numpy's and torch's global generators.
        native_products: nothing inside multiplies 16-bit matrices on the CPU, because all
            products are FP32 or on a GPU. The same bits, without the cost of looking at every
            operation: without it, sampling with a KV cache takes 1.85 times as long on the CPU.

    Raises:
        RuntimeError: CUDA multiplied in this process before ``CUBLAS_WORKSPACE_CONFIG`` was set.
    """
    switches = _switches()
    os.environ.setdefault(WORKSPACE, VARIABLES[WORKSPACE])  # in time before the first product
    with _put_back(switches):
        for switch in switches.values():
            if switch.read() != switch.wanted:
                switch.write(switch.wanted)
        if torch.cuda.is_initialized():
            _check_products()
        seed_everything(seed)
        with ExitStack() as stack:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            for device in ("cpu", "cuda"):
                stack.enter_context(torch.autocast(device, enabled=False))
            if not native_products:
                stack.enter_context(FP32AccumulatedMatmul())
            if torch.cuda.is_initialized() and not _softmax_widens():
                stack.enter_context(WidenedSoftmax())
            yield


@functools.cache
def _check_products() -> None:
    """Multiply on CUDA once per process: whether torch saw the workspace variable in time.

    Raises:
        RuntimeError: torch refuses deterministic products, and will in this whole process.
    """
    try:
        _product_on_cuda()
    except RuntimeError as error:
        if "Deterministic behavior" not in str(error):
            raise
        raise RuntimeError(
            "products on CUDA cannot be made deterministic in this process: torch looked for "
            f"{WORKSPACE} at its first product, before it was set (its value now: "
            f"{os.environ[WORKSPACE]}); restart with {WORKSPACE}={VARIABLES[WORKSPACE]}"
        ) from error


def _product_on_cuda() -> None:
    one = torch.ones(1, 1, device="cuda")
    torch.mm(one, one)


@functools.cache
def _softmax_widens() -> bool:
    """Whether the device has a softmax from fp16 to FP32: NVIDIA's have, simulated ones not."""
    try:
        torch.softmax(torch.zeros(1, dtype=torch.float16, device="cuda"), 0, dtype=torch.float32)
    except RuntimeError:
        return False
    return True
