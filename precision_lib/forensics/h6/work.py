"""Tokens that H6 sends through the policy."""

from precision_lib.forensics.h6.declaration import H6
from precision_lib.forensics.h6.updates import H6Settings
from precision_lib.forensics.h6.walk import STORED
from precision_lib.forensics.work import SCORED, TRAINED, Pass, Planned, Tokens
from precision_lib.matrix import get_configuration
from precision_lib.scoring.scorer import GOLDEN

#: Every change is read in two batch shapes.
_SHAPES = 2


def work(planned: Planned) -> Tokens:
    """Walks with gradients in every policy format; the beginning of one twice more."""
    settings: H6Settings = planned.settings
    pure, demoted = (get_configuration(n) for n in (H6.decision.pure, H6.decision.demoted))
    policies = {c.policy for c in (*planned.configurations, pure, demoted)} | {GOLDEN}
    length = planned.length
    compared = min(settings.prompts, planned.frozen // planned.group) * length
    learned = settings.sequences * length
    tokens = Tokens()
    for policy in policies:
        tokens[Pass(TRAINED, policy, length)] += settings.steps * learned
    tokens[Pass(TRAINED, pure.policy, length)] += 2 * settings.repeated * learned
    starts, ends = len(STORED), len(policies) * (1 + len(STORED))
    beginnings = 2 * (1 + 1)  # masters and stored weights, each walk once
    tokens[Pass(SCORED, GOLDEN, length)] += (_SHAPES * (starts + ends) + beginnings) * compared
    return tokens
