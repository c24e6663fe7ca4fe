"""Run H5: the trainer's forward against a rollout engine on the same tokens, a cell each.

Trainer: one forward over whole sequences, log-softmax in the KL format. Rollout: decoding from a
KV cache, log-softmax in FP32. Tokens come from the FP32 policy, so that all configurations are
measured on the same; weights are those of the checkpoint.

N sequences, T response tokens.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property

import numpy as np

from precision_lib.forensics.causal import PURE, REFERENCE_RUN, Paired, Rebatched, Sums, rebatched
from precision_lib.forensics.evidence import H5Evidence, Metrics, RolloutFormat
from precision_lib.forensics.forwards import REFERENCE, Forwards, ScoredTokens, kl_formats
from precision_lib.forensics.h4.evidence import correlation, over_sequences
from precision_lib.forensics.h4.long_sequences import sample_from
from precision_lib.forensics.h5.declaration import H5
from precision_lib.forensics.h5.engines import H5Settings, Reported, collision, decode
from precision_lib.forensics.hypothesis import Given
from precision_lib.forensics.policy_shift import Placed
from precision_lib.forensics.statistics import Metric
from precision_lib.forensics.study import Study
from precision_lib.forensics.verdicts import Control
from precision_lib.jsonio import Json
from precision_lib.matrix import REQUIRED, ROLLOUT_FORMATS, TRAINER, PrecisionConfig
from precision_lib.metrics import drift as h4
from precision_lib.metrics import rollout as h5
from precision_lib.metrics.measure import Array, Measure
from precision_lib.models.loading import Checkpoint
from precision_lib.models.placement import computes_on_cpu
from precision_lib.models.rollout_engine import rollout_engine
from precision_lib.runtime import deterministic
from precision_lib.scoring.micro import AGAIN, FIRST, REBATCHED, takes_other_shape
from precision_lib.scoring.scorer import GOLDEN
from precision_lib.trajectories.sampling import Responses

DAMAGE = H5.decision.metric
#: The other temperature at which the third law is tested, beside 1.
COOLER = 0.5
#: Sequences that are decoded together in the other batch shape.
OTHER_ROWS = 16


@dataclass
class H5Study(Study):
    """H5 over one set of sequences.

    Attributes:
        settings: what it measures on.
        all, checked: the trainer's forwards over all sequences, and over openings of the first.
    """

    hypothesis = H5
    settings: H5Settings
    all: Forwards
    checked: Forwards
    _reported: dict[tuple[str, tuple[int, ...], str], Reported] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.paired = self._over(self.all)

    def _over(self, forwards: Forwards) -> Paired:
        return over_sequences(len(forwards.responses.tokens), self.settings.seed, H5.metrics)

    def context(self) -> dict[str, Json]:
        return {"h5": asdict(self.settings) | {"tokens": self.all.tokens}}

    def trainer(self, forwards: Forwards, configuration: PrecisionConfig, run: str) -> ScoredTokens:
        """The trainer's forward: the policy, whole sequences at once."""
        return forwards.scored(REFERENCE, 0, configuration.forward_format("policy"), run)

    def reported(self, forwards: Forwards, fmt: str, run: str = FIRST) -> Reported:
        """What the engine of a format reports; each is decoded once."""
        responses = forwards.responses
        count = len(responses.tokens)
        key = (fmt, tuple(responses.tokens.shape), run)
        if key not in self._reported:
            model = rollout_engine(forwards.given.checkpoint.model, fmt)
            other = takes_other_shape(run)
            rows = min(count, OTHER_ROWS) if other else count
            with deterministic(native_products=fmt == GOLDEN or not computes_on_cpu(model)):
                self._reported[key] = decode(
                    model, responses, rows, reverse=other, temperatures=(1.0, COOLER)
                )
            forwards.progress()
        return self._reported[key]

    def logprobs(
        self, forwards: Forwards, configuration: PrecisionConfig, run: str = FIRST
    ) -> tuple[Array, Array]:
        """[N, T] log-probs of the trainer, and of the rollout.

        Where no engine is beside the trainer, the rollout is its forward once more.
        """
        trainer = self._of_trainer(forwards, configuration, run)
        if configuration.rollout == TRAINER:
            once_more = {FIRST: AGAIN, AGAIN: FIRST}.get(run, run)
            return trainer, self._of_trainer(forwards, configuration, once_more)
        reported = self.reported(forwards, configuration.rollout_format, run)
        return trainer, reported.logprobs[1.0].double().numpy()

    def _of_trainer(self, forwards: Forwards, configuration: PrecisionConfig, run: str) -> Array:
        scored = self.trainer(forwards, configuration, run)
        return forwards.rows(scored.logprobs[configuration.kl].double())

    def difference(
        self, forwards: Forwards, configuration: PrecisionConfig, run: str = FIRST
    ) -> Array:
        """[N, T] d: log-prob of the trainer minus the rollout's, nats."""
        trainer, rollout = self.logprobs(forwards, configuration, run)
        with np.errstate(invalid="ignore"):  # inf - inf of an overflow is counted as not finite
            return trainer - rollout

    def golden(self, forwards: Forwards) -> Array:
        """[N, T] log-probs of the FP32 policy."""
        return forwards.rows(forwards.scored(REFERENCE, 0, GOLDEN).logprobs[GOLDEN].double())

    def measure(self, configuration: PrecisionConfig, run: str = FIRST) -> Sums:
        return h5.sequence_sums(self.difference(self.all, configuration, run))

    def repeated(self, configuration: PrecisionConfig, run: str) -> tuple[Sums, Paired]:
        """On the openings of the checked sequences alone."""
        difference = self.difference(self.checked, configuration, run)
        return h5.sequence_sums(difference), self._over(self.checked)

    def rebatched(self, configuration: PrecisionConfig) -> Rebatched:
        """:data:`DAMAGE` where fewer sequences go together, in the opposite order.

        On the openings of the checked sequences; decoding looks at nothing behind them.
        """
        length = self.checked.responses.length
        usual = self.difference(self.all, configuration)[: self.settings.checked, :length]
        other = self.difference(self.checked, configuration, REBATCHED)
        with np.errstate(invalid="ignore"):
            moved = other - usual
        sums = (h5.sequence_sums(x) for x in (moved, usual, other))
        return rebatched(self._over(self.checked), DAMAGE, *sums)

    def control(self) -> Control:
        """The trainer beside itself differs by exactly 0, in 16 bits and in FP32."""
        same = [
            self.difference(f, replace(c, rollout=TRAINER))
            for f, c in ((self.all, PURE), (self.checked, REFERENCE_RUN))
        ]
        nonzero = sum(int((d != 0).sum()) for d in same)
        return Control(
            is_null=nonzero == 0,
            trainer_beside_itself_nonzero=nonzero,
            trainer_beside_itself_n=sum(d.size for d in same),
        )

    def evidence(self, configuration: PrecisionConfig, metrics: Metrics) -> H5Evidence:
        difference, golden = self.difference(self.all, configuration), self.golden(self.all)
        return H5Evidence(
            observed_formats=self._observed(configuration),
            rms_growth_exponent=self._growth(difference),
            by_position=h4.by_position(difference),
            by_probability=h5.by_probability(difference, golden, self._collision[1.0]),
            halves=self._halves(configuration),
            laws=self.laws(configuration),
            formats=self.formats(configuration),
        )

    def _growth(self, difference: Array) -> Metric:
        exponent = Measure(h4.growth_exponent, "power of the position")
        paired = replace(self.paired, metrics={"exponent": exponent})
        return paired.estimate(h4.sequence_sums(difference), "exponent")

    def _halves(self, configuration: PrecisionConfig) -> dict[str, float]:
        """RMS of both errors against the FP32 policy, and how far they go together."""
        trainer, rollout = self._errors(self.all, configuration)
        return {
            "trainer_rms": _rms(trainer),
            "rollout_rms": _rms(rollout),
            "difference_rms": _rms(trainer - rollout),
            "quadrature_rms": float(np.hypot(_rms(trainer), _rms(rollout))),
            "correlation": correlation(trainer, rollout),
        }

    def _errors(self, forwards: Forwards, configuration: PrecisionConfig) -> tuple[Array, Array]:
        golden = self.golden(forwards)
        trainer, rollout = self.logprobs(forwards, configuration)
        return tuple(np.nan_to_num(x - golden, posinf=0, neginf=0) for x in (trainer, rollout))  # type: ignore[return-value]

    def laws(self, configuration: PrecisionConfig) -> dict[str, float]:
        """Standard errors by which each law of :mod:`precision_lib.metrics.rollout` is missed."""
        difference, golden = self.difference(self.all, configuration), self.golden(self.all)
        weight = h5.weight_of(golden, self._collision[1.0])
        return {
            "probability_z": h5.probability_z(difference, golden, weight),
            "probability_first_order_z": h5.probability_z(
                difference, golden, (1 - np.exp(golden)) ** 2
            ),
            "probability_flat_z": h5.probability_z(difference, golden, np.ones_like(golden)),
            "temperature_z": self._temperature_z(configuration, COOLER),
            "temperature_flat_z": self._temperature_z(configuration, 1.0),
            "length_z": h5.length_z(difference),
        }

    def _temperature_z(self, configuration: PrecisionConfig, scale: float) -> float:
        """Law 3 if sigma at :data:`COOLER` is that at 1 over ``scale``; 1: it does not change.

        Of the engine against the FP32 engine, whose log-probs are there at both temperatures."""
        if configuration.rollout_format in (GOLDEN, TRAINER):
            return 0.0
        got, want = (
            self.reported(self.all, fmt).logprobs for fmt in (configuration.rollout_format, GOLDEN)
        )
        usual, cooler = ((got[t] - want[t]).double().numpy() for t in (1.0, COOLER))
        weight, cooler_weight = (
            h5.weight_of(want[t].double().numpy(), self._collision[t]) for t in (1.0, COOLER)
        )
        return h5.temperature_z(usual, weight, cooler, cooler_weight, scale)

    @cached_property
    def _collision(self) -> dict[float, Array]:
        """Temperature to [N, T], the FP32 policy's sum of squared probabilities."""
        model = self.all.given.checkpoint.model
        with deterministic(native_products=True):
            chances = collision(model, self.all.responses, (1.0, COOLER))
        return {t: x.numpy() for t, x in chances.items()}

    def formats(self, configuration: PrecisionConfig) -> dict[str, RolloutFormat]:
        """Rollout format to its metrics beside this trainer, on the checked sequences."""
        return {f: self._beside(replace(configuration, rollout=f)) for f in ROLLOUT_FORMATS}

    def _beside(self, configuration: PrecisionConfig) -> RolloutFormat:
        difference = self.difference(self.checked, configuration)
        trainer, rollout = self._errors(self.checked, configuration)
        return RolloutFormat(
            rms=_rms(difference),
            quadrature_rms=float(np.hypot(_rms(trainer), _rms(rollout))),
            quadrature_z=h5.quadrature_z(trainer, rollout),
            correlation=correlation(trainer, rollout),
            metrics=self._over(self.checked).estimates(h5.sequence_sums(difference)),
        )

    def _observed(self, configuration: PrecisionConfig) -> dict[str, str | None]:
        """Formats as seen at run time; None for a component that H5 does not run."""
        trainer = self.trainer(self.all, configuration, FIRST)
        head = {trainer.logits}
        if configuration.rollout == TRAINER:
            rollout = TRAINER
        else:
            reported = self.reported(self.all, configuration.rollout_format)
            rollout = reported.fmt
            head |= {reported.head}
        policy = "+".join(sorted({trainer.parameters, trainer.logits}))
        seen = {"policy": policy, "kl": configuration.kl, "rollout": rollout}
        if configuration.lm_head:
            seen |= {"policy": trainer.parameters, "lm_head": "+".join(sorted(head))}
        return dict.fromkeys(REQUIRED) | seen

    def explanation(self, contrasts: dict[str, Metric]) -> str:
        pure, demoted = self.cell(PURE), self.cell(self.looked_at[2])
        halves = pure.shows(H5Evidence).halves
        return (
            f"Over {self.all.responses.length} tokens a bf16 trainer and a bf16 engine differ by "
            f"{pure.metrics[DAMAGE].words} nats RMS, and by "
            f"{pure.metrics[H5.decision.symptom].words} nats per token on average. Their errors "
            f"have a correlation of {halves['correlation']:.2f}. A bf16 engine beside an FP32 "
            f"trainer makes {demoted.metrics[DAMAGE].words} nats. The trainer beside itself "
            "differs by exactly 0."
        )


def _rms(x: Array) -> float:
    return float(np.sqrt(np.mean(np.square(np.nan_to_num(x, posinf=0, neginf=0)))))


def open_given(given: Given) -> H5Study:
    """H5 on the models of a main job."""
    return open_h5_study(given.pipeline.policy, given.settings, given.configurations)


def open_h5_study(
    checkpoint: Checkpoint, settings: H5Settings, configurations: Iterable[PrecisionConfig]
) -> H5Study:
    """Draw the sequences and be ready to measure cells.

    Args:
        configurations: those that will be asked for; they say in which formats the log-softmax is
            taken of each forward.
    """
    with deterministic(settings.seed, native_products=True):
        responses = sample_from(checkpoint.model, checkpoint, settings, 500)
    looked_at = min(settings.opening - 1, responses.length)
    prompts = responses.prompt_lengths[: settings.checked]
    openings_alone = Responses(
        responses.tokens[: settings.checked, : int(prompts.max()) + looked_at], prompts, looked_at
    )
    whole, checked = (
        Forwards(Placed(checkpoint, (rows,), {}, (0.0,), 0), kl_formats(configurations))
        for rows in (responses, openings_alone)
    )
    return H5Study(settings, whole, checked)
