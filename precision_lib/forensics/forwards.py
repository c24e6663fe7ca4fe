"""Score fixed tokens under a format: one forward per (weights, format), kept.

The hazard. Two forwards that differ in batch shape, padding or order differ in their last bits,
and near the reference those bits are as large as the signal. So policy and reference go through
the same function in the same micro-batches. The policy at scale 0 is a separate forward of equal
weights, so that its difference of exactly zero is measured.

A configuration is put together from log-probs that are kept here; it needs no forward of its own.

N sequences, T response tokens of each, L prompt and response tokens, V vocabulary, M all response
tokens of all sequences, one sequence after the other, one length after the other.
"""

import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from precision_lib.forensics.observed_format import observed_format
from precision_lib.forensics.probe import ProbeInput
from precision_lib.formats import format_of, get_format
from precision_lib.matrix import PrecisionConfig
from precision_lib.models.lm_head import parameter_formats
from precision_lib.models.loading import set_parameters, working_copy
from precision_lib.models.placement import computes_on_cpu
from precision_lib.ppo import kl, logprobs
from precision_lib.runtime import Float64Casts, deterministic
from precision_lib.trajectories.sampling import Responses
from precision_lib.trajectories.teacher_forcing import (
    next_token_logits,
    other_rows,
    rows_per_forward,
)

POLICY, REFERENCE = "policy", "reference"
FIRST, AGAIN, REBATCHED = "first", "again", "rebatched"
GOLDEN, EXACT = "fp32", "fp64"
_EXCHANGED = ContextVar("exchanged", default=False)


def takes_other_shape(run: str) -> bool:
    """Whether a run takes the sequences in reversed order and in other micro-batches.

    Only ``REBATCHED`` does; inside :func:`batch_shapes_exchanged` every other run does.
    """
    return (run == REBATCHED) != _EXCHANGED.get()


@contextmanager
def batch_shapes_exchanged() -> Iterator[None]:
    """Measure in the other batch shape, so that its noise is seen in every metric."""
    token = _EXCHANGED.set(True)
    try:
        yield
    finally:
        _EXCHANGED.reset(token)


@dataclass(frozen=True)
class ScoredTokens:
    """What one forward over all responses gave.

    Attributes:
        logprobs: format of the log-softmax to [M] log-probs in that format, on the CPU.
        parameters: format of the parameters, as observed (several are joined by ``+``); without
            those of an LM head that has a format of its own.
        logits: format of the logits, as observed.
        buffers: format of the numbers in floating-point buffers (the RoPE table), as observed; ""
            for a model without any.
    """

    logprobs: dict[str, Tensor]
    parameters: str
    logits: str
    buffers: str


@dataclass(frozen=True)
class Theory:
    """What the FP32 logits of a policy and the reference let one predict, in float64; each [M].

    Attributes:
        policy_logprob, reference_logprob: log-prob of the token.
        rounded_move: policy minus reference log-prob after rounding all logits to bf16, exact
            otherwise: what a bf16 KL has left to round once more.
        entropy, surprise_variance: of the reference's distribution: mean and variance of
            -log q under q, which is what the log-prob of a sampled token must scatter about.
    """

    policy_logprob: Tensor
    reference_logprob: Tensor
    rounded_move: Tensor
    entropy: Tensor
    surprise_variance: Tensor


def response_logits(model: Any, responses: Responses) -> tuple[Tensor, Tensor]:
    """(logits, tokens) of the response positions only, aligned: [N, T, V] and [N, T].

    The forward takes right-padded rows without an attention mask: under causal attention no real
    token sees a later pad.
    """
    logits, tokens = logprobs.shift(next_token_logits(model, responses.tokens), responses.tokens)
    mask = responses.mask[:, 1:]
    shape = (len(tokens), responses.length)
    return logits[mask].view(*shape, -1), tokens[mask].view(shape)


