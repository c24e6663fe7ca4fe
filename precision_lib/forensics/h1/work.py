"""Tokens that H1 sends through the policy.

K policies: the identical one and one per target KL.
"""

from collections import Counter

from precision_lib.forensics.forwards import keeps_logits, model_formats
from precision_lib.forensics.work import (
    ALWAYS,
    DRAWN,
    SCORED,
    Pass,
    Planned,
    Tokens,
    placing,
    prompt_length,
)
from precision_lib.scoring.scorer import EXACT, GOLDEN


def work(planned: Planned) -> Tokens:
    """Drawing the responses, placing the policies, and every forward of cells and controls."""
    settings = planned.settings
    prompt = prompt_length(planned.pipeline, settings.num_prompts, settings.seed)
    policies, count = 1 + len(settings.target_kls), settings.num_prompts
    roles = {("policy", c.forward_format("policy")) for c in planned.configurations}
    roles |= {("reference", c.forward_format("reference")) for c in planned.configurations}
    first = roles | {(role, fmt) for role in ("policy", "reference") for fmt in ALWAYS}
    forwards = Counter[str]()
    for role, fmt in first:  # no configuration is held against the identical policy in float64
        of_policy = policies - 1 if fmt == EXACT else policies
        forwards[fmt] += of_policy if role == "policy" else 1
    forwards.update(fmt for _, fmt in roles)  # in another batch shape
    forwards.update(("bf16", "bf16"))  # the irrelevant control, again
    executed = {model_formats(c) for c in planned.configurations} - {(GOLDEN, GOLDEN)}
    if keeps_logits(planned.pipeline.policy.model, count * sum(settings.seq_lengths)):
        forwards[GOLDEN] += 1  # what theory predicts; the true KL takes no forward of its own
        forwards.update(policy for policy, _ in executed)  # executed KL
        forwards.subtract({policy for policy, _ in executed} - {GOLDEN})  # with the log-probs
    else:
        forwards[GOLDEN] += 2 * (policies - 1)  # true KL of all but the identical policy
        forwards[GOLDEN] += 2  # what theory predicts
        for pair in executed:
            forwards.update(pair)  # executed KL; that of FP32 is the true one
    tokens = placing(planned.pipeline, min(settings.seq_lengths), prompt, count, policies - 1)
    for response in settings.seq_lengths:
        length = prompt + response
        tokens[Pass(DRAWN, GOLDEN, length, count)] += count * (response - 1)
        tokens[Pass(SCORED, GOLDEN, prompt)] += count * prompt
        for fmt, number in forwards.items():
            tokens[Pass(SCORED, fmt, length)] += number * count * length
    return tokens
