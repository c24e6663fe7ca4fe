"""What is timed: each kernel's inputs, what it has to touch, and a slice small enough for a truth.

B sequences, T response tokens, V vocabulary; right-padded masks, True for a real token. Padded
slots hold zeros here, because some peers ask their callers for that.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch

from precision_lib.conformance.calls import upstream
from precision_lib.formats import FORMATS

#: B, T, V of the kernels over logits, and B, T of those over tokens.
LOGITS = (4, 512, 32_000)
#: Hidden size of the log-probs from hidden states; their vocabulary is that of the logits.
HIDDEN = 256
TOKENS = (64, 1_024)
#: B, T, V of a distillation: two models' logits. G, K of grouped rewards; B of preference pairs.
DISTILLED = (1, 512, 32_000)
GROUPS = (128, 16)
PAIRS = 4_096
CLIP_RANGE = 0.2
GAMMA, LAM = 0.99, 0.95
#: Sequences and tokens of the slice on which the error is measured.
_SLICE = {3: (2, 8), 2: (8, TOKENS[1]), 1: (PAIRS, 0)}

Inputs = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Timed:
    """One kernel, in one format, forward alone or with its backward.

    Attributes:
        kernel: name in the tables.
        inputs: keyword arguments of the function in ``precision_lib.ppo``.
        leaf: the input whose gradient is taken, or "" for the forward alone.
        outputs: how many results a call returns.
        dims: leading dimensions of the largest input that each result has; 0 for a scalar.
        fmt: name of the inputs' format.
    """

    kernel: str
    inputs: Inputs
    fmt: str
    leaf: str = ""
    outputs: int = 1
    dims: int = 2

    def _tensors(self) -> list[torch.Tensor]:
        return [x for x in self.inputs.values() if isinstance(x, torch.Tensor)]

    @property
    def function(self) -> str:
        """The function's name: the kernel's without an estimator."""
        return self.kernel.split()[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the largest input of the batch."""
        tensors = [x for name, x in self.inputs.items() if name != "weight"]
        largest = max((x for x in tensors if isinstance(x, torch.Tensor)), key=torch.Tensor.numel)
        return tuple(largest.shape)

    @property
    def result_shape(self) -> torch.Size:
        """Shape of each result."""
        return torch.Size(self.shape[: self.dims])

    @property
    def step(self) -> str:
        """What is timed, in words: the kernel and its passes."""
        return f"{self.kernel}, {'forward and backward' if self.leaf else 'forward'}"

    @property
    def input_mib(self) -> float:
        """Size of the largest input: one logits-sized buffer, for the kernels over logits."""
        return max(x.numel() * x.element_size() for x in self._tensors()) / 2**20

    def touched_bytes(self) -> int:
        """Bytes that any implementation must move: inputs once, FP32 results, gradient once."""
        results = self.outputs * self.result_shape.numel()
        total = sum(x.numel() * x.element_size() for x in self._tensors()) + 4 * results
        if self.leaf:
            total += self.inputs[self.leaf].numel() * self.inputs[self.leaf].element_size()
        return total

    @cached_property
    def slice(self) -> "Timed":
        """The same on a few sequences, as contiguous copies."""
        sequences, tokens = _SLICE[max(x.dim() for x in self._tensors())]

        def cut(name: str, x: Any) -> Any:
            if not isinstance(x, torch.Tensor) or name == "weight":  # of the vocabulary: whole
                return x
            return (x[:sequences] if x.dim() == 1 else x[:sequences, :tokens]).detach().clone()

        inputs = {name: cut(name, x) for name, x in self.inputs.items()}
        if self.leaf:
            inputs[self.leaf].requires_grad_(True)
        return replace(self, inputs=inputs)


