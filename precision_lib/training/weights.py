"""FP32 master weights in every configuration, and the copy in a format that computes.

The hazard. Adam moves a weight by about the learning rate. A bf16 weight of 0.05 has a step of
2.4e-4 and does not notice 1e-5, so a policy that is *stored* in bf16 hardly trains at all, and
what looks like a precision failure of PPO is one of the optimizer. Masters and Adam's moments are
therefore FP32 in every configuration. The working copy is one cast of the masters, renewed after
each optimizer step; how much of it moved is a metric.

P parameters of the policy, H hidden size. Masters, moments and gradient are one vector [P + H + 1]
each: the policy in the order of ``named_parameters``, then weight and bias of the value head.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from precision_lib.formats import get_format
from precision_lib.models.loading import set_parameters, working_copy
from precision_lib.models.value_head import ValueHead
from precision_lib.trajectories.working_copy import hollow_copy

FULL = "fp32"
BETAS, EPSILON = (0.9, 0.95), 1e-8


@dataclass
class Weights:
    """Masters, the models that read them, the gradient and the optimizer.

    Attributes:
        master: [P + H + 1] FP32. gradient: the same shape, FP32.
        golden: FP32 policy; its parameters are views of ``master``.
        working: policy that is trained; its parameters are views of ``low``. In FP32 it is
            ``golden`` itself.
        low: [P] the masters of the policy in their format; in FP32 a view of ``master``.
        head_weight, head_bias: [H] and [] FP32 leaves, views of ``master``.
        optimizer: AdamW over ``master``.
    """

    master: Tensor
    gradient: Tensor
    golden: Any
    working: Any
    low: Tensor
    head_weight: Tensor
    head_bias: Tensor
    optimizer: torch.optim.Optimizer

    def collect_gradient(self) -> None:
        """Add the gradients of the last backward pass to ``gradient``, in FP32, and drop them."""
        place = 0
        leaves = [*self.working.parameters(), self.head_weight, self.head_bias]
        for leaf in leaves:
            if leaf.grad is not None:
                self.gradient[place : place + leaf.numel()].add_(leaf.grad.view(-1))
                leaf.grad = None
            place += leaf.numel()

    def step(self) -> None:
        """One AdamW step of the masters along ``gradient``, then the cast."""
        self.master.grad = self.gradient
        self.optimizer.step()
        self.master.grad = None
        self.cast()

    def cast(self) -> None:
        """Renew the working copy from the masters."""
        if self.low.dtype != self.master.dtype:
            self.low.copy_(self.master[: len(self.low)])


def open_weights(
    policy: Any,
    head: ValueHead,
    fmt: str,
    learning_rate: float,
    perturbation: float = 0.0,
    seed: int = 0,
) -> Weights:
    """Masters from an FP32 policy, which is left alone, and head; the working copy in ``fmt``.

    ``perturbation`` and ``seed`` are those of :func:`perturbed`, the learning rate is AdamW's.
    """
    golden = working_copy(policy)
    master = _masters(golden, head)
    if perturbation:
        master = perturbed(master, perturbation, seed)
    size = len(master) - len(head.weight) - 1
    _view_parameters(golden, master[:size])
    working, low = golden, master[:size]
    if fmt != FULL:
        working = hollow_copy(golden)
        set_parameters(working, golden, fmt)
        low = master[:size].to(get_format(fmt).dtype)
        _view_parameters(working, low)
    golden.requires_grad_(False)
    working.requires_grad_(True)
    return Weights(
        master=master,
        gradient=torch.zeros_like(master),
        golden=golden,
        working=working,
        low=low,
        head_weight=master[size:-1].detach().requires_grad_(True),
        head_bias=master[-1].detach().requires_grad_(True),
        optimizer=torch.optim.AdamW(
            [master], lr=learning_rate, betas=BETAS, eps=EPSILON, weight_decay=0.0, fused=True
        ),
    )


def _masters(policy: Any, head: ValueHead) -> Tensor:
    """[P + H + 1] FP32, on the device of the policy."""
    parts = [p.detach().reshape(-1) for p in policy.parameters()]
    device = parts[0].device
    return torch.cat([*parts, head.weight.to(device), head.bias.to(device).reshape(1)])


def perturbed(master: Tensor, size: float, seed: int) -> Tensor:
    """w becomes w (1 + size * n), n standard normal from ``seed``, in float64 and rounded once.

    A size of 2**-24, half the distance from 1 to the next FP32 number, moves about half of the
    weights, most of them by one ulp.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(master), dtype=torch.float64, generator=generator)
    return (master.double() * (1 + size * noise.to(master.device))).float()


def _view_parameters(model: Any, vector: Tensor) -> None:
    """Make the model's parameters views of ``vector`` [P], in the order of ``parameters``."""
    place = 0
    for parameter in model.parameters():
        part = vector[place : place + parameter.numel()]
        parameter.data = part.view(parameter.shape)
        place += parameter.numel()
