"""Which configurations take the step, and the tokens that it sends through the policy."""

from collections.abc import Iterable

from precision_lib.forensics.work import BACKWARD, SCORED, TRAINED, Pass, Tokens
from precision_lib.matrix import COUNTERFACTUALS, PrecisionConfig
from precision_lib.scoring.scorer import GOLDEN

#: FP32 weights that are one rounding away, as a format of the policy.
TWIN = "fp32 one rounding away"
#: Hypotheses whose forwards it uses.
USED = ("H1", "H2")


def judged(configurations: Iterable[PrecisionConfig]) -> list[PrecisionConfig]:
    """The configurations that take the step: all but the counterfactuals."""
    return [c for c in configurations if c not in COUNTERFACTUALS]


def policy_of(configuration: PrecisionConfig) -> str:
    """Format of the policy's weights; what is FP32 throughout runs one rounding away."""
    fmt, c = configuration.forward_format("policy"), configuration
    whole = {fmt, c.forward_format("reference"), c.reward, c.value, c.kl} == {GOLDEN}
    return TWIN if whole else fmt


def work_of_step(configurations: Iterable[PrecisionConfig], sequences: int, length: int) -> Tokens:
    """At most: every format without and with a gradient, one backward pass for each loss.

    Args:
        length: of the longest sequence, tokens.
    """
    asked = judged(configurations)
    policies = {policy_of(c) for c in asked} | {GOLDEN}
    references = {c.forward_format("reference") for c in asked} | {GOLDEN}
    tokens, given = Tokens(), sequences * length
    for fmt in (*policies, *references):
        tokens[Pass(SCORED, _format(fmt), length)] += given
    for fmt in policies:
        losses = sum(policy_of(c) == fmt for c in asked) + (fmt != TWIN)
        tokens[Pass(TRAINED, _format(fmt), length)] += given
        tokens[Pass(BACKWARD, _format(fmt), length)] += (losses - 1) * given
    return tokens


def _format(fmt: str) -> str:
    return GOLDEN if fmt == TWIN else fmt.partition("/")[0]
