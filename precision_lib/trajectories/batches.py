"""One batch of trajectories: sampled once, scored once, in FP32, from the seed and its number.

The hazards. A batch that depends on the batches before it cannot be resumed or made again. A
log-prob kept from decoding belongs to another code path than the one that replays it. And "the
response ends at end-of-text" decided while sampling changes which random numbers the other rows
get. So each batch has a seed of its own, responses are cut after they are drawn, and the golden
figures come from a teacher-forced forward of the whole sequences. What the sampler reported is kept
beside them, under a name of its own, to measure how far the two are apart.

N sequences, L tokens of the longest after the cut.
"""

import zlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from precision_lib.matrix import ROLLOUT_FORMATS
from precision_lib.models.loading import Checkpoint
from precision_lib.models.pipeline import Pipeline
from precision_lib.models.reward_model import reward_inputs
from precision_lib.models.value_head import ValueHead, choose_ridge, fit_value_head
from precision_lib.scoring.forced import forced, forced_rewards, forced_states
from precision_lib.scoring.forward import rows_per_forward
from precision_lib.scoring.micro import micro_batches
from precision_lib.trajectories.prompts import encoded_prompts, longest_prompt, prompt_order
from precision_lib.trajectories.sampling import end_tokens, response_lengths, sample_and_report
from precision_lib.trajectories.store import Trajectories, response_mask

GOLDEN = "fp32"


@dataclass(frozen=True)
class FreezeSettings:
    """What is sampled.

    Attributes:
        num_batches: shards to make; every one of them is the same whatever their number.
        batch_size: sequences of a batch.
        max_new_tokens: response tokens at most.
        samples_per_prompt: responses to each prompt, a group; divides ``batch_size``.
        ignore_eos: let an end-of-text token not end a response.
        rollout: format of the sampler, of :data:`precision_lib.matrix.ROLLOUT_FORMATS`.
    """

    num_batches: int = 100
    batch_size: int = 8
    max_new_tokens: int = 128
    samples_per_prompt: int = 4
    ignore_eos: bool = False
    seed: int = 0
    rollout: str = GOLDEN

    def __post_init__(self) -> None:
        if self.rollout not in ROLLOUT_FORMATS:
            raise ValueError(
                f"rollout = {self.rollout!r} is no format of a sampler; use one of "
                f"{', '.join(ROLLOUT_FORMATS)}"
            )
        for name in ("num_batches", "batch_size", "max_new_tokens", "samples_per_prompt"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)} must be at least 1")
        if self.batch_size % self.samples_per_prompt:
            raise ValueError(
                f"batch_size = {self.batch_size} is no multiple of samples_per_prompt = "
                f"{self.samples_per_prompt}; a group must not be cut"
            )


def usual_samples_per_prompt(batch_size: int) -> int:
    """4 where that divides the batch, else the largest number below it that does."""
    return max(k for k in (1, 2, 3, 4) if batch_size % k == 0)


@dataclass(frozen=True)
class Sampled:
    """Tokens of one batch before anything is scored; fields as in :class:`Trajectories`."""

    tokens: Tensor
    prompt_lengths: Tensor
    response_lengths: Tensor
    prompt_ids: Tensor
    reward_tokens: Tensor
    reward_lengths: Tensor
    rollout_logprobs: Tensor

    @property
    def mask(self) -> Tensor:
        """[N, L-1] bool, as :attr:`Trajectories.mask`."""
        return response_mask(self.prompt_lengths, self.response_lengths, self.tokens.shape[1])

    def rows(self, model: Any) -> int:
        """Sequences per forward of ``model``."""
        return min(len(self.tokens), rows_per_forward(self.tokens.shape[1], model))


def check_fits(policy: Checkpoint, settings: FreezeSettings, reader: Any = None) -> None:
    """Refuse a length that a model has no positions for, before anything is computed.

    Args:
        reader: the transformers model that reads prompt and response; the policy's own by default.

    Raises:
        ValueError: when the longest prompt and response do not fit.
    """
    prompt = longest_prompt(policy)
    longest = prompt + settings.max_new_tokens
    positions = getattr((reader or policy.model).config, "max_position_embeddings", longest)
    if longest > positions:
        raise ValueError(
            f"max_new_tokens = {settings.max_new_tokens}: with a prompt of up to "
            f"{prompt} tokens that is {longest}, and the model has {positions} "
            "positions; use fewer (--max_new_tokens)"
        )


