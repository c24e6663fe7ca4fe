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
from precision_lib.forensics.forwards import (
    EXACT,
    FIRST,
    GOLDEN,
    POLICY,
    REBATCHED,
    REFERENCE,
    Forwards,
)
from precision_lib.forensics.h1 import kl_collapse as h1
from precision_lib.forensics.h1.declaration import H1
from precision_lib.forensics.hypothesis import Given
from precision_lib.forensics.observed_format import observed_models
from precision_lib.forensics.probe import ProbeSettings, prepare
from precision_lib.forensics.statistics import Metric, resample
from precision_lib.forensics.study import Study
from precision_lib.formats import format_of
from precision_lib.matrix import PrecisionConfig
from precision_lib.models.loading import Checkpoint
from precision_lib.ppo import masked

DAMAGE, SYMPTOM = H1.decision.metric, H1.decision.symptom

#: The components of H1 in the one case for which the share of zero log-ratios is derived.
H1_DEMOTED = {"policy": GOLDEN, "reference": GOLDEN, "kl": "bf16"}


@dataclass
class H1Study(Study):
    """H1 over one probe.

    Attributes:
        forwards: log-probs of the fixed tokens; it keeps what was computed.
    """

    hypothesis = H1
    forwards: Forwards

    def __post_init__(self) -> None:
        responses = self.forwards.given.responses
        counts = [len(r.tokens) for r in responses]
        #: Response length of each sequence, and the sequence of each token.
        self.lengths = np.repeat([r.length for r in responses], counts)
        self.sequence = np.repeat(np.arange(sum(counts)), self.lengths)
        # Sequence i of every length continues prompt i, so the prompt is what is resampled.
        prompts = np.concatenate([np.arange(count) for count in counts])
        resampling = resample(prompts, self.forwards.given.settings.seed)
        self.paired = Paired(h1.METRICS, resampling)

    def context(self) -> dict[str, Any]:
        """What the measurement was made on, for the record's context."""
        given = self.forwards.given
        return {
            "checkpoint": {"name": given.checkpoint.name, "sha256": given.checkpoint.sha256},
            "probe": asdict(given.settings),
        }

    def metrics(self, configuration: PrecisionConfig) -> dict[str, Metric]:
        """Every metric at the operating point; the mean penalty as a trainer would log it."""
        metrics = super().metrics(configuration)
        mean = self._pipeline_mean(configuration)
        metrics["kl_penalty_mean"] = replace(metrics["kl_penalty_mean"], value=mean)
        return metrics

    def _exact_mean(self, configuration: PrecisionConfig) -> float:
        return self.paired.estimate(self.sums(configuration), "kl_penalty_mean").value

    def _pipeline_mean(self, configuration: PrecisionConfig) -> float:
        """Mean k3 penalty as a trainer would log it: by the core's masked mean, in FP32."""
        operating = self.forwards.given.operating_policy
        ratio = h1.log_ratio(self.forwards, configuration, operating)
        return float(masked.masked_mean(h1.k3_penalty(ratio), torch.isfinite(ratio)))

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
            h1.log_ratio(self.forwards, configuration, policy, run).double()
            for run in (FIRST, REBATCHED)
        )
        finite = torch.isfinite(first - second)
        error2 = torch.where(finite, (second - first) ** 2, torch.zeros_like(first))
        signal2 = h1.golden_log_ratio(self.forwards, policy) ** 2
        tokens = torch.ones_like(signal2)
        sums = {"error2": error2, "signal2": signal2, "tokens": tokens}
        usual, other = (self.sums(configuration, run) for run in (FIRST, REBATCHED))
        return rebatched(self.paired, DAMAGE, self._per_sequence(sums), usual, other)

    def identical_weights(self, configuration: PrecisionConfig) -> dict[str, Any]:
        """Log-ratio of a policy whose weights equal the reference's, before any update.

        With one format for both it must be exactly zero everywhere: the null control. With two
        it is what the mismatch alone does, an RMS in nats.
        """
        ratio = h1.log_ratio(self.forwards, configuration, 0).double()
        return {
            "same_format": configuration.forward_format(POLICY)
            == configuration.forward_format(REFERENCE),
            "nonzero": int((ratio != 0).sum()),
            "n": ratio.numel(),
            "log_ratio_rms": float(ratio.square().mean().sqrt()),
        }

    def measure(self, configuration: PrecisionConfig, run: str = FIRST) -> Sums:
        """Per-sequence sums at the operating point."""
        return self._sums_at(configuration, self.forwards.given.operating_policy, run)

    def _sums_at(self, configuration: PrecisionConfig, policy: int, run: str = FIRST) -> Sums:
        quantities = h1.token_quantities(self.forwards, configuration, policy, run)
        return self._per_sequence(quantities)

    def _per_sequence(self, quantities: dict[str, Tensor]) -> Sums:
        return per_sequence(quantities, self.sequence)

    def control(self) -> dict[str, Any]:
        identical = [self.identical_weights(c) for c in (*self.looked_at, REFERENCE_RUN)]
        nonzero = sum(i["nonzero"] for i in identical)
        return {
            "identical_weights_nonzero": nonzero,
            "identical_weights_n": sum(i["n"] for i in identical),
            "is_null": nonzero == 0,
        }

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

    def evidence(
        self, configuration: PrecisionConfig, metrics: dict[str, Metric]
    ) -> dict[str, Any]:
        given, operating = self.forwards.given, self.forwards.given.operating_policy
        evidence: dict[str, Any] = {
            "true_kl": self.true_kl(operating),
            "executed_kl": self.forwards.executed_kl(
                operating,
                *(configuration.forward_format(model) for model in (POLICY, REFERENCE)),
            ),
            "measured_against": EXACT if h1.is_golden(configuration) else GOLDEN,
            # Summed in float64, to hold the pipeline's own mean against.
            "kl_penalty_mean_float64": self._exact_mean(configuration),
            "identical_weights": self.identical_weights(configuration),
            "observed_formats": self._observed(configuration),
            "curve": [
                {"target_kl": target, "true_kl": self.true_kl(policy)}
                | _json(self.at_policy(configuration, policy))
                for policy, target in enumerate(given.target_kls)
                if target > 0
            ],
            "by_length": {
                str(length): _json(self.at_length(configuration, length))
                for length in given.settings.seq_lengths
            },
        }
        if configuration.components | H1_DEMOTED == configuration.components and (
            not configuration.lm_head
        ):
            predicted = h1.predicted_near_zero(self.forwards, operating)
            evidence["log_ratio_near_zero_frac_predicted"] = float(predicted.mean())
            evidence["log_ratio_nsr_by_rounding"] = h1.rounding_parts(self.forwards, operating)
        return evidence

    def _observed(self, configuration: PrecisionConfig) -> dict[str, str | None]:
        """Formats as seen at run time; None for a component that H1 does not run."""
        operating = self.forwards.given.operating_policy
        policy = self.forwards.scored(POLICY, operating, configuration.forward_format(POLICY))
        reference = self.forwards.scored(REFERENCE, 0, configuration.forward_format(REFERENCE))
        ratio = h1.log_ratio(self.forwards, configuration, operating)
        kl = [ratio, *(s.logprobs[configuration.kl] for s in (policy, reference))]
        return {
            **observed_models(configuration, {POLICY: policy, REFERENCE: reference}),
            "reward": None,
            "value": None,
            "kl": "+".join(sorted({format_of(x.dtype).name for x in kl})),
        }


def _json(metrics: dict[str, Metric]) -> dict[str, Any]:
    return {name: metric.as_json() for name, metric in metrics.items()}


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
    kl_formats = tuple(sorted({c.kl for c in configurations} | {"bf16", GOLDEN, EXACT}))
    return H1Study(Forwards(prepare(checkpoint, settings), kl_formats, progress))
