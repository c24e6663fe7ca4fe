"""H1, KL collapse: a KL computed in bf16 loses the signal near the reference, by cancellation."""

from precision_lib.forensics.hypothesis import TENTH_OF_THE_POWER, Decision, Hypothesis, Imported
from precision_lib.metrics.direction import EXACT, Direction, not_gated

_TEXTBOOK = not_gated("of a formula that the core does not use")

H1 = Hypothesis(
    decision=Decision(
        hypothesis="H1",
        title="KL collapse",
        metric="log_ratio_nsr",
        symptom="log_ratio_near_zero_frac",
        limit=TENTH_OF_THE_POWER,
        meaning=(
            "error power is 10 % of signal power at a true KL of 1e-4 nats per token: k2 and "
            "k3 then overstate the KL by 10 %, and one tenth of the penalty's gradient is noise"
        ),
        components=("policy", "reference", "kl"),
        promoted="bf16_fp32_kl",
        demoted="fp32_bf16_kl",
        irrelevant="bf16_fp32_reward",
    ),
    directions={
        "kl_penalty_mean": not_gated("neither way is worse: kl_k3_rel_error says how wrong it is"),
        "log_ratio_near_zero_frac": Direction("difference", kl_exponent=-0.5),
        "log_ratio_nsr": Direction("ratio", kl_exponent=-0.5),
        "kl_k3_rel_error": Direction("magnitude", kl_exponent=-1.0),
        "k3_negative_frac": EXACT,
        "k3_textbook_rel_error": _TEXTBOOK,
        "k3_textbook_negative_frac": _TEXTBOOK,
        "log_ratio_nonfinite_frac": EXACT,
        "batch_variance": Direction("difference", kl_exponent=-0.5),
    },
    nonfinite="log_ratio_nonfinite_frac",
    variance_of="times the signal at a KL of {kl:.0e}",
    open=Imported("precision_lib.forensics.h1.study:open_given"),
    settings=Imported("precision_lib.forensics.probe:settings_of"),
    check=Imported("precision_lib.forensics.probe:check_fits"),
    work=Imported("precision_lib.forensics.h1.work:work"),
    context="probe",
    picture=Imported("precision_lib.reporting.plots.h1:collapse_curve"),
)
