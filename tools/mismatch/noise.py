"""Pure rounding noise of a real model: what an engine of each format does to the log-probs.

The embedded model samples in FP32; engines and trainers of every format score the same tokens.
"""

import math
from collections import Counter
from typing import Any

import numpy as np
import torch

from precision_lib.mismatch.fingerprints import fingerprints, slope_share
from precision_lib.mismatch.noise import sigma_of
from precision_lib.mismatch.schema import Array, Claims, Dump
from precision_lib.mismatch.verdict import judge
from tools.mismatch.engines import engine, token_logprobs

PROMPTS, LENGTH, ROWS, OTHER_ROWS = 64, 160, 8, 1
FORMATS = ("fp32", "fp16", "bf16", "fp8", "int8", "fp8 KV cache")
NATIVE, ALONE = "bf16, torch's kernels", "bf16, batch of 1"
PAIRS = (
    ("fp16", "fp32"), ("bf16", "fp32"), ("bf16", NATIVE), (ALONE, "bf16"), ("fp8", NATIVE),
    ("fp8", "fp32"), ("int8", NATIVE), ("fp8 KV cache", NATIVE),
)  # fmt: skip

TRAINERS, SUBSETS = ("fp32", "fp16", "bf16", NATIVE), 1000
#: Formats of a claim, where they are not the engine's name.
_CLAIMED = {NATIVE: ("bf16", None), ALONE: ("bf16", None), "fp8 KV cache": ("bf16", "fp8")}


def measure() -> dict[str, Any]:
    """One row a pair of formats: sigma and the statistics that have a margin."""
    rows = []
    logprobs = _logprobs()
    for rollout, trainer in PAIRS:
        r, t = logprobs[rollout], logprobs[trainer]
        if np.array_equal(r, t):
            continue
        row, slot = np.divmod(np.arange(r.size), LENGTH)
        sample, prints = fingerprints(Dump("", r.ravel(), t.ravel(), row, slot, claims=Claims()))
        within = math.sqrt(max(prints["sequence_spread"].value, 0))
        rows.append(
            {
                "rollout": rollout,
                "trainer": trainer,
                "sigma": sigma_of(sample.d, sample.r),
                "slope_share": slope_share(sample, prints["slope"].value),
                "early": math.exp(prints["early"].value),
                "sequence_means": prints["sequence_means"].value,
                "sequence_spread": within,
                "tail": math.exp(prints["tail"].value),
            }
        )
    verdicts = dict(_verdicts(logprobs))
    return {
        "model": "embedded",
        "tokens": PROMPTS * LENGTH,
        "pairs": rows,
        "verdicts_on_subsets": verdicts,
    }


def _verdicts(logprobs: dict[str, Array]) -> Counter[str]:
    """Verdicts on random subsets of rows and lengths of every pair of formats; they overlap."""
    random = np.random.default_rng(0)
    counts: Counter[str] = Counter()
    pairs = [(a, b) for a in logprobs for b in TRAINERS if a != b]
    for rollout, trainer in pairs:
        dtype, cache = _CLAIMED.get(rollout, (rollout, None))
        claims = Claims(dtype, _CLAIMED.get(trainer, (trainer, None))[0], cache)
        for _ in range(-(-SUBSETS // len(pairs))):
            rows = random.choice(PROMPTS, int(random.integers(8, PROMPTS + 1)), replace=False)
            length = int(random.integers(32, LENGTH + 1))
            r, t = (logprobs[name][rows, :length].ravel() for name in (rollout, trainer))
            row, slot = np.divmod(np.arange(r.size), length)
            counts[judge(Dump("", r, t, row, slot, claims=claims)).verdict] += 1
    return counts


def _logprobs() -> dict[str, Array]:
    """Format to [N, T] float64 log-probs of one set of responses."""
    from precision_lib.models.embedded import load_prompts
    from precision_lib.models.loading import load_checkpoint
    from precision_lib.trajectories.prompts import encode
    from precision_lib.trajectories.sampling import sample_responses

    checkpoint = load_checkpoint()
    prompts = [encode(checkpoint, text) for text in load_prompts()[:PROMPTS]]
    drawn = sample_responses(checkpoint.model, prompts, LENGTH, seed=0)
    responses = drawn.tokens[drawn.mask].view(PROMPTS, LENGTH)

    def scored(fmt: str, rows: int = ROWS, *, native: bool = False) -> Array:
        model = engine(checkpoint.model, fmt)
        values: torch.Tensor = token_logprobs(model, prompts, responses, rows=rows, native=native)
        return values.double().numpy()

    results = {fmt: scored(fmt) for fmt in FORMATS}
    results[NATIVE] = scored("bf16", native=True)
    results[ALONE] = scored("bf16", OTHER_ROWS, native=True)
    return results
