"""Several tensors in one transfer: every bit arrives, and the host waits once."""

import pytest
import torch

from precision_lib.trajectories.transfer import HOST, moved
from tests.unit.simulated_devices import FIRST, two_devices

INF, NAN = float("inf"), float("nan")
NUMBERS = [0.0, -0.0, 1.5, -INF, INF, NAN, 2.0**-149, 2.0**-24, 3.4e38, 1 / 3]
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(x: torch.Tensor) -> list[int]:
    """Of every number; all NaN are taken for one."""
    x = torch.where(x.isnan(), 7, x).to(x.dtype)
    return x.flatten().view(_BITS[x.element_size()]).tolist()


@pytest.mark.parametrize("source", [HOST, FIRST])
def test_every_bit_arrives_by_one_transfer(source: torch.device) -> None:
    target = FIRST if source == HOST else HOST
    formats = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
    tensors = [torch.tensor(NUMBERS).view(2, 5).to(f) for f in formats]
    tensors += [torch.tensor([True, False]), torch.tensor(2**53), torch.zeros(0, 3)]
    with two_devices() as devices:
        given = [x.to(source) for x in tensors]
        devices.waits.clear()
        got = moved(target, *given)
        assert sum(devices.waits.values()) == 1
        assert all(x.device == target for x in got)
    assert [(x.dtype, x.shape) for x in got] == [(x.dtype, x.shape) for x in tensors]
    assert [x.isnan().tolist() for x in got] == [x.isnan().tolist() for x in tensors]
    assert [bits(x) for x in got] == [bits(x) for x in tensors]


def test_tensors_that_are_there_stay_what_they_are_without_their_gradient() -> None:
    x = torch.ones(3, requires_grad=True)
    (got,) = moved(HOST, x)
    assert got.data_ptr() == x.data_ptr()
    assert not got.requires_grad
