"""H2, reward quantization: bf16 rewards are discretised, in steps of about 0.4 %."""

from precision_lib.forensics.hypothesis import TENTH_OF_THE_POWER, Decision, Hypothesis, Imported
from precision_lib.forensics.operating import by_normalisation
from precision_lib.metrics.direction import AGREEMENT, EXACT, RATIO, SHARE, STEP
from precision_lib.metrics.measure import Measure, median_level, root_mean_square, share

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
    metrics={
        "reward_resolution_median": Measure(median_level, "reward units", STEP),
        "reward_tie_frac": Measure(share("tied", "pairs"), "share of pairs", SHARE, "pairs"),
        "reward_kendall_tau": Measure(
            share("agreement", "pairs"), "(concordant - discordant) / pairs", AGREEMENT, "pairs"
        ),
        "advantage_rms_error": Measure(
            root_mean_square("error2", "signal2"), "RMS error / RMS", RATIO
        ),
        "advantage_sign_flip_frac": Measure(
            share("flipped", "sequences"), "share of sequences", SHARE
        ),
        "batch_advantage_rms_error": Measure(
            root_mean_square("batch_error2", "batch_signal2"), "RMS error / RMS", RATIO
        ),
        "reward_nonfinite_frac": Measure(
            share("nonfinite", "scored"), "share of sequences", EXACT, "scored"
        ),
    },
    nonfinite="reward_nonfinite_frac",
    variance_of="standard deviations of the advantages, by the rewards",
    open=Imported("precision_lib.forensics.h2.study:open_given"),
    settings=lambda _, seed: seed,
    work=Imported("precision_lib.forensics.h2.forwards:work"),
    on_trajectories=True,
    training_figure="gae_rms_error",
    counted="sequences",
    picture=Imported("precision_lib.reporting.plots.h2:rewards"),
    carry=by_normalisation,
    carried_by="depends on the rewards' offset and spread, not on length or KL",
)
