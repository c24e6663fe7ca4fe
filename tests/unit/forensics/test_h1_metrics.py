"""H1's metrics on four tokens that can be checked by hand, and the values of k2 and k3."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from precision_lib.forensics.h1 import kl_collapse as h1
from precision_lib.matrix import PrecisionConfig
from precision_lib.ppo import kl

#: Log-probs of four tokens: golden (FP32) and as a low configuration (named fp16) gives them.
GOLDEN_POLICY, GOLDEN_REFERENCE = [-2.0, -2.0, -3.0, -1.0], [-2.25, -1.5, -3.0, -1.5]
LOW_POLICY, LOW_REFERENCE = [-2.0, -2.0, -3.5, -1.0], [-2.0, -1.75, -3.0, -1.5]
LOW = PrecisionConfig("low", "fp16", "fp16", "fp32", "fp32", "fp32")
BASELINE = PrecisionConfig("baseline", "fp32", "fp32", "fp32", "fp32", "fp32")


def stub(values: dict[tuple[str, str], list[float]]) -> Any:
    """Forwards that return given log-probs by (role, format)."""

    def scored(role: str, policy: int, fmt: str, run: str = "first") -> Any:
        tensor = torch.tensor(values[role, fmt])
        return SimpleNamespace(logprobs={"fp32": tensor, "fp64": tensor.double()})

    return SimpleNamespace(scored=scored)


def metrics(configuration: PrecisionConfig, values: dict[tuple[str, str], list[float]]) -> Any:
    quantities = h1.token_quantities(stub(values), configuration, 0)
    totals = {name: np.asarray(float(q.sum())) for name, q in quantities.items()}
    return {name: float(function(totals)) for name, (function, _) in h1.METRICS.items()}


def test_every_metric_on_four_tokens() -> None:
    """golden d = 0.25, -0.5, 0, 0.5; d = 0, -0.25, -0.5, 0.5; error = -0.25, 0.25, -0.5, 0."""
    got = metrics(
        LOW,
        {
            ("policy", "fp32"): GOLDEN_POLICY,
            ("reference", "fp32"): GOLDEN_REFERENCE,
            ("policy", "fp16"): LOW_POLICY,
            ("reference", "fp16"): LOW_REFERENCE,
        },
    )

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
    values = {("policy", "fp32"): [-2.0], ("reference", "fp32"): [-2.25]}
    exact = {("policy", "fp64"): [-2.0], ("reference", "fp64"): [-2.375]}
    got = metrics(BASELINE, values | exact)
    assert got["log_ratio_nsr"] == 0.125 / 0.375


def test_an_infinite_log_ratio_is_counted_and_enters_nothing_else() -> None:
    values = {("policy", "fp32"): [-2.0, -1.0], ("reference", "fp32"): [-2.25, -1.5]}
    low = {("policy", "fp16"): [-2.0, -math.inf], ("reference", "fp16"): [-2.25, -1.5]}
    got = metrics(LOW, values | low)
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
