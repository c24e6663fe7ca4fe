"""Faults of masked_mean, whiten, group_advantages and gae. Names only: nothing imports torch."""

from precision_lib.faults.catalogue.fault import TOO_NARROW, broken_property, faults, values

MASKED_MEAN = faults(
    "masked_mean",
    "masked",
    "statistics",
    (
        (
            "mean_by_product_with_mask",
            "a NaN in a padded slot becomes the loss",
            "verl #2377, SkyRL #1635, PaddleNLP #10596",
            values("masked_nonfinite-fp32"),
        ),
        (
            "mean_in_input_dtype",
            "a mean of 8 bits, and inf where an fp16 sum overflows",
            "prime-rl #568; Modalities #464",
            values("near_overflow-fp16"),
        ),
        (
            "count_in_input_dtype",
            "257 tokens are counted as 256",
            "executorch #20090, ml_dtypes #63",
            values("long-bf16"),
        ),
        (
            "mean_of_sequence_means",
            "short responses weigh more than long ones",
            "verl #593, TRL #2881",
            values("ragged-fp32"),
        ),
        (
            "mean_over_all_slots",
            "the loss shrinks with the padding",
            "TRL #3138",
            values("ragged-fp32"),
        ),
        (
            "mean_of_nothing",
            "NaN for a batch without a real token",
            "NeMo-RL #158",
            broken_property("empty_mask_is_zero_or_refused-fp32"),
        ),
        (
            "mean_left_in_input_dtype",
            "a loss or a metric of 8 bits",
            "TRL and torchtune masked_mean; Modalities #464",
            TOO_NARROW,
        ),
    ),
)

WHITEN = faults(
    "whiten",
    "masked",
    "statistics",
    (
        (
            "one_pass_variance",
            "the variance cancels when the mean is large",
            "NeMo-RL #4158, the same formula on a group",
            values("large_mean-fp32"),
        ),
        (
            "population_std",
            "results too large by sqrt(n / (n - 1))",
            "numpy's default of ddof = 0",
            values("ordinary-fp32"),
        ),
        (
            "epsilon_instead_of_a_guard",
            "a constant batch becomes noise of size 1",
            "torchtune, verl whiten",
            values("constant-fp32"),
        ),
        (
            "mean_added_back",
            "normalised advantages keep their raw mean",
            "torchtune 0.6.1 whiten",
            values("ordinary-fp32"),
        ),
        (
            "mean_over_padding",
            "the mean shrinks with the padding",
            "CleanRL, a whitening without a mask",
            values("ragged-fp32"),
        ),
        (
            "padding_left_in",
            "padded slots carry an advantage into whatever sums them",
            "TRL masked_whiten, which leaves the zeros to its caller",
            values("ragged-fp32"),
        ),
        (
            "whitened_by_product_with_mask",
            "a NaN in a padded slot becomes every advantage",
            "PaddleNLP #10596, the same product in a mean",
            values("masked_nonfinite-fp32"),
        ),
        (
            "statistics_in_input_dtype",
            "a bf16 mean of 1000 with a step of 4 under a spread of 1",
            "TRL 1.12 PPO with bf16 weights",
            values("large_mean-bf16"),
        ),
        (
            "epsilon_vanishes_in_fp16",
            "0 times inf for a constant batch",
            "minppo #19",
            values("constant-fp16"),
        ),
        (
            "squares_in_fp32",
            "0 for values of 1e20, whose squares are inf",
            "TRL, torchtune and CleanRL, FP32 statistics of FP32 values",
            values("near_overflow-fp32"),
        ),
        (
            "bessel_correction_of_one_token",
            "NaN where one real token is left",
            "TRL masked_var",
            values("single_token-fp32"),
        ),
        (
            "whitened_left_in_input_dtype",
            "advantages of 8 bits",
            "TRL, torchtune and verl in the format of their input",
            TOO_NARROW,
        ),
    ),
)

