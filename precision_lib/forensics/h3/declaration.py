"""H3, value-head instability: large unbounded values starve the mantissa."""

import math

import numpy as np

from precision_lib.forensics.hypothesis import (
    TENTH_OF_THE_POWER,
    Decision,
    Hypothesis,
    Imported,
    Sized,
)
from precision_lib.metrics.direction import EXACT, RATIO, SHARE, STEP, Direction
from precision_lib.metrics.measure import Array, Measure, Totals, median_level, share
from precision_lib.metrics.stagnation import critical_magnitude


def _advantage_error(totals: Totals) -> Array:
    # Golden advantages that are all alike are whitened to 0: then of the standard deviation 1.
    signal2 = totals["signal2"]
    return np.sqrt(totals["error2"] / np.where(signal2 > 0, signal2, totals["tokens"]))


H3 = Hypothesis(
    decision=Decision(
        hypothesis="H3",
        title="value-head instability",
        metric="advantage_rms_error",
        symptom="value_stagnation_rate",
        limit=TENTH_OF_THE_POWER,
        meaning=(
            "whitened GAE advantages have a variance of 1, so an RMS error of 0.32 is 10 % of "
            "their power: one tenth of the policy gradient's weight is noise"
        ),
        components=("policy", "value"),
        promoted="bf16_fp32_value",
        demoted="fp32_bf16_value",
        irrelevant="bf16_fp32_kl",
    ),
    metrics={
        "value_stagnation_rate": Measure(share("stagnant", "twin_moved"), "share of moves", SHARE),
        "value_td_zero_frac": Measure(share("td_zero", "td_nonzero"), "share of TD errors", SHARE),
        "advantage_rms_error": Measure(_advantage_error, "standard deviations", RATIO),
        "value_nonfinite_frac": Measure(share("nonfinite"), "share of tokens", EXACT),
        "value_quant_step_median": Measure(median_level, "reward units", STEP),
        "value_critical_magnitude": Measure(
            critical_magnitude,
            "RMS value",
            # Absent: stagnation never reached one half.
            Direction("ratio", worse=-1, best=math.inf, absent=math.inf, worst=0.0),
        ),
    },
    nonfinite="value_nonfinite_frac",
    variance_of="standard deviations of the advantages, by the values",
    open=Imported("precision_lib.forensics.h3.study:open_given"),
    settings=Sized("precision_lib.forensics.h3.study:QUICK"),
    work=Imported("precision_lib.forensics.h3.states:work"),
    on_trajectories=True,
    training_figure="gae_rms_error",
    context="h3",
    picture=Imported("precision_lib.reporting.plots.h3:values"),
    needs="critic",
    carried_by="depends on the values' offset and spread, not on length or KL",
)
