"""The damage of every configuration on one PPO step, from the forwards of H1 and H2 and its own.

n sequences of the step, M response tokens of H1's probe.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from precision_lib.forensics.causal import REFERENCE_RUN, Paired, Sums, per_sequence
from precision_lib.forensics.damage.figures import (
    PipelineDamage,
    Products,
    StepDamage,
    cosine_metric,
    expected_cosine,
    norm_metric,
    products,
)
from precision_lib.forensics.damage.step import (
    CLIP_RANGE,
    KL_COEFFICIENT,
    Inputs,
    Loss,
    Step,
    first_of_each_prompt,
)
from precision_lib.forensics.damage.work import TWIN, judged, policy_of
from precision_lib.forensics.forwards import POLICY
from precision_lib.forensics.frozen import Frozen
from precision_lib.forensics.h1.study import H1Study
from precision_lib.forensics.h2.study import H2Study
from precision_lib.forensics.statistics import Metric, resample
from precision_lib.forensics.study import Study
from precision_lib.matrix import PrecisionConfig
from precision_lib.metrics.measure import Array, Measure, Totals, root_mean_square, share
from precision_lib.models.pipeline import Pipeline
from precision_lib.scoring.scorer import GOLDEN


def _inverted(totals: Totals) -> Array:
    pairs, tied, agreement = (np.asarray(totals[k]) for k in ("pairs", "tied", "agreement"))
    inverted: Array = (pairs - tied - agreement) / 2 / np.where(pairs > 0, pairs, 1)
    return inverted


_STEP = {
    "logprob_rms_error": Measure(root_mean_square("logprob2", "tokens"), "nats"),
    "advantage_rms_error": Measure(root_mean_square("error2", "signal2"), "share"),
    "advantage_sign_flip_frac": Measure(share("flipped"), "share of tokens"),
}
_CLIPS = {"clip_change_frac": Measure(share("changed"), "share of tokens")}
_RANKS = {"rank_inversion_frac": Measure(_inverted, "share of pairs", elements="pairs")}


@dataclass
class DamageStudy:
    """One step over what the studies of a main job have computed.

    Attributes:
        h1: with the policy that has moved, and its log-probs. h2: with the scores.
        asked: configurations.
    """

    h1: H1Study
    h2: H2Study
    step: Step
    asked: Sequence[PrecisionConfig]

    def __post_init__(self) -> None:
        count = len(self.step.sequences)
        self.paired = Paired(_STEP, resample(np.arange(count), self.h2.seed))

    def measure(self) -> PipelineDamage:
        """Every configuration, in their order.

        Raises:
            NothingComparedError: the rewards give no gradient.
        """
        policies = dict.fromkeys(policy_of(c) for c in self.asked)
        inputs = {c.name: self.step.inputs(c, policy_of(c)) for c in self.asked}
        exact = self.step.inputs(REFERENCE_RUN)
        losses = {c.name: Loss(policy_of(c), c.kl, inputs[c.name]) for c in self.asked}
        alone = {
            _alone(fmt): Loss(fmt, GOLDEN, replace(exact, logprobs=self.step.logprobs(fmt)))
            for fmt in policies
            if fmt != TWIN
        }
        truth = self.step.gradients({"": Loss(GOLDEN, GOLDEN, exact)})[""]
        terms = self.step.gradients(losses | alone)
        compared = {name: _compared(own, truth) for name, own in terms.items()}
        h1, policy = self.h1, len(self.h1.forwards.given.scales) - 1
        outside = _outside(self._ratio(REFERENCE_RUN, policy))
        return PipelineDamage(
            true_kl=h1.true_kl(h1.forwards.given.operating_policy),
            clip_kl=h1.true_kl(policy),
            clipped_frac=float(outside.double().mean()),
            sequences=len(truth),
            tokens=int(exact.mask.sum()),
            coordinates=truth.shape[1],
            parameters=sum(p.numel() for p in self.step.original.parameters()),
            kl_coefficient=KL_COEFFICIENT,
            steps=tuple(self._row(c, compared, inputs[c.name], exact) for c in self.asked),
        )

    def _row(
        self,
        configuration: PrecisionConfig,
        compared: dict[str, Products | None],
        inputs: Inputs,
        exact: Inputs,
    ) -> StepDamage:
        tokens, policy = int(exact.mask.sum()), policy_of(configuration)
        own, alone = compared[configuration.name], compared.get(_alone(policy))
        step: dict[str, Metric | None] = dict.fromkeys(_STEP)
        expected = None
        if inputs.finite:
            step |= (measured := self.paired.estimates(_step_sums(inputs, exact)))
            names = "logprob_rms_error", "advantage_rms_error"
            expected = expected_cosine(*(measured[name].value for name in names))
        return StepDamage(
            configuration=configuration.name,
            expected_cosine=expected,
            gradient_cosine=cosine_metric(own, tokens) if own else None,
            gradient_norm_ratio=norm_metric(own, tokens) if own else None,
            exact_inputs_cosine=cosine_metric(alone, tokens) if alone else None,
            rank_inversion_frac=self._rank_inversions(configuration),
            clip_change_frac=self._clip_changes(configuration),
            **step,
        )

    def _rank_inversions(self, configuration: PrecisionConfig) -> Metric | None:
        paired, sums = replace(self.h2.paired, metrics=_RANKS), self.h2.sums(configuration)
        return paired.estimate(sums, "rank_inversion_frac") if sums["pairs"].sum() else None

    def _clip_changes(self, configuration: PrecisionConfig) -> Metric:
        """At the last distance of H1's curve, where FP32 clips some tokens; NaN is a change."""
        policy = len(self.h1.forwards.given.scales) - 1
        ratio = self._ratio(configuration, policy)
        changed = _outside(ratio) != _outside(self._ratio(REFERENCE_RUN, policy))
        changed |= ratio.isnan()
        quantities = {"changed": changed.double(), "tokens": torch.ones(len(changed)).double()}
        sums = per_sequence(quantities, self.h1.sequence)
        return replace(self.h1.paired, metrics=_CLIPS).estimate(sums, "clip_change_frac")

    def _ratio(self, configuration: PrecisionConfig, policy: int) -> Tensor:
        """[M] float64 ratio of a policy to the one that has not moved."""
        fmt = configuration.forward_format(POLICY)
        new, old = (
            self.h1.forwards.scored(POLICY, number, fmt).logprobs[configuration.kl].double()
            for number in (policy, 0)
        )
        return (new - old).exp()


