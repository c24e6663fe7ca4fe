"""Faults in the KL path: log-softmax, shift, mean. torch is imported when a fault runs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Fault:
    """One mutation of one function.

    Attributes:
        name: how it is planted.
        module, function: what it replaces.
        broken: the replacement, with the signature of the original.
        meaning: what goes wrong.
        source: where it was seen.
        caught_by: the test that has to turn red.
    """

    name: str
    module: str
    function: str
    broken: Callable[..., Any]
    meaning: str
    source: str
    caught_by: str


def _log_of_softmax(logits: Any, tokens: Any, dtype: Any = None) -> Any:
    import torch

    dtype = dtype or torch.float32
    inside = torch.promote_types(dtype, torch.float32)
    logprobs = torch.log(torch.softmax(logits.to(dtype), dim=-1, dtype=inside))
    return logprobs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1).to(dtype)


def _bf16_running_sum(x: Any, mask: Any) -> Any:
    import torch

    total = torch.zeros((), dtype=torch.bfloat16, device=x.device)
    kept = torch.where(mask, x, torch.zeros_like(x)).to(torch.bfloat16).flatten()
    for part in torch.split(kept, 64):  # micro-batches
        total = total + part.sum()
    return (total / mask.sum()).float()


def _shift_off_by_one(logits: Any, tokens: Any) -> Any:
    return logits[:, :-1], tokens[:, :-1]


KL_PATH = (
    Fault(
        name="log_of_softmax",
        module="precision_lib.ppo.logprobs",
        function="token_logprobs",
        broken=_log_of_softmax,
        meaning="log(softmax(x)): -inf where the probability underflows",
        source="DeepSpeedExamples #501, the same mistake with a sigmoid",
        caught_by="test_token_logprobs_match_the_oracle",
    ),
    Fault(
        name="bf16_running_sum",
        module="precision_lib.ppo.masked",
        function="masked_mean",
        broken=_bf16_running_sum,
        meaning="the KL is accumulated over micro-batches in bf16",
        source="prime-rl #568",
        caught_by="test_mean_penalty_is_the_exact_mean_within_its_bound",
    ),
    Fault(
        name="shift_off_by_one",
        module="precision_lib.ppo.logprobs",
        function="shift",
        broken=_shift_off_by_one,
        meaning="logits[:, t] score tokens[:, t] instead of tokens[:, t + 1]",
        source="the shape contract of the project's specification",
        caught_by="test_sampled_tokens_are_the_references_own",
    ),
)
