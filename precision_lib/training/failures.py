"""How a run can end, and the figures that say so: the failure taxonomy.

Each way to fail has a name and a limit that stands once and says what it means. A run that passes
a limit ends with that name, its figures and a state that can be resumed where that makes sense.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from precision_lib.training.lines import StepLine

COMPLETED = "completed"
NAN_LOSS = "nan_loss"
NONFINITE_GRADIENTS = "nonfinite_gradients"
KL_EXPLOSION = "kl_explosion"
KL_COLLAPSE = "kl_collapse"
ENTROPY_COLLAPSE = "entropy_collapse"
VALUE_DIVERGENCE = "value_divergence"
OUT_OF_MEMORY = "out_of_memory"
INTERRUPTED = "interrupted"

#: Statuses after which the same run would only do the same again: final results.
FINAL = (
    COMPLETED,
    NAN_LOSS,
    NONFINITE_GRADIENTS,
    KL_EXPLOSION,
    KL_COLLAPSE,
    ENTROPY_COLLAPSE,
    VALUE_DIVERGENCE,
)
#: Statuses after which ``--resume`` goes on.
RESUMABLE = (OUT_OF_MEMORY, INTERRUPTED)
STATUSES = FINAL + RESUMABLE


@dataclass(frozen=True)
class Limit:
    """One row of the failure table: ``patience`` consecutive steps beyond ``value`` end the run."""

    value: float
    patience: int
    meaning: str


LIMITS: dict[str, Limit] = {
    KL_EXPLOSION: Limit(
        5.0,
        3,
        "mean log-ratio above 5 nats per token: the reference finds each token 150 times less "
        "likely than the policy does, so it says nothing about the text any more",
    ),
    ENTROPY_COLLAPSE: Limit(
        0.05,
        3,
        "mean entropy below 0.05 nats per token: exp(0.05) = 1.05 choices per token",
    ),
    VALUE_DIVERGENCE: Limit(
        10.0,
        3,
        "RMS error of the values against Monte Carlo returns above 10 times their RMS: predicting "
        "0 would be ten times better, and the advantages are the critic's error",
    ),
    KL_COLLAPSE: Limit(
        0.0,
        10,
        "the log-ratio is exactly 0 on every token although it is not in FP32: the policy, as it "
        "is executed, does not move, and the penalty is off",
    ),
    NONFINITE_GRADIENTS: Limit(
        0.0, 3, "every update of the step was skipped because its gradient was not finite"
    ),
}


class RunEnded(Exception):  # noqa: N818  # an end with a name, not always an error
    """A run ends with ``status``; the message says what was seen, ``line`` the step's figures."""

    def __init__(self, status: str, reason: str, line: "StepLine | None" = None) -> None:
        super().__init__(reason)
        self.status, self.line = status, line


@dataclass
class Watch:
    """Counts consecutive steps beyond each limit; part of the state of a run."""

    beyond: dict[str, int] = field(default_factory=lambda: dict.fromkeys(LIMITS, 0))

    def look(self, line: "StepLine") -> None:
        """Judge the figures of a step.

        Raises:
            RunEnded: a limit was passed for as many consecutive steps as its patience.
        """
        for status, (figure, passed) in _judged(line).items():
            self.beyond[status] = self.beyond[status] + 1 if passed else 0
            limit = LIMITS[status]
            if self.beyond[status] >= limit.patience:
                raise RunEnded(
                    status,
                    f"{figure} for {self.beyond[status]} steps up to step {line.step}; "
                    f"{limit.meaning}",
                    line,
                )


def _judged(line: "StepLine") -> dict[str, tuple[str, bool]]:
    """Status to (the figure in words, whether it lies beyond its limit)."""
    learning, kl = line.learning, line.symptoms.kl_k1_mean
    returns, error = learning.return_rms, learning.value_error_rms
    golden, entropy = line.damage.golden_kl_penalty_mean, learning.entropy_mean
    return {
        KL_EXPLOSION: (f"KL {kl:.3g} nats per token", kl > LIMITS[KL_EXPLOSION].value),
        ENTROPY_COLLAPSE: (
            f"entropy {entropy:.3g} nats per token",
            entropy < LIMITS[ENTROPY_COLLAPSE].value,
        ),
        VALUE_DIVERGENCE: (
            f"value error {error:.3g} RMS, returns {returns:.3g} RMS",
            error > LIMITS[VALUE_DIVERGENCE].value * returns,
        ),
        KL_COLLAPSE: (
            f"all log-ratios 0, KL in FP32 {golden:.3g} nats per token",
            line.symptoms.log_ratio_all_zero and golden != 0,
        ),
        NONFINITE_GRADIENTS: (
            f"{learning.skipped_updates} updates skipped",
            0 < learning.updates == learning.skipped_updates,
        ),
    }


def is_out_of_memory(error: BaseException) -> bool:
    """True for the out-of-memory errors of CUDA, of torch's CPU allocator and of Python."""
    known = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and (
            type(error).__name__ == "OutOfMemoryError" or any(text in str(error) for text in known)
        )
    )
