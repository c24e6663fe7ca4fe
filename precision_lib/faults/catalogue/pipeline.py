"""Faults that a test of the pipeline has to notice, by planting them. Nothing imports torch.

``caught_in_pipeline`` is a file of ``tests/forensics`` and the test in it that turns red.
"""

from precision_lib.faults.catalogue.fault import Fault, faults, values

H1, H2, H3, H4 = (
    f"test_{name}.py"
    for name in ("h1_kl_collapse", "h2_reward_quantization", "h3_value_head", "h4_reference_drift")
)
KERNELS = "test_h1_kl_kernels.py"
FORMATS = "test_observed_formats_are_those_of_the_configuration"
IDENTICAL = "test_identical_weights_differ_by_exactly_zero_in_one_format"
NULL = "test_controls_are_null_and_the_hypothesis_has_a_verdict"

#: Kernels of the core, in the pipeline that runs on it.
_OF_THE_CORE = (
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
        f"{KERNELS}::test_token_logprobs_match_the_oracle",
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
        f"{H1}::test_mean_penalty_is_the_exact_mean_within_its_bound",
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
        f"{H1}::test_sampled_tokens_are_the_references_own",
    ),
    *faults(
        "group_advantages",
        "advantages",
        "advantages",
        (
            (
                "rewards_cast_before_statistics",
                "rewards are cast to bf16 before mean and deviation of the group",
                "OpenRLHF #1334; verl and TRL keep them in the reward tensor's dtype",
                values("large_mean-fp32"),
            ),
        ),
        f"{H2}::test_statistics_match_the_oracle",
    ),
)


def _on_the_way(
    function: str, module: str, rows: tuple[tuple[str, str, str, str], ...]
) -> tuple[Fault, ...]:
    """Faults between checkpoint and score: name, meaning, source, caught_in_pipeline."""
    return tuple(
        Fault(
            name=name,
            function=function,
            module=f"precision_lib.{module}",
            implementation="models_path",
            meaning=meaning,
            source=source,
            caught_by="",
            caught_in_pipeline=caught,
        )
        for name, meaning, source, caught in rows
    )


PIPELINE = (
    *_OF_THE_CORE,
    *_on_the_way(
        "set_parameters",
        "models.loading",
        (
            (
                "reference_in_bf16",
                "the reference is loaded in bf16 whatever was asked for",
                "SkyRL #1694; verl #5932, a format that is written into the code",
                f"{H4}::{FORMATS}",
            ),
            (
                "stale_reference",
                "the reference is of another step than the one that the KL is counted from",
                "Flow-Factory #186; prime-rl #2438, weights that were not updated",
                f"{H4}::{IDENTICAL}",
            ),
            (
                "dropout_left_on",
                "attention dropout is active in the forwards that score",
                "verl #4708",
                f"{H1}::{IDENTICAL}",
            ),
            (
                "rope_table_in_format",
                "the RoPE table is cast with the parameters",
                "transformers #29285, #25681; SkyRL #1709; prime-rl #3584",
                f"{H4}::test_rope_table_is_the_checkpoints",
            ),
        ),
    ),
    *_on_the_way(
        "predict_values",
        "models.value_head",
        (
            (
                "value_head_in_bf16",
                "the value head computes in bf16 and hands out FP32",
                "torchtune PPO, OpenRLHF critic: values inherit the model's dtype",
                f"{H3}::{FORMATS}",
            ),
        ),
    ),
    *_on_the_way(
        "trunk",
        "trajectories.teacher_forcing",
        (
            (
                "states_one_late",
                "the critic reads the state behind the token that it judges",
                "the shape contract of the project's specification",
                f"{H3}::{NULL}",
            ),
        ),
    ),
    *_on_the_way(
        "response_mask",
        "trajectories.store",
        (
            (
                "mask_one_early",
                "the mask begins at the last prompt token and ends before the last response token",
                "the shape contract of the project's specification",
                f"{H3}::test_mask_covers_the_response_and_nothing_else",
            ),
        ),
    ),
    *_on_the_way(
        "score_tokens",
        "models.reward_model",
        (
            (
                "scores_through_bf16",
                "scores are stored in bf16 on their way and widened again",
                "sentence-transformers #3893; NeMo-Aligner #361",
                f"{H2}::{FORMATS}",
            ),
        ),
    ),
)
