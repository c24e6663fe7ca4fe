"""One PPO step on frozen sequences with everything in a configuration's formats: its gradient.

The policy has moved from the reference by H1's known distance. Each configuration scores the
sequences, makes penalty, rewards, values and advantages of the scores, and takes the gradient of
the clipped surrogate with respect to the policy's weights. It is the first optimizer step on the
rollout, so every ratio is bitwise 1.

The hazard. FP32 compared with itself has a cosine of exactly 1, which says nothing about the
instrument. So what is FP32 throughout runs on weights that are one rounding away.

n sequences, T response tokens of the longest, P' coordinates.
"""

import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from precision_lib.forensics.damage.work import TWIN
from precision_lib.forensics.policy_shift import Placed
from precision_lib.formats import get_format
from precision_lib.matrix import PrecisionConfig
from precision_lib.metrics.measure import Array
from precision_lib.metrics.values import GAMMA, LAMBDA
from precision_lib.models.loading import set_parameters, working_copy
from precision_lib.models.placement import computes_on_cpu
from precision_lib.models.value_head import ValueHead, predict_values
from precision_lib.ppo import kl
from precision_lib.ppo.advantages import gae
from precision_lib.ppo.logprobs import shift, token_logprobs
from precision_lib.ppo.losses import policy_loss
from precision_lib.ppo.masked import whiten
from precision_lib.ppo.rewards import assemble_rewards
from precision_lib.runtime import deterministic
from precision_lib.scoring.forward import in_own_format, trunk_and_logits
from precision_lib.scoring.scorer import GOLDEN
from precision_lib.trajectories.store import Trajectories

#: Of the KL penalty, and of the ratio: those that training defaults to.
KL_COEFFICIENT, CLIP_RANGE = 0.1, 0.2
#: Coordinates of a gradient that are compared: every k-th of the larger parameters, times sqrt(k),
#: so that inner products are those of the whole gradient on average.
COORDINATES = 2**19
#: A parameter of at most so many numbers is compared whole.
_SMALL = 2**12


@dataclass(frozen=True)
class FrozenSequence:
    """One frozen sequence: tokens [1, L], how many are the prompt's, its number among all."""

    tokens: Tensor
    prompt: int
    number: int


def first_of_each_prompt(shards: Iterable[Trajectories], count: int) -> list[FrozenSequence]:
    """The first sequence of each of the first ``count`` prompts; fewer where fewer are."""
    chosen: dict[int, FrozenSequence] = {}
    number = 0
    for shard in shards:
        lengths = (shard.prompt_lengths + shard.response_lengths).tolist()
        for row, prompt in enumerate(shard.prompt_ids.tolist()):
            tokens = shard.tokens[row : row + 1, : lengths[row]]
            start = int(shard.prompt_lengths[row])
            chosen.setdefault(prompt, FrozenSequence(tokens, start, number))
            number += 1
    return list(chosen.values())[:count]


@dataclass(frozen=True)
class Inputs:
    """What the loss of a configuration reads, each [n, T], right-padded, on the CPU.

    Attributes:
        logprobs: of the policy, in the KL format.
        advantages: whitened, FP32.
        mask: True for a response token.
    """

    logprobs: Tensor
    advantages: Tensor
    mask: Tensor

    @property
    def finite(self) -> bool:
        """Whether no log-prob and no advantage is inf or NaN."""
        return all(bool(x[self.mask].isfinite().all()) for x in (self.logprobs, self.advantages))


@dataclass(frozen=True)
class Loss:
    """A gradient to take: of the policy in a format, with the inputs of the loss."""

    policy: str
    kl: str
    inputs: Inputs


