"""H5, rollout mismatch: two engines give one token two log-probs."""

from precision_lib.forensics.hypothesis import (
    TENTH_OF_THE_POWER,
    Decision,
    Hypothesis,
    Imported,
    Sized,
)
from precision_lib.forensics.operating import along_mismatch
from precision_lib.metrics.rollout import MEASURES

H5 = Hypothesis(
    decision=Decision(
        hypothesis="H5",
        title="rollout mismatch",
        metric="rollout_log_ratio_final",
        symptom="rollout_logprob_abs_diff_mean",
        limit=TENTH_OF_THE_POWER,
        meaning=(
            "a log-ratio of trainer and rollout, summed over the response, of 0.32 nats RMS: "
            "sequence-level importance weights lose 1 - exp(-0.1) = 10 % of their effective "
            "sample size"
        ),
        components=("policy", "kl", "rollout"),
        promoted="bf16_trainer_rollout",
        demoted="fp32_bf16_rollout",
        irrelevant="bf16_fp32_reward",
    ),
    metrics=MEASURES,
    nonfinite="rollout_nonfinite_frac",
    variance_of="nats RMS at the end of the response",
    open=Imported("precision_lib.forensics.h5.study:open_given"),
    settings=Sized("precision_lib.forensics.h5.engines:QUICK"),
    work=Imported("precision_lib.forensics.h5.work:work"),
    check=Imported("precision_lib.forensics.h4.long_sequences:check_fits"),
    context="h5",
    in_sweeps=False,
    picture=Imported("precision_lib.reporting.plots.h5:mismatch"),
    carry=along_mismatch,
    carried_by="the sum grows with its measured exponent, at least with the root of the length",
)
