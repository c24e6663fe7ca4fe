"""A policy at a known small distance from the reference, in a direction that training takes.

The hazard. Random noise on the weights moves log-probs as no optimizer does, and an error relative
to a change of unknown size means nothing. Here the direction is what a few FP32 AdamW steps on text
change. The scale along it is solved for, so that the true KL per token, measured over the whole
vocabulary in float64, is the one asked for.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from precision_lib.models.loading import Checkpoint, set_parameters, working_copy
from precision_lib.ppo import kl, logprobs
from precision_lib.scoring.forward import next_token_logits
from precision_lib.trajectories.sampling import Responses

#: True KL per token, nats, at which log-ratios are judged: a log-ratio of 1.4 % RMS, the first
#: updates away from the reference, where H1 says that the signal is lost.
OPERATING_KL = 1e-4
STEPS = 4
LEARNING_RATE = 1e-4  # sets the length of the direction only; the scale is solved for


@dataclass(frozen=True)
class Placed:
    """Fixed tokens, and policies at known distances from the reference.

    Attributes:
        checkpoint: the reference, FP32.
        responses: groups of sequences, of one response length each.
        direction: parameter name to a change; scales: how far each policy is along it, 0 first:
            the identical one.
        operating_policy: index of the policy that is judged.
    """

    checkpoint: Checkpoint
    responses: tuple[Responses, ...]
    direction: dict[str, Tensor]
    scales: tuple[float, ...]
    operating_policy: int


def training_direction(
    reference: Any, texts: list[list[int]], *, seed: int, rows: int = 8, width: int = 128
) -> dict[str, Tensor]:
    """Parameter change of a few FP32 AdamW steps on ``texts``, per parameter name.

    Each change is on the device of its parameter. Besides the reference this holds a copy, its
    gradients and two moments of AdamW: four more models in FP32.

    Args:
        reference: FP32 causal LM; unchanged.
        texts: token lists of at least 2 tokens; ``rows`` of them per step, chosen by ``seed``,
            cut to ``width``.

    Raises:
        ValueError: when there is no text.
    """
    usable = [t[:width] for t in texts if len(t) >= 2]
    if not usable:
        raise ValueError(f"no text to train on: {len(texts)} given, none of 2 tokens or more")
    model = working_copy(reference).requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(STEPS):
        chosen = torch.randint(len(usable), (rows,), generator=generator).tolist()
        loss = _next_token_loss(model, [usable[i] for i in chosen])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    before = dict(reference.named_parameters())
    return {
        name: (parameter.detach() - before[name].detach())
        for name, parameter in model.named_parameters()
    }


def _next_token_loss(model: Any, texts: list[list[int]]) -> Tensor:
    """Mean negative log-likelihood over the real tokens of right-padded ``texts``."""
    width = max(map(len, texts))
    tokens = torch.zeros(len(texts), width, dtype=torch.int64)
    mask = torch.zeros(len(texts), width, dtype=torch.bool)
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = torch.tensor(text)
        mask[row, : len(text)] = True
    tokens, mask = tokens.to(model.device), mask.to(model.device)
    logits = next_token_logits(model, tokens)
    return -logprobs.token_logprobs(*logprobs.shift(logits, tokens))[mask[:, 1:]].mean()


def mean_kl(policy: Any, reference_logits: Tensor, responses: Responses) -> float:
    """KL(policy || reference) per response token, nats: full vocabulary, float64."""
    per_token = kl.full_kl(aligned_logits(policy, responses), reference_logits)
    return float(per_token[responses.mask[:, 1:]].mean())


@torch.no_grad()
def aligned_logits(model: Any, responses: Responses) -> Tensor:
    """[N, L-1, V], aligned with ``responses.tokens[:, 1:]``."""
    return logprobs.shift(next_token_logits(model, responses.tokens), responses.tokens)[0]


def solve_scales(
    reference: Any,
    direction: dict[str, Tensor],
    responses: Responses,
    target_kls: tuple[float, ...],
) -> list[float]:
    """Scale along ``direction`` for each target KL per token (nats).

    KL grows with the square of a small scale. So each solution starts from the KL measured at
    scale 1 and is corrected twice by the square root of target over measured; it does not depend
    on the other targets. The KL that is finally reported is measured again on all responses.

    Raises:
        ValueError: when the direction does not change the model.
    """
    working, reference_logits = working_copy(reference), aligned_logits(reference, responses)

    def measured(scale: float) -> float:
        set_parameters(working, reference, "fp32", direction, scale)
        kl = mean_kl(working, reference_logits, responses)
        if kl <= 0:
            raise ValueError(
                f"the policy does not differ from the reference (KL {kl:.3g} at scale "
                f"{scale:.3g}); the direction is empty or the target too small"
            )
        return kl

    whole = measured(1.0)
    scales = []
    for target in target_kls:
        scale = (target / whole) ** 0.5
        for _ in range(2):
            scale *= (target / measured(scale)) ** 0.5
        scales.append(scale)
    return scales
