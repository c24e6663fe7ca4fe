"""Compares a result with the truth: class first, distance second.

The hazard. NaN > limit is False, so that a checker that asks for the distance alone passes a NaN.
One that counts units in the last place sees 1 between the largest number and inf. Every limit here
says where it comes from.
"""

import torch
from torch import Tensor

from precision_lib.conformance.failure import ConformanceFailure
from precision_lib.conformance.inputs import Inputs
from precision_lib.conformance.truth import Truth
from precision_lib.formats import FORMATS, format_of


def compare(name: str, got: Tensor, truth: Truth, inputs: Inputs) -> tuple[int, float]:
    """Check one part of a result.

    NaN never passes. Where the exact value lies beyond the largest number (of FP32 for a result,
    of the input's format for its gradient), or so near that the limit reaches beyond, an infinity
    of its sign passes, and a wider format's number beyond it. Everything else has to be finite and
    within the limit; a limit of inf, where FP32 promises nothing, asks for a finite value alone
    and is not counted as compared.

    Returns:
        (number of compared elements, largest error as a share of its limit).

    Raises:
        ConformanceFailure: naming how many of how many, the bound, the worst element, got and want.
    """
    wide = got.double()
    error = torch.where(wide == truth.want, 0, (wide - truth.want).abs())
    share = torch.where(error == 0, 0, error / truth.limit)
    stored = got.dtype if truth.of_gradient else FORMATS["fp32"].dtype
    largest = format_of(stored).largest
    usual = bool(((share <= 1) & (truth.want.abs() <= largest)).all())
    if share.numel() and usual and not bool(truth.limit.isinf().any()):  # nearly every case
        return share.numel(), float(share.max())
    promised = torch.isfinite(truth.limit)
    same_sign = wide.sign() == truth.want.sign()
    near_the_end = truth.want.abs() + torch.where(promised, truth.limit, 0) > largest
    unrepresentable = truth.want.abs() > largest
    overflowed = same_sign & near_the_end & wide.isinf()
    overflowed |= same_sign & unrepresentable & ~promised & (wide.abs() > largest)
    finite = torch.isfinite(wide) & ~unrepresentable
    passed = torch.where(promised, share <= 1, finite) | overflowed
    if not passed.all():
        beyond_by = float(torch.nan_to_num(share[~passed], nan=torch.inf).max())
        raise ConformanceFailure(
            _message(name, got, truth, share, passed, inputs.mask), inputs, beyond_by
        )
    within = share[promised & ~overflowed]
    return int((promised | unrepresentable).sum()), float(within.max()) if within.numel() else 0.0


def _message(
    name: str, got: Tensor, truth: Truth, share: Tensor, passed: Tensor, mask: Tensor | None
) -> str:
    badness = torch.where(passed, -1, torch.nan_to_num(share, nan=torch.inf))
    worst = int(badness.flatten().argmax())
    index = [int(i) for i in torch.unravel_index(torch.tensor(worst), got.shape)]
    g, w = float(got.flatten()[worst]), float(truth.want.flatten()[worst])
    limit = float(truth.limit.flatten()[worst])
    lines = [
        f"{name}: {int((~passed).sum())} of {passed.numel()} values of the {truth.part} are wrong",
        f"worst at {index}: got {g.hex()} ({g:.9g}), want {w.hex()} ({w:.9g})",
        _size_of_error(abs(g - w), w, limit, truth.bound),
        f"the {truth.part} is {got.dtype}",
    ]
    if not truth.of_gradient and format_of(got.dtype).significand_bits < 24:
        lines[-1] += "; return float32 or wider first, then look again"
    if mask is not None and mask.shape == got.shape and not bool(mask.flatten()[worst]):
        lines.append(f"{index} is a padded slot: the {truth.part} is 0 there")
    return "\n  ".join(lines)


def _size_of_error(error: float, want: float, limit: float, bound: str) -> str:
    """The error against its limit, or what the limit means where a quotient says nothing."""
    if want == 0 and limit <= 4 * FORMATS["fp32"].smallest_subnormal:
        return f"error {error:.3g}; want exactly 0, from {bound}"
    if limit == float("inf"):
        return f"error {error:.3g}; FP32 promises no more than a finite value here, from {bound}"
    times = f" = {error / limit:.3g} times the limit" if 0 < error < float("inf") and limit else ""
    return f"error {error:.3g}{times}; limit {limit:.3g} from {bound}"