@torch.no_grad()
def score(
    model: Any,
    responses: tuple[Responses, ...],
    fmt: str,
    kl_formats: tuple[str, ...],
    *,
    reverse: bool = False,
) -> ScoredTokens:
    """Log-probs of all responses under a model whose parameters are in ``fmt``.

    Args:
        reverse: take the sequences in the opposite order and in micro-batches of a third;
            the result is put back in order. What changes is the noise of batching.
    """
    kept: dict[str, list[Tensor]] = {f: [] for f in kl_formats}
    seen: set[str] = set()
    for group in responses:
        rows = rows_per_forward(group.tokens.shape[1], model)
        order = torch.arange(len(group.tokens))
        if reverse:
            rows = other_rows(rows, len(order))
            order = order.flip(0)
        back = torch.argsort(order)
        parts: dict[str, list[Tensor]] = {f: [] for f in kl_formats}
        for _, batch in group.micro_batches(rows, order):
            with Float64Casts() if fmt == EXACT else nullcontext():
                logits, tokens = response_logits(model, batch)
            seen.add(format_of(logits.dtype).name)
            for kl_format in kl_formats:
                dtype = get_format(kl_format).dtype
                parts[kl_format].append(logprobs.token_logprobs(logits, tokens, dtype).cpu())
        for kl_format in kl_formats:
            kept[kl_format].append(torch.cat(parts[kl_format])[back])
    parameters = parameter_formats(model)
    buffers = {observed_format(b) for b in model.buffers() if b.is_floating_point()}
    return ScoredTokens(
        {f: torch.cat([t.flatten() for t in tensors]) for f, tensors in kept.items()},
        parameters="+".join(sorted(parameters)),
        logits="+".join(sorted(seen)),
        buffers="+".join(sorted(buffers)),
    )


#: From (policy logits [n, T, V], reference logits, tokens [n, T]) to named [n, T] tensors.
PairFunction = Callable[[Tensor, Tensor, Tensor], dict[str, Tensor]]


@torch.no_grad()
def score_pair(
    policy: Any, reference: Any, responses: tuple[Responses, ...], function: PairFunction
) -> dict[str, Tensor]:
    """``function`` of both models' response logits, each result [M] on the CPU."""
    parts: dict[str, list[Tensor]] = {}
    for group in responses:
        rows = rows_per_forward(group.tokens.shape[1], reference)
        for _, batch in group.micro_batches(rows):
            policy_logits, tokens = response_logits(policy, batch)
            reference_logits, _ = response_logits(reference, batch)
            for name, value in function(policy_logits, reference_logits, tokens).items():
                parts.setdefault(name, []).append(value.flatten().cpu())
    return {name: torch.cat(values) for name, values in parts.items()}


def pair_kl(policy: Tensor, reference: Tensor, tokens: Tensor) -> dict[str, Tensor]:
    """KL(policy || reference) over the whole vocabulary, nats."""
    return {"kl": kl.full_kl(policy, reference)}


def pair_theory(policy: Tensor, reference: Tensor, tokens: Tensor) -> dict[str, Tensor]:
    """The fields of :class:`Theory`; shares no log-softmax with the core."""
    index = tokens.unsqueeze(-1)

    def exact(logits: Tensor) -> Tensor:
        wide = logits.double()
        return wide.gather(-1, index).squeeze(-1) - torch.logsumexp(wide, -1)

    log_q = reference.double() - torch.logsumexp(reference.double(), -1, keepdim=True)
    q = log_q.exp()
    surprise = torch.where(q > 0, -log_q, torch.zeros_like(q))
    entropy = (q * surprise).sum(-1)
    return {
        "policy_logprob": exact(policy),
        "reference_logprob": exact(reference),
        "rounded_move": exact(policy.bfloat16()) - exact(reference.bfloat16()),
        "entropy": entropy,
        "surprise_variance": (q * (surprise - entropy.unsqueeze(-1)) ** 2).sum(-1),
    }


