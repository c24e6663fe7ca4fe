"""How large rounding alone may make d, from the formats that the user claims.

The law. The error of a token's log-prob has the standard deviation sigma (1 - p): a logit that is
off by e moves the log-prob by e (1 - p). One number per side and format, sigma, says the rest.
Both sides' errors are independent, so that they add in quadrature; a temperature T divides
logits and errors by T.

What is not known is the model: sigma of bf16 is 0.034 for the embedded model, 0.067 for SmolLM2,
and about 0.1 for Qwen3-1.7B on reasoning text. So a size has two limits: what nine of ten models
stay below, and what all but one in two thousand do. Between them a size alone proves nothing.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from precision_lib.mismatch.schema import Array, Claims

#: Added to 1 - p: where p is 1 within the format, what is left is no longer proportional to 1 - p.
FLOOR = 0.02
#: sigma of one side in nats: geometric means of measurements (tools/mismatch noise; vLLM's).
SIGMA = {"bf16": 0.052, "int8": 0.19, "fp8": 0.3}
KV_CACHE_SIGMA = {"fp8": 0.175, "int8": 0.175}
#: Rounding errors in units of bf16's. tf32 and fp16 have 3 bits more. fp32 has 16 more, of which a
#: sum of 1,024 products costs the root: its terms are rounded, those of 16-bit formats are not.
SMALLER = {"tf32": 2**-3, "fp16": 2**-3, "fp32": 2**-15 * math.sqrt(1024)}
#: Standard deviation of log sigma over models, of three bf16 models.
SPREAD = 0.74
#: The same of one format in two implementations on one model. vLLM's sigma over ours is 0.8 to 1.0
#: (docs/mismatch.md), an H200 engine's over its trainer's 0.86: none is larger, and this allows it.
#: It rests on this handful of pairs and is not calibrated.
SAME_MODEL_SPREAD = 0.25
#: Of a quantised format's sigma over bf16's: 2.7 to 5.2 for int8, 3 to 6 for an FP8 KV cache. As
#: few pairs, and not calibrated.
OTHER_FORMAT_SPREAD = 0.5
#: Normal quantiles at 0.9 and 0.9995: the size may cause half of the false alarms.
USUAL, LARGEST = 1.28, 3.29


@dataclass(frozen=True)
class NoiseLimit:
    """What the claimed formats let one expect of sigma, nats.

    Attributes:
        typical: of a middling model.
        usual: nine of ten models stay below.
        largest: 1,999 of 2,000 models stay below.
        words: the formats.
        varied: what differs between those nine of ten.
    """

    typical: float
    usual: float
    largest: float
    words: str
    varied: str = "models"

    @property
    def yardstick(self) -> str:
        """What ``typical`` is the size of."""
        measured = self.varied == "engines"
        return f"what {self.words} makes" if measured else f"a middling model in {self.words}"


def side_sigma(fmt: str, kv_cache: str | None = None) -> float:
    """sigma of one side in nats, of a middling model."""
    base = SIGMA[fmt] if fmt in SIGMA else SIGMA["bf16"] * SMALLER[fmt]
    return math.hypot(base, KV_CACHE_SIGMA.get(kv_cache or "", 0.0))


def noise_limit(claims: Claims) -> NoiseLimit | None:
    """The limit of the claimed formats; None unless both sides' formats are claimed."""
    if claims.rollout_dtype is None or claims.trainer_dtype is None:
        return None
    rollout = side_sigma(claims.rollout_dtype, claims.kv_cache_dtype)
    pair = math.hypot(rollout, side_sigma(claims.trainer_dtype)) / effective_temperature(claims)
    cache = f" with a KV cache in {claims.kv_cache_dtype}" if claims.kv_cache_dtype else ""
    words = f"{claims.rollout_dtype}{cache} against {claims.trainer_dtype}"
    return _spread(NoiseLimit(pair, 0, 0, words), SPREAD)


def _spread(limit: NoiseLimit, spread: float) -> NoiseLimit:
    """The limit with its quantiles, for a standard deviation of log sigma."""
    usual, largest = (limit.typical * math.exp(z * spread) for z in (USUAL, LARGEST))
    return replace(limit, usual=usual, largest=largest)


def noise_limit_of_model(claims: Claims, fmt: str, sigma: float) -> NoiseLimit | None:
    """The limit for an engine against FP32, when the model's own noise is known.

    Args:
        claims: of the rollout's formats; None without.
        fmt: a 16-bit format.
        sigma: what it makes of this model and these tokens, nats.
    """
    if claims.rollout_dtype is None:
        return None
    same = claims.rollout_dtype == fmt and claims.kv_cache_dtype in (None, fmt)
    if same:
        words = f"{fmt} of this model, scored with this suite,"
        return _spread(NoiseLimit(sigma, 0, 0, words, "engines"), SAME_MODEL_SPREAD)
    ratio = side_sigma(claims.rollout_dtype, claims.kv_cache_dtype) / side_sigma(fmt)
    cache = f" with a KV cache in {claims.kv_cache_dtype}" if claims.kv_cache_dtype else ""
    words = f"{claims.rollout_dtype}{cache} of this model, from its noise in {fmt},"
    return _spread(NoiseLimit(sigma * ratio, 0, 0, words, "engines"), OTHER_FORMAT_SPREAD)


def effective_temperature(claims: Claims) -> float:
    """The temperature that both sides' log-probs are claimed to be taken at."""
    return (claims.temperature or 1.0) if claims.logprobs == "processed" else 1.0


def scale(rollout: Array) -> Array:
    """[M] 1 - p + floor: what rounding errors of log-probs are proportional to."""
    return -np.expm1(np.minimum(rollout, 0.0)) + FLOOR


def sigma_of(d: Array, rollout: Array) -> float:
    """sigma of the differences, nats: RMS of d over RMS of 1 - p (+ floor)."""
    weight = scale(rollout)
    return float(np.sqrt(np.sum(d**2) / np.sum(weight**2))) if len(d) else 0.0


def formats_that_explain(sigma: float) -> list[str]:
    """Formats of one side, against FP32, whose usual range holds ``sigma``."""
    sides = {fmt: side_sigma(fmt) for fmt in ("fp32", "fp16", "bf16", "int8", "fp8")}
    sides["bf16 with a KV cache in fp8"] = side_sigma("bf16", "fp8")
    width = math.exp(USUAL * SPREAD)
    return [name for name, usual in sides.items() if usual / width <= sigma <= usual * width]
