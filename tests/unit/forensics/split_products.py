"""Matrix products whose last bits depend on the number of rows, as on a GPU, without a GPU.

The hazard. A CPU computes a row of a product alike whatever stands in the other rows. cuBLAS picks
a kernel by the shape, and with it the order in which the inner dimension is added up. What is
tested on a CPU alone may take "another batch gives the same bits" for granted.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten
#: Products by overload: where the left and the right factor stand among the arguments.
_FACTORS = {
    _aten.mm.default: (0, 1),
    _aten.bmm.default: (0, 1),
    _aten.addmm.default: (1, 2),
    _aten.baddbmm.default: (1, 2),
}


def parts_of(rows: int) -> int:
    """Into how many parts the inner dimension is split for a product with so many rows."""
    return 1 + rows.bit_length() % 4


class SplitProducts(TorchDispatchMode):
    """Context in which FP32 products add up the parts of their inner dimension one after the other.

    The number of parts follows from the number of rows. Enter it outside
    ``runtime.deterministic``: a 16-bit product is then split as well, accumulated in FP32 and
    rounded once, because it arrives here as an FP32 product.

    Attributes:
        split: number of products that were split so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.split = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        factors = _FACTORS.get(func)
        if factors is None:
            return func(*args, **(kwargs or {}))
        left, right = (args[i] for i in factors)
        rows = left.numel() // max(left.shape[-1], 1)
        parts = min(parts_of(rows), left.shape[-1])
        if left.dtype != torch.float32 or parts < 2:
            return func(*args, **(kwargs or {}))
        self.split += 1
        total = _sum_of_parts(left, right, parts)
        if factors == (0, 1):
            return total
        scale = {"beta": 1, "alpha": 1} | dict(kwargs or {})
        return scale["beta"] * args[0] + scale["alpha"] * total


def _sum_of_parts(left: Tensor, right: Tensor, parts: int) -> Tensor:
    """[..., n, m]: the products of ``parts`` slices of the inner dimension, added in order."""
    lefts, rights = left.tensor_split(parts, -1), right.tensor_split(parts, -2)
    total = lefts[0] @ rights[0]
    for a, b in zip(lefts[1:], rights[1:], strict=True):
        total = total + a @ b
    return total