@dataclass
class Step:
    """The step; every forward is run once.

    Attributes:
        placed: the FP32 policy, and how far it has moved.
        reference: FP32 causal LM.
        head: value head of the policy's trunk.
        scores: reward format to the scores [n] of the sequences, in it.
        sequences: of different prompts.
        configurations: those that will be asked for.
    """

    placed: Placed
    reference: Any
    head: ValueHead
    scores: Mapping[str, Tensor]
    sequences: Sequence[FrozenSequence]
    configurations: Sequence[PrecisionConfig]
    _figures: dict[tuple[str, str], tuple[dict[str, Tensor], dict[str, Tensor]]] = field(
        default_factory=dict
    )

    def __post_init__(self) -> None:
        self.original = self.placed.checkpoint.model
        self.working = working_copy(self.original)
        lengths = torch.tensor([s.tokens.shape[1] - s.prompt for s in self.sequences])
        self.mask = torch.arange(int(lengths.max())) < lengths.unsqueeze(1)
        self.kl_formats = tuple(sorted({c.kl for c in self.configurations} | {GOLDEN}))
        self.value_formats = tuple(sorted({c.value for c in self.configurations} | {GOLDEN}))

    def inputs(self, configuration: PrecisionConfig, policy: str = "") -> Inputs:
        """What the loss of a configuration reads.

        Args:
            policy: format of the policy where it is not the configuration's: :data:`TWIN`.
        """
        fmt = configuration.kl
        of_policy, values = self._scored("policy", policy or configuration.forward_format("policy"))
        of_reference, _ = self._scored("reference", configuration.forward_format("reference"))
        dtype, mask = get_format(fmt).dtype, self.mask
        penalty = kl.kl_penalty(of_policy[fmt], of_reference[fmt], "k1", dtype)
        scores = self.scores[configuration.reward]
        rewards = assemble_rewards(scores, penalty, mask, KL_COEFFICIENT)
        stored = values[configuration.value]
        stored = stored.to(torch.promote_types(stored.dtype, torch.float32))
        raw, _ = gae(rewards, stored, mask, GAMMA, LAMBDA)
        return Inputs(of_policy[fmt], whiten(raw, mask), mask)

    def logprobs(self, policy: str) -> Tensor:
        """[n, T] log-probs of the policy in a format, log-softmax in FP32."""
        return self._scored("policy", policy)[0][GOLDEN]

    def _scored(self, role: str, fmt: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Log-probs by KL format and values by value format, each [n, T] on the CPU.

        The values of a reference stay 0: the value head reads the policy's hidden states.
        """
        if (role, fmt) not in self._figures:
            logprobs, values = self._blank(self.kl_formats), self._blank(self.value_formats)
            with self._model(role, fmt) as model, torch.no_grad():
                for row, sequence in enumerate(self.sequences):
                    count = sequence.tokens.shape[1] - sequence.prompt
                    own, hidden = self._forward(model, sequence, self.kl_formats)
                    predicted = self._values(hidden) if role == "policy" else {}
                    for name, x in own.items():
                        logprobs[name][row, :count] = x[0].cpu()
                    for name, x in predicted.items():
                        values[name][row, :count] = x[0].cpu()
            self._figures[role, fmt] = logprobs, values
        return self._figures[role, fmt]

    def _blank(self, formats: Iterable[str]) -> dict[str, Tensor]:
        return {f: torch.zeros(self.mask.shape, dtype=get_format(f).dtype) for f in formats}

    def _forward(
        self, model: Any, sequence: FrozenSequence, kl_formats: Iterable[str]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Log-probs [1, T] of the response by KL format, and the hidden states [1, T, H]."""
        tokens, first = sequence.tokens.to(model.device), sequence.prompt - 1
        with in_own_format(model):
            hidden, logits = trunk_and_logits(model, tokens)
        aligned, targets = shift(logits[:, first:], tokens[:, first:])
        dtypes = {f: get_format(f).dtype for f in kl_formats}
        logprobs = {f: token_logprobs(aligned, targets, dtype) for f, dtype in dtypes.items()}
        return logprobs, hidden[:, first:-1].detach()

    def _values(self, states: Tensor) -> dict[str, Tensor]:
        """Values [1, T] of hidden states by value format."""
        head = self.head.weight.to(states.device), self.head.bias.to(states.device)
        return {f: predict_values(states, *head, f) for f in self.value_formats}

    def gradients(self, losses: Mapping[str, Loss]) -> dict[str, Array]:
        """Terms [n, P'] of the gradient of each loss, one for each sequence, FP32.

        One forward of a policy's format serves all of its losses.
        """
        terms: dict[str, list[Tensor]] = {name: [] for name in losses}
        for fmt in dict.fromkeys(loss.policy for loss in losses.values()):
            own = {name: loss for name, loss in losses.items() if loss.policy == fmt}
            with self._model("policy", fmt) as model:
                model.requires_grad_(True)
                for row in range(len(self.sequences)):
                    for name, term in self._terms(model, row, own):
                        terms[name].append(term)
                model.requires_grad_(False)
        return {name: torch.stack(rows).numpy() for name, rows in terms.items()}

    def _terms(
        self, model: Any, row: int, losses: Mapping[str, Loss]
    ) -> Iterable[tuple[str, Tensor]]:
        """Name and sampled gradient of each loss over one sequence."""
        sequence = self.sequences[row]
        count = sequence.tokens.shape[1] - sequence.prompt
        formats = {loss.kl for loss in losses.values()}
        logprobs, _ = self._forward(model, sequence, formats)
        parameters = dict(model.named_parameters())
        for name, loss in losses.items():
            given = (loss.inputs.logprobs, loss.inputs.advantages, loss.inputs.mask)
            old, advantages, mask = (x[row : row + 1, :count].to(model.device) for x in given)
            own, total = logprobs[loss.kl], float(loss.inputs.mask.sum())
            surrogate = policy_loss(own, old, advantages, mask, CLIP_RANGE, total)
            slopes = torch.autograd.grad(
                surrogate, list(parameters.values()), retain_graph=True, allow_unused=True
            )
            yield name, self._sampled(dict(zip(parameters, slopes, strict=True)))

    def _sampled(self, slopes: dict[str, Tensor | None]) -> Tensor:
        """[P'] FP32 on the CPU. The slope of a head in its own format joins that of the matrix.

        All NaN where any coordinate, compared or not, is inf or NaN: a trainer skips the step.
        """
        named = dict(self.original.named_parameters())
        apart = [slope for name, slope in slopes.items() if name not in named and slope is not None]
        parts = []
        for name, parameter in named.items():
            slope = slopes[name]
            whole = torch.zeros_like(parameter) if slope is None else slope.float()
            if parameter is self.original.get_input_embeddings().weight:
                whole = sum((x.float() for x in apart if x.shape == whole.shape), whole)
            stride = self.stride(parameter)
            parts.append(whole.flatten()[::stride] * math.sqrt(stride))
        finite = all(bool(x.isfinite().all()) for x in slopes.values() if x is not None)
        sampled = torch.cat([part.cpu() for part in parts])
        return sampled if finite else torch.full_like(sampled, torch.nan)

    def stride(self, parameter: Tensor) -> int:
        """How far apart two compared coordinates are: with all columns of a matrix among them."""
        whole = sum(p.numel() for p in self.original.parameters())
        stride = 1 if parameter.numel() <= _SMALL else max(1, math.ceil(whole / COORDINATES))
        while math.gcd(stride, parameter.shape[-1]) > 1:
            stride += 1
        return stride

    @contextmanager
    def _model(self, role: str, fmt: str) -> Iterator[Any]:
        """The working copy with the weights of a role in a format, where bits can be repeated."""
        working, parameters = self.working, GOLDEN if fmt == TWIN else fmt
        if role == "policy":
            scale = self.placed.scales[self.placed.operating_policy]
            set_parameters(working, self.original, parameters, self.placed.direction, scale)
        else:  # perhaps of another size
            own = self.reference is self.original
            working = working if own else working_copy(self.reference)
            set_parameters(working, self.reference, parameters)
        if fmt == TWIN:
            _perturb(working)
        # A value head in 16 bits multiplies in them on an FP32 trunk, too.
        native = not computes_on_cpu(working)
        with deterministic(zlib.crc32(f"{role} {fmt}".encode()), native_products=native):
            yield working


@torch.no_grad()
def _perturb(model: Any) -> None:
    """Move every weight w to w (1 + 2^-24 z), z standard normal: about half of them, by one ulp."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
        moved = parameter.data.double() * (1 + 2.0**-24 * noise.to(parameter.device))
        parameter.data = moved.float()