@dataclass
class Forwards:
    """Forwards over one :class:`ProbeInput`, each run once, when first asked for.

    Attributes:
        given: the fixed input.
        kl_formats: formats of the log-softmax taken of every forward's logits.
        progress: called after each forward.
    """

    given: ProbeInput
    kl_formats: tuple[str, ...]
    progress: Callable[[], Any] = lambda: None
    _scored: dict[tuple[str, int, str, str], ScoredTokens] = field(default_factory=dict)
    _kl: dict[int, Tensor] = field(default_factory=dict)
    _executed: dict[tuple[int, str, str], float] = field(default_factory=dict)
    _theory: dict[int, Theory] = field(default_factory=dict)
    _models: dict[str, Any] = field(default_factory=dict)

    def scored(self, role: str, policy: int, fmt: str, run: str = FIRST) -> ScoredTokens:
        """The forward of a role in a format.

        Each forward has a random seed of its own, so that a dropout left on shows as a difference.

        Args:
            policy: index into the scales; the reference has only one.
            run: :data:`FIRST`; :data:`AGAIN`, the same once more; :data:`REBATCHED`, in another
                order and micro-batch.
        """
        key = (role, policy if role == POLICY else 0, fmt, run)
        if key not in self._scored:
            model = self._model(role, policy, fmt)
            native = not computes_on_cpu(model)
            with deterministic(zlib.crc32(repr(key).encode()), native_products=native):
                self._scored[key] = score(
                    model,
                    self.given.responses,
                    fmt,
                    self.kl_formats,
                    reverse=takes_other_shape(run),
                )
            self.progress()
        return self._scored[key]

    def true_kl(self, policy: int) -> Tensor:
        """[M] KL(policy || reference), nats; exactly 0 for the identical policy."""
        if policy not in self._kl:
            self._kl[policy] = self._pair(policy, pair_kl)["kl"]
        return self._kl[policy]

    def theory(self, policy: int) -> Theory:
        """What the FP32 logits of a policy and the reference let one predict."""
        if policy not in self._theory:
            self._theory[policy] = Theory(**self._pair(policy, pair_theory))
        return self._theory[policy]

    def executed_kl(self, policy: int, policy_fmt: str, reference_fmt: str) -> float:
        """Mean KL between policy and reference as executed in their formats, nats per token.

        Full vocabulary, float64, each model's own logits: what a perfect KL of these two
        forwards would report.
        """
        key = (policy, policy_fmt, reference_fmt)
        if key not in self._executed:
            kl = self._pair(policy, pair_kl, policy_fmt, reference_fmt)["kl"]
            self._executed[key] = float(kl.mean())
        return self._executed[key]

    def _pair(
        self,
        policy: int,
        function: PairFunction,
        policy_fmt: str = GOLDEN,
        reference_fmt: str = GOLDEN,
    ) -> dict[str, Tensor]:
        moved = self._model(POLICY, policy, policy_fmt)
        reference = self._model(REFERENCE, 0, reference_fmt)
        with deterministic(native_products=not computes_on_cpu(moved, reference)):
            result = score_pair(moved, reference, self.given.responses, function)
        self.progress()
        return result

    def number_of_forwards(self, configurations: Iterable[PrecisionConfig]) -> int:
        """Forwards that H1 takes for ``configurations``, for a progress bar."""
        policies = len(self.given.scales)
        roles = {(POLICY, c.forward_format(POLICY)) for c in configurations} | {
            (REFERENCE, c.forward_format(REFERENCE)) for c in configurations
        }
        first = roles | {(role, fmt) for role in (POLICY, REFERENCE) for fmt in (GOLDEN, EXACT)}
        scored = sum(policies if role == POLICY else 1 for role, _ in first) + len(roles)
        pairs = (
            policies
            + 1
            + len({tuple(map(c.forward_format, (POLICY, REFERENCE))) for c in configurations})
        )
        return scored + pairs + 2  # the two that the irrelevant control runs again

    def _model(self, role: str, policy: int, fmt: str) -> Any:
        original = self.given.checkpoint.model
        if role not in self._models:
            self._models[role] = working_copy(original)
        direction = self.given.direction if role == POLICY else None
        scale = self.given.scales[policy] if role == POLICY else 0.0
        set_parameters(self._models[role], original, fmt, direction, scale)
        return self._models[role]
