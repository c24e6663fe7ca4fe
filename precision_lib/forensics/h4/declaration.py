"""H4, reference drift: errors of per-token log-probs accumulate along the sequence."""

from precision_lib.forensics.hypothesis import (
    TENTH_OF_THE_POWER,
    Decision,
    Hypothesis,
    Imported,
    Sized,
)
from precision_lib.forensics.operating import along_drift
from precision_lib.metrics.direction import EXACT, RATIO, Direction, not_gated
from precision_lib.metrics.drift import growth_exponent
from precision_lib.metrics.measure import Measure, root_mean_square, share

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
    metrics={
        "accum_err_final": Measure(root_mean_square("final2", "sequences"), "nats RMS", RATIO),
        "accum_err_growth_exponent": Measure(
            growth_exponent,
            "power of the position",
            not_gated("a rate of growth, also of an error that shrank"),
        ),
        "drift_nats_per_1000_tokens": Measure(
            lambda t: 1000 * t["error"] / t["tokens"], "nats/1000 tokens", Direction("magnitude")
        ),
        "log_ratio_rms_error": Measure(root_mean_square("error2", "tokens"), "nats RMS", RATIO),
        "sequence_ratio_ess": Measure(
            lambda t: t["weight"] ** 2 / (t["sequences"] * t["weight2"]),
            "share of sequences",
            not_gated(
                "of so few sequences that its limit lies below what it can reach; it is made of "
                "accum_err_final"
            ),
        ),
        "log_ratio_nonfinite_frac": Measure(share("nonfinite"), "share of tokens", EXACT),
    },
    nonfinite="log_ratio_nonfinite_frac",
    variance_of="nats RMS at the end of the sequence",
    open=Imported("precision_lib.forensics.h4.study:open_given"),
    settings=Sized("precision_lib.forensics.h4.long_sequences:QUICK"),
    work=Imported("precision_lib.forensics.h4.work:work"),
    check=Imported("precision_lib.forensics.h4.long_sequences:check_fits"),
    context="h4",
    picture=Imported("precision_lib.reporting.plots.h4:drift"),
    needs="reference",
    carry=along_drift,
    carried_by="the sum grows with its measured exponent, at least with the root of the length",
)
