"""Consequences of a core's errors in words, for the terminal and for documents."""

import math
from collections.abc import Mapping

#: Metric to its words; the figure goes where the braces are.
WORDS = {
    "log_ratio_rms_error": "log-ratio error {} of its size",
    "clip_decisions_flipped": "{} of clip decisions flipped",
    "gradient_cosine": "gradient cosine {}",
    "median_relative_error": "median error {}",
    "negative": "{} negative",
    "not_finite_with_a_masked_entry": "{} NaN or inf with one -inf logit",
    "mean_kl_over_true": "mean KL {} of the true one",
    "relative_error": "error {}",
    "rms_error": "advantage error {} of its size",
    "returns_rms_error": "return error {} of its size",
    "signs_flipped": "{} of advantage signs flipped",
    "rank_inversions": "{} of pairs in a group out of order",
    "largest_for_equal_rewards": "advantages up to {} for equal rewards",
}
#: What a healthy metric reads; of all others it is nothing, or next to nothing.
_HEALTHY = {"gradient_cosine": ("1",), "mean_kl_over_true": ("100 %",)}
_NOTHING = ("0", "0 %", "below 0.001 %")
_PLAIN = ("gradient_cosine", "largest_for_equal_rewards")


def sentence(figures: Mapping[str, float | str]) -> str:
    """What is not as it should be, in one line; "none" where everything is."""
    if "raised" in figures:
        return str(figures["raised"]).partition("\n")[0][:120]
    clauses = [
        WORDS[name].format(text)
        for name, value in figures.items()
        if (text := _figure(name, value)) not in _HEALTHY.get(name, _NOTHING)
    ]
    return "; ".join(clauses) or "none"


def _figure(name: str, value: float | str) -> str:
    """A share as per cent, a cosine by its distance from 1; a name (``nan``) as it is."""
    if isinstance(value, str) or not math.isfinite(value):
        return str(value)
    if name in _PLAIN:
        near = name == "gradient_cosine" and abs(value - 1) < 5e-6
        return "1" if near else f"{value:.3g}" if name != "gradient_cosine" else f"{value:.5f}"
    if value == 0:
        return "0 %"
    if name == "mean_kl_over_true" and abs(value - 1) < 5e-4:
        return "100 %"
    if abs(value) < 1e-5:
        return "below 0.001 %"
    return f"{100 * value:.2g} %" if abs(value) < 0.995 else f"{100 * value:.0f} %"