class _Draw:
    """Normal numbers of one seed, rounded to the format."""

    def __init__(self, fmt: str, device: str) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.dtype, self.device = FORMATS[fmt].dtype, device

    def normal(self, shape: tuple[int, ...], *, mean: float = 0.0, std: float = 1.0) -> Any:
        x = torch.empty(shape).normal_(mean, std, generator=self.generator)
        return x.to(self.device, self.dtype)

    def mask(self, shape: tuple[int, int]) -> torch.Tensor:
        sequences, length = shape
        lengths = torch.randint(length // 2, length + 1, (sequences, 1), generator=self.generator)
        lengths[0] = length
        return (torch.arange(length) < lengths).to(self.device)

    def tokens(self, shape: tuple[int, ...], vocabulary: int) -> torch.Tensor:
        return torch.randint(0, vocabulary, shape, generator=self.generator).to(self.device)


def token_logprobs(fmt: str, device: str, *, backward: bool = False) -> Timed:
    """logits ~ N(0, 3^2), tokens uniform."""
    draw = _Draw(fmt, device)
    logits = draw.normal(LOGITS, std=3.0).requires_grad_(backward)
    tokens = draw.tokens(LOGITS[:2], LOGITS[2])
    leaf = "logits" if backward else ""
    return Timed("token_logprobs", {"logits": logits, "tokens": tokens}, fmt, leaf)


def entropy(fmt: str, device: str) -> Timed:
    """The same logits."""
    return Timed("entropy", {"logits": _Draw(fmt, device).normal(LOGITS, std=3.0)}, fmt)


def kl_penalty(fmt: str, device: str, estimator: str) -> Timed:
    """A policy 0.01 nats away from its reference, as early in training."""
    draw = _Draw(fmt, device)
    reference = -draw.normal(TOKENS, mean=1.0, std=0.5).abs()
    policy = (reference.float() + draw.normal(TOKENS, std=0.01).float()).to(reference.dtype)
    inputs = {"policy_logprobs": policy, "ref_logprobs": reference, "estimator": estimator}
    return Timed(f"kl_penalty {estimator}", inputs, fmt)


def whiten(fmt: str, device: str) -> Timed:
    """x ~ N(0.5, 1), as raw advantages are."""
    draw = _Draw(fmt, device)
    mask = draw.mask(TOKENS)
    return Timed("whiten", {"x": draw.normal(TOKENS, mean=0.5) * mask, "mask": mask}, fmt)


def gae(fmt: str, device: str) -> Timed:
    """Rewards ~ N(0, 0.1^2), values ~ N(0, 1)."""
    draw = _Draw(fmt, device)
    mask = draw.mask(TOKENS)
    inputs = {
        "rewards": draw.normal(TOKENS, std=0.1) * mask,
        "values": draw.normal(TOKENS) * mask,
        "mask": mask,
        "gamma": GAMMA,
        "lam": LAM,
    }
    return Timed("gae", inputs, fmt, outputs=2)


def policy_loss(fmt: str, device: str, *, backward: bool = False) -> Timed:
    """Log-ratios ~ N(0, 0.1^2), so that 5 % of them are beyond the clip; advantages ~ N(0, 1)."""
    draw = _Draw(fmt, device)
    old = -draw.normal(TOKENS, mean=1.0, std=0.5).abs()
    new = (old.float() + draw.normal(TOKENS, std=0.1).float()).to(old.dtype)
    inputs = {
        "logprobs": new.requires_grad_(backward),
        "old_logprobs": old,
        "advantages": draw.normal(TOKENS),
        "mask": draw.mask(TOKENS),
        "clip_range": CLIP_RANGE,
    }
    return Timed("policy_loss", inputs, fmt, "logprobs" if backward else "", dims=0)


def value_loss(fmt: str, device: str) -> Timed:
    """Values ~ N(0, 1), moved by N(0, 0.2^2) since they were old; returns ~ N(0, 1)."""
    draw = _Draw(fmt, device)
    old = draw.normal(TOKENS)
    inputs = {
        "values": (old.float() + draw.normal(TOKENS, std=0.2).float()).to(old.dtype),
        "old_values": old,
        "returns": draw.normal(TOKENS),
        "mask": draw.mask(TOKENS),
        "clip_range": CLIP_RANGE,
    }
    return Timed("value_loss", inputs, fmt, dims=0)


def clipped(name: str, fmt: str, device: str) -> Timed:
    """DAPO, GSPO or CISPO on the inputs of the policy loss, with its gradient.

    CISPO without a lower clip and DAPO's dual clip at 10: what TRL and Liger can do.
    """
    inputs = dict(policy_loss(fmt, device, backward=True).inputs)
    del inputs["clip_range"]
    if name == "gspo_loss":
        inputs["advantages"] = inputs["advantages"][:, 0].clone()
    inputs |= {"clip_low": 1.0 if name == "cispo_loss" else CLIP_RANGE, "clip_high": 0.28}
    if name == "dapo_loss":
        inputs["dual_clip"] = 10.0
    return Timed(name, inputs, fmt, "logprobs", dims=0)


def linear_token_logprobs(fmt: str, device: str) -> Timed:
    """Logits ~ N(0, 3^2) from 256 hidden states, tokens uniform; the gradient of the states."""
    draw = _Draw(fmt, device)
    hidden = draw.normal((*LOGITS[:2], HIDDEN)).requires_grad_(True)
    weight = draw.normal((LOGITS[2], HIDDEN), std=3.0 / HIDDEN**0.5)
    tokens = draw.tokens(LOGITS[:2], LOGITS[2])
    inputs = {"hidden": hidden, "weight": weight, "tokens": tokens, "temperature": 1.0}
    return Timed("linear_token_logprobs", inputs, fmt, "hidden")


def sequence_ratio(fmt: str, device: str) -> Timed:
    """The log-probs of the policy loss, with the gradient."""
    inputs = dict(policy_loss(fmt, device, backward=True).inputs)
    given = {name: inputs[name] for name in ("logprobs", "old_logprobs", "mask")}
    return Timed("sequence_ratio", given, fmt, "logprobs", dims=1)


def importance_weights(fmt: str, device: str) -> Timed:
    """Log-ratios ~ N(0, 0.01^2), the mismatch of an inference engine; truncated, by sequence."""
    draw = _Draw(fmt, device)
    rollout = -draw.normal(TOKENS, mean=1.0, std=0.5).abs()
    train = (rollout.float() + draw.normal(TOKENS, std=0.01).float()).to(rollout.dtype)
    inputs = {"train_logprobs": train, "rollout_logprobs": rollout, "mask": draw.mask(TOKENS)}
    inputs |= {"level": "sequence", "mode": "truncate", "cap": 2.0}
    return Timed("importance_weights", inputs, fmt)


def aggregate(fmt: str, device: str) -> Timed:
    """Losses of tokens ~ N(0, 1), their mean over real tokens, with the gradient."""
    draw = _Draw(fmt, device)
    values = draw.normal(TOKENS).requires_grad_(True)
    inputs = {"values": values, "mask": draw.mask(TOKENS), "mode": "token_mean"}
    return Timed("aggregate", inputs | {"denominator": None}, fmt, "values", dims=0)


def gae_with_bootstrap(fmt: str, device: str) -> Timed:
    """The inputs of GAE, and a value behind the last token of each sequence."""
    case = gae(fmt, device)
    bootstrap = _Draw(fmt, device).normal((TOKENS[0],))
    return replace(case, kernel="gae_with_bootstrap", inputs=case.inputs | {"bootstrap": bootstrap})


def rloo_advantages(fmt: str, device: str) -> Timed:
    """Rewards ~ N(0, 1)."""
    return Timed("rloo_advantages", {"rewards": _Draw(fmt, device).normal(GROUPS)}, fmt)


def dpo_loss(fmt: str, device: str) -> Timed:
    """Log-probs of responses ~ N(-200, 50^2), moved by N(0, 1) from the reference's."""
    draw = _Draw(fmt, device)
    refs = [draw.normal((PAIRS,), mean=-200.0, std=50.0) for _ in range(2)]
    chosen, rejected = (
        (x.float() + draw.normal((PAIRS,)).float()).to(x.dtype).requires_grad_(True) for x in refs
    )
    inputs = {"policy_chosen": chosen, "policy_rejected": rejected}
    inputs |= {"ref_chosen": refs[0], "ref_rejected": refs[1], "beta": 0.1}
    return Timed("dpo_loss", inputs, fmt, "policy_chosen", dims=0)


def jsd(fmt: str, device: str) -> Timed:
    """Teacher's logits ~ N(0, 3^2), the student's moved by N(0, 0.3^2); with the gradient."""
    draw = _Draw(fmt, device)
    teacher = draw.normal(DISTILLED, std=3.0)
    student = (teacher.float() + draw.normal(DISTILLED, std=0.3).float()).to(teacher.dtype)
    inputs = {"student_logits": student.requires_grad_(True), "teacher_logits": teacher}
    return Timed("jsd", inputs | {"beta": 0.5}, fmt, "student_logits")


#: The cases of today's objectives that differ by the format alone.
OBJECTIVES: dict[str, Callable[[str, str], Timed]] = {
    "dapo_loss": partial(clipped, "dapo_loss"),
    "gspo_loss": partial(clipped, "gspo_loss"),
    "cispo_loss": partial(clipped, "cispo_loss"),
    "aggregate": aggregate,
    "sequence_ratio": sequence_ratio,
    "importance_weights": importance_weights,
    "gae_with_bootstrap": gae_with_bootstrap,
    "rloo_advantages": rloo_advantages,
    "dpo_loss": dpo_loss,
}

Call = Callable[[], Any]


def step(call: Call, case: Timed) -> Call:
    """One timed step: ``call`` without autograd, or with the gradient of the case's leaf.

    The step returns (result, gradient); the gradient is None for the forward alone.
    """
    if not case.leaf:

        def forward() -> tuple[Any, None]:
            with torch.no_grad():
                return call(), None

        return forward
    leaf = case.inputs[case.leaf]
    weights = upstream(case.result_shape).to(leaf.device)

    def forward_backward() -> tuple[Any, Any]:
        result = call()
        return result, torch.autograd.grad(result, leaf, weights.to(result.dtype))[0]

    return forward_backward
