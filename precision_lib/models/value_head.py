"""A value head on the policy trunk: V(s) = h(s) . w + b, fitted to returns, applied in a format.

The hazard is a head nobody trained. Rounding of values matters through their size and spread: a
head with random or zero weights predicts values near 0, where floating-point steps are finest, and
so hides what a precision study is looking for. :func:`fit_value_head` gives the head that training
to convergence would give, the exact least-squares minimiser, and nothing bounds its predictions.

M states, H hidden size. A state is the hidden vector that the language-model head reads (after the
final norm) at the token before the one that is chosen.
"""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from precision_lib.formats import get_format
from precision_lib.jsonio import write_bytes

#: Ridge relative to the mean variance of a hidden feature, u of FP32. Along a direction of relative
#: deviation s the ridge lets a weight of at most (deviation of returns) / (2 sqrt(RIDGE)) through,
#: so FP32 rounding of the hidden states (2^-24 of their size) stays below 2^-24 / (2 * 2^-12) =
#: 2^-13 deviations of the returns in V. Directions with s far above 2^-12 do not notice it: their
#: weights shrink by the factor 1 / (1 + RIDGE / s^2).
RIDGE = 2.0**-24


@dataclass(frozen=True)
class ValueHead:
    """V = h . weight + bias, unbounded; weight [H] and bias [] are FP32."""

    weight: Tensor
    bias: Tensor

    @property
    def sha256(self) -> str:
        """Digest of shape and bytes of weight and bias."""
        digest = hashlib.sha256()
        for name, tensor in (("weight", self.weight), ("bias", self.bias)):
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            stored = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(stored.numpy().tobytes())
        return digest.hexdigest()


def fit_value_head(hidden: Tensor, returns: Tensor, ridge: float = RIDGE) -> ValueHead:
    """The exact minimiser of the squared error, with a ridge on the weights.

    min over w, b of  mean (h . w + b - G)^2 + ridge s^2 |w|^2,  s^2 the mean variance of a feature;
    the bias is free. Solved in the eigenvectors of the covariance in float64, rounded once to
    FP32. Features without any variance get weight 0, so that V is the mean return.

    Args:
        hidden: [M, H] floating-point states.
        returns: [M] floating-point Monte Carlo returns.
        ridge: relative to the mean variance of a feature; :func:`choose_ridge` for few sequences.

    Returns:
        FP32 head on the CPU.

    Raises:
        ValueError: for no states, shapes that do not fit, or a non-finite number.
    """
    if hidden.ndim != 2 or hidden.numel() == 0 or returns.shape != hidden.shape[:1]:
        raise ValueError(
            f"hidden must be [M, H] with M, H >= 1 and returns [M], got {tuple(hidden.shape)} "
            f"and {tuple(returns.shape)}"
        )
    for name, tensor in (("hidden", hidden), ("returns", returns)):
        wrong = int((~torch.isfinite(tensor)).sum())
        if wrong:
            raise ValueError(
                f"{name} holds {wrong} non-finite numbers of {tensor.numel()}; a value head cannot "
                "be fitted to them"
            )
    (weight, bias) = _solve(
        hidden.detach().cpu().double(), returns.detach().cpu().double(), [ridge]
    )[0]
    return ValueHead(weight.float(), bias.float())


def _solve(h: Tensor, g: Tensor, ridges: list[float]) -> list[tuple[Tensor, Tensor]]:
    """(weight, bias) in float64 for each ridge; features without any variance get weight 0."""
    h_mean, g_mean = h.mean(0), g.mean()
    h, g = h - h_mean, g - g_mean
    variances, directions = torch.linalg.eigh(h.mT @ h / len(h))
    projected = directions.mT @ (h.mT @ g / len(h))
    scale = float(variances.sum() / len(variances))
    heads = []
    for ridge in ridges:
        weight = torch.zeros_like(h_mean)
        if scale > 0:
            weight = directions @ (projected / (variances.clamp(min=0) + ridge * scale))
        heads.append((weight, g_mean - h_mean @ weight))
    return heads


#: Ridges to choose from, relative as :data:`RIDGE` is.
RIDGES = [2.0**e for e in range(-24, 9, 4)]
FOLDS = 4


