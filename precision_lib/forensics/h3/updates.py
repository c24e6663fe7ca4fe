"""Real optimizer steps of a value head, and whether its predictions moved.

The hazard. Adam moves a weight by about the learning rate, however large the values are; so the
step of a prediction does not grow with the value, while the grid of its format does. From some
magnitude on the stored prediction stands still although the weights move. Which of three things
does it is asked one at a time: the *stored value* is rounded, the head's *arithmetic* is (hidden
states and weights are cast), or the *weight update* is (no FP32 master copy).

The first two leave FP32 master weights that keep on moving, so a prediction that stands still is
only late. The last one loses the update for good.

M response tokens of N sequences, H hidden size, S optimizer steps.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from precision_lib.formats import get_format
from precision_lib.models.value_head import ValueHead, predict_values
from precision_lib.ppo import losses

#: Of PPO's value loss, in units of the value.
CLIP_RANGE = 0.2


@dataclass(frozen=True)
class HeadFormats:
    """Where a head rounds.

    Attributes:
        inputs: format that hidden states and weights are cast to for the product.
        stored: format that a prediction is stored in.
        master: format that the weights are kept in between updates.
    """

    inputs: str
    stored: str
    master: str = "fp32"

    def predict(self, hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """[...] predictions in the stored format; differentiable in weight and bias.

        With equal formats for inputs and storage it is one product with one rounding; else the
        inputs are rounded first and the product is taken in FP32.
        """
        if self.inputs == self.stored:
            return predict_values(hidden, weight, bias, self.stored)
        dtype = get_format(self.inputs).dtype
        wide = "fp64" if "fp64" in (self.inputs, self.stored) else "fp32"
        rounded = predict_values(hidden.to(dtype), weight.to(dtype), bias.to(dtype), wide)
        return rounded.to(get_format(self.stored).dtype)


def of_configuration(value_format: str) -> HeadFormats:
    """What the matrix means by a value format: inputs, weights' copy and predictions in it."""
    master = "fp64" if value_format == "fp64" else "fp32"
    return HeadFormats(value_format, value_format, master)


@dataclass(frozen=True)
class UpdateSettings:
    """The optimizer steps.

    Attributes:
        learning_rate: of AdamW without weight decay; 1e-5 is the default of verl's critic.
        steps: S optimizer steps.
        sequences: of a minibatch, taken in turn.
    """

    learning_rate: float = 1e-5
    steps: int = 8
    sequences: int = 32


def predictions_over_updates(
    head: ValueHead,
    hidden: Tensor,
    returns: Tensor,
    mask: Tensor,
    formats: HeadFormats,
    settings: UpdateSettings,
) -> Tensor:
    """Predictions before and after each optimizer step.

    Each step is one AdamW step of PPO's clipped value loss on the next minibatch of sequences;
    the gradient goes through the rounded predictions, the update into the master weights.

    Args:
        head: the FP32 head to start from.
        hidden: [M, H] states, a constant.
        returns: [N, T] targets; mask: [N, T] bool, right-padded, M of them True.

    Returns:
        [S + 1, M] in the stored format.
    """
    dtype = get_format(formats.master).dtype
    weight, bias = (p.to(dtype, copy=True).requires_grad_() for p in (head.weight, head.bias))
    optimizer = torch.optim.AdamW([weight, bias], lr=settings.learning_rate, weight_decay=0.0)
    predicted = [formats.predict(hidden, weight, bias).detach()]
    before = _rectangle(predicted[0], mask)
    sequence = torch.arange(len(mask)).repeat_interleave(mask.sum(1))
    for step in range(settings.steps):
        numbers = torch.arange(settings.sequences) + step * settings.sequences
        chosen = torch.zeros(len(mask), dtype=torch.bool)
        chosen[numbers % len(mask)] = True
        values = formats.predict(hidden[chosen[sequence]], weight, bias)
        loss = losses.value_loss(
            _rectangle(values, mask[chosen]),
            before[chosen],
            returns[chosen],
            mask[chosen],
            CLIP_RANGE,
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        predicted.append(formats.predict(hidden, weight, bias).detach())
    return torch.stack(predicted)


def _rectangle(values: Tensor, mask: Tensor) -> Tensor:
    """[M] values of the real tokens to [N, T], 0 elsewhere."""
    return torch.zeros(mask.shape, dtype=values.dtype).masked_scatter(mask, values)
