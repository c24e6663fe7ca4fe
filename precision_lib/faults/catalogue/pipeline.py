"""Faults that a test of the pipeline has to notice, by planting them. Nothing imports torch."""

from precision_lib.faults.catalogue.fault import faults, values

PIPELINE = (
    *faults(
        "token_logprobs",
        "logprobs",
        "kl_path",
        (
            (
                "log_of_softmax",
                "-inf where the probability underflows",
                "DeepSpeedExamples #501, the same mistake with a sigmoid",
                values("near_overflow-fp32"),
            ),
        ),
        "test_token_logprobs_match_the_oracle",
    ),
    *faults(
        "masked_mean",
        "masked",
        "kl_path",
        (
            (
                "bf16_running_sum",
                "the KL is accumulated over micro-batches in bf16",
                "prime-rl #568",
                values("long-fp32"),
            ),
        ),
        "test_mean_penalty_is_the_exact_mean_within_its_bound",
    ),
    *faults(
        "shift",
        "logprobs",
        "kl_path",
        (
            (
                "shift_off_by_one",
                "logits[:, t] score tokens[:, t] instead of tokens[:, t + 1]",
                "the shape contract of the project's specification",
                "",
            ),
        ),
        "test_sampled_tokens_are_the_references_own",
    ),
)
