"""The fixture that measures one contender on one case, and what a results file says of the run."""

import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from precision_lib.jsonio import to_plain

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

    from tests.benchmarks.contenders import Contender
    from tests.benchmarks.timed import Call, Timed

    Measure = Callable[..., None]


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    import torch

    for private in ("node", "release"):  # the name of this machine and of its kernel
        machine_info.pop(private, None)
    machine_info["torch"] = torch.__version__
    machine_info["threads"] = torch.get_num_threads()
    if torch.cuda.is_available():
        machine_info["cuda_device"] = torch.cuda.get_device_name()


@pytest.fixture(scope="session")
def bandwidth(device: str) -> float:
    """Bytes per second that one read of memory reaches, measured in this run."""
    from tests.benchmarks.measure import read_bandwidth

    return read_bandwidth(device)


@pytest.fixture
def measure(benchmark: "BenchmarkFixture", device: str, bandwidth: float) -> "Measure":
    """``measure(case, contender, rounds=...)``: error, peak memory and time, into the results."""

    def run(case: "Timed", contender: "Contender", *, rounds: int, iterations: int = 1) -> None:
        from tests.benchmarks.accuracy import error_over_limit
        from tests.benchmarks.measure import peak_mib
        from tests.benchmarks.timed import step

        sliced, timed = (step(_bound(contender, c), c) for c in (case.slice, case))
        benchmark.group = f"{case.step}, {list(case.shape)}, {case.fmt}"
        with warnings.catch_warnings():
            if contender.kind == "peer":
                warnings.simplefilter("ignore")
            share = error_over_limit(case.slice, *sliced())
            timed()
            peak = peak_mib(timed, device)
            benchmark.pedantic(timed, rounds=rounds, iterations=iterations, warmup_rounds=1)
        benchmark.extra_info |= _described(case, contender) | {
            "device": device,
            "peak_mib": peak,
            "error_over_limit": to_plain(share),
            "bandwidth_gib_s": bandwidth / 2**30,
        }
        if benchmark.stats is not None:  # None with --benchmark-disable
            floor = case.touched_bytes() / bandwidth
            benchmark.extra_info["time_over_floor"] = benchmark.stats.stats.median / floor

    return run


def _bound(contender: "Contender", case: "Timed") -> "Call":
    """The contender's call on a case's inputs; a peer that is not there is skipped."""
    from precision_lib.targets import TargetError

    try:
        return contender.bind(SimpleNamespace(**case.inputs))
    except TargetError as error:
        pytest.skip(str(error))


def _described(case: "Timed", contender: "Contender") -> dict[str, Any]:
    return {
        "step": case.step,
        "shape": list(case.shape),
        "format": case.fmt,
        "input_mib": case.input_mib,
        "contender": contender.label,
        "kind": contender.kind,
        "version": contender.version,
    }