def choose_ridge(hidden: Tensor, returns: Tensor, groups: Tensor) -> tuple[float, float]:
    """The ridge of the smallest held-out squared error, whole groups being held out.

    The hazard: all tokens of a sequence share their return, so a head with as many features as
    there are sequences learns the sequences by heart, and then it is the memory that is rounded.

    Args:
        hidden: [M, H]; returns: [M]; groups: [M] int64, the prompt of each state.

    Returns:
        (ridge of :data:`RIDGES`, explained variance on held-out groups); (:data:`RIDGE`, NaN) for
        a single group.
    """
    h, g = hidden.detach().cpu().double(), returns.detach().cpu().double()
    numbers = torch.unique(groups, return_inverse=True)[1].cpu()
    folds = min(FOLDS, int(numbers.max()) + 1)
    if folds < 2:
        return RIDGE, math.nan
    predicted = torch.zeros(len(RIDGES), len(g), dtype=torch.float64)
    for fold in range(folds):
        held_out = numbers % folds == fold
        for row, (weight, bias) in zip(
            predicted, _solve(h[~held_out], g[~held_out], RIDGES), strict=True
        ):
            row[held_out] = h[held_out] @ weight + bias
    errors = (predicted - g).square().mean(1)
    best = int(errors.argmin())
    return RIDGES[best], explained_variance(predicted[best], g)


def predict_values(hidden: Tensor, weight: Tensor, bias: Tensor, fmt: str) -> Tensor:
    """V = h . w + b in one format: every operand is cast to it, the result is rounded to it once.

    Differentiable in all three operands. Call it inside ``runtime.deterministic()``, where a 16-bit
    product accumulates in FP32; the bias is added before the rounding.

    Args:
        hidden: [..., H]. weight: [H]. bias: [].
        fmt: format name: bf16, fp16, fp32 or fp64.

    Returns:
        [...] in that format.

    Raises:
        ValueError: for an unknown format or shapes that do not fit.
    """
    if weight.ndim != 1 or bias.ndim != 0 or hidden.shape[-1:] != weight.shape:
        raise ValueError(
            f"hidden [..., H], weight [H] and bias [] do not fit: {tuple(hidden.shape)}, "
            f"{tuple(weight.shape)}, {tuple(bias.shape)}"
        )
    dtype = get_format(fmt).dtype
    rows = hidden.to(dtype).reshape(-1, len(weight))  # 2-D: one product with the bias inside
    values = torch.nn.functional.linear(
        rows, weight.to(dtype).unsqueeze(0), bias.to(dtype).unsqueeze(0)
    )
    return values.reshape(hidden.shape[:-1])


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 - mean squared error / variance of ``returns``, both [M]; NaN for constant returns.

    1 is a perfect fit, 0 is as good as the mean return, below 0 is worse than that.
    """
    v, g = values.detach().double(), returns.detach().double()
    variance = float((g - g.mean()).square().mean())
    return 1 - float((g - v).square().mean()) / variance if variance > 0 else math.nan


def save_value_head(head: ValueHead, path: Path | str) -> None:
    """Write ``weight`` [H] and ``bias`` [] as safetensors, whole or not at all."""
    from safetensors.torch import save

    tensors = {"weight": head.weight.detach().cpu(), "bias": head.bias.detach().cpu()}
    write_bytes(Path(path), save(tensors))


def load_value_head(path: Path | str) -> ValueHead:
    """Read what :func:`save_value_head` wrote; FP32, on the CPU.

    Raises:
        FileNotFoundError: for a missing file. ValueError: for a file that holds something else.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no value head at {path}; save one with save_value_head")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    shapes = {name: (tensor.dtype, tensor.ndim) for name, tensor in tensors.items()}
    if shapes != {"weight": (torch.float32, 1), "bias": (torch.float32, 0)}:
        raise ValueError(
            f"{path} must hold FP32 'weight' [H] and 'bias' [], got {shapes}; save it with "
            "save_value_head"
        )
    # Copies: what safetensors loads is a map of the file, and changes with it.
    return ValueHead(tensors["weight"].clone(), tensors["bias"].clone())
