"""H6, update absorption: a step below half an ulp of the stored weight is lost."""

from precision_lib.forensics.hypothesis import (
    TENTH_OF_THE_POWER,
    Decision,
    Hypothesis,
    Imported,
    Sized,
)
from precision_lib.metrics.direction import RATIO, Direction, not_gated
from precision_lib.metrics.measure import Measure, root_mean_square, share

H6 = Hypothesis(
    decision=Decision(
        hypothesis="H6",
        title="update absorption",
        metric="logprob_change_rel_error",
        symptom="weights_moved_frac",
        limit=TENTH_OF_THE_POWER,
        meaning=(
            "the log-probs that the steps were to change are off by 0.32 of that change, RMS: "
            "10 % of the power of what was learned is an error. Stored updates that are all lost "
            "give 1"
        ),
        components=("policy", "master"),
        pure="bf16_bf16_master",
        promoted="bf16_pure",
        demoted="fp32_bf16_master",
        irrelevant="bf16_bf16_master_fp32_reward",
    ),
    metrics={
        "logprob_change_rel_error": Measure(
            root_mean_square("error2", "signal2"), "share of the change", RATIO
        ),
        "logprob_change_slope": Measure(
            share("product", "signal2"),
            "share of the change",
            not_gated("steps that are lost and steps that are rounded up cancel in it"),
        ),
        "weights_moved_frac": Measure(
            share("moved", "weights"),
            "share of weights per step",
            Direction("difference", worse=-1, best=1.0, worst=0.0),
            "weights",
        ),
        "masters_moved_frac": Measure(
            share("masters_moved", "weights"),
            "share of weights per step",
            Direction("difference", worse=-1, best=1.0, worst=0.0),
            "weights",
        ),
    },
    variance_of="share of the change, by the log-probs",
    open=Imported("precision_lib.forensics.h6.study:open_given"),
    settings=Sized("precision_lib.forensics.h6.updates:QUICK"),
    work=Imported("precision_lib.forensics.h6.work:work"),
    on_trajectories=True,
    context="h6",
    in_sweeps=False,
    picture=Imported("precision_lib.reporting.plots.h6:absorption"),
)
