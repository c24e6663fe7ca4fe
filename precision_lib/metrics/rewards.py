"""Rewards on the grid of a format: ties, ranking, and what is left of the advantages.

The hazard. A bf16 score has 8 significand bits: between 4 and 8 it moves in steps of 1/32, and two
answers that differ by less get the same reward. What counts is not the relative step of 0.4 %
but the step over the spread *within a group*: normalisation subtracts the offset and divides by the
spread, so a reward model whose scores lie far from zero and close together loses its ranking, and
one with rewards 0 and 1 loses nothing at all. Ties are what one sees; the error of the advantages
is what the policy gradient gets. Both are measured, side by side.

===========================  ======================================================================
metric                       over sequences, or over pairs of a group with different golden rewards
===========================  ======================================================================
reward_resolution_median     median step of the format at its scores, reward units
reward_tie_frac              share of pairs that are tied
reward_kendall_tau           (concordant - discordant) / pairs: 1 unharmed, 0 no ranking left
advantage_rms_error          RMS(a - a_golden) / RMS(a_golden), group-normalised
advantage_sign_flip_frac     share of advantages of the opposite sign: pushed the wrong way
batch_advantage_rms_error    the same for normalisation over the whole batch
reward_nonfinite_frac        share of scores that are inf or NaN (fp16 overflow); they are left out
                             of their group and enter nothing else
===========================  ======================================================================

Group statistics are FP32 or wider in every configuration; only the scores have a format.

N sequences, G groups (prompts) of K sequences, P pairs of a group.
"""

import numpy as np
import torch
from torch import Tensor

from precision_lib.formats import FORMATS, format_of, ulp
from precision_lib.metrics.measure import Array, level_counts
from precision_lib.ppo import advantages, masked

#: An advantage up to the unit roundoff of the FP32 statistics is zero and has no direction.
ZERO = FORMATS["fp32"].unit_roundoff


def numbered(prompt_ids: Tensor) -> Tensor:
    """Group of each sequence, [N] int64 from 0, in the order of the prompt ids.

    Raises:
        ValueError: when a prompt has fewer than 2 sequences: alone it has no advantage.
    """
    groups: Tensor
    _, groups, counts = torch.unique(prompt_ids, return_inverse=True, return_counts=True)
    if len(counts) and int(counts.min()) < 2:
        alone = int((counts < 2).sum())
        raise ValueError(
            f"{alone} of {len(counts)} prompts have one sequence only, and one reward has no "
            "group to be compared with; freeze at least 4 samples per prompt"
        )
    return groups


def stacks(groups: Tensor) -> list[Tensor]:
    """Indices of the sequences, [g, K] for each group size K that occurs."""
    order = torch.argsort(groups, stable=True)
    counts = torch.bincount(groups)
    sizes = counts[groups[order]]
    return [order[sizes == k].view(-1, int(k)) for k in torch.unique(counts[counts > 0])]


def group_normalised(rewards: Tensor, groups: Tensor) -> Tensor:
    """[N] group-normalised advantages of rewards [N], FP32 or wider; groups of any sizes."""
    parts = [(members, advantages.group_advantages(rewards[members])) for members in stacks(groups)]
    result = torch.zeros(len(rewards), dtype=parts[0][1].dtype if parts else torch.float32)
    for members, part in parts:
        result[members] = part
    return result


def batch_normalised(rewards: Tensor) -> Tensor:
    """[N] rewards [N] whitened over the whole batch, FP32 or wider."""
    row = rewards.unsqueeze(0)
    whitened: Tensor = masked.whiten(row, torch.ones_like(row, dtype=torch.bool))
    return whitened.squeeze(0)


def _pair_quantities(scores: Tensor, golden: Tensor, groups: Tensor) -> dict[str, Tensor]:
    """Per sequence, of the pairs that it is the first of: pairs, tied, agreement; [N] float64."""
    names = ("pairs", "tied", "agreement")
    result = {name: torch.zeros(len(scores), dtype=torch.float64) for name in names}
    for members in stacks(groups):
        first, second = torch.triu_indices(members.shape[1], members.shape[1], 1)
        if not len(first):
            continue
        want = torch.sign(golden[members][:, first].double() - golden[members][:, second].double())
        got = torch.sign(scores[members][:, first].double() - scores[members][:, second].double())
        owners = members[:, first].flatten()
        for name, value in (
            ("pairs", want != 0),
            ("tied", (want != 0) & (got == 0)),
            ("agreement", want * got),
        ):
            result[name].index_add_(0, owners, value.double().flatten())
    return result


def group_sums(scores: Tensor, golden: Tensor, groups: Tensor) -> dict[str, Array]:
    """Sums of every metric per group.

    Args:
        scores: [N], in the format of the reward model; may hold inf and NaN.
        golden: [N], what they are measured against; finite.
        groups: [N] int64, from 0.

    Returns:
        Name to [G] float64.

    Raises:
        ValueError: for shapes that differ or a golden reward that is not finite.
    """
    if not scores.shape == golden.shape == groups.shape or scores.dim() != 1:
        raise ValueError(
            f"scores {tuple(scores.shape)}, golden {tuple(golden.shape)} and groups "
            f"{tuple(groups.shape)} must be [N] each"
        )
    if not bool(torch.isfinite(golden).all()):
        raise ValueError("the golden rewards hold inf or NaN: nothing can be measured against them")
    count = int(groups.max()) + 1 if len(groups) else 0
    finite = torch.isfinite(scores)
    r, g, inside = scores[finite], golden[finite], groups[finite]
    a, want = group_normalised(r, inside).double(), group_normalised(g, inside).double()
    batch_want = batch_normalised(g).double()
    batch_error = batch_normalised(r).double() - batch_want
    quantities = {
        "sequences": torch.ones_like(a),
        "error2": (a - want) ** 2,
        "signal2": want**2,
        "flipped": ((a * want < 0) & (a.abs() > ZERO) & (want.abs() > ZERO)).double(),
        "batch_error2": batch_error**2,
        "batch_signal2": batch_want**2,
    } | _pair_quantities(r, g, inside)
    sums = {name: _totals(value, inside, count) for name, value in quantities.items()}
    sums["scored"] = _totals(torch.ones(len(groups)), groups, count)
    sums["nonfinite"] = _totals((~finite).double(), groups, count)
    steps = ulp(r, format_of(r.dtype))
    return sums | level_counts(steps.numpy(), inside.numpy(), count)


def _totals(x: Tensor, groups: Tensor, count: int) -> Array:
    weights = x.double().numpy()
    return np.bincount(groups.numpy(), weights=weights, minlength=count).astype(np.float64)
