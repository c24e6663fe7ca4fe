"""How many CPU threads the numerics use: decided here, once, before torch is imported.

The hazard. The number of threads changes the order of FP32 sums, and with it the last bits of every
result. It also changes the time: libgomp's threads busy-wait, and two on a core that another
process shares were 14 to 24 times slower than one, while on a quiet two-core machine two are 1.9
times faster (190 against 97 GFLOP/s in an FP32 product). So the default is one thread on every
machine, and ``OMP_NUM_THREADS`` set by the user wins.
"""

import os
import sys

DEFAULT_THREADS = "1"


def limit_threads() -> None:
    """Set ``OMP_NUM_THREADS`` to 1 unless the user set it.

    Must run before torch is imported, because OpenMP reads the variable once. Where torch is
    already there (a notebook), nothing is changed: the threads in use are the caller's choice,
    and the record's context says how many they were.
    """
    if "torch" not in sys.modules:
        os.environ.setdefault("OMP_NUM_THREADS", DEFAULT_THREADS)
