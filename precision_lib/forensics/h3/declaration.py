"""H3, value-head instability: large unbounded values starve the mantissa."""

import math

from precision_lib.forensics.hypothesis import TENTH_OF_THE_POWER, Decision, Hypothesis, Imported
from precision_lib.metrics.direction import EXACT, RATIO, SHARE, STEP, Direction

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
    directions={
        "value_stagnation_rate": SHARE,
        "value_td_zero_frac": SHARE,
        "advantage_rms_error": RATIO,
        "value_nonfinite_frac": EXACT,
        "value_quant_step_median": STEP,
        "value_critical_magnitude": Direction(
            "ratio", worse=-1, best=math.inf, absent=math.inf, worst=0.0
        ),  # absent: stagnation never reached one half
        "batch_variance": SHARE,
    },
    nonfinite="value_nonfinite_frac",
    variance_of="standard deviations of the advantages, by the values",
    open=Imported("precision_lib.forensics.h3.study:open_given"),
    settings=Imported("precision_lib.forensics.h3.study:settings_of"),
    work=Imported("precision_lib.forensics.h3.states:work"),
    on_trajectories=True,
    context="h3",
    picture=Imported("precision_lib.reporting.plots.h3:values"),
)
