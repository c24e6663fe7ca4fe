"""H1 as cells and a verdict: the collapse curve, the null controls, the paired contrasts.

The hazard. One number per configuration cannot tell "bf16 is harmless here" from "the probe saw
nothing". So each cell carries its curve over the true KL, its value per response length, the
formats that were really observed, and a control that must be exactly zero.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from precision_lib.forensics import h1_kl_collapse as h1
from precision_lib.forensics.forwards import EXACT, GOLDEN, POLICY, REFERENCE, Forwards
from precision_lib.forensics.probe import ProbeSettings, prepare
from precision_lib.forensics.statistics import (
    Array,
    Metric,
    contrast,
    estimate,
    resampling_weights,
)
from precision_lib.forensics.verdicts import (
    DECISIONS,
    IMPAIRED,
    Cell,
    HypothesisVerdict,
    cell_verdict,
    hypothesis_verdict,
)
from precision_lib.formats import format_of
from precision_lib.matrix import PrecisionConfig, get_configuration
from precision_lib.models.loading import Checkpoint
from precision_lib.ppo import masked

H1 = "H1"
DAMAGE, SYMPTOM = DECISIONS[H1].metric, "log_ratio_near_zero_frac"
#: The baseline, its promotion, the demotion of FP32, and a promotion that must change nothing.
PURE, PROMOTED, DEMOTED, BASELINE, IRRELEVANT = (
    get_configuration(name)
    for name in ("bf16_pure", "bf16_fp32_kl", "fp32_bf16_kl", "fp32_baseline", "bf16_fp32_reward")
)

#: The components of H1 in the one case for which the share of zero log-ratios is derived.
H1_DEMOTED = {"policy": GOLDEN, "reference": GOLDEN, "kl": "bf16"}


@dataclass
class Study:
    """H1 over one probe: cells when asked for, then the hypothesis verdict.

    Attributes:
        forwards: log-probs of the fixed tokens; it keeps what was computed.
    """

    forwards: Forwards
    _cells: dict[str, Cell] = field(default_factory=dict)
    _floor: list[Metric] = field(default_factory=list)

    def __post_init__(self) -> None:
        responses = self.forwards.given.responses
        counts = [len(r.tokens) for r in responses]
        #: Response length of each sequence, and the sequence of each token.
        self.lengths = np.repeat([r.length for r in responses], counts)
        self.sequence = np.repeat(np.arange(sum(counts)), self.lengths)
        self.weights = resampling_weights(self.lengths, self.forwards.given.settings.seed)

    def context(self) -> dict[str, Any]:
        """What the measurement was made on, for the record's context."""
        given = self.forwards.given
        return {
            "checkpoint": {"name": given.checkpoint.name, "sha256": given.checkpoint.sha256},
            "probe": asdict(given.settings),
            "true_kl": [self.true_kl(policy) for policy in range(len(given.target_kls))],
        }

    def cell(self, configuration: PrecisionConfig) -> Cell:
        """Metrics at the operating point, evidence, and the verdict; computed once."""
        if configuration.name not in self._cells:
            operating = self.forwards.given.operating_policy
            metrics = self.metrics(configuration, operating)
            exact = metrics["kl_penalty_mean"]
            metrics["kl_penalty_mean"] = replace(exact, value=self._pipeline_mean(configuration))
            verdict = self._cell_verdict(metrics)
            self._cells[configuration.name] = Cell(
                H1, configuration.name, verdict, metrics, self._evidence(configuration, exact)
            )
        return self._cells[configuration.name]

    def _cell_verdict(self, metrics: dict[str, Metric]) -> str:
        if metrics["log_ratio_nonfinite_frac"].value > 0:
            return IMPAIRED
        return cell_verdict(metrics[DAMAGE], DECISIONS[H1].limit, self.noise_floor().value)

    def _pipeline_mean(self, configuration: PrecisionConfig) -> float:
        """Mean k3 penalty as a trainer would log it: by the core's masked mean, in FP32."""
        operating = self.forwards.given.operating_policy
        ratio = h1.log_ratio(self.forwards, configuration, operating)
        return float(masked.masked_mean(h1.k3_penalty(ratio), torch.isfinite(ratio)))

    def metrics(
        self, configuration: PrecisionConfig, policy: int, length: int | None = None
    ) -> dict[str, Metric]:
        """Every metric of a configuration at a policy, over one response length or all."""
        chosen = self.lengths == length if length is not None else np.full(len(self.lengths), True)
        sums = {k: v[chosen] for k, v in self._sums(configuration, policy).items()}
        n = int(sums["tokens"].sum())
        return {
            name: estimate(sums, function, self.weights[:, chosen], n=n, unit=unit)
            for name, (function, unit) in h1.METRICS.items()
        }

    def true_kl(self, policy: int) -> float:
        """Mean KL(policy || reference) per token over all responses, nats."""
        return float(self.forwards.true_kl(policy).mean())

    def noise_floor(self) -> Metric:
        """:data:`DAMAGE` of the golden path against itself in another order and micro-batch."""
        if not self._floor:
            policy = self.forwards.given.operating_policy
            signal = h1.golden_log_ratio(self.forwards, policy)
            again = [self.forwards.rebatched(role, policy).double() for role in (POLICY, REFERENCE)]
            sums = self._per_sequence(
                {"error2": (again[0] - again[1] - signal) ** 2, "signal2": signal**2}
            )
            function, unit = h1.METRICS[DAMAGE]
            self._floor.append(estimate(sums, function, self.weights, n=len(signal), unit=unit))
        return self._floor[0]

    def identical_weights(self, configuration: PrecisionConfig) -> dict[str, Any]:
        """Log-ratio of a policy whose weights equal the reference's, before any update.

        With one format for both it must be exactly zero everywhere: the null control. With two
        it is what the mismatch alone does, an RMS in nats.
        """
        ratio = h1.log_ratio(self.forwards, configuration, 0).double()
        return {
            "same_format": configuration.policy == configuration.reference,
            "nonzero": int((ratio != 0).sum()),
            "n": ratio.numel(),
            "log_ratio_rms": float(ratio.square().mean().sqrt()),
        }

    def verdict(self) -> HypothesisVerdict:
        """The hypothesis verdict from promotion, demotion and controls."""
        contrasts = {
            "promotion_damage_healed": self._healed(PURE, PROMOTED, DAMAGE),
            "promotion_symptom_removed": self._difference(PURE, PROMOTED, SYMPTOM),
            "demotion_damage_added": self._difference(DEMOTED, BASELINE, DAMAGE),
            "irrelevant_promotion_damage_removed": self._difference(
                PURE, IRRELEVANT, DAMAGE, repeat=1
            ),
        }
        control = self._control(contrasts["irrelevant_promotion_damage_removed"])
        verdict = hypothesis_verdict(
            *(self.cell(c).verdict for c in (PURE, PROMOTED, DEMOTED)),
            healed=contrasts["promotion_damage_healed"],
            added=contrasts["demotion_damage_added"],
            control_is_null=control["is_null"],
        )
        return HypothesisVerdict(
            hypothesis=H1,
            verdict=verdict,
            effect=contrasts["promotion_damage_healed"],
            control=control,
            explanation=self._explanation(contrasts),
            contrasts=contrasts,
        )

    def _sums(
        self, configuration: PrecisionConfig, policy: int, repeat: int = 0
    ) -> dict[str, Array]:
        quantities = h1.token_quantities(self.forwards, configuration, policy, repeat)
        return self._per_sequence(quantities)

    def _per_sequence(self, quantities: dict[str, Tensor]) -> dict[str, Array]:
        """[M] tensors to [N] sums per sequence."""
        return {
            name: np.bincount(self.sequence, weights=q.numpy()).astype(np.float64)
            for name, q in quantities.items()
        }

    def _difference(
        self, first: PrecisionConfig, second: PrecisionConfig, metric: str, repeat: int = 0
    ) -> Metric:
        """Metric of ``first`` minus that of ``second``, the latter from forwards of its own if
        ``repeat`` says so."""
        operating = self.forwards.given.operating_policy
        a, b = self._sums(first, operating), self._sums(second, operating, repeat)
        function, unit = h1.METRICS[metric]
        n = int(a["tokens"].sum())
        return contrast(a, b, function, lambda x, y: x - y, self.weights, n=n, unit=unit)

    def _healed(self, before: PrecisionConfig, after: PrecisionConfig, metric: str) -> Metric:
        """Share of a damage that a promotion removes: 1 healed, 0 unchanged, < 0 worse."""
        operating = self.forwards.given.operating_policy
        a, b = self._sums(before, operating), self._sums(after, operating)
        function, n = h1.METRICS[metric][0], int(a["tokens"].sum())
        return contrast(
            a, b, function, lambda x, y: 1 - y / x, self.weights, n=n, unit="share removed"
        )

    def _control(self, irrelevant: Metric) -> dict[str, Any]:
        identical = [self.identical_weights(c) for c in (PURE, PROMOTED, DEMOTED, BASELINE)]
        nonzero = sum(i["nonzero"] for i in identical)
        return {
            "identical_weights_nonzero": nonzero,
            "identical_weights_n": sum(i["n"] for i in identical),
            "irrelevant_promotion": IRRELEVANT.name,
            "irrelevant_promotion_damage_removed": irrelevant.value,
            "is_null": nonzero == 0 and irrelevant.low == irrelevant.high == 0,
        }

    def _explanation(self, contrasts: dict[str, Metric]) -> str:
        damage = contrasts["promotion_damage_healed"]
        symptom = [self.cell(c).metrics[SYMPTOM].value for c in (PURE, PROMOTED)]
        pure, promoted, demoted = (
            self.cell(c).metrics[DAMAGE].value for c in (PURE, PROMOTED, DEMOTED)
        )
        return (
            f"At a true KL of {self.true_kl(self.forwards.given.operating_policy):.1e} nats/token, "
            f"an FP32 KL on bf16 models takes the zero log-ratios from {symptom[0]:.1%} to "
            f"{symptom[1]:.1%} of the tokens, and removes {damage.value:.1%} "
            f"[{damage.low:.1%}, {damage.high:.1%}] of the log-ratio noise (noise/signal "
            f"{pure:.2f} -> {promoted:.2f}). A bf16 KL on FP32 models alone makes {demoted:.2f}."
        )

    def _evidence(self, configuration: PrecisionConfig, exact_mean: Metric) -> dict[str, Any]:
        given, operating = self.forwards.given, self.forwards.given.operating_policy
        evidence: dict[str, Any] = {
            "true_kl": self.true_kl(operating),
            "measured_against": EXACT if h1.is_golden(configuration) else GOLDEN,
            # Summed in float64, to hold the pipeline's own mean against.
            "kl_penalty_mean_float64": exact_mean.value,
            "identical_weights": self.identical_weights(configuration),
            "observed_formats": self._observed(configuration),
            "curve": [
                {"target_kl": target, "true_kl": self.true_kl(policy)}
                | _json(self.metrics(configuration, policy))
                for policy, target in enumerate(given.target_kls)
                if target > 0
            ],
            "by_length": {
                str(length): _json(self.metrics(configuration, operating, length))
                for length in given.settings.seq_lengths
            },
        }
        if configuration.components == configuration.components | H1_DEMOTED:
            predicted = h1.predicted_near_zero(self.forwards, operating)
            evidence["log_ratio_near_zero_frac_predicted"] = float(predicted.mean())
        return evidence

    def _observed(self, configuration: PrecisionConfig) -> dict[str, str | None]:
        """Formats as seen at run time; None for a component that H1 does not run."""
        operating = self.forwards.given.operating_policy
        policy = self.forwards.scored(POLICY, operating, configuration.policy)
        reference = self.forwards.scored(REFERENCE, 0, configuration.reference)
        ratio = h1.log_ratio(self.forwards, configuration, operating)
        kl = [ratio, *(s.logprobs[configuration.kl] for s in (policy, reference))]
        return {
            "policy": "+".join(sorted({policy.parameters, policy.logits})),
            "reference": "+".join(sorted({reference.parameters, reference.logits})),
            "reward": None,
            "value": None,
            "kl": "+".join(sorted({format_of(x.dtype).name for x in kl})),
        }


def _json(metrics: dict[str, Metric]) -> dict[str, Any]:
    return {name: metric.as_json() for name, metric in metrics.items()}


def open_study(
    checkpoint: Checkpoint,
    settings: ProbeSettings,
    configurations: Iterable[PrecisionConfig],
    progress: Callable[[], Any] = lambda: None,
) -> Study:
    """Sample the tokens, place the policies, and be ready to measure cells.

    Args:
        configurations: those that will be asked for; they say in which formats the log-softmax is
            taken of each forward.
        progress: called after each forward.

    Raises:
        ValueError: when the settings do not fit the model.
    """
    kl_formats = tuple(sorted({c.kl for c in configurations} | {"bf16", GOLDEN, EXACT}))
    return Study(Forwards(prepare(checkpoint, settings), kl_formats, progress))
