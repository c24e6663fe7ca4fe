"""What this dump could have shown: the smallest fault that is found with 90 %.

A fault moves a statistic by its size. It is found when the statistic exceeds margin plus the
critical number of standard errors; 1.28 more standard errors make that nine times of ten.
"""

import math

from precision_lib.mismatch.sample import Fingerprint

NINE_OF_TEN = 1.28
_WORDS = {
    "slope": ("temperature that differs by", 1.0),
    "ratio_mean": ("probability mass cut off without renormalising the trainer:", 1.0),
    "surprisal": ("silent change of sampling, in nats of surprisal less entropy:", 1.0),
}


def smallest_found(prints: dict[str, Fingerprint]) -> dict[str, float]:
    """Fingerprint name to the smallest value that is found with 90 %, on the statistic's scale."""
    result = {}
    for name, p in prints.items():
        value = p.limit + NINE_OF_TEN * p.error
        if math.isfinite(value):
            result[name] = value
    return result


def in_words(prints: dict[str, Fingerprint]) -> list[str]:
    """The three that a reader can use, one clause each."""
    sizes = smallest_found(prints)
    return [f"{words} {sizes[n]:.2g}" for n, (words, _) in _WORDS.items() if n in sizes]
