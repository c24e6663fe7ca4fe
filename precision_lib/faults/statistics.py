"""Wrong means and wrong whitening: one mutation each, the rest as it should be.

``catalogue`` says where each was seen. x and mask are [B, T], True for a real token.
"""

import torch
from torch import Tensor

from precision_lib.ppo.logit_pieces import fp32_or_wider
from precision_lib.ppo.masked import masked_mean, real_or_zero, whiten


def mean_by_product_with_mask(x: Tensor, mask: Tensor) -> Tensor:
    """(x * mask).sum(): NaN * 0 is NaN."""
    total = (x * mask).sum(dtype=torch.float64)
    return (total / mask.sum().clamp(min=1)).to(fp32_or_wider(x))


def mean_in_input_dtype(x: Tensor, mask: Tensor) -> Tensor:
    """The sum is rounded to the format of x, where it may also overflow."""
    total = torch.where(mask, x, 0).sum()
    return total.to(fp32_or_wider(x)) / mask.sum().clamp(min=1)


def count_in_input_dtype(x: Tensor, mask: Tensor) -> Tensor:
    """The real tokens are counted in the format of x: 257 is not a bf16 number."""
    total = torch.where(mask, x, 0).sum(dtype=torch.float64)
    return (total / mask.to(x.dtype).sum().clamp(min=1)).to(fp32_or_wider(x))


def mean_of_sequence_means(x: Tensor, mask: Tensor) -> Tensor:
    """The mean over sequences of their own means: tokens of short responses weigh more."""
    totals = torch.where(mask, x, 0).sum(-1, dtype=torch.float64)
    return (totals / mask.sum(-1).clamp(min=1)).mean().to(fp32_or_wider(x))


def mean_over_all_slots(x: Tensor, mask: Tensor) -> Tensor:
    """The sum over real tokens is divided by B T, padding included."""
    return torch.where(mask, x, 0).mean(dtype=torch.float64).to(fp32_or_wider(x))


def mean_of_nothing(x: Tensor, mask: Tensor) -> Tensor:
    """An empty mask divides 0 by 0."""
    total = torch.where(mask, x, 0).sum(dtype=torch.float64)
    return (total / mask.sum()).to(fp32_or_wider(x))


def mean_left_in_input_dtype(x: Tensor, mask: Tensor) -> Tensor:
    """The result keeps the format of x, rounded to it once."""
    return masked_mean(x, mask).to(x.dtype)


def _moments(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(x - mean in real slots and 0 elsewhere, mean, sample variance) in float64."""
    y = real_or_zero(x, mask).double()
    first = y[mask][:1]
    y = torch.where(mask, y - first, 0) if first.numel() else y
    count = mask.sum()
    mean = y.sum() / count.clamp(min=1)
    centred = torch.where(mask, y - mean, 0)
    offset = first[0] if first.numel() else mean
    return centred, mean + offset, centred.square().sum() / (count - 1).clamp(min=1)


def _divided(centred: Tensor, std: Tensor, x: Tensor) -> Tensor:
    """centred / std, 0 for a std of 0."""
    return torch.where(std > 0, centred / std, 0).to(fp32_or_wider(x))


def one_pass_variance(x: Tensor, mask: Tensor) -> Tensor:
    """E[x^2] - E[x]^2 in FP32."""
    y, count = real_or_zero(x, mask).to(fp32_or_wider(x)), mask.sum().clamp(min=1)
    mean = y.sum() / count
    variance = (y.square().sum() / count - mean.square()).clamp(min=0)
    variance = variance * count / (count - 1).clamp(min=1)
    return _divided(torch.where(mask, y - mean, 0), variance.sqrt(), x)


def population_std(x: Tensor, mask: Tensor) -> Tensor:
    """Divided by n where the sample standard deviation has n - 1."""
    centred, _, variance = _moments(x, mask)
    count = mask.sum().clamp(min=1)
    return _divided(centred, (variance * (count - 1) / count).sqrt(), x)


def epsilon_instead_of_a_guard(x: Tensor, mask: Tensor) -> Tensor:
    """rsqrt(variance + 1e-8) in FP32: the rounding noise of a constant is multiplied by 1e4."""
    y, count = real_or_zero(x, mask).to(fp32_or_wider(x)), mask.sum().clamp(min=1)
    centred = torch.where(mask, y - y.sum() / count, 0)
    variance = centred.square().sum() / (count - 1).clamp(min=1)
    return centred * (variance + 1e-8).rsqrt()


def mean_added_back(x: Tensor, mask: Tensor) -> Tensor:
    """shift_mean read the wrong way round: the mean is restored after the division."""
    _, mean, _ = _moments(x, mask)
    return torch.where(mask, whiten(x, mask) + mean, 0).to(fp32_or_wider(x))


def mean_over_padding(x: Tensor, mask: Tensor) -> Tensor:
    """The variance is masked; the mean is taken over all slots."""
    _, _, variance = _moments(x, mask)
    y = real_or_zero(x, mask).double()
    return _divided(torch.where(mask, y - y.mean(), 0), variance.sqrt(), x)


def padding_left_in(x: Tensor, mask: Tensor) -> Tensor:
    """Padded slots keep (pad - mean) / std instead of 0."""
    _, mean, variance = _moments(x, mask)
    return _divided(x - mean, variance.sqrt(), x)


def whitened_by_product_with_mask(x: Tensor, mask: Tensor) -> Tensor:
    """Padding is multiplied by 0, which a NaN survives."""
    y, count = x.double() * mask, mask.sum().clamp(min=1)
    centred = (y - y.sum() / count) * mask
    variance = centred.square().sum() / (count - 1).clamp(min=1)
    return _divided(centred, variance.sqrt(), x)


def statistics_in_input_dtype(x: Tensor, mask: Tensor) -> Tensor:
    """Mean and variance are rounded to the format of x, operation by operation."""
    y, count = real_or_zero(x, mask), mask.sum().clamp(min=1)
    centred = torch.where(mask, y - y.sum() / count, 0)
    variance = centred.square().sum() / (count - 1).clamp(min=1)
    return _divided(centred, variance.sqrt(), x)


def epsilon_vanishes_in_fp16(x: Tensor, mask: Tensor) -> Tensor:
    """rsqrt(variance + 1e-8) in the format of x: in fp16 1e-8 is 0 and its rsqrt is inf."""
    centred, _, variance = _moments(x, mask)
    return (centred * (variance.to(x.dtype) + 1e-8).rsqrt()).to(fp32_or_wider(x))


def squares_in_fp32(x: Tensor, mask: Tensor) -> Tensor:
    """The squares of the deviations overflow FP32 above 1.8e19 and vanish below 1e-23."""
    centred, _, _ = _moments(x, mask)
    variance = centred.float().square().sum() / (mask.sum() - 1).clamp(min=1)
    return _divided(centred, variance.sqrt(), x)


def bessel_correction_of_one_token(x: Tensor, mask: Tensor) -> Tensor:
    """The variance is corrected by n / (n - 1), which is inf for one token: 0 * inf."""
    centred, _, variance = _moments(x, mask)
    count = mask.sum()
    population = variance * (count - 1).clamp(min=1) / count
    std = (population * (count / (count - 1))).sqrt()
    return torch.where(std == 0, 0, centred / std).to(fp32_or_wider(x))


def whitened_left_in_input_dtype(x: Tensor, mask: Tensor) -> Tensor:
    """The result keeps the format of x, rounded to it once."""
    return whiten(x, mask).to(x.dtype)
