"""H1, KL collapse: a KL computed in bf16 loses the signal near the reference, by cancellation."""

import numpy as np

from precision_lib.forensics.hypothesis import (
    TENTH_OF_THE_POWER,
    Decision,
    Hypothesis,
    Imported,
    Sized,
)
from precision_lib.forensics.operating import along_kl
from precision_lib.metrics.direction import EXACT, Direction, not_gated
from precision_lib.metrics.measure import Measure, share

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
    metrics={
        "kl_penalty_mean": Measure(
            share("k3"),
            "nats/token",
            not_gated("neither way is worse: kl_k3_rel_error says how wrong it is"),
        ),
        "log_ratio_near_zero_frac": Measure(
            share("near_zero"), "share of tokens", Direction("difference", kl_exponent=-0.5)
        ),
        "log_ratio_nsr": Measure(
            lambda t: np.sqrt(t["error2"] / t["signal2"]),
            "RMS error / RMS signal",
            Direction("ratio", kl_exponent=-0.5),
        ),
        "kl_k3_rel_error": Measure(
            lambda t: t["k3"] / t["golden_k3"] - 1,
            "relative to golden",
            Direction("magnitude", kl_exponent=-1.0),
        ),
        "k3_negative_frac": Measure(share("k3_negative"), "share of tokens", EXACT),
        "k3_textbook_rel_error": Measure(
            lambda t: t["textbook"] / t["golden_k3"] - 1, "relative to golden", _TEXTBOOK
        ),
        "k3_textbook_negative_frac": Measure(
            share("textbook_negative"), "share of tokens", _TEXTBOOK
        ),
        "log_ratio_nonfinite_frac": Measure(share("nonfinite"), "share of tokens", EXACT),
    },
    nonfinite="log_ratio_nonfinite_frac",
    variance_of="times the signal at a KL of {kl:.0e}",
    open=Imported("precision_lib.forensics.h1.study:open_given"),
    settings=Sized("precision_lib.forensics.probe:QUICK"),
    check=Imported("precision_lib.forensics.probe:check_fits"),
    work=Imported("precision_lib.forensics.h1.work:work"),
    context="probe",
    picture=Imported("precision_lib.reporting.plots.h1:collapse_curve"),
    needs="reference",
    carry=along_kl,
    carried_by="noise over signal goes with KL^(-1/2) beyond the measured KLs",
)
