"""Changes that nobody may notice, and the file of ``tests/forensics`` that would; no torch here.

``measured_in`` is "" for a function that the pipeline of the main job does not call: then the
conformance checks of that function are all there is.
"""

from precision_lib.faults.catalogue.fault import Fault
from precision_lib.faults.catalogue.pipeline import H1, H2, H3, H4

#: name, function, module, meaning, measured_in
_ROWS = (
    (
        "vocabulary_summed_from_the_back",
        "token_logprobs",
        "ppo.logprobs",
        "log-softmax over the reversed vocabulary",
        H4,
    ),
    (
        "entropy_summed_from_the_back",
        "entropy",
        "ppo.policy_entropy",
        "entropy over the reversed vocabulary",
        "",
    ),
    ("kl_in_float64", "kl_penalty", "ppo.kl", "the KL in float64, rounded to FP32", H1),
    ("mean_in_float64", "masked_mean", "ppo.masked", "the mean in float64, rounded to FP32", H1),
    ("whitened_in_float64", "whiten", "ppo.masked", "whitening in float64, rounded to FP32", H3),
    ("gae_in_float64", "gae", "ppo.advantages", "GAE in float64, rounded to FP32", H3),
    (
        "groups_from_the_back",
        "group_advantages",
        "ppo.advantages",
        "group statistics over the reversed samples",
        H2,
    ),
    (
        "policy_loss_from_the_back",
        "policy_loss",
        "ppo.losses",
        "the policy loss over reversed sequences",
        "",
    ),
    (
        "value_loss_from_the_back",
        "value_loss",
        "ppo.losses",
        "the value loss over reversed sequences",
        "",
    ),
    (
        "one_sequence_at_a_time",
        "trunk",
        "trajectories.teacher_forcing",
        "the trunk in micro-batches of one sequence",
        H3,
    ),
    (
        "head_summed_from_the_back",
        "predict_values",
        "models.value_head",
        "the value head over the reversed hidden dimension",
        H3,
    ),
    (
        "scores_two_bits_short",
        "score_tokens",
        "models.reward_model",
        "FP32 scores keep 22 of their 24 bits",
        H2,
    ),
)

HARMLESS = tuple(
    Fault(
        name=name,
        function=function,
        module=f"precision_lib.{module}",
        implementation="harmless",
        meaning=meaning,
        source="a refactoring, no fault",
        caught_by="",
        harmless=True,
        measured_in=measured_in,
    )
    for name, function, module, meaning, measured_in in _ROWS
)
