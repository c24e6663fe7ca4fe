"""H4, reference drift: errors of per-token log-probs accumulate along the sequence."""

from precision_lib.forensics.hypothesis import TENTH_OF_THE_POWER, Decision, Hypothesis, Imported
from precision_lib.metrics.direction import EXACT, RATIO, SHARE, Direction, not_gated

H4 = Hypothesis(
    decision=Decision(
        hypothesis="H4",
        title="reference drift",
        metric="accum_err_final",
        symptom="",
        limit=TENTH_OF_THE_POWER,
        meaning=(
            "a log-ratio summed over the sequence that is off by 0.32 nats RMS: sequence-level "
            "importance weights lose 1 - exp(-0.1) = 10 % of their effective sample size"
        ),
        components=("policy", "reference", "kl"),
        promoted="bf16_fp32_ref",
        demoted="fp32_bf16_ref",
        irrelevant="bf16_fp32_reward",
    ),
    directions={
        "accum_err_final": RATIO,
        "accum_err_growth_exponent": not_gated("a rate of growth, also of an error that shrank"),
        "drift_nats_per_1000_tokens": Direction("magnitude"),
        "log_ratio_rms_error": RATIO,
        "sequence_ratio_ess": not_gated(
            "of so few sequences that its limit lies below what it can reach; it is made of "
            "accum_err_final"
        ),
        "log_ratio_nonfinite_frac": EXACT,
        "batch_variance": SHARE,
    },
    nonfinite="log_ratio_nonfinite_frac",
    variance_of="nats RMS at the end of the sequence",
    open=Imported("precision_lib.forensics.h4.study:open_given"),
    settings=Imported("precision_lib.forensics.h4.long_sequences:settings_of"),
    work=Imported("precision_lib.forensics.h4.work:work"),
    context="h4",
    picture=Imported("precision_lib.reporting.plots.h4:drift"),
)