GROUP_ADVANTAGES = faults(
    "group_advantages",
    "advantages",
    "advantages",
    (
        (
            "group_statistics_in_rewards_dtype",
            "[1, 1, 1, 1.0078] gives [0, 0, 0, 2]",
            "OpenRLHF #1334",
            values("openrlhf_case-bf16"),
        ),
        (
            "group_one_pass_variance",
            "a std 7.7 times too large at rewards of 100 +- 0.01",
            "NeMo-RL #4158, verl up to 0.7.1 group_mean_std",
            values("large_mean-fp32"),
        ),
        (
            "group_epsilon",
            "a spread of 1e-4 gives half the advantage",
            "TRL 1.16 GRPO",
            values("small_spread-fp32"),
        ),
        (
            "group_population_std",
            "advantages too large by sqrt(K / (K - 1))",
            "numpy's default of ddof = 0",
            values("binary-fp32"),
        ),
        (
            "group_without_a_guard",
            "NaN for a group of equal rewards",
            "OpenRLHF #1334, its constant fp16 groups",
            values("constant-fp32"),
        ),
        (
            "group_noise_passes_the_guard",
            "equal rewards get advantages of size 1",
            "slime #1674",
            values("constant-fp32"),
        ),
        (
            "group_of_one_is_nan",
            "NaN where only one reward of a group is left",
            "TRL #5773",
            values("one_sample-fp32"),
        ),
        (
            "statistics_of_the_whole_batch",
            "an easy prompt is rewarded for being easy",
            "XU-YIJIE/grpo-flat #2",
            values("ordinary-fp32"),
        ),
        (
            "group_advantages_left_in_input_dtype",
            "advantages of 8 bits",
            "verl compute_grpo_outcome_advantage",
            TOO_NARROW,
        ),
        (
            "keepdim_forgotten",
            "another group's standard deviation, where it does not raise",
            "verl-agent #236, group statistics of the wrong shape",
            values("ordinary-fp32"),
        ),
    ),
)

GAE = faults(
    "gae",
    "advantages",
    "gae",
    (
        (
            "gae_in_input_dtype",
            "returns off by 190 % over 4,096 bf16 tokens",
            "torchtune, TRL 1.12 PPO with bf16 weights",
            values("long-bf16"),
        ),
        (
            "gamma_in_values_dtype",
            "in bf16 a discount of 0.999 is none",
            "the bf16 grid, on which 0.99 is 0.98828 and 0.999 is 1",
            values("long-bf16"),
        ),
        (
            "bootstrap_from_padding",
            "the last token expects a future in the padding",
            "alpaca-rlhf #9",
            values("ragged-fp32"),
        ),
        (
            "recursion_through_padding",
            "rewards and values of padding reach every real token",
            "torchtune estimate_advantages, TRL 1.12",
            values("ragged-fp32"),
        ),
        (
            "gae_changes_its_rewards",
            "the rewards that are logged, or used again, are no longer the rewards",
            "in-place arithmetic on an argument, as OpenRLHF log_probs_from_logits on logits",
            values("ordinary-fp32"),
        ),
        (
            "gae_by_product_with_mask",
            "one NaN in the padding, and the whole sequence is NaN",
            "TRL 0.11 compute_advantages, OpenRLHF get_advantages_and_returns",
            values("masked_nonfinite-fp32"),
        ),
        (
            "gamma_and_lam_swapped",
            "a bootstrap discounted by lam",
            "two floats in a positional call",
            values("ordinary-fp32"),
        ),
        (
            "decay_without_gamma",
            "advantages reach further back than the discount allows",
            "ARENA_3.0 #249",
            values("ordinary-fp32"),
        ),
        (
            "returns_from_the_next_value",
            "the critic learns a return that is one token late",
            "Stoix #142, values that are off by one",
            values("ordinary-fp32"),
        ),
        (
            "returns_left_in_padding",
            "padded slots have a target for the critic",
            "torchtune estimate_advantages, which zeroes the advantages alone",
            values("ragged-fp32"),
        ),
        (
            "last_token_bootstraps_from_itself",
            "a finished response is treated as one that goes on",
            "CleanRL #16, a wrong last advantage",
            values("sparse_terminal-fp32"),
        ),
        (
            "recursion_across_sequences",
            "a response is credited with the rewards of the next one",
            "Stoix #142, deltas that cross the end of an episode",
            broken_property("permutation_of_sequences-fp32"),
        ),
        (
            "gae_left_in_input_dtype",
            "returns of 1000 on a grid of 4",
            "TRL 1.12 PPO with bf16 weights",
            TOO_NARROW,
        ),
    ),
)
