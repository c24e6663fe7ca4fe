"""H2, reward quantization: bf16 rewards are discretised, in steps of about 0.4 %."""

from precision_lib.forensics.hypothesis import TENTH_OF_THE_POWER, Decision, Hypothesis, Imported
from precision_lib.metrics.direction import AGREEMENT, EXACT, RATIO, SHARE, STEP

H2 = Hypothesis(
    decision=Decision(
        hypothesis="H2",
        title="reward quantization",
        metric="advantage_rms_error",
        symptom="reward_tie_frac",
        limit=TENTH_OF_THE_POWER,
        meaning=(
            "the error of group-normalised advantages has 10 % of their power: one tenth of "
            "the policy gradient's weight is noise"
        ),
        components=("reward",),
        promoted="bf16_fp32_reward",
        demoted="fp32_bf16_reward",
        irrelevant="bf16_fp32_kl",
    ),
    directions={
        "reward_resolution_median": STEP,
        "reward_tie_frac": SHARE,
        "reward_kendall_tau": AGREEMENT,
        "advantage_rms_error": RATIO,
        "advantage_sign_flip_frac": SHARE,
        "batch_advantage_rms_error": RATIO,
        "reward_nonfinite_frac": EXACT,
        "batch_variance": SHARE,
    },
    nonfinite="reward_nonfinite_frac",
    variance_of="standard deviations of the advantages, by the rewards",
    open=Imported("precision_lib.forensics.h2.study:open_given"),
    settings=lambda _, seed: seed,
    work=Imported("precision_lib.forensics.h2.forwards:work"),
    on_trajectories=True,
    counted="sequences",
    picture=Imported("precision_lib.reporting.plots.h2:rewards"),
)
