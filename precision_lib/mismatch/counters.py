"""Exact counters of d, under the names that frameworks log; nothing here is judged.

Sources of the names: verl (rollout_corr, rollout_probs_diff), TRL (sampling_logp_difference),
NeMo-RL (gen_kl_error), slime (train_rollout_logprob_abs_diff).
"""

import numpy as np

from precision_lib.mismatch.schema import Dump


def counters(dump: Dump) -> dict[str, float | int]:
    """Name to value of an aligned dump; log-probs in nats."""
    d = dump.trainer - dump.rollout
    size = np.abs(d)
    bounded = np.clip(d, -700, 700)
    gap = np.exp(dump.trainer) - np.exp(dump.rollout)
    spreads = dump.rollout.std() * dump.trainer.std()
    moments = np.mean((dump.rollout - dump.rollout.mean()) * (dump.trainer - dump.trainer.mean()))
    return {
        "tokens": len(d),
        "sequences": dump.rows,
        "exactly_equal_frac": float(np.mean(d == 0)),
        "logprob_diff_mean": float(d.mean()),
        "logprob_diff_std": float(d.std()),
        "logprob_abs_diff_mean": float(size.mean()),
        "logprob_abs_diff_max": float(size.max()),
        "above_0.01_frac": float(np.mean(size > 0.01)),
        "above_0.1_frac": float(np.mean(size > 0.1)),
        "kl_k1": float(-d.mean()),
        "kl_k2": float(np.mean(d**2) / 2),
        "kl_k3": float(np.mean(np.expm1(bounded) - bounded)),
        "probs_diff_mean": float(np.abs(gap).mean()),
        "probs_diff_max": float(np.abs(gap).max()),
        "probs_diff_std": float(gap.std()),
        "logprob_pearson": float(moments / spreads) if spreads > 0 else 1.0,
        "rollout_ppl": float(np.exp(min(-dump.rollout.mean(), 700))),
        "trainer_ppl": float(np.exp(min(-dump.trainer.mean(), 700))),
    }
