"""Faults of policy_loss and value_loss. Names only: nothing here imports torch."""

from precision_lib.faults.catalogue.fault import TOO_NARROW, broken_property, faults, values

POLICY_LOSS = faults(
    "policy_loss",
    "losses",
    "losses",
    (
        (
            "exp_without_a_clamp",
            "one log-ratio of 100 makes the gradient NaN under a finite loss",
            "TRL, torchtune, NeMo-RL, Liger; TRL #3015",
            values("far_positive-fp32"),
        ),
        (
            "ratio_clamped_after_exp",
            "the same, behind a clamp that looks like the repair",
            "OpenRLHF #1335",
            values("far_positive-fp32"),
        ),
        (
            "log_ratio_clamped_at_20",
            "a loss of e^20 and no gradient where both are e^30",
            "verl compute_policy_loss_vanilla, OpenRLHF PolicyLoss",
            values("far_harmful-fp32"),
        ),
        (
            "ratio_in_fp16",
            "a NaN gradient from a log-ratio of 12",
            "verl and OpenRLHF in fp16",
            values("far_positive-fp16"),
        ),
        (
            "ratio_in_input_dtype",
            "ratios on a grid of 1/128",
            "minimind #812, xtuner #1108",
            values("ordinary-bf16"),
        ),
        (
            "ratio_of_probabilities",
            "NaN for a token that both policies find unlikely",
            "verl rollout_probs_diff, a comparison in probability space",
            values("low_probability-fp32"),
        ),
        (
            "old_logprobs_stored_in_bf16",
            "a ratio that is not 1 before any update",
            "slime #245 and #892",
            broken_property("ratio_is_one_for_identical_policies-fp32"),
        ),
        (
            "loss_in_input_dtype",
            "a loss of 36 on a grid of 0.25",
            "Modalities #464, DeepSpeed-Chat #754",
            TOO_NARROW,
        ),
        (
            "larger_surrogate",
            "nothing limits an update that pays",
            "implementation-matters/code-for-paper #1, min or max",
            values("ordinary-fp32"),
        ),
        (
            "dual_clip",
            "a token that has become 3 times as likely and is harmful is let go",
            "verl compute_policy_loss_vanilla, always on",
            values("far_harmful-fp32"),
        ),
        (
            "advantage_with_the_other_sign",
            "the policy learns what it should not do",
            "SLM-Lab #207, a maximisation written as a negative minimisation",
            values("ordinary-fp32"),
        ),
        (
            "policy_loss_over_all_slots",
            "the learning rate shrinks with the padding",
            "TRL #3138",
            values("ragged-fp32"),
        ),
        (
            "policy_loss_of_sequence_means",
            "tokens of long responses learn less",
            "TRL #2881, verl #593",
            values("ragged-fp32"),
        ),
        (
            "policy_loss_by_product_with_mask",
            "a NaN in a padded slot becomes the loss",
            "SkyRL #1635",
            values("masked_nonfinite-fp32"),
        ),
        (
            "policy_loss_of_nothing",
            "NaN for a batch without a real token",
            "NVIDIA-NeMo/Automodel #3796",
            broken_property("empty_mask_is_zero_or_refused-fp32"),
        ),
        (
            "policy_tokens_counted_in_bf16",
            "300 tokens are counted as 300, 301 as 300, 2,049 as 2,048",
            "counts in bf16: executorch #20090, ml_dtypes #63",
            values("long-fp32"),
        ),
        (
            "policy_gradient_ignores_loss_scaling",
            "gradient accumulation and loss scaling have no effect",
            "a hand-written backward without its upstream factor",
            values("ordinary-fp32"),
        ),
    ),
)

VALUE_LOSS = faults(
    "value_loss",
    "losses",
    "losses",
    (
        (
            "smaller_error",
            "a critic that has run away is not called back",
            "rsl_rl #152, a user's repair",
            values("clipped-fp32"),
        ),
        (
            "errors_compared_with_their_sign",
            "of -3 and 1 the 1 counts",
            "implementation-matters/code-for-paper #1",
            values("clipped-fp32"),
        ),
        (
            "value_loss_without_its_half",
            "twice the loss",
            "rsl_rl #152, whose clipped loss has no half",
            values("ordinary-fp32"),
        ),
        (
            "clipped_around_the_returns",
            "the clip says nothing about how far the critic moved",
            "ray #19291, another reading of the clip",
            values("clipped-fp32"),
        ),
        (
            "value_loss_in_input_dtype",
            "squared errors of 8 bits",
            "OpenRLHF ValueLoss; NeMo-RL #4115",
            values("large_values-bf16"),
        ),
        (
            "gradient_of_the_clipped_branch_alone",
            "a right loss that teaches nothing outside the band",
            "SLM-Lab #207, a wrong detach",
            values("ordinary-fp32"),
        ),
        (
            "value_loss_over_all_slots",
            "the learning rate shrinks with the padding",
            "TRL #3138, the same denominator in a policy loss",
            values("ragged-fp32"),
        ),
        (
            "value_loss_by_product_with_mask",
            "a NaN in a padded slot becomes the loss",
            "DeepSpeedExamples #956",
            values("masked_nonfinite-fp32"),
        ),
        (
            "value_loss_of_nothing",
            "NaN for a batch without a real token",
            "DeepSpeedExamples #956",
            broken_property("empty_mask_is_zero_or_refused-fp32"),
        ),
        (
            "values_through_bf16",
            "a critic that is right and is told that it is not",
            "torchtune PPO in bf16; NeMo-RL #4115",
            values("identical-fp32"),
        ),
        (
            "value_loss_left_in_input_dtype",
            "a loss of 36 on a grid of 0.25",
            "OpenRLHF ValueLoss",
            TOO_NARROW,
        ),
    ),
)
