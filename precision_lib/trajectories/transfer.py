"""Small tensors from one device to another, all in one transfer.

The host waits for the device at every transfer, so that a dozen figures of a few bytes cost a dozen
waits when they are fetched one by one. Numbers arrive bit for bit, a NaN as some NaN.
"""

import torch
from torch import Tensor

HOST = torch.device("cpu")


def moved(device: torch.device, *tensors: Tensor) -> tuple[Tensor, ...]:
    """``tensors`` on ``device``, without a gradient; the same tensors where they are there already.

    They travel as one float64 vector, which holds every floating-point format, bool, and integers
    up to 2**53. Meant for token numbers and figures per token, not for logits.

    Args:
        tensors: at least one, any shapes and formats, all on one device.
    """
    if tensors[0].device == device:
        return tuple(x.detach() for x in tensors)
    packed = torch.cat([x.detach().reshape(-1).double() for x in tensors]).to(device)
    parts = packed.split([x.numel() for x in tensors])
    return tuple(part.to(x.dtype).view(x.shape) for part, x in zip(parts, tensors, strict=True))
