"""H1 over the matrix: a cell per configuration, the null control, and checks of the measurement.

A cell that comes out ``impaired`` is a finding, not a failure: a test fails when the measurement
cannot be trusted. What the figures must agree with is derived, from the statistics of sampling or
from the bound of the arithmetic, and stands beside the assertion.
"""

import math
from typing import TYPE_CHECKING

import pytest

from precision_lib.forensics.evidence import H1Evidence
from precision_lib.formats import FORMATS
from precision_lib.matrix import PrecisionConfig, get_configuration
from precision_lib.record.recorder import Recorder

if TYPE_CHECKING:
    from precision_lib.forensics.h1.study import H1Study
    from precision_lib.phases.main_job import MainJob
    from precision_lib.plugin.keeping import Keep

#: A deviation of this many standard errors has a probability of 7e-6 under the null hypothesis.
SIGMAS = 4.5


@pytest.fixture(scope="session")
def h1_study(main_job: "MainJob") -> "H1Study":
    """H1 over the probe of this run."""
    from precision_lib.forensics.h1.study import H1Study

    study = main_job.study("H1")
    assert isinstance(study, H1Study)
    return study


@pytest.mark.cell("H1")
def test_cell_has_a_verdict(
    configuration: PrecisionConfig,
    h1_study: "H1Study",
    keep: "Keep",
) -> None:
    """Every metric is measured on every token, and FP32 repeats itself to less than the limit."""
    cell = h1_study.cell(configuration)
    keep(cell)
    tokens = sum(r.length * len(r.tokens) for r in h1_study.forwards.given.responses)
    assert {metric.n for metric in cell.metrics.values()} == {tokens}
    assert tokens > 0


def test_observed_formats_are_those_of_the_configuration(
    configuration: PrecisionConfig, h1_study: "H1Study"
) -> None:
    """Parameters, logits and log-ratio really had the configured formats."""
    observed = h1_study.cell(configuration).evidence.observed_formats
    exercised = {name: fmt for name, fmt in observed.items() if fmt is not None}
    assert set(exercised) == {"policy", "reference", "kl"}
    assert exercised == {name: configuration.components[name] for name in exercised}


def test_identical_weights_differ_by_exactly_zero_in_one_format(
    configuration: PrecisionConfig, h1_study: "H1Study"
) -> None:
    """The null control: before any update there is no KL, unless the formats differ."""
    control = h1_study.identical_weights(configuration)
    assert control.n
    if control.same_format:
        assert control.nonzero == 0, f"{control.nonzero} of {control.n} are not zero"
    else:
        assert control.log_ratio_rms, "two formats cannot agree on every token"


def test_mean_penalty_is_the_exact_mean_within_its_bound(
    configuration: PrecisionConfig, h1_study: "H1Study"
) -> None:
    """The pipeline's masked mean against the float64 sum of the same penalties."""
    from precision_lib.bounds import mean_bound

    cell = h1_study.cell(configuration)
    got, n = cell.metrics["kl_penalty_mean"].value, cell.metrics["kl_penalty_mean"].n
    want = cell.shows(H1Evidence).kl_penalty_mean_float64
    assert want is not None
    # k3 >= 0, so the sum of magnitudes is the sum itself.
    limit = mean_bound(abs(want) * n, n, FORMATS["fp32"])
    assert abs(got - want) <= limit, (
        f"masked mean of {n} penalties: got {got!r}, want {want!r}, "
        f"limit {limit:.3g} (mean_bound, fp32)"
    )


def test_k3_of_the_core_is_never_negative(
    configuration: PrecisionConfig, h1_study: "H1Study"
) -> None:
    """At every distance from the reference: a KL estimate below zero is an arithmetic error."""
    curve = h1_study.cell(configuration).shows(H1Evidence).curve
    assert curve
    assert [point.metrics["k3_negative_frac"].value for point in curve] == [0.0] * len(curve)


def test_sampled_tokens_are_the_references_own(h1_study: "H1Study") -> None:
    """The log-probs of sampled tokens scatter about minus the entropy, as their variance says.

    Given its context, log q(token) + entropy has mean 0 and a known variance, so the sum over all
    tokens over the root of the summed variances is standard normal. A shift by one, a stale
    reference or another temperature moves it by hundreds.
    """
    theory = h1_study.forwards.theory(h1_study.forwards.given.operating_policy)
    excess = (theory.reference_logprob + theory.entropy).sum()
    z = float(excess / theory.surprise_variance.sum().sqrt())
    assert theory.entropy.numel() > 0
    assert abs(z) < SIGMAS, f"z = {z:.1f} over {theory.entropy.numel()} tokens, limit {SIGMAS}"


