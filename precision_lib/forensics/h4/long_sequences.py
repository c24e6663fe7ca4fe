"""Long fixed token sequences for H4: drawn from the FP32 policy, and from neither model.

The hazard. How an error adds up depends on where the tokens come from. Tokens drawn from the policy
have log-probs that rounding lowers on average; tokens of a text that no model wrote need not. A
study of one kind of token says nothing about the other, so both are scored, each sequence over all
the positions that the model has.

N sequences, L tokens of each, the first of which is only context, T = L - 1.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from precision_lib.forensics.policy_shift import (
    OPERATING_KL,
    Placed,
    solve_scales,
    training_direction,
)
from precision_lib.forensics.probe import MIN_PROMPTS
from precision_lib.models.embedded import load_held_out_sample
from precision_lib.models.loading import Checkpoint, set_parameters, working_copy
from precision_lib.runtime import deterministic
from precision_lib.trajectories.prompts import (
    check_enough,
    encode,
    encoded_prompts,
    prompt_order,
)
from precision_lib.trajectories.sampling import Responses, sample_responses

#: Tokens of the short responses on which the policy's distance is solved for.
PLACING_TOKENS = 128
#: Tokens of a response along which a growth can be fitted.
LEAST_RESPONSE = 31


@dataclass(frozen=True)
class H4Settings:
    """What H4 measures on.

    Attributes:
        sequences: drawn from the policy; what decides.
        text_windows: windows of text.
        length: tokens of a sequence behind a start token, that included, or of a prompt's response
            and one more; fewer where the model has no positions for them.
        checked: sequences on which the null controls and the batch variance are taken.
        expected: sampled sequences on which the expected drift is computed, over the vocabulary.
        seed: of tokens, direction and resampling.
    """

    sequences: int = 8
    text_windows: int = 8
    length: int = 2048
    checked: int = 2
    expected: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.sequences, self.text_windows) < MIN_PROMPTS:
            raise ValueError(
                f"sequences = {self.sequences}, text_windows = {self.text_windows}: an interval "
                f"over sequences needs at least {MIN_PROMPTS} of each"
            )
        if self.length <= LEAST_RESPONSE:
            raise ValueError(f"length = {self.length}: growth along 32 tokens is the least to fit")
        for name in ("checked", "expected"):
            if not 2 <= getattr(self, name) <= min(self.sequences, self.text_windows):
                raise ValueError(
                    f"{name} = {getattr(self, name)} must be at least 2 and at most the number of "
                    "sequences and of windows"
                )


#: A few seconds, for a first look and for tests of the suite itself.
QUICK = H4Settings(length=256, expected=8)


@dataclass(frozen=True)
class LongInput:
    """Everything that is fixed before a configuration is looked at.

    Attributes:
        sampled: sequences drawn from the FP32 policy, as input of ``Forwards``.
        text: windows of text that neither model wrote, with the same models.
    """

    settings: H4Settings
    sampled: Placed
    text: Placed

    @property
    def policy(self) -> int:
        """Index of the policy at the known KL; 0 is the identical one."""
        return self.sampled.operating_policy


def row_length(checkpoint: Checkpoint, settings: Any) -> int:
    """Tokens of a sequence: what is asked for, or the model's positions."""
    positions = getattr(checkpoint.model.config, "max_position_embeddings", settings.length)
    return int(min(settings.length, positions))


def prepare_long(checkpoint: Checkpoint, settings: H4Settings) -> LongInput:
    """Place the policy, draw its sequences, cut the text.

    Raises:
        ValueError: when the model or the text is too short to give sequences.
    """
    with deterministic(settings.seed, native_products=True):
        texts = [encode(checkpoint, text) for text in load_held_out_sample()]
        direction = training_direction(checkpoint.model, texts, seed=settings.seed)
        scale = _policy_scale(checkpoint, direction, settings)
        policy = policy_model(checkpoint, direction, scale)
        sampled = sample_from(policy, checkpoint, settings, 400)
    given = Placed(checkpoint, (sampled,), direction, (0.0, scale), operating_policy=1)
    windows = text_windows(texts, row_length(checkpoint, settings), settings.text_windows)
    windows = windows.to(checkpoint.model.device)
    return LongInput(settings, given, replace(given, responses=(windows,)))


def first_rows(given: Placed, count: int) -> Placed:
    """The same input with the first ``count`` sequences only."""
    (whole,) = given.responses
    rows = Responses(whole.tokens[:count], whole.prompt_lengths[:count], whole.length)
    return replace(given, responses=(rows,))


def policy_model(checkpoint: Checkpoint, direction: dict[str, Tensor], scale: float) -> Any:
    """A model of its own with the FP32 policy's parameters."""
    policy = working_copy(checkpoint.model)
    set_parameters(policy, checkpoint.model, "fp32", direction, scale)
    return policy