def sample_batch(pipeline: Pipeline, settings: FreezeSettings, index: int) -> Sampled:
    """Draw the tokens of batch ``index``, at temperature 1 from the pipeline's policy.

    It depends on the models, the settings (but for ``num_batches``) and ``index`` alone. Call it
    inside :func:`runtime.deterministic`.
    """
    policy, groups = pipeline.policy, settings.batch_size // settings.samples_per_prompt
    numbers = prompt_order(policy, (index + 1) * groups, settings.seed)[index * groups :]
    repeated = [n for n in numbers for _ in range(settings.samples_per_prompt)]
    prompts = encoded_prompts(policy, repeated)
    pad = policy.tokenizer.pad_token_id or 0
    responses, reported = sample_and_report(
        policy.model,
        prompts,
        settings.max_new_tokens,
        seed=zlib.crc32(f"trajectories {settings.seed} {index}".encode()),
        pad=pad,
        rows=settings.batch_size,
    )
    ends = frozenset() if settings.ignore_eos else end_tokens(policy)
    lengths, starts = response_lengths(responses, ends), responses.prompt_lengths
    sequences = [
        row[:end].tolist()
        for row, end in zip(responses.tokens, (starts + lengths).tolist(), strict=True)
    ]
    read = reward_inputs(pipeline.reward, policy.tokenizer, _readable(policy, sequences))
    return Sampled(
        tokens=_padded(sequences, pad),
        prompt_lengths=starts,
        response_lengths=lengths,
        prompt_ids=torch.tensor(repeated),
        reward_tokens=_padded(read, pipeline.reward.tokenizer.pad_token_id or 0),
        reward_lengths=torch.tensor([len(x) for x in read]),
        rollout_logprobs=_in_place(reported, starts, lengths),
    )


def _in_place(reported: Tensor, starts: Tensor, lengths: Tensor) -> Tensor:
    """[N, L-1] log-probs at the response tokens, 0 elsewhere, from [N, T] as they were drawn."""
    mask = response_mask(starts, lengths, int((starts + lengths).max()))
    placed = torch.zeros(mask.shape)
    placed[mask] = reported[torch.arange(reported.shape[1]) < lengths.unsqueeze(1)]
    return placed


def _readable(policy: Checkpoint, sequences: list[list[int]]) -> list[list[int]]:
    """Without the ids that stand for no text: embeddings are often padded beyond the tokenizer.

    The policy can sample such an id, and no reward model can read it.
    """
    known = set(policy.tokenizer.get_vocab().values())
    return [[token for token in sequence if token in known] for sequence in sequences]


def _padded(sequences: list[list[int]], pad: int) -> Tensor:
    return pad_sequence([torch.tensor(s) for s in sequences], batch_first=True, padding_value=pad)


def score_batch(pipeline: Pipeline, head: ValueHead, sampled: Sampled) -> Trajectories:
    """The golden FP32 figures of a batch. Call it inside :func:`runtime.deterministic`.

    The reference gets a forward of its own unless it is the policy's very object.
    """
    policy, reference = pipeline.policy.model, pipeline.reference.model
    micro = micro_batches(sampled.rows(policy), len(sampled.tokens))
    given = sampled.tokens, sampled.mask, micro
    of_policy = forced(policy, *given, kl_formats=(GOLDEN,), head=head, value_format=GOLDEN)
    of_reference = of_policy
    if reference is not policy:
        of_reference = forced(reference, *given, kl_formats=(GOLDEN,))
    read = sampled.reward_tokens, sampled.reward_lengths
    rewards, _ = forced_rewards(pipeline.reward.model, *read, micro)
    assert of_policy.values is not None
    return Trajectories(
        **{name: getattr(sampled, name) for name in Sampled.__dataclass_fields__},
        logprobs=of_policy.logprobs[GOLDEN],
        ref_logprobs=of_reference.logprobs[GOLDEN],
        values=of_policy.values,
        rewards=rewards,
    )


@torch.no_grad()
def fit_head(pipeline: Pipeline, sampled: Sampled) -> ValueHead:
    """A value head for a policy that comes with none, from one batch.

    Its ridge is chosen on held-out prompts of the batch, so that it is no memory of them. gamma 1
    and no KL penalty, so the Monte Carlo return of every response token is its sequence's score.
    Call it inside :func:`runtime.deterministic`.
    """
    policy, read = pipeline.policy.model, (sampled.reward_tokens, sampled.reward_lengths)
    micro = micro_batches(sampled.rows(policy), len(sampled.tokens))
    rewards, _ = forced_rewards(pipeline.reward.model, *read, micro)
    mask = sampled.mask
    hidden = forced_states(policy, sampled.tokens, mask, micro)
    returns, prompts = (
        x.unsqueeze(1).expand(mask.shape)[mask] for x in (rewards, sampled.prompt_ids)
    )
    return fit_value_head(hidden, returns, choose_ridge(hidden, returns, prompts)[0])
