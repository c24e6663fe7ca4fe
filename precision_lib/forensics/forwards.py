"""Log-probs of fixed tokens under policy and reference, and the log-ratio of a configuration.

A configuration is put together from log-probs that are kept here; it needs no forward of its own.
The policy at scale 0 is a separate forward of equal weights.

N sequences, T response tokens of each, L prompt and response tokens, V vocabulary, M all response
tokens of all sequences, one sequence after the other, one length after the other.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from precision_lib.forensics.observed_format import observed_format, observed_models
from precision_lib.forensics.policy_shift import Placed
from precision_lib.forensics.theory import Theory, pair_kl, pair_theory
from precision_lib.formats import get_format
from precision_lib.matrix import REQUIRED, PrecisionConfig
from precision_lib.metrics.measure import Array
from precision_lib.ppo import kl, logprobs
from precision_lib.scoring.forced import forced
from precision_lib.scoring.forward import (
    formats_of,
    formats_of_model,
    next_token_logits,
    rows_per_forward,
    vocabulary_of,
)
from precision_lib.scoring.micro import FIRST, batches_of_run, takes_other_shape
from precision_lib.scoring.scorer import EXACT, GOLDEN, Scorer, Weights
from precision_lib.trajectories.sampling import Responses

POLICY, REFERENCE = "policy", "reference"
#: FP32 bytes of a reference's logits that may stay in memory, so that the forward of a policy gives
#: its log-probs and its comparison with the reference. Larger ones are computed for each pair.
KEPT_LOGITS_BYTES = 2**28


@dataclass(frozen=True)
class ScoredTokens:
    """What one forward over all responses gave.

    Attributes:
        logprobs: format of the log-softmax to [M] log-probs in that format, on the CPU.
        parameters: format of the parameters, as observed (several are joined by ``+``).
        logits: format of the logits, as observed.
        buffers: format of the numbers in floating-point buffers (the RoPE table), as observed; ""
            for a model without any.
    """

    logprobs: dict[str, Tensor]
    parameters: str
    logits: str
    buffers: str


#: Is given the logits [n, T, V] and the tokens [n, T] of the responses of one forward.
SeeResponses = Callable[[Tensor, Tensor], object]


def score(
    model: Any,
    responses: tuple[Responses, ...],
    kl_formats: tuple[str, ...],
    run: str = FIRST,
    see: SeeResponses | None = None,
) -> ScoredTokens:
    """Log-probs of all responses under a model, in the micro-batches of ``run``.

    Args:
        see: called with the logits and tokens of each micro-batch.
    """
    logprobs: dict[str, list[Tensor]] = {f: [] for f in kl_formats}
    seen: set[str] = set()
    for group in responses:
        mask, count = group.mask[:, 1:].cpu(), len(group.tokens)
        micro = batches_of_run(rows_per_forward(group.tokens.shape[1], model), count, run)
        in_rows = None if see is None else partial(_see_in_rows, see, group.length)
        scored = forced(model, group.tokens, mask, micro, kl_formats=kl_formats, see=in_rows)
        seen |= set(scored.logits.split("+"))
        for fmt, x in scored.logprobs.items():
            logprobs[fmt].append(x[mask])
    buffers = {observed_format(b) for b in model.buffers() if b.is_floating_point()}
    return ScoredTokens(
        {fmt: torch.cat(parts) for fmt, parts in logprobs.items()},
        parameters=formats_of_model(model),
        logits="+".join(sorted(seen)),
        buffers="+".join(sorted(buffers)),
    )


def _see_in_rows(see: SeeResponses, length: int, logits: Tensor, tokens: Tensor) -> None:
    see(logits.view(-1, length, logits.shape[-1]), tokens.view(-1, length))


def response_logits(model: Any, responses: Responses) -> tuple[Tensor, Tensor]:
    """(logits, tokens) of the response positions only, aligned: [N, T, V] and [N, T].

    The forward takes right-padded rows without an attention mask: under causal attention no real
    token sees a later pad.
    """
    logits, tokens = logprobs.shift(next_token_logits(model, responses.tokens), responses.tokens)
    mask = responses.mask[:, 1:]
    shape = (len(tokens), responses.length)
    return logits[mask].view(*shape, -1), tokens[mask].view(shape)


#: From (policy logits [n, T, V], reference logits, tokens [n, T]) to named [n, T] tensors.
PairFunction = Callable[[Tensor, Tensor, Tensor], dict[str, Tensor]]


@torch.no_grad()
def score_pair(
    responses: tuple[Responses, ...], function: PairFunction, policy: Any, reference: Any
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


def keeps_logits(model: Any, tokens: int) -> bool:
    """Whether the logits of so many response tokens are few enough to stay in memory."""
    return 4 * tokens * vocabulary_of(model) <= KEPT_LOGITS_BYTES


@dataclass
class Forwards:
    """Forwards over fixed tokens, each run once, when first asked for.

    Attributes:
        given: the fixed tokens and policies.
        kl_formats: formats of the log-softmax taken of every forward's logits.
        progress: called after each forward.
    """

    given: Placed
    kl_formats: tuple[str, ...]
    progress: Callable[[], Any] = lambda: None
    _pairs: dict[tuple[str, Weights, Weights], dict[str, Tensor]] = field(default_factory=dict)
    _logits: dict[Weights, list[Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        given = self.given
        self.scorer = Scorer(given.checkpoint.model, self._score, given.direction, self.progress)

    def _score(self, model: Any, _: Weights, run: str) -> ScoredTokens:
        return score(model, self.given.responses, self.kl_formats, run)

    def weights(self, role: str, policy: int, fmt: str) -> Weights:
        """Of a role in a format; ``policy`` is an index into the scales, unused for a reference."""
        return Weights(role, fmt, self.given.scales[policy] if role == POLICY else None)

    def scored(self, role: str, policy: int, fmt: str, run: str = FIRST) -> ScoredTokens:
        """The forward of a role in a format, as :meth:`Scorer.scored`."""
        return self.scorer.scored(self.weights(role, policy, fmt), run)

    def pair(
        self,
        function: PairFunction,
        policy: int,
        policy_fmt: str = GOLDEN,
        reference_fmt: str = GOLDEN,
        reference_role: str = REFERENCE,
    ) -> dict[str, Tensor]:
        """``function`` of the logits of a policy and of what it is compared with; each [M]."""
        first = self.weights(POLICY, policy, policy_fmt)
        second = self.weights(reference_role, policy, reference_fmt)
        key = (function.__name__, first, second)
        if key not in self._pairs:
            if self.keeps_logits():
                self._pairs[key] = self._beside_kept_logits(function, first, second)
            else:
                work = partial(score_pair, self.given.responses, function)
                self._pairs[key] = self.scorer.pair(first, second, work)
        return self._pairs[key]

    @property
    def tokens(self) -> int:
        """M, the response tokens of all sequences."""
        return sum(r.length * len(r.tokens) for r in self.given.responses)

    @property
    def responses(self) -> Responses:
        """The sequences, where all have one length."""
        (responses,) = self.given.responses
        return responses

    def rows(self, flat: Tensor) -> Array:
        """[M] to [N, T] of sequences that all have one length."""
        rows: Array = flat.view(-1, self.responses.length).numpy()
        return rows

    def keeps_logits(self) -> bool:
        """Whether the logits are few, and come in the order of the sequences."""
        model = self.given.checkpoint.model
        return keeps_logits(model, self.tokens) and not takes_other_shape(FIRST)

    def _beside_kept_logits(
        self, function: PairFunction, first: Weights, second: Weights
    ) -> dict[str, Tensor]:
        """``function`` of the logits of ``first`` as they come, and of kept ones of ``second``."""
        if second not in self._logits:
            parts_of_second: list[Tensor] = []
            self._score_and_see(second, lambda logits, _: parts_of_second.append(logits))
            self._logits[second] = parts_of_second
        reference_logits = iter(self._logits[second])
        parts: dict[str, list[Tensor]] = {}

        def compare(logits: Tensor, tokens: Tensor) -> None:
            for name, value in function(logits, next(reference_logits), tokens).items():
                parts.setdefault(name, []).append(value.flatten().cpu())

        self._score_and_see(first, compare)
        return {name: torch.cat(values) for name, values in parts.items()}

    def _score_and_see(self, weights: Weights, see: SeeResponses) -> None:
        """The first forward of ``weights``; its log-probs are kept if they are not there yet."""
        formats = () if self.scorer.is_scored(weights) else self.kl_formats
        self.scorer.scored_with(
            lambda model, _, run: score(model, self.given.responses, formats, run, see), weights
        )

    def true_kl(self, policy: int) -> Tensor:
        """[M] KL(policy || reference), nats; exactly 0 for the identical policy."""
        return self.pair(pair_kl, policy)["kl"]

    def theory(self, policy: int) -> Theory:
        """What the FP32 logits of a policy and the reference let one predict."""
        return Theory(**self.pair(pair_theory, policy))

    def executed_kl(self, policy: int, policy_fmt: str, reference_fmt: str) -> float:
        """Mean KL between policy and reference as executed in their formats, nats per token.

        Full vocabulary, float64, each model's own logits: what a perfect KL of these two
        forwards would report.
        """
        return float(self.pair(pair_kl, policy, policy_fmt, reference_fmt)["kl"].mean())

    def log_ratio(self, configuration: PrecisionConfig, policy: int, run: str = FIRST) -> Tensor:
        """[M] log-ratio as the configuration computes it, in its KL format."""
        moved = self.scored(POLICY, policy, configuration.forward_format(POLICY), run)
        reference = self.scored(REFERENCE, 0, configuration.forward_format(REFERENCE), run)
        fmt, dtype = configuration.kl, get_format(configuration.kl).dtype
        return kl.kl_penalty(moved.logprobs[fmt], reference.logprobs[fmt], "k1", dtype)

    def golden_log_ratio(self, policy: int, fmt: str = GOLDEN) -> Tensor:
        """[M] float64 log-ratio of the models in ``fmt``."""
        pair = [self.scored(role, policy, fmt).logprobs[fmt] for role in (POLICY, REFERENCE)]
        return pair[0].double() - pair[1].double()

    def observed(self, configuration: PrecisionConfig, policy: int) -> dict[str, str | None]:
        """Formats as seen at run time; None for a component that has no part in a log-ratio."""
        models = {
            POLICY: self.scored(POLICY, policy, configuration.forward_format(POLICY)),
            REFERENCE: self.scored(REFERENCE, 0, configuration.forward_format(REFERENCE)),
        }
        ratio = self.log_ratio(configuration, policy)
        kl_path = [ratio, *(s.logprobs[configuration.kl] for s in models.values())]
        formats = observed_models(configuration, models)
        return dict.fromkeys(REQUIRED) | formats | {"kl": formats_of(kl_path)}


def kl_formats(configurations: Iterable[PrecisionConfig], *always: str) -> tuple[str, ...]:
    """Formats of the log-softmax that ``configurations`` ask for, bf16, FP32 and ``always``."""
    return tuple(sorted({c.kl for c in configurations} | {"bf16", GOLDEN, *always}))


def model_formats(configuration: PrecisionConfig) -> tuple[str, str]:
    """Formats of policy and reference, as ``set_parameters`` takes them."""
    return configuration.forward_format(POLICY), configuration.forward_format(REFERENCE)


def measured_against(configuration: PrecisionConfig) -> str:
    """FP32 models; the exact ones for a configuration that is the golden path itself."""
    itself = {*model_formats(configuration), configuration.kl} == {GOLDEN}
    return EXACT if itself else GOLDEN