def _policy_scale(
    checkpoint: Checkpoint, direction: dict[str, Tensor], settings: H4Settings
) -> float:
    """Scale at which the KL per token is the operating point's, solved on short responses."""
    start = openings(checkpoint, settings.sequences, settings.seed)
    length = min(PLACING_TOKENS, drawn_length(checkpoint, settings)[1])
    model = checkpoint.model
    short = sample_responses(model, start, length, seed=settings.seed).to(model.device)
    return solve_scales(model, direction, short, (OPERATING_KL,))[0]


def drawn_length(checkpoint: Checkpoint, settings: Any) -> tuple[int, int]:
    """(tokens of the longest sequence, response tokens of each) of what is drawn.

    Every response is ``settings.length - 1`` tokens long, or shorter where the model has no
    positions for that behind the longest opening.
    """
    start = openings(checkpoint, settings.sequences, settings.seed)
    longest = max(map(len, start))
    positions = getattr(checkpoint.model.config, "max_position_embeddings", math.inf)
    response = int(min(settings.length - 1, positions - longest))
    return longest + response, response


def check_fits(checkpoint: Checkpoint, settings: Any) -> None:
    """Refuse too few prompts, and prompts that leave too few positions for a response.

    Raises:
        ValueError: the message says which, and what to do.
    """
    check_enough(checkpoint, settings.sequences)
    width, response = drawn_length(checkpoint, settings)
    if response < LEAST_RESPONSE:
        raise ValueError(
            f"the longest prompt has {width - response} tokens, the model "
            f"{checkpoint.model.config.max_position_embeddings} positions: a response needs at "
            f"least {LEAST_RESPONSE}; use shorter --prompts"
        )


def openings(checkpoint: Checkpoint, count: int, seed: int) -> list[list[int]]:
    """What each sequence begins with.

    A prompt of the user's own; without those the start token, or the first token of a text.
    """
    if checkpoint.prompts is not None:
        check_enough(checkpoint, count)
        return encoded_prompts(checkpoint, prompt_order(checkpoint, count, seed))
    start = checkpoint.start_token
    if start is None:
        start = encode(checkpoint, load_held_out_sample()[0])[0]
    return [[start]] * count


def sample_from(policy: Any, checkpoint: Checkpoint, settings: Any, stream: int) -> Responses:
    """Sequences of full length drawn from ``policy`` at temperature 1.

    Args:
        settings: with ``sequences``, ``length`` and ``seed``.
        stream: below 1000, the random numbers of a hypothesis.
    """
    start = openings(checkpoint, settings.sequences, settings.seed)
    return sample_responses(
        policy,
        start,
        drawn_length(checkpoint, settings)[1],
        seed=settings.seed * 1000 + stream,
        pad=checkpoint.tokenizer.pad_token_id or 0,
        new_cache=cache_maker(policy),
    ).to(policy.device)


def text_windows(texts: list[list[int]], length: int, count: int) -> Responses:
    """``count`` windows of ``length`` tokens, or as long as the text allows.

    Args:
        texts: token lists, joined in their order.

    Raises:
        ValueError: when a window would have fewer than 2 tokens.
    """
    joined = [token for text in texts for token in text]
    width = min(length, len(joined) // count)
    if width < 2:
        raise ValueError(f"{len(joined)} tokens of text are too few for {count} windows")
    tokens = torch.tensor(joined[: width * count]).view(count, width)
    return Responses(tokens, torch.ones(count, dtype=torch.int64), width - 1)


def cache_maker(model: Any) -> Callable[[], Any]:
    """Maker of empty KV caches for ``model``: with room for tokens to come, or the model's own.

    The cache of transformers copies all keys and values for each new token, which takes 70 % of
    the time of drawing 2,048 tokens. A model with other than plain attention keeps its own cache.
    """
    kinds = set(getattr(model.config, "layer_types", None) or ["full_attention"])
    return roomy_cache if kinds == {"full_attention"} else lambda: None


def roomy_cache() -> Any:
    """A transformers cache whose layers double their room when it is used up."""
    from transformers.cache_utils import Cache, DynamicLayer

    class RoomyLayer(DynamicLayer):  # type: ignore[misc]  # transformers is untyped
        rooms: tuple[Tensor, Tensor] | None = None

        def update(
            self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
        ) -> tuple[Tensor, Tensor]:
            before = self.get_seq_length()
            after = before + key_states.shape[-2]
            if self.rooms is None or after > self.rooms[0].shape[-2]:
                self.rooms = self._larger(before, after, key_states, value_states)
            for room, new in zip(self.rooms, (key_states, value_states), strict=True):
                room[..., before:after, :] = new
            self.is_initialized = True
            self.keys, self.values = (room[..., :after, :] for room in self.rooms)
            return self.keys, self.values

        def _larger(
            self, before: int, after: int, keys: Tensor, values: Tensor
        ) -> tuple[Tensor, Tensor]:
            if before == 0:
                self.lazy_initialization(keys, values)
            rooms = [
                new.new_empty(*new.shape[:-2], 2 * after, new.shape[-1]) for new in (keys, values)
            ]
            if self.rooms is not None:
                for room, old in zip(rooms, self.rooms, strict=True):
                    room[..., :before, :] = old[..., :before, :]
            return rooms[0], rooms[1]

    return Cache(layer_class_to_replicate=RoomyLayer)
