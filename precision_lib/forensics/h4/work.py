"""Tokens that H4 sends through the policy."""

from collections import Counter

from precision_lib.forensics.forwards import keeps_logits
from precision_lib.forensics.h4.long_sequences import PLACING_TOKENS, drawn_length, row_length
from precision_lib.forensics.work import ALWAYS, DRAWN, SCORED, Pass, Planned, Tokens, placing
from precision_lib.models.embedded import load_held_out_sample
from precision_lib.scoring.scorer import GOLDEN
from precision_lib.trajectories.prompts import encode


def work(planned: Planned) -> Tokens:
    """Drawing the sequences, placing the policy, and every forward of cells and controls."""
    settings = planned.settings
    length, response = drawn_length(planned.pipeline.policy, settings)
    short = min(PLACING_TOKENS, response)
    tokens = placing(planned.pipeline, short, 1, settings.sequences, 1)
    for drawn, count in ((short, short), (length, length - 1)):
        tokens[Pass(DRAWN, GOLDEN, drawn, settings.sequences)] += settings.sequences * count
    policies = {c.forward_format("policy") for c in planned.configurations}
    rows = Counter[str]()
    for formats in (policies, {c.forward_format("reference") for c in planned.configurations}):
        for fmt in formats | ALWAYS:
            rows[fmt] += settings.sequences
        for fmt in formats:
            rows[fmt] += 2 * settings.checked  # identical weights; another batch shape
    # The control that is run again, with what it is measured against; the true KL.
    keeps = keeps_logits(planned.pipeline.policy.model, settings.checked * response)
    rows.update({"bf16": 3 * settings.checked, GOLDEN: (1 if keeps else 3) * settings.checked})
    text = Counter[str]()
    for fmt in policies - {GOLDEN}:
        rows.update({fmt: settings.expected, GOLDEN: settings.expected})
        text.update({fmt: settings.text_windows, GOLDEN: settings.text_windows})
    encoded = sum(len(encode(planned.pipeline.policy, text)) for text in load_held_out_sample())
    width = min(row_length(planned.pipeline.policy, settings), encoded // settings.text_windows)
    for kind, number in ((length, rows), (width, text)):
        for fmt, count in number.items():
            tokens[Pass(SCORED, fmt, kind)] += count * kind
    return tokens
