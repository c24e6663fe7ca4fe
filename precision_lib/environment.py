"""Environment variables that torch's libraries read once: set before torch is imported.

The hazards. libgomp's threads busy-wait. Two of them on a core that another process shares were
measured 14 to 24 times slower than one, while on a quiet two-core machine two threads are
1.9 times faster (190 against 97 GFLOP/s in an FP32 product). The gain is small and the loss is
not bounded; the number of threads also changes the order of FP32 sums, and with it the last bits
of every result. So the default is one thread, on every machine the same.

cuBLAS repeats its bits only with a fixed workspace, and torch looks for the variable once per
process, at the first product on CUDA. A variable that is set later makes every deterministic
product raise.
"""

import os
import sys

#: Variable to the value that it gets where the user set none.
VARIABLES = {"OMP_NUM_THREADS": "1", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}


def set_environment() -> None:
    """Set each of ``VARIABLES`` that the user did not set.

    Where torch is already imported (a notebook), nothing is changed: the threads in use are the
    caller's choice, and the record's context says how many they were.
    """
    if "torch" not in sys.modules:
        for name, value in VARIABLES.items():
            os.environ.setdefault(name, value)
