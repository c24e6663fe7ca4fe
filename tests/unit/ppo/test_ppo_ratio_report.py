"""What the core reports of the ratios of a step: clipped, overflowing, and an approximate KL."""

import math

import torch

from precision_lib.formats import FORMATS
from precision_lib.ppo.losses import ratio_report
from tests.unit.ppo.layouts import (
    FLOATS,
    ragged,
    random,
    within,
)

CLIP = 0.2
FP64 = FORMATS["fp64"]


@FLOATS
def test_identical_policies_report_nothing(dtype: torch.dtype) -> None:
    mask = ragged(9, 4, 0)
    lp = random(3, 9).to(dtype).masked_fill(~mask, math.nan)
    report = ratio_report(lp, lp.clone(), mask, CLIP)
    assert (report.clip_frac, report.approx_kl, report.overflow_count) == (0.0, 0.0, 0)
    assert (report.smallest_log_ratio, report.largest_log_ratio) == (0.0, 0.0)
    assert report.tokens == 13


def test_the_report_counts_what_is_clipped_and_what_overflows() -> None:
    """Four real tokens: within the range, below it, above it, and beyond FP32."""
    new = torch.tensor([[0.1, -1.0, 0.5, 100.0, math.inf]])
    report = ratio_report(new, torch.zeros(1, 5), ragged(4, width=5), CLIP)
    assert report.tokens == 4
    assert report.clip_frac == 0.75
    assert report.overflow_count == 1
    assert (report.smallest_log_ratio, report.largest_log_ratio) == (-1.0, 100.0)


def test_the_approximate_kl_is_the_mean_of_k3_under_the_old_policy() -> None:
    old, noise, _ = random(3, 3, 9).double()
    new = old + 0.3 * noise
    mask = ragged(9, 4, 0)
    d = (new - old)[mask]
    want = torch.tensor(float((d.exp() - 1 - d).mean()), dtype=torch.float64)
    # The textbook form here errs by a few u of exp(d), the one under test by less.
    limit = 16 * FP64.unit_roundoff * float(d.exp().max())
    got = ratio_report(new, old, mask, CLIP).approx_kl
    within(got=torch.tensor(got, dtype=torch.float64), want=want, limit=limit)


def test_the_report_of_an_empty_mask_is_all_zeros() -> None:
    x = torch.full((2, 3), math.nan)
    report = ratio_report(x, x, torch.zeros(2, 3, dtype=torch.bool), CLIP)
    assert vars(report) == dict.fromkeys(vars(report), 0)
