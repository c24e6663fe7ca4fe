"""Tokens that H5 sends through the policy."""

from collections import Counter
from dataclasses import replace

from precision_lib.forensics.causal import PURE
from precision_lib.forensics.h4.long_sequences import drawn_length
from precision_lib.forensics.h5.declaration import H5
from precision_lib.forensics.work import DRAWN, SCORED, Pass, Planned, Tokens
from precision_lib.matrix import ROLLOUT_FORMATS, TRAINER, get_configuration
from precision_lib.quantized import WEIGHTS
from precision_lib.scoring.scorer import GOLDEN


def work(planned: Planned) -> Tokens:
    """Drawing the sequences, every engine's decoding, and the trainer's forwards."""
    settings = planned.settings
    length, response = drawn_length(planned.pipeline.policy, settings)
    whole = length, settings.sequences
    few = length - response + min(settings.opening - 1, response), settings.checked
    asked = [*planned.configurations, PURE, get_configuration(H5.decision.demoted)]
    rollouts = {c.rollout_format for c in asked} - {TRAINER}
    each = {replace(c, rollout=f).rollout_format for c in asked for f in ROLLOUT_FORMATS}
    decoded = Counter[tuple[str, tuple[int, int]]]()
    decoded[GOLDEN, whole] += 1  # the draw
    decoded.update((fmt, whole) for fmt in rollouts | {GOLDEN})
    decoded.update((fmt, few) for fmt in each)
    decoded.update((fmt, few) for fmt in rollouts)  # in the other batch shape
    decoded[PURE.rollout_format, few] += 1  # the control that is run again
    tokens = Tokens()
    for (fmt, (width, rows)), times in decoded.items():
        held = "bf16" if fmt.partition("/")[0] in WEIGHTS else fmt.partition("/")[0]
        tokens[Pass(DRAWN, held, width, rows)] += times * rows * (width - 1)
    trainers = {c.forward_format("policy") for c in asked}
    forwards = Counter[tuple[str, tuple[int, int]]]()
    forwards.update((fmt, whole) for fmt in trainers | {GOLDEN})
    forwards[GOLDEN, whole] += 1  # how likely two tokens of a context are the same
    forwards.update({(fmt, few): 2 for fmt in trainers})  # again in the other batch shape
    forwards.update([(PURE.policy, whole), (GOLDEN, few)])  # the trainer beside itself
    forwards[PURE.policy, few] += 1  # the control that is run again
    for (fmt, (width, rows)), times in forwards.items():
        tokens[Pass(SCORED, fmt, width)] += times * rows * width
    return tokens
