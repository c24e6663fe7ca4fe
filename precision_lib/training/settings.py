"""What a PPO run is: every number that decides what is learned, in one frozen object.

The hazard. Two runs that differ in precision and in a learning rate say nothing about precision.
So settings, configuration and seed are written beside the results, and a resumed run has to agree
with all of them but its length.
"""

from dataclasses import asdict, dataclass

from precision_lib.matrix import PrecisionConfig
from precision_lib.trajectories.batches import FreezeSettings


def check_columns(configuration: PrecisionConfig) -> None:
    """Raise ValueError for a column that training does not apply: it must not be ignored."""
    for column in ("lm_head", "master"):
        fmt = getattr(configuration, column)
        if fmt:
            raise ValueError(
                f"configuration {configuration.name!r}: {column} = {fmt!r} is not applied in "
                "training; measure it with `pytest -m forensics --matrix`"
            )


#: What an importance weight is the ratio of: one token's probabilities, or a whole response's.
IMPORTANCE_LEVELS = ("token", "sequence")
#: The cap of verl and ms-swift.
USUAL_CAP = 2.0


@dataclass(frozen=True)
class PPOSettings:
    """Settings of one run; the learning rate is constant, so that a longer run begins the same.

    Attributes:
        max_steps: PPO steps: a rollout and the updates on it.
        batch_size: sequences of a rollout.
        samples_per_prompt: responses to each prompt; divides ``batch_size``.
        max_new_tokens: response tokens at most.
        epochs, minibatches: passes over a rollout, and optimizer steps of each pass.
        learning_rate: of AdamW (beta 0.9 and 0.95, no weight decay), for policy and value head; 0
            is a control, where no weight moves.
        clip_range: of the ratio. value_clip_range: of the values, reward units.
        value_coefficient: weight of the value loss.
        gamma, lam: discount and GAE lambda.
        kl_coefficient: weight of the KL penalty (k1 per token); where it starts, if adaptive.
        target_kl: nats per sequence that an adaptive coefficient steers to; None: it is fixed.
        kl_horizon: sequences over which the adaptive coefficient corrects.
        max_grad_norm: gradients are clipped to it, in FP32.
        diagnostic_sequences: so many of a rollout are scored in FP32 too, for the damage metrics.
        evaluation_sequences: responses of the FP32 evaluation at the end.
        checkpoint_every: steps between two states on disk.
        perturbation: relative size of a random change of the initial FP32 weights; 2**-24 is one
            rounding, the smallest there is, and shows how far two runs part by chaos alone.
        importance_weights: of :data:`IMPORTANCE_LEVELS`; the policy loss is weighted by
            min(trainer's probability / rollout's, ``importance_cap``). None: it is not.
        importance_cap: of these weights; :data:`USUAL_CAP` where it is not given.
        seed: of prompts, responses and minibatches.
    """

    max_steps: int = 1000
    batch_size: int = 16
    samples_per_prompt: int = 1
    max_new_tokens: int = 24
    epochs: int = 1
    minibatches: int = 2
    learning_rate: float = 1e-4
    clip_range: float = 0.2
    value_clip_range: float = 1.0
    value_coefficient: float = 0.005
    gamma: float = 1.0
    lam: float = 0.95
    kl_coefficient: float = 0.1
    target_kl: float | None = None
    kl_horizon: int = 10_000
    max_grad_norm: float = 1.0
    diagnostic_sequences: int = 4
    evaluation_sequences: int = 256
    checkpoint_every: int = 50
    perturbation: float = 0.0
    importance_weights: str | None = None
    importance_cap: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_steps", "batch_size", "samples_per_prompt", "max_new_tokens", "epochs"):
            _at_least_one(name, getattr(self, name))
        for name in ("minibatches", "diagnostic_sequences", "checkpoint_every", "kl_horizon"):
            _at_least_one(name, getattr(self, name))
        if self.evaluation_sequences < 2:
            raise ValueError(f"evaluation_sequences = {self.evaluation_sequences}: give 2 or more")
        for name in ("samples_per_prompt", "minibatches"):
            if self.batch_size % getattr(self, name):
                raise ValueError(
                    f"batch_size = {self.batch_size} is no multiple of {name} = "
                    f"{getattr(self, name)}"
                )
        for name in ("value_clip_range", "max_grad_norm"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} = {getattr(self, name)} must be positive and finite")
        if not 0 < self.clip_range < 1:
            raise ValueError(f"clip_range = {self.clip_range} must lie between 0 and 1")
        for name in ("learning_rate", "value_coefficient", "kl_coefficient", "perturbation"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} = {getattr(self, name)} must be 0 or more and finite")
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} = {getattr(self, name)} must lie in [0, 1]")
        if not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"seed = {self.seed} does not fit into 64 bits")
        if self.target_kl is not None:
            self._check_adaptive(self.target_kl)
        self._check_importance()

    def _check_importance(self) -> None:
        if self.importance_weights is None:
            if self.importance_cap is not None:
                raise ValueError(
                    f"importance_cap = {self.importance_cap} caps nothing without "
                    "importance_weights; give token or sequence"
                )
            return
        if self.importance_weights not in IMPORTANCE_LEVELS:
            raise ValueError(
                f"importance_weights = {self.importance_weights!r} must be one of "
                f"{', '.join(IMPORTANCE_LEVELS)}"
            )
        if self.importance_cap is None:
            object.__setattr__(self, "importance_cap", USUAL_CAP)
        elif not 0 < self.importance_cap < float("inf"):
            raise ValueError(f"importance_cap = {self.importance_cap} must be positive and finite")

    def _check_adaptive(self, target_kl: float) -> None:
        if not 0 < target_kl < float("inf"):
            raise ValueError(f"target_kl = {target_kl} must be positive and finite")
        if self.kl_coefficient == 0:
            raise ValueError("an adaptive kl_coefficient of 0 stays 0; start above it")
        if self.batch_size > self.kl_horizon:
            raise ValueError(
                f"kl_horizon = {self.kl_horizon} is less than one batch of {self.batch_size} "
                "sequences: the adaptive kl_coefficient would jump; give more"
            )

    @property
    def sampling(self) -> FreezeSettings:
        """What a rollout draws: batch ``step`` of these."""
        return FreezeSettings(
            num_batches=self.max_steps,
            batch_size=self.batch_size,
            max_new_tokens=self.max_new_tokens,
            samples_per_prompt=self.samples_per_prompt,
            seed=self.seed,
        )

    @property
    def identity(self) -> dict[str, float | str | None]:
        """What a resumed run has to share: all but its length and what does not train it."""
        settings = asdict(self)
        for name in ("max_steps", "checkpoint_every", "evaluation_sequences"):
            settings.pop(name)
        return settings


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} = {value} must be at least 1")
