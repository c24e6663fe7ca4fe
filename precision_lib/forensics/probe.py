"""Static KL probe (phase -1): every configuration's log-ratio on the same tokens, no training.

Tokens are fixed, the policy's distance from the reference is known, and the format of a component
is all that varies; so a difference is its effect.

This module fixes what is measured on; ``forwards.py`` scores it, ``h1/`` judges it.
"""

from dataclasses import dataclass

from precision_lib.forensics.policy_shift import (
    OPERATING_KL,
    Placed,
    solve_scales,
    training_direction,
)
from precision_lib.models.embedded import load_held_out_sample
from precision_lib.models.loading import Checkpoint
from precision_lib.runtime import deterministic
from precision_lib.trajectories.prompts import (
    check_enough,
    encode,
    encoded_prompts,
    longest_prompt,
    prompt_order,
)
from precision_lib.trajectories.sampling import sample_responses

#: Fewer clusters give an interval that does not cover what it says.
MIN_PROMPTS = 8


def check_prompts(count: int) -> None:
    """Raise ValueError for fewer prompts than an interval needs."""
    if count < MIN_PROMPTS:
        raise ValueError(f"{count} prompts: an interval over prompts needs at least {MIN_PROMPTS}")


@dataclass(frozen=True)
class ProbeSettings:
    """What the probe does.

    Attributes:
        num_prompts: responses per length.
        seq_lengths: response lengths, tokens.
        target_kls: true KL per token (nats) of the policies, besides the identical one.
        seed: of prompts, responses and direction.
    """

    num_prompts: int = 12
    seq_lengths: tuple[int, ...] = (64, 128, 256, 512)
    target_kls: tuple[float, ...] = (1e-8, 1e-7, 1e-6, 1e-5, OPERATING_KL, 1e-3, 1e-2)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_prompts < MIN_PROMPTS:
            raise ValueError(
                f"num_prompts = {self.num_prompts}: an interval over sequences needs at least "
                f"{MIN_PROMPTS} of each length"
            )
        if not self.seq_lengths or min(self.seq_lengths) < 1:
            raise ValueError(f"seq_lengths = {self.seq_lengths}: give lengths of at least 1 token")
        if len(set(self.seq_lengths)) != len(self.seq_lengths):
            raise ValueError(f"seq_lengths = {self.seq_lengths}: each length once")
        if OPERATING_KL not in self.target_kls:
            raise ValueError(
                f"target_kls = {self.target_kls} must contain {OPERATING_KL:g}, where H1 is decided"
            )


#: A minute or less on two cores: for a first look and for tests of the suite itself.
QUICK = ProbeSettings(num_prompts=8, seq_lengths=(64, 128), target_kls=(1e-6, OPERATING_KL, 1e-2))


def check_fits(checkpoint: Checkpoint, settings: ProbeSettings) -> None:
    """Refuse lengths that the model has no positions for, before anything is computed.

    Raises:
        ValueError: when the longest response and a prompt of full length do not fit, or there are
            fewer prompts than responses of a length.
    """
    check_enough(checkpoint, settings.num_prompts)
    prompt = longest_prompt(checkpoint)
    longest = max(settings.seq_lengths) + prompt
    positions = getattr(checkpoint.model.config, "max_position_embeddings", longest)
    if longest > positions:
        raise ValueError(
            f"seq_lengths = {settings.seq_lengths}: with a prompt of up to {prompt} "
            f"tokens that is {longest}, and the model has {positions} positions; use shorter "
            "ones (probe --seq_lengths, pytest --quick)"
        )


def prepare(checkpoint: Checkpoint, settings: ProbeSettings) -> Placed:
    """Sample the responses and place the policies.

    Raises:
        ValueError: when prompt and response do not fit the model's positions.
    """
    check_fits(checkpoint, settings)
    with deterministic(settings.seed, native_products=True):
        return _prepare(checkpoint, settings)


def _prepare(checkpoint: Checkpoint, settings: ProbeSettings) -> Placed:
    model, seed = checkpoint.model, settings.seed
    prompts = encoded_prompts(checkpoint, prompt_order(checkpoint, settings.num_prompts, seed))
    pad = checkpoint.tokenizer.pad_token_id or 0
    responses = tuple(
        sample_responses(model, prompts, length, seed=seed * 1000 + i, pad=pad).to(model.device)
        for i, length in enumerate(settings.seq_lengths)
    )
    texts = [encode(checkpoint, text) for text in load_held_out_sample()]
    direction = training_direction(model, texts, seed=seed)
    shortest = min(responses, key=lambda r: r.length)
    scales = solve_scales(model, direction, shortest, settings.target_kls)
    operating = 1 + settings.target_kls.index(OPERATING_KL)
    return Placed(checkpoint, responses, direction, (0.0, *scales), operating)
