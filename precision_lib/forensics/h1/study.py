"""H1 as cells and a verdict: the collapse curve, the null controls, the paired contrasts.

Each cell carries its curve over the true KL, its value per response length, the formats that were
observed, and a control that must be exactly zero.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from precision_lib.forensics.causal import (
    REFERENCE_RUN,
    Paired,
    Rebatched,
    Sums,
    per_sequence,
    rebatched,
)
from precision_lib.forensics.evidence import CurvePoint, H1Evidence, IdenticalWeights, Metrics
from precision_lib.forensics.forwards import (
    REFERENCE,
    Forwards,
    kl_formats,
    measured_against,
    model_formats,
)
from precision_lib.forensics.h1.declaration import H1
from precision_lib.forensics.hypothesis import Given
from precision_lib.forensics.probe import ProbeSettings, prepare
from precision_lib.forensics.statistics import Metric, resample
from precision_lib.forensics.study import Study
from precision_lib.forensics.verdicts import Control, identical_control
from precision_lib.jsonio import Json
from precision_lib.matrix import PrecisionConfig
from precision_lib.metrics import log_ratio
from precision_lib.models.loading import Checkpoint
from precision_lib.ppo import masked
from precision_lib.scoring.micro import FIRST, REBATCHED
from precision_lib.scoring.scorer import EXACT, GOLDEN

DAMAGE, SYMPTOM = H1.decision.metric, H1.decision.symptom

#: The components of H1 in the one case for which the share of zero log-ratios is derived.
H1_DEMOTED = {"policy": GOLDEN, "reference": GOLDEN, "kl": "bf16"}


@dataclass
class H1Study(Study):
    """H1 over one probe.

    Attributes:
        settings: of the probe.
        forwards: log-probs of the fixed tokens; it keeps what was computed.
    """

    hypothesis = H1
    settings: ProbeSettings
    forwards: Forwards

    def __post_init__(self) -> None:
        responses = self.forwards.given.responses
        counts = [len(r.tokens) for r in responses]
        #: Response length of each sequence, and the sequence of each token.
        self.lengths = np.repeat([r.length for r in responses], counts)
        self.sequence = np.repeat(np.arange(sum(counts)), self.lengths)
        # Sequence i of every length continues prompt i, so the prompt is what is resampled.
        prompts = np.concatenate([np.arange(count) for count in counts])
        resampling = resample(prompts, self.settings.seed)
        self.paired = Paired(H1.metrics, resampling)

    def context(self) -> dict[str, Json]:
        """What the measurement was made on, for the record's context."""
        given = self.forwards.given
        return {
            "checkpoint": {"name": given.checkpoint.name, "sha256": given.checkpoint.sha256},
            "probe": asdict(self.settings),
        }

    def metrics(self, configuration: PrecisionConfig) -> dict[str, Metric]:
        """Every metric at the operating point; the mean penalty as a trainer would log it."""
        self._compare_models(configuration)
        metrics = super().metrics(configuration)
        mean = self._pipeline_mean(configuration)
        metrics["kl_penalty_mean"] = replace(metrics["kl_penalty_mean"], value=mean)
        return metrics

    def _compare_models(self, configuration: PrecisionConfig) -> None:
        """Compare the models before their log-probs are asked for: one forward gives both."""
        operating = self.forwards.given.operating_policy
        self.true_kl(operating)
        self.forwards.executed_kl(operating, *model_formats(configuration))

    def _exact_mean(self, configuration: PrecisionConfig) -> float:
        return self.paired.estimate(self.sums(configuration), "kl_penalty_mean").value

    def _pipeline_mean(self, configuration: PrecisionConfig) -> float:
        """Mean k3 penalty as a trainer would log it: by the core's masked mean, in FP32."""
        operating = self.forwards.given.operating_policy
        ratio = self.forwards.log_ratio(configuration, operating)
        return float(masked.masked_mean(log_ratio.k3_penalty(ratio), torch.isfinite(ratio)))

    def at_policy(self, configuration: PrecisionConfig, policy: int) -> dict[str, Metric]:
        """Every metric of a configuration at a policy."""
        if policy == self.forwards.given.operating_policy:
            return self.paired.estimates(self.sums(configuration))
        return self.paired.estimates(self._sums_at(configuration, policy))

    def at_length(self, configuration: PrecisionConfig, length: int) -> dict[str, Metric]:
        """Every metric at the operating point, over the responses of one length."""
        sums = self.sums(configuration)
        chosen = self.lengths == length
        paired = replace(self.paired, resampling=self.paired.resampling.of(chosen))
        return paired.estimates({name: values[chosen] for name, values in sums.items()})

    def true_kl(self, policy: int) -> float:
        """Mean KL(policy || reference) per token over all responses, nats."""
        return float(self.forwards.true_kl(policy).mean())

    def rebatched(self, configuration: PrecisionConfig) -> Rebatched:
        """:data:`DAMAGE` of a configuration in another order and micro-batch."""
        policy = self.forwards.given.operating_policy
        first, second = (
            self.forwards.log_ratio(configuration, policy, run).double()
            for run in (FIRST, REBATCHED)
        )
        finite = torch.isfinite(first - second)
        error2 = torch.where(finite, (second - first) ** 2, torch.zeros_like(first))
        signal2 = self.forwards.golden_log_ratio(policy) ** 2
        tokens = torch.ones_like(signal2)
        sums = {"error2": error2, "signal2": signal2, "tokens": tokens}
        usual, other = (self.sums(configuration, run) for run in (FIRST, REBATCHED))
        return rebatched(self.paired, DAMAGE, self._per_sequence(sums), usual, other)

    def identical_weights(self, configuration: PrecisionConfig) -> IdenticalWeights:
        """Log-ratio of a policy whose weights equal the reference's, before any update.

        With one format for both it must be exactly zero everywhere: the null control. With two
        it is what the mismatch alone does, an RMS in nats.
        """
        ratio = self.forwards.log_ratio(configuration, 0).double()
        return IdenticalWeights(
            same_format=len(set(model_formats(configuration))) == 1,
            nonzero=int((ratio != 0).sum()),
            n=ratio.numel(),
            log_ratio_rms=float(ratio.square().mean().sqrt()),
        )

    def measure(self, configuration: PrecisionConfig, run: str = FIRST) -> Sums:
        """Per-sequence sums at the operating point."""
        return self._sums_at(configuration, self.forwards.given.operating_policy, run)

    def _sums_at(self, configuration: PrecisionConfig, policy: int, run: str = FIRST) -> Sums:
        golden = self.forwards.golden_log_ratio(policy, measured_against(configuration))
        reference = self.forwards.scored(REFERENCE, 0, GOLDEN).logprobs[GOLDEN]
        ratio = self.forwards.log_ratio(configuration, policy, run)
        return self._per_sequence(log_ratio.token_quantities(ratio, golden, reference))

    def _per_sequence(self, quantities: dict[str, Tensor]) -> Sums:
        return per_sequence(quantities, self.sequence)

    def number_of_forwards(self, configurations: Iterable[PrecisionConfig]) -> int:
        """Forwards that all cells of ``configurations`` take, for a progress bar."""
        policies, keeps = len(self.forwards.given.scales), self.forwards.keeps_logits()
        roles = {("policy", c.forward_format("policy")) for c in configurations} | {
            (REFERENCE, c.forward_format(REFERENCE)) for c in configurations
        }
        first = roles | {(role, fmt) for role in ("policy", REFERENCE) for fmt in (GOLDEN, EXACT)}
        scored = sum(policies if role == "policy" else 1 for role, _ in first) + len(roles)
        executed = {model_formats(c) for c in configurations} - {(GOLDEN, GOLDEN)}
        # A kept pair is a forward of the policy, of which the first gives log-probs as well.
        of_policies = len({policy for policy, _ in executed} - {GOLDEN})
        pairs = 1 + len(executed) - of_policies if keeps else policies + 1 + len(executed)
        return scored + pairs + 2  # the two that the irrelevant control runs again

    def control(self) -> Control:
        same = (*self.looked_at, REFERENCE_RUN)
        return identical_control([self.identical_weights(c) for c in same])

    def explanation(self, contrasts: dict[str, Metric]) -> str:
        damage = contrasts["promotion_damage_healed"]
        symptom = [self.cell(c).metrics[SYMPTOM].value for c in self.looked_at[:2]]
        pure, promoted, demoted = (self.cell(c).metrics[DAMAGE].value for c in self.looked_at)
        return (
            f"At a true KL of {self.true_kl(self.forwards.given.operating_policy):.1e} nats/token, "
            f"an FP32 KL on bf16 models takes the zero log-ratios from {symptom[0]:.1%} to "
            f"{symptom[1]:.1%} of the tokens, and removes {damage.value:.1%} "
            f"[{damage.low:.1%}, {damage.high:.1%}] of the log-ratio noise (noise/signal "
            f"{pure:.2f} -> {promoted:.2f}). A bf16 KL on FP32 models alone makes {demoted:.2f}."
        )

    def evidence(self, configuration: PrecisionConfig, metrics: Metrics) -> H1Evidence:
        operating = self.forwards.given.operating_policy
        near_zero, parts = self._by_rounding(configuration)
        return H1Evidence(
            true_kl=self.true_kl(operating),
            executed_kl=self.forwards.executed_kl(operating, *model_formats(configuration)),
            measured_against=measured_against(configuration),
            # Summed in float64, to hold the pipeline's own mean against.
            kl_penalty_mean_float64=self._exact_mean(configuration),
            identical_weights=self.identical_weights(configuration),
            observed_formats=self.forwards.observed(configuration, operating),
            curve=tuple(
                CurvePoint(target, self.true_kl(policy), self.at_policy(configuration, policy))
                for policy, target in enumerate(self.settings.target_kls, 1)
            ),
            by_length={
                length: self.at_length(configuration, length)
                for length in self.settings.seq_lengths
            },
            log_ratio_near_zero_frac_predicted=near_zero,
            log_ratio_nsr_by_rounding=parts,
        )

    def _by_rounding(self, configuration: PrecisionConfig) -> tuple[float | None, dict[str, float]]:
        """What theory predicts of the two metrics, in the one case that it is derived for."""
        components = configuration.components
        if components | H1_DEMOTED != components or configuration.lm_head:
            return None, {}
        theory = self.forwards.theory(self.forwards.given.operating_policy)
        logprobs, move = (theory.policy_logprob, theory.reference_logprob), theory.rounded_move
        predicted = log_ratio.predicted_near_zero(move, theory.reference_logprob)
        return float(predicted.mean()), log_ratio.rounding_parts(*logprobs, move)


def open_given(given: Given) -> H1Study:
    """H1 on the models of a main job."""
    return open_study(given.pipeline.policy, given.settings, given.configurations)


def open_study(
    checkpoint: Checkpoint,
    settings: ProbeSettings,
    configurations: Iterable[PrecisionConfig],
    progress: Callable[[], Any] = lambda: None,
) -> H1Study:
    """Sample the tokens, place the policies, and be ready to measure cells.

    Args:
        configurations: those that will be asked for; they say in which formats the log-softmax is
            taken of each forward.
        progress: called after each forward.

    Raises:
        ValueError: when the settings do not fit the model.
    """
    formats = kl_formats(configurations, EXACT)
    return H1Study(settings, Forwards(prepare(checkpoint, settings), formats, progress))
