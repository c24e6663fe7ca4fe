"""What the disagreement costs in RL terms. w = exp(trainer - rollout), the importance weight.

Token-level weights multiply single terms of the loss. Sequence-level weights are products over a
response, and their spread grows with its length.
"""

import numpy as np

from precision_lib.mismatch.schema import Array, Dump

#: PPO's usual clip range; the usual cap of truncated importance weights; GSPO's paper's band.
CLIP_RANGE, CAP, GSPO_BAND = 0.2, 2.0, (3e-4, 4e-4)
Cost = dict[str, float | dict[str, float]]
LENGTHS = (16, 64, 256, 1024, 4096, 16384)


def cost(dump: Dump) -> Cost:
    """Name to value of an aligned dump; shares are of tokens or of sequences."""
    d = dump.trainer - dump.rollout
    w = np.exp(np.clip(d, -700, 700))
    count = np.bincount(dump.row)
    sums = np.bincount(dump.row, d)
    mean_ratio = np.exp(np.clip(sums / count, -700, 700))
    low, high = GSPO_BAND
    result: Cost = {
        "token_outside_clip_frac": float(np.mean(np.abs(w - 1) > CLIP_RANGE)),
        "token_truncated_weight_mean": float(np.minimum(w, CAP).mean()),
        "token_ess_frac": _ess(d),
        "sequence_log_ratio_rms": float(np.sqrt(np.mean(sums**2))),
        "sequence_truncated_weight_mean": float(
            np.minimum(np.exp(np.clip(sums, -700, 700)), CAP).mean()
        ),
        "sequence_ess_frac_by_length": _ess_by_length(dump, d),
        "sequence_outside_gspo_frac": float(
            np.mean((mean_ratio < 1 - low) | (mean_ratio > 1 + high))
        ),
    }
    if dump.advantage is not None and np.any(dump.advantage != 0):
        result["gradient_cosine"] = _cosine(dump.advantage, dump.advantage * w)
    return result


def _ess(log_weights: Array) -> float:
    """Effective sample size of weights, as a share of their number."""
    w = np.exp(log_weights - log_weights.max())
    return float(w.sum() ** 2 / (w**2).sum() / len(w))


def _ess_by_length(dump: Dump, d: Array) -> dict[str, float]:
    """Effective sample size of sequence weights over the first so many tokens.

    Only lengths that at least 8 sequences reach; each as a share of those sequences.
    """
    starts = np.searchsorted(dump.row, np.arange(dump.rows))
    lengths = np.bincount(dump.row)
    total = np.concatenate([[0.0], np.cumsum(d)])
    result = {}
    for length in LENGTHS:
        long = lengths >= length
        if long.sum() >= 8:
            result[str(length)] = _ess(total[starts[long] + length] - total[starts[long]])
    return result


def _cosine(one: Array, other: Array) -> float:
    """Cosine of two gradients whose tokens have orthogonal directions of one length."""
    return float(one @ other / np.sqrt((one @ one) * (other @ other)))