def test_true_kl_agrees_with_the_sampled_estimate(h1_study: "H1Study") -> None:
    """Full-vocabulary KL against k3 of the golden log-ratios, two independent roads to one number.

    Their difference per sequence has mean 0 up to third order in the log-ratio.
    """
    import torch

    from precision_lib.metrics import log_ratio as h1

    policy = h1_study.forwards.given.operating_policy
    k3 = h1.k3_penalty(h1_study.forwards.golden_log_ratio(policy))
    difference = k3 - h1_study.forwards.true_kl(policy)
    sequences = torch.tensor(h1_study.sequence)
    sums = torch.zeros(int(sequences.max()) + 1, dtype=torch.float64)
    sums.index_add_(0, sequences, difference)
    z = float(sums.sum() / (sums.std() * math.sqrt(len(sums))))
    assert abs(z) < SIGMAS, f"z = {z:.1f} over {len(sums)} sequences, limit {SIGMAS}"


def test_policies_lie_at_increasing_distances(h1_study: "H1Study") -> None:
    """The identical policy has a KL of exactly 0, the others grow with their targets."""
    kls = [h1_study.true_kl(p) for p in range(len(h1_study.forwards.given.scales))]
    assert kls[0] == 0
    assert kls == sorted(kls)
    assert len(set(kls)) == len(kls)


def test_zero_log_ratios_of_rounded_log_probs_match_the_derivation(h1_study: "H1Study") -> None:
    """Rounding a pair of log-probs to bf16 makes them equal with probability 1 - |d| / ulp.

    At -2.3 the step is 2**-6. Each token is a Bernoulli draw over the phase of the grid, so the
    count has a variance of at most sum p (1 - p) and the limit is a number of standard errors.
    """
    import torch

    from precision_lib.formats import round_to, ulp
    from precision_lib.metrics import log_ratio as h1

    assert float(ulp(torch.tensor([-2.3]), FORMATS["bf16"])) == 2.0**-6
    theory = h1_study.forwards.theory(h1_study.forwards.given.operating_policy)
    pair = theory.policy_logprob, theory.reference_logprob
    move = pair[0] - pair[1]
    expected = h1.zero_probability(move, ulp(pair[1], FORMATS["bf16"]))
    measured = (round_to(pair[0], FORMATS["bf16"]) == round_to(pair[1], FORMATS["bf16"])).double()
    error = (expected * (1 - expected)).sum().sqrt()
    z = float((measured - expected).sum() / error)
    assert abs(z) < SIGMAS, (
        f"equal after rounding: {measured.mean():.4f}, derived {expected.mean():.4f}, z = {z:.1f}"
    )


def test_zero_log_ratios_of_a_bf16_kl_match_the_derivation(h1_study: "H1Study") -> None:
    """The same for the whole bf16 KL path: logits rounded, then log-probs rounded."""
    import torch

    from precision_lib.metrics import log_ratio as h1

    operating = h1_study.forwards.given.operating_policy
    cell = h1_study.cell(get_configuration("fp32_bf16_kl"))
    measured = cell.metrics["log_ratio_near_zero_frac"].value
    theory = h1_study.forwards.theory(operating)
    expected = h1.predicted_near_zero(theory.rounded_move, theory.reference_logprob)
    error = float((expected * (1 - expected)).sum().sqrt()) / expected.numel()
    z = (measured - float(torch.mean(expected))) / error
    assert abs(z) < SIGMAS, (
        f"zero log-ratios: measured {measured:.4f}, derived {expected.mean():.4f}, z = {z:.1f}"
    )


@pytest.mark.parametrize("name", ["fp32_baseline", "fp32_bf16_reward", "fp32_bf16_value"])
def test_golden_path_is_healthy_against_float64(name: str, h1_study: "H1Study") -> None:
    """FP32 in all that H1 runs: the one cell whose verdict is known before the measurement."""
    cell = h1_study.cell(get_configuration(name))
    assert cell.evidence.measured_against == "fp64"
    assert cell.verdict == "healthy"
    # An error of exactly 0 would say that FP32 was compared with itself.
    assert cell.metrics["log_ratio_nsr"].low > 0
    assert h1_study.forwards.scored("policy", 1, "fp64").logits == "fp64"


def test_controls_are_null_and_the_hypothesis_has_a_verdict(
    h1_study: "H1Study", recorder: Recorder
) -> None:
    """Identical weights give exactly zero; promoting an irrelevant component changes nothing."""
    verdict = h1_study.verdict()
    recorder.add_hypothesis(verdict)
    assert verdict.control.identical_weights_n
    assert verdict.control.is_null, verdict.control