def open_damage(
    pipeline: Pipeline,
    frozen: Frozen,
    studies: Mapping[str, Study],
    configurations: Iterable[PrecisionConfig],
    count: int,
) -> DamageStudy:
    """Be ready to measure the step of every configuration but the counterfactuals.

    Args:
        studies: those of H1 and H2.
        count: sequences of the step, each of another prompt; fewer where there are fewer prompts.
    """
    h1, h2 = studies["H1"], studies["H2"]
    assert isinstance(h1, H1Study)
    assert isinstance(h2, H2Study)
    asked = judged(configurations)
    sequences = first_of_each_prompt(frozen.shards, count)
    rows = torch.tensor([sequence.number for sequence in sequences])
    scores = {fmt: h2.scores(fmt)[rows] for fmt in {c.reward for c in asked} | {GOLDEN}}
    given, reference = h1.forwards.given, pipeline.reference.model
    step = Step(given, reference, frozen.head, scores, sequences, asked)
    return DamageStudy(h1, h2, step, asked)


def _outside(ratio: Tensor) -> Tensor:
    """[M] whether it leaves the clip range."""
    return (ratio - 1).abs() > CLIP_RANGE


def _alone(policy: str) -> str:
    """Name of the loss of a policy's format whose inputs are exact."""
    return f"exact inputs, {policy}"


def _compared(own: Array, truth: Array) -> Products | None:
    """None for a gradient that is not finite."""
    if not np.isfinite(own).all():
        return None
    return products(own.astype(np.float64), truth.astype(np.float64))


def _step_sums(inputs: Inputs, exact: Inputs) -> Sums:
    """Sums per sequence of the errors of log-probs and advantages."""
    mask = exact.mask
    sequence = torch.arange(len(mask)).unsqueeze(1).expand(mask.shape)[mask].numpy()
    got, want = (x.advantages[mask].double() for x in (inputs, exact))
    difference = inputs.logprobs[mask].double() - exact.logprobs[mask].double()
    quantities = {
        "tokens": torch.ones_like(want),
        "logprob2": difference**2,
        "error2": (got - want) ** 2,
        "signal2": want**2,
        "flipped": (got * want < 0).double(),
    }
    return per_sequence(quantities, sequence)
