"""What a process decides once, before torch is imported: variables of its libraries, the allocator.

The hazards. libgomp's threads busy-wait. Two of them on a core that another process shares were
measured 14 to 24 times slower than one, while on a quiet two-core machine two threads are
1.9 times faster (190 against 97 GFLOP/s in an FP32 product). The gain is small and the loss is
not bounded; the number of threads also changes the order of FP32 sums, and with it the last bits
of every result. So the default is one thread, on every machine the same.

cuBLAS repeats its bits only with a fixed workspace, and torch looks for the variable once per
process, at the first product on CUDA. A variable that is set later makes every deterministic
product raise.

The allocator changes no number, only time. glibc gives each freed block above its threshold back
to the kernel, and the next temporary of 67 MB costs 16,000 page faults. They are half of the CPU
time of a forward over 2,048 tokens. So freed memory is kept for the next temporary.
"""

import ctypes
import os
import sys

#: Variable to the value that it gets where the user set none.
VARIABLES = {"OMP_NUM_THREADS": "1", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}

#: Parameter and value of glibc's ``mallopt``: the heap keeps up to 2 GiB that are free at its end,
#: and no block is a mapping of its own, which would go back to the kernel when it is freed.
M_TRIM_THRESHOLD, M_MMAP_MAX = (-1, 2**31 - 1), (-4, 0)
#: By these a user has set the allocator.
ALLOCATOR_VARIABLES = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")


def set_environment() -> None:
    """Set each of ``VARIABLES`` that the user did not set, and let glibc keep freed memory.

    Where torch is already imported (a notebook), nothing is changed: the threads in use are the
    caller's choice, and the record's context says how many they were.
    """
    if "torch" not in sys.modules:
        for name, value in VARIABLES.items():
            os.environ.setdefault(name, value)
        if not any(name.startswith(ALLOCATOR_VARIABLES) for name in os.environ):
            _keep_freed_memory()


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _keep_freed_memory() -> bool:
    """True where the allocator is glibc's and took both settings; elsewhere nothing happens."""
    try:
        libc = ctypes.CDLL(None)
        mallopt = libc.mallopt if hasattr(libc, "gnu_get_libc_version") else None
    except (OSError, TypeError):  # TypeError: Windows has no library without a name
        return False
    settings = (M_TRIM_THRESHOLD, M_MMAP_MAX)
    return mallopt is not None and all(mallopt(*setting) == 1 for setting in settings)
