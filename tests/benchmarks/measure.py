"""One measurement: time, peak memory, the floor that memory bandwidth sets, and the error.

The hazards. Wall time on a shared machine measures the neighbours, so on the CPU, with one thread,
the clock is the thread's own CPU time; on CUDA it is wall time between two synchronisations. An
allocator's statistics do not exist on the CPU, so the peak is the largest running sum of the
profiler's allocations and frees. numpy allocates outside torch; its peak is taken from tracemalloc
and added.
"""

import gc
import time
import tracemalloc
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from tests.benchmarks.timed import Call

MIB = 2**20
#: Bytes of the buffer whose reading gives the bandwidth: larger than any cache.
_BUFFER = 256 * MIB
_READS = 7


def clock() -> float:
    """Seconds: CPU time of this thread, or wall time where a device or more threads work."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.thread_time() if torch.get_num_threads() == 1 else time.perf_counter()


def read_bandwidth(device: str) -> float:
    """Bytes per second of the fastest of amax, sum and copy over a large FP32 buffer."""
    buffer = torch.ones(_BUFFER // 4, device=device)
    target = torch.empty_like(buffer)
    passes: list[tuple[Call, int]] = [
        (lambda: buffer.amax(), _BUFFER),
        (lambda: buffer.sum(), _BUFFER),
        (lambda: target.copy_(buffer), 2 * _BUFFER),  # read and written
    ]
    best = 0.0
    for call, moved in passes:
        for _ in range(_READS):
            start = clock()
            call()
            best = max(best, moved / (clock() - start))
    return best


def peak_mib(call: Call, device: str) -> float:
    """The most memory in use during ``call`` beyond what was in use before it, in MiB."""
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / MIB
    return (_torch_peak(call) + _numpy_peak(call)) / MIB


def _torch_peak(call: Call) -> int:
    kept: list[Any] = []  # freed after the profile, so that every free seen is of the call
    activities = [ProfilerActivity.CPU]
    # Without acc_events torch 2.11 warns that a later cycle would drop events.
    with profile(activities=activities, profile_memory=True, acc_events=True) as profiler:
        kept.append(call())
    results: Any = profiler.profiler
    events = [e for e in results.kineto_results.events() if e.name() == "[memory]"]
    running = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        running += event.nbytes()
        peak = max(peak, running)
    return peak


def _numpy_peak(call: Call) -> int:
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
