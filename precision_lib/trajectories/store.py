"""Frozen trajectories: what one shard holds, and what makes it whole.

The hazards. A mask that is off by one still gives plausible means; a tensor that was saved in bf16
and widened again looks like FP32; a file cut short by a full disk may still open. Every later
figure rests on these arrays, so nothing enters or leaves a shard unchecked: names, dtypes, shapes,
lengths, the mask twice (stored, and from the lengths), zeros behind it, finite numbers.

N sequences of one shard, L tokens of the longest (prompt and response), R tokens of the longest
that the reward model reads, T response tokens of the longest. Sequences are right-padded. Every
[N, L-1] array is aligned with ``tokens[:, 1:]``: column t belongs to token t + 1.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from precision_lib.ppo.masked import real_or_zero


@dataclass(frozen=True)
class Trajectories:
    """One shard of frozen sequences with their golden FP32 figures.

    Attributes:
        tokens: [N, L] int64.
        prompt_lengths: [N] int64, at least 1.
        response_lengths: [N] int64, at least 1, an end-of-text token included.
        prompt_ids: [N] int64; sequences of the same prompt share it.
        reward_tokens: [N, R] int64, what the reward model reads.
        reward_lengths: [N] int64, at least 1.
        logprobs, ref_logprobs: [N, L-1] FP32, nats; 0 where masked.
        values: [N, L-1] FP32: ``values[:, t]`` is V(hidden after ``tokens[:, :t+1]``), the state
            in which ``tokens[:, t+1]`` is chosen; 0 where masked.
        rewards: [N] FP32 scores.
        rollout_logprobs: [N, L-1] FP32, nats, as the sampler reported them from its KV cache; 0
            where masked. None in files of before.
    """

    tokens: Tensor
    prompt_lengths: Tensor
    response_lengths: Tensor
    prompt_ids: Tensor
    reward_tokens: Tensor
    reward_lengths: Tensor
    logprobs: Tensor
    ref_logprobs: Tensor
    values: Tensor
    rewards: Tensor
    rollout_logprobs: Tensor | None = None

    @property
    def mask(self) -> Tensor:
        """[N, L-1] bool: True where ``tokens[:, 1:]`` is a response token."""
        return response_mask(self.prompt_lengths, self.response_lengths, self.tokens.shape[1])

    @property
    def real(self) -> Tensor:
        """[N, T] bool, right-padded: True for a response token of :meth:`response`."""
        position = torch.arange(int(self.response_lengths.max()), device=self.tokens.device)
        return position < self.response_lengths.unsqueeze(1)

    def response(self, x: Tensor) -> Tensor:
        """An [N, L-1] array as [N, T], response tokens first, 0 where there is none."""
        real = self.real
        column = torch.arange(real.shape[1], device=x.device) + self.prompt_lengths.unsqueeze(1) - 1
        return real_or_zero(x.gather(1, column.clamp(max=x.shape[1] - 1)), real)


def response_mask(prompt_lengths: Tensor, response_lengths: Tensor, length: int) -> Tensor:
    """[N, length-1] bool: True where token t + 1 of a sequence belongs to its response."""
    position = torch.arange(1, length, device=prompt_lengths.device)
    start = prompt_lengths.unsqueeze(1)
    return (position >= start) & (position < start + response_lengths.unsqueeze(1))


#: Stored name to (dtype, shape in the letters of the legend; M stands for L - 1).
LAYOUT: dict[str, tuple[torch.dtype, str]] = {
    "tokens": (torch.int64, "NL"),
    "prompt_lengths": (torch.int64, "N"),
    "response_lengths": (torch.int64, "N"),
    "prompt_ids": (torch.int64, "N"),
    "reward_tokens": (torch.int64, "NR"),
    "reward_lengths": (torch.int64, "N"),
    "logprobs": (torch.float32, "NM"),
    "ref_logprobs": (torch.float32, "NM"),
    "values": (torch.float32, "NM"),
    "rewards": (torch.float32, "N"),
    "mask": (torch.bool, "NM"),
    "rollout_logprobs": (torch.float32, "NM"),
}
#: What a shard of before does not have.
OPTIONAL = ("rollout_logprobs",)


def to_tensors(trajectories: Trajectories) -> dict[str, Tensor]:
    """What is stored of a shard, by name, on the CPU; the mask stands beside its lengths.

    Raises:
        ValueError: as :func:`from_tensors`.
    """
    named = {f.name: getattr(trajectories, f.name) for f in fields(Trajectories)}
    tensors = {name: x for name, x in named.items() if x is not None}
    tensors["mask"] = trajectories.mask
    # Equal policy and reference share one tensor; safetensors wants each its own memory.
    tensors = {
        name: x.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, x in tensors.items()
    }
    from_tensors(tensors)
    return tensors


def from_tensors(tensors: dict[str, Tensor]) -> Trajectories:
    """The shard that ``tensors`` hold, after every check.

    Raises:
        ValueError: a missing or unknown name, a dtype, a shape, a length that does not fit, a mask
            that is not right-padded, a number that cannot be; the message says which.
    """
    unknown = sorted(set(tensors) - set(LAYOUT))
    missing = sorted(set(LAYOUT) - set(tensors) - set(OPTIONAL))
    if unknown or missing:
        raise ValueError(f"unknown tensors {unknown}, missing tensors {missing}")
    _check_layout(tensors)
    stored_mask = tensors["mask"]
    trajectories = Trajectories(**{k: v for k, v in tensors.items() if k != "mask"})
    _check_lengths(trajectories)
    if not torch.equal(stored_mask, trajectories.mask):
        raise ValueError("the mask is not what prompt_lengths and response_lengths say")
    _check_numbers(trajectories)
    return trajectories


def _check_layout(tensors: dict[str, Tensor]) -> None:
    if tensors["tokens"].dim() != 2 or tensors["reward_tokens"].dim() != 2:
        raise ValueError("tokens and reward_tokens must have two dimensions")
    (n, length), reward_length = tensors["tokens"].shape, tensors["reward_tokens"].shape[1]
    sizes = {"N": n, "L": length, "R": reward_length, "M": length - 1}
    for name, got in tensors.items():
        dtype, letters = LAYOUT[name]
        shape = tuple(sizes[letter] for letter in letters)
        if got.dtype != dtype or tuple(got.shape) != shape:
            raise ValueError(
                f"{name} is {got.dtype} {tuple(got.shape)}, expected {dtype} {shape} beside "
                f"tokens {(n, length)}"
            )
    if n == 0:
        raise ValueError("it holds no sequence")


def _check_lengths(trajectories: Trajectories) -> None:
    t = trajectories
    for name, lengths, most in (
        ("prompt_lengths", t.prompt_lengths, t.tokens.shape[1] - 1),
        ("response_lengths", t.response_lengths, t.tokens.shape[1] - 1),
        ("prompt and response together", t.prompt_lengths + t.response_lengths, t.tokens.shape[1]),
        ("reward_lengths", t.reward_lengths, t.reward_tokens.shape[1]),
    ):
        if int(lengths.min()) < 1 or int(lengths.max()) > most:
            raise ValueError(f"{name}: {lengths.tolist()} must lie between 1 and {most}")
    for name, tokens in (("tokens", t.tokens), ("reward_tokens", t.reward_tokens)):
        if int(tokens.min()) < 0:
            raise ValueError(f"{name} holds the negative token {int(tokens.min())}")


def _check_numbers(trajectories: Trajectories) -> None:
    mask = trajectories.mask
    for name in ("logprobs", "ref_logprobs", "rollout_logprobs", "values", "rewards"):
        x = getattr(trajectories, name)
        if x is None:
            continue
        if not bool(torch.isfinite(x).all()):
            raise ValueError(f"{name} holds {int((~torch.isfinite(x)).sum())} inf or NaN")
        if name != "rewards" and bool((x[~mask] != 0).any()):
            raise ValueError(f"{name} is not 0 outside the mask: the mask is shifted, or {name} is")
        if name.endswith("logprobs") and float(x.max()) > 0:
            raise ValueError(f"{name} holds {float(x.max()):g}, and no log-probability is above 0")
