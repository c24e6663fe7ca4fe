"""H4 as cells and a verdict: what a sum of log-ratio errors is, and which component makes it.

The hazard. Policy and reference drift by the same law and in the same direction, so that the
*difference* of their formats leaves a drift, and not the reference alone. Each cell reports the two
components alone beside their difference, on tokens that the policy wrote and on tokens that neither
model wrote.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

import numpy as np

from precision_lib.forensics.causal import PURE, REFERENCE_RUN, Paired, Rebatched, Sums, rebatched
from precision_lib.forensics.evidence import (
    AccumulatedError,
    H4Evidence,
    IdenticalWeights,
    Metrics,
)
from precision_lib.forensics.forwards import (
    POLICY,
    REFERENCE,
    Forwards,
    kl_formats,
    measured_against,
    model_formats,
)
from precision_lib.forensics.h4 import evidence
from precision_lib.forensics.h4.declaration import H4
from precision_lib.forensics.h4.expected_drift import ExpectedDrift, expected_drift
from precision_lib.forensics.h4.long_sequences import (
    H4Settings,
    LongInput,
    first_rows,
    prepare_long,
)
from precision_lib.forensics.hypothesis import Given
from precision_lib.forensics.statistics import Metric
from precision_lib.forensics.study import Study
from precision_lib.forensics.verdicts import Control, identical_control
from precision_lib.jsonio import Json
from precision_lib.matrix import PrecisionConfig, get_configuration
from precision_lib.metrics import drift as h4
from precision_lib.metrics.measure import Array
from precision_lib.models.loading import Checkpoint
from precision_lib.scoring.micro import FIRST, REBATCHED
from precision_lib.scoring.scorer import EXACT, GOLDEN

DAMAGE = H4.decision.metric
#: Configurations with one format for policy and reference, where identical weights must not drift.
NULLS = (PURE, REFERENCE_RUN, get_configuration("fp32_bf16_kl"))


@dataclass
class H4Study(Study):
    """H4 over one set of long sequences.

    Attributes:
        given: the fixed input.
        sampled: log-probs of the sequences drawn from the policy.
        checked: log-probs of the first sampled sequences, for null controls and batch variance.
    """

    hypothesis = H4
    given: LongInput
    sampled: Forwards
    checked: Forwards
    _drift: dict[tuple[str, str], ExpectedDrift] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.paired = self._paired(self.sampled)

    def context(self) -> dict[str, Json]:
        """What the measurement was made on, for the record's context."""
        checkpoint = self.given.sampled.checkpoint
        return {
            "checkpoint": {"name": checkpoint.name, "sha256": checkpoint.sha256},
            "h4": asdict(self.given.settings)
            | {
                "sampled_tokens": self.sampled.tokens,
                "text_tokens": sum(r.length * len(r.tokens) for r in self.given.text.responses),
            },
        }

    def measure(self, configuration: PrecisionConfig, run: str = FIRST) -> Sums:
        """Per-sequence sums on the sampled sequences."""
        return h4.sequence_sums(self.error(self.sampled, configuration, run))

    def repeated(self, configuration: PrecisionConfig, run: str) -> tuple[Sums, Paired]:
        """On the checked sequences alone."""
        error = self.error(self.checked, configuration, run)
        return h4.sequence_sums(error), self._paired(self.checked)

    def control(self) -> Control:
        """Identical weights do not drift."""
        return identical_control([self.identical_weights(c) for c in NULLS])

    def error(self, forwards: Forwards, configuration: PrecisionConfig, run: str = FIRST) -> Array:
        """[N, T] error of the log-ratio, nats, against what :func:`measured_against` says."""
        policy = self.given.policy
        got = forwards.log_ratio(configuration, policy, run).double()
        golden = forwards.golden_log_ratio(policy, measured_against(configuration))
        return forwards.rows(got - golden)

    def component_error(
        self, forwards: Forwards, configuration: PrecisionConfig, role: str
    ) -> Array:
        """[N, T] error of the log-prob of policy or reference alone, nats."""
        golden = measured_against(configuration)
        fmt = configuration.forward_format(role)
        got = forwards.scored(role, self.given.policy, fmt).logprobs[configuration.kl]
        want = forwards.scored(role, self.given.policy, golden).logprobs[golden]
        return forwards.rows(got.double() - want.double())

    def rebatched(self, configuration: PrecisionConfig) -> Rebatched:
        """:data:`DAMAGE` of a configuration in another order and micro-batch.

        On the checked sequences, which are the first of the sampled ones.
        """
        policy, count = self.given.policy, self.given.settings.checked
        usual = self.sampled.rows(self.sampled.log_ratio(configuration, policy).double())
        again = self.checked.log_ratio(configuration, policy, REBATCHED).double()
        error = self.error(self.sampled, configuration)[:count]
        with np.errstate(invalid="ignore"):  # inf - inf of an overflow, which counts as 0 below
            moved = self.checked.rows(again) - usual[:count]
            elsewhere = error + moved
        sums = (h4.sequence_sums(x) for x in (moved, error, elsewhere))
        return rebatched(self._paired(self.checked), DAMAGE, *sums)

    def identical_weights(self, configuration: PrecisionConfig) -> IdenticalWeights:
        """Drift of a policy whose weights equal the reference's, before any update.

        With one format for both it must be exactly zero on every token: the null control. With
        two it is what the mismatch alone does.
        """
        ratio = self.checked.rows(self.checked.log_ratio(configuration, 0).double())
        metrics = self._paired(self.checked).estimates(h4.sequence_sums(ratio))
        return IdenticalWeights(
            same_format=len(set(model_formats(configuration))) == 1,
            nonzero=int((ratio != 0).sum()),
            n=ratio.size,
            accum_err_final=metrics[DAMAGE].value,
            drift_nats_per_1000_tokens=metrics["drift_nats_per_1000_tokens"].value,
        )

    def true_kl(self) -> float:
        """Mean KL(policy || reference) per token on the checked sequences, nats."""
        return float(self.checked.true_kl(self.given.policy).mean())

    def drift(self, source: str, fmt: str) -> ExpectedDrift:
        """The policy in ``fmt`` against itself in FP32 on ``sampled`` or ``text`` sequences."""
        if (source, fmt) not in self._drift:
            given = self.given.sampled if source == "sampled" else self.given.text
            count = self.given.settings.expected if source == "sampled" else None
            rows = given if count is None else first_rows(given, count)
            self._drift[source, fmt] = expected_drift(Forwards(rows, ()), self.given.policy, fmt)
        return self._drift[source, fmt]

    def _paired(self, forwards: Forwards) -> Paired:
        count = len(forwards.responses.tokens)
        return evidence.over_sequences(count, self.given.settings.seed)

    def explanation(self, contrasts: dict[str, Metric]) -> str:
        pure, promoted, demoted = (self.cell(c) for c in self.looked_at)
        healed = contrasts["promotion_damage_healed"]
        change = "changes nothing for certain"
        if healed.low > 0:
            change = "removes a part"
        elif healed.high < 0:
            change = "makes it worse"
        drift = [c.metrics["drift_nats_per_1000_tokens"].words for c in (pure, promoted, demoted)]
        return (
            f"Over {self.sampled.responses.length} tokens the log-ratio of a bf16 policy "
            f"and a bf16 reference is off by {pure.metrics[DAMAGE].words} nats RMS, drift "
            f"{drift[0]} per 1,000 tokens. An FP32 reference alone {change}: "
            f"{promoted.metrics[DAMAGE].words} nats, share removed {healed.words}, drift "
            f"{drift[1]}. A bf16 reference alone makes {demoted.metrics[DAMAGE].words} nats, "
            f"drift {drift[2]}. {self._critical_length()}"
        )

    def _critical_length(self) -> str:
        """From which length on the verdict of ``bf16_pure`` is what it is."""
        sampled = self.cell(PURE).shows(H4Evidence).sampled
        length = None if sampled is None else sampled.metrics.get("critical_length")
        if length is None:
            return "At this length nothing passes the limit."
        return (
            f"The limit is passed from {length.value:.0f} [{length.low:.0f}, "
            f"{length.high:.0f}] tokens on; shorter sequences are not affected."
        )

    def evidence(self, configuration: PrecisionConfig, metrics: Metrics) -> H4Evidence:
        growth = metrics["accum_err_growth_exponent"]
        policy, seed = configuration.forward_format(POLICY), self.given.settings.seed
        sources = () if policy == GOLDEN else ("sampled", "text")
        return H4Evidence(
            true_kl=self.true_kl(),
            measured_against=measured_against(configuration),
            observed_formats=self.sampled.observed(configuration, self.given.policy),
            growth_laws_within=tuple(h4.laws_within(growth.low, growth.high)),
            identical_weights=self.identical_weights(configuration),
            buffers=self._buffers(configuration),
            sampled=self._sampled(configuration),
            expected_policy_drift={
                source: evidence.of_drift(self.drift(source, policy), seed) for source in sources
            },
        )

    def _sampled(self, configuration: PrecisionConfig) -> AccumulatedError:
        """Error by position, the components alone, and what a sum over the sequence loses."""
        forwards, golden = self.sampled, measured_against(configuration)
        parts = {
            role: self.component_error(forwards, configuration, role)
            for role in (POLICY, REFERENCE)
        }
        reference = configuration.forward_format(REFERENCE)
        executed, wanted = (
            forwards.rows(forwards.scored(REFERENCE, 0, fmt).logprobs[kl].double())
            for fmt, kl in ((reference, configuration.kl), (golden, golden))
        )
        seed, error = self.given.settings.seed, self.error(forwards, configuration)
        stored = h4.stored_sum_error(executed, wanted, configuration.kl)
        return evidence.of_errors(error, parts, stored, seed)

    def _buffers(self, configuration: PrecisionConfig) -> str:
        """Format of the numbers in the RoPE table and its like; "" for a model without any."""
        policy_format, reference_format = model_formats(configuration)
        policy = self.sampled.scored(POLICY, self.given.policy, policy_format)
        reference = self.sampled.scored(REFERENCE, 0, reference_format)
        return "+".join(sorted({policy.buffers, reference.buffers}))


def open_given(given: Given) -> H4Study:
    """H4 on the models of a main job."""
    return open_h4_study(given.pipeline.policy, given.settings, given.configurations)


def open_h4_study(
    checkpoint: Checkpoint,
    settings: H4Settings,
    configurations: Iterable[PrecisionConfig],
) -> H4Study:
    """Draw the sequences, place the policy, and be ready to measure cells.

    Args:
        configurations: those that will be asked for; they say in which formats the log-softmax is
            taken of each forward.

    Raises:
        ValueError: when the model or the text is too short.
    """
    formats = kl_formats(configurations, EXACT)
    given = prepare_long(checkpoint, settings)
    sampled, checked = (
        Forwards(rows, formats)
        for rows in (given.sampled, first_rows(given.sampled, settings.checked))
    )
    return H4Study(given, sampled, checked)
