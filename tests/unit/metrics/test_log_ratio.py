"""H1's metrics on four tokens that can be checked by hand, and the values of k2 and k3."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from precision_lib.forensics.forwards import measured_against
from precision_lib.forensics.h1.declaration import H1
from precision_lib.matrix import PrecisionConfig
from precision_lib.metrics import log_ratio as h1
from precision_lib.ppo import kl

#: Log-ratios of four tokens, golden and as a low configuration gives them, and where they lie.
GOLDEN, LOW = [0.25, -0.5, 0.0, 0.5], [0.0, -0.25, -0.5, 0.5]
REFERENCE = [-2.25, -1.5, -3.0, -1.5]


def metrics(ratio: list[float], golden: list[float]) -> Any:
    reference = torch.tensor(REFERENCE[: len(ratio)])
    exact = torch.tensor(golden, dtype=torch.float64)
    quantities = h1.token_quantities(torch.tensor(ratio), exact, reference)
    totals = {name: np.asarray(float(q.sum())) for name, q in quantities.items()}
    return {name: float(metric.function(totals)) for name, metric in H1.metrics.items()}


def test_every_metric_on_four_tokens() -> None:
    """Errors of -0.25, 0.25, -0.5 and 0."""
    got = metrics(LOW, GOLDEN)

    def k3(d: float) -> float:
        return math.exp(-d) - 1 + d

    low_k3 = k3(0) + k3(-0.25) + k3(-0.5) + k3(0.5)
    golden_k3 = k3(0.25) + k3(-0.5) + k3(0) + k3(0.5)
    want = {
        "kl_penalty_mean": low_k3 / 4,
        "log_ratio_near_zero_frac": 1 / 4,
        "log_ratio_nsr": math.sqrt((0.0625 + 0.0625 + 0.25) / (0.0625 + 0.25 + 0.25)),
        "kl_k3_rel_error": low_k3 / golden_k3 - 1,
        "k3_negative_frac": 0.0,
        "k3_textbook_rel_error": low_k3 / golden_k3 - 1,
        "k3_textbook_negative_frac": 0.0,
        "log_ratio_nonfinite_frac": 0.0,
    }
    assert set(got) == set(want)
    for name, value in want.items():
        # A handful of FP32 operations on numbers of at most 1.
        assert abs(got[name] - value) <= 32 * 2.0**-24 * max(1, abs(value)), name


def test_the_baseline_is_measured_against_float64_and_others_against_fp32() -> None:
    baseline = PrecisionConfig("baseline", "fp32", "fp32", "bf16", "bf16", "fp32")
    assert measured_against(baseline) == "fp64"
    for component in ("policy", "reference", "kl"):
        assert measured_against(replace(baseline, **{component: "bf16"})) == "fp32"


def test_an_infinite_log_ratio_is_counted_and_enters_nothing_else() -> None:
    got = metrics([0.25, -math.inf], [0.25, 0.5])
    assert got["log_ratio_nonfinite_frac"] == 0.5
    assert got["log_ratio_nsr"] == 0.0


@pytest.mark.parametrize("d", [-3.0, -0.5, 0.0, 0.125, 2.0])
def test_k2_and_the_textbook_k3_have_their_values(d: float) -> None:
    ratio = torch.tensor([[d]], dtype=torch.float64)
    zero = torch.zeros_like(ratio)
    assert float(kl.kl_penalty(ratio, zero, "k2", torch.float64)) == d * d / 2
    # Three float64 operations on numbers of at most e^3.
    want = math.exp(-d) - 1 + d
    assert abs(float(h1.textbook_k3(ratio)) - want) <= 8 * math.exp(abs(d)) * 2.0**-53


def test_the_textbook_k3_goes_negative_in_bf16_where_the_cores_does_not() -> None:
    d = torch.linspace(-0.02, 0.02, 401).bfloat16()
    assert (h1.textbook_k3(d) < 0).any()
    assert not (h1.k3_penalty(d) < 0).any()
