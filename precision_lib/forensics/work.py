"""Tokens that a hypothesis sends through which model, in which format: before anything is run.

``tests/unit/phases/test_estimate.py`` compares them with the tokens that hooks see, so a study that
computes more or fewer forwards than its folder says is known.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from precision_lib.forensics.policy_shift import STEPS
from precision_lib.matrix import PrecisionConfig
from precision_lib.models.embedded import load_held_out_sample
from precision_lib.models.pipeline import Pipeline
from precision_lib.scoring.scorer import EXACT, GOLDEN
from precision_lib.trajectories.prompts import encode, encoded_prompts, prompt_order

#: What a token goes through: the policy one by one with a KV cache, the policy with its sequence,
#: the policy with a backward pass, the reward model; one more backward pass, which no hook sees.
DRAWN, SCORED, TRAINED, REWARDED = "drawn", "scored", "trained", "rewarded"
BACKWARD = "backward"
#: Formats that every hypothesis runs besides those of the configurations.
ALWAYS = {GOLDEN, EXACT}


class Pass(NamedTuple):
    """A kind of forward: what it is, the format of the model, tokens of a sequence.

    ``rows``: sequences that a token is drawn for at once; 0 of other kinds, which are cut anywhere.
    """

    kind: str
    fmt: str
    length: int
    rows: int = 0


Tokens = Counter[Pass]


@dataclass(frozen=True)
class Planned:
    """What a hypothesis will be measured on.

    Attributes:
        settings: of the hypothesis.
        frozen, length: sequences of the frozen trajectories, and tokens of each.
        group: sequences of one prompt.
    """

    pipeline: Pipeline
    configurations: Sequence[PrecisionConfig]
    settings: Any
    frozen: int
    length: int
    group: int


def on_trajectories(planned: Planned, kind: str, component: str, runs: int) -> Tokens:
    """Forwards of one component over the frozen sequences.

    Each format once, those of the configurations ``runs`` times more; and two forwards that the
    controls run again, in FP32 and in bf16.
    """
    formats = {c.components[component] for c in planned.configurations}
    forwards = Counter(dict.fromkeys(formats | ALWAYS, 1))
    for fmt in formats:
        forwards[fmt] += runs
    forwards.update((GOLDEN, "bf16"))
    tokens = planned.frozen * planned.length
    return Tokens({Pass(kind, fmt, planned.length): n * tokens for fmt, n in forwards.items()})


def prompt_length(pipeline: Pipeline, count: int, seed: int) -> int:
    """Tokens of the longest of the first ``count`` prompts."""
    prompts = encoded_prompts(pipeline.policy, prompt_order(pipeline.policy, count, seed))
    return max(map(len, prompts))


def placing(pipeline: Pipeline, response: int, prompt: int, count: int, targets: int) -> Tokens:
    """The direction of the policy, and its distance, which is solved for on short responses.

    One forward of the reference, and of the policy one and two for each target.
    """
    texts = [encode(pipeline.policy, text)[:128] for text in load_held_out_sample()]
    width = max(map(len, texts))
    solving = (1 + 1 + 2 * targets) * count * (prompt + response)
    return Tokens(
        {
            Pass(TRAINED, GOLDEN, width): STEPS * 8 * width,
            Pass(SCORED, GOLDEN, prompt + response): solving,
        }
    )
