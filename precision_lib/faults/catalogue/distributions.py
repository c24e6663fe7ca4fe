"""Faults of token_logprobs, entropy and kl_penalty. Names only: nothing here imports torch."""

from precision_lib.faults.catalogue.fault import (
    TOO_NARROW,
    broken_property,
    faults,
    values,
)

TOKEN_LOGPROBS = faults(
    "token_logprobs",
    "logprobs",
    "softmax",
    (
        (
            "upcast_after_log_softmax",
            "an FP32 result with the error of a bf16 log-softmax",
            "OpenRLHF #634",
            values("ordinary-bf16"),
        ),
        (
            "logprobs_left_in_input_dtype",
            "a log-prob of -20 on a grid of 0.125",
            "TRL 1.16 selective_log_softmax; genlm-backend #66",
            TOO_NARROW,
        ),
        (
            "laundered_fp32_buffer",
            "every check of the dtype passes, every value is a bf16 number",
            "torchtune batched_logits_to_logprobs; verl #5662",
            values("ordinary-bf16"),
        ),
        (
            "gather_minus_logsumexp",
            "an error of 5e-4 nats at a logit offset of 1e4",
            "verl logprobs_from_logits_v2, TRL 1.16 selective_log_softmax",
            values("large_offset-fp32"),
        ),
        (
            "gather_minus_logsumexp_in_input_dtype",
            "log-probs on the grid of the logits, some of them positive",
            "TRL #2799; maxtext #5231",
            values("confident-bf16"),
        ),
        (
            "maximum_subtracted_in_input_dtype",
            "the differences of logits are rounded to bf16 before they become FP32",
            "nanochat #326, an upcast that is one operation late",
            values("ordinary-bf16"),
        ),
        (
            "temperature_in_bf16",
            "FP32 logits lose 16 bits to a division by 1",
            "sglang #26955",
            values("ordinary-fp32"),
        ),
        (
            "logits_through_fp16",
            "bf16 logits beyond 65504 become inf and the row NaN",
            "unsloth #4891",
            values("near_overflow-bf16"),
        ),
        (
            "log_softmax_summed_in_order",
            "an error that grows with the vocabulary, 1.4e-5 nats at 151,936",
            "torch's log_softmax on a CPU (docs/benchmarks.md)",
            values("large_vocabulary-fp32"),
        ),
        (
            "one_hot_product",
            "NaN as soon as any other token has a logit of -inf",
            "TRL #7221, the same product in the entropy",
            values("minus_inf-fp32"),
        ),
        (
            "probability_plus_epsilon",
            "no log-prob below -18.4, and a gradient of 0 there",
            "DeepSpeedExamples #501, its log of an underflow repaired by an epsilon",
            values("confident-fp32"),
        ),
        (
            "shifted_twice",
            "finite, plausible log-probs of the wrong tokens",
            "TRL's callers shift, NeMo-RL's get_next_token_logprobs shifts itself",
            values("ordinary-fp32"),
        ),
        (
            "gradient_through_bf16",
            "right log-probs with a gradient of 8 bits",
            "LlamaFactory #9769, torch #106395",
            values("ordinary-fp32"),
        ),
        (
            "maximum_of_the_whole_batch",
            "-inf for every row 104 below the largest logit of the batch",
            "a softmax made safe with max() instead of max(-1)",
            broken_property("padding_changes_nothing-fp32"),
        ),
    ),
)

ENTROPY = faults(
    "entropy",
    "policy_entropy",
    "softmax",
    (
        (
            "zero_times_minus_inf",
            "NaN as soon as one logit is -inf",
            "TRL #7221; eight implementations of eight",
            values("minus_inf-fp32"),
        ),
        (
            "nan_replaced_after_the_product",
            "a right entropy with a NaN gradient",
            "TRL #7221, a repair of the value alone",
            values("minus_inf-fp32"),
        ),
        (
            "entropy_as_logsumexp_minus_mean",
            "negative entropies at a logit offset of 1e4",
            "verl entropy_from_logits, OpenRLHF compute_entropy, TRL up to 1.12",
            values("large_offset-fp32"),
        ),
        (
            "entropy_in_input_dtype",
            "7 % error on confident tokens",
            "TRL 1.16 entropy_from_logits",
            values("confident-bf16"),
        ),
        (
            "entropy_of_probability_plus_epsilon",
            "1.5e-3 nats too low over a vocabulary of 151,936",
            "log(p + 1e-8), common where there are few actions",
            values("large_vocabulary-fp32"),
        ),
        (
            "entropy_left_in_input_dtype",
            "an entropy of 10 on a grid of 1/16",
            "TRL 1.16 entropy_from_logits, verl entropy_from_logits",
            TOO_NARROW,
        ),
        (
            "entropy_from_the_batch_maximum",
            "NaN for every row 104 below the largest logit of the batch",
            "a softmax made safe with max() instead of max(-1)",
            broken_property("padding_changes_nothing-fp32"),
        ),
    ),
)

KL_PENALTY = faults(
    "kl_penalty",
    "kl",
    "kl",
    (
        (
            "k3_as_textbook",
            "noise instead of a KL below 1e-7, and negative values",
            "TRL, verl, OpenRLHF, NeMo-RL, prime-rl, slime; google/tunix #2315",
            values("near_identical-fp32"),
        ),
        (
            "k3_in_input_dtype",
            "in bf16 0 or negative for log-ratios of 0.01",
            "TRL, verl and Liger on bf16 log-probs",
            values("near_identical-bf16"),
        ),
        (
            "k3_with_the_other_sign",
            "the estimate of another divergence, equal near the reference",
            "verl takes d = ref - policy, this interface policy - ref",
            values("ordinary-fp32"),
        ),
        (
            "k3_clamped",
            "a policy far from its reference pays no more for going on",
            "verl kl_penalty, NeMo-RL calculate_kl; verl #2928",
            values("far-fp32"),
        ),
        (
            "k3_clamped_after_exp",
            "a finite KL with a NaN gradient",
            "OpenRLHF #1335",
            values("far-fp32"),
        ),
        (
            "k2_without_its_half",
            "twice the penalty",
            "'mse' in verl and TRL 0.11, which has the half that its name has not",
            values("ordinary-fp32"),
        ),
        (
            "every_estimator_is_k3",
            "k1 and k2 are never computed",
            "AReaL #408",
            values("ordinary-fp32"),
        ),
        (
            "log_ratio_in_input_dtype",
            "a log-ratio on the bf16 grid, before anything is FP32",
            "OpenRLHF #620",
            values("ordinary-bf16"),
        ),
        (
            "log_ratio_of_probabilities",
            "NaN for two policies that both find a token unlikely",
            "verl rollout_probs_diff, a comparison in probability space",
            values("low_probability-fp32"),
        ),
        (
            "reference_in_bf16",
            "a KL that is not 0 between a policy and itself",
            "SkyRL #1694",
            broken_property("zero_for_identical_policies-fp32"),
        ),
        (
            "kl_left_in_input_dtype",
            "a penalty of 8 bits for whatever adds it to a reward",
            "verl kl_penalty, NeMo-RL calculate_kl, TRL 1.16",
            TOO_NARROW,
        ),
        (
            "kl_given_up_for_a_nan",
            "no KL penalty on a batch with one bad slot",
            "the guard that reports like TRL #3015 invite",
            broken_property("padding_changes_nothing-fp32"),
        ),
    ),
)
