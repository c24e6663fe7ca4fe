"""How many tokens the main job sends through which model, in which format: before anything is run.

``tests/unit/phases/test_estimate.py`` compares it with the tokens that hooks see, so a study that
computes more or fewer forwards than stands here is known.

K policies (the identical one and one per target KL), S response tokens with their prompts, of all
responses of H1.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from precision_lib.forensics.budget import Budget
from precision_lib.forensics.forwards import EXACT, GOLDEN
from precision_lib.forensics.h4.long_sequences import PLACING_TOKENS, row_length
from precision_lib.forensics.policy_shift import STEPS
from precision_lib.matrix import PrecisionConfig
from precision_lib.models.embedded import load_held_out_sample
from precision_lib.models.pipeline import Pipeline
from precision_lib.trajectories.prompts import encode, encoded_prompts, prompt_order

#: What a token goes through: the policy one by one with a KV cache, the policy with its sequence,
#: the policy with a backward pass, the reward model.
DRAWN, SCORED, TRAINED, REWARDED = "drawn", "scored", "trained", "rewarded"
FREEZE = "freeze"
_ALWAYS = {GOLDEN, EXACT}


class Pass(NamedTuple):
    """A kind of forward: what it is, the format of the model, tokens of a sequence.

    ``rows``: sequences that a token is drawn for at once; 0 of other kinds, which are cut anywhere.
    """

    kind: str
    fmt: str
    length: int
    rows: int = 0


Tokens = Counter[Pass]


def planned_work(
    pipeline: Pipeline,
    budget: Budget,
    configurations: Sequence[PrecisionConfig],
    frozen_length: int | None = None,
) -> dict[str, Tokens]:
    """Tokens of each stage, ``freeze`` and ``H1`` to ``H4``, by kind of forward.

    Args:
        frozen_length: tokens of the longest frozen sequence of each batch; by default none ends
            before ``max_new_tokens``, the most that it can be.
    """
    freeze = budget.freeze
    groups = freeze.num_batches * freeze.batch_size // freeze.samples_per_prompt
    prompt = _prompt_length(pipeline, groups, freeze.seed)
    length = frozen_length or prompt + freeze.max_new_tokens
    frozen = freeze.num_batches * freeze.batch_size
    return {
        FREEZE: _freeze(pipeline, budget, prompt, length),
        "H1": _h1(pipeline, budget, configurations),
        "H2": _h2(frozen, length, configurations),
        "H3": _h3(frozen, length, configurations),
        "H4": _h4(pipeline, budget, configurations),
    }


def _prompt_length(pipeline: Pipeline, count: int, seed: int) -> int:
    prompts = encoded_prompts(pipeline.policy, prompt_order(pipeline.policy, count, seed))
    return max(map(len, prompts))


def _freeze(pipeline: Pipeline, budget: Budget, prompt: int, length: int) -> Tokens:
    count = budget.freeze.num_batches * budget.freeze.batch_size
    references = 1 if pipeline.reference.model is pipeline.policy.model else 2
    tokens = Tokens(
        {
            Pass(DRAWN, GOLDEN, length, budget.freeze.batch_size): count
            * (budget.freeze.max_new_tokens - 1),
            Pass(SCORED, GOLDEN, prompt): count * prompt,
        }
    )
    tokens[Pass(SCORED, GOLDEN, length)] += count * length * references
    tokens[Pass(REWARDED, GOLDEN, length)] += count * length
    if pipeline.value_head is None:  # fitted on the first batch
        first = budget.freeze.batch_size * length
        tokens[Pass(SCORED, GOLDEN, length)] += first
        tokens[Pass(REWARDED, GOLDEN, length)] += first
    return tokens


def _h1(pipeline: Pipeline, budget: Budget, configurations: Sequence[PrecisionConfig]) -> Tokens:
    settings = budget.probe
    prompt = _prompt_length(pipeline, settings.num_prompts, settings.seed)
    policies, count = 1 + len(settings.target_kls), settings.num_prompts
    roles = {("policy", c.policy) for c in configurations}
    roles |= {("reference", c.reference) for c in configurations}
    first = roles | {(role, fmt) for role in ("policy", "reference") for fmt in _ALWAYS}
    forwards = Counter[str]()
    for role, fmt in first:  # no configuration is held against the identical policy in float64
        of_policy = policies - 1 if fmt == EXACT else policies
        forwards[fmt] += of_policy if role == "policy" else 1
    forwards.update(fmt for _, fmt in roles)  # in another batch shape
    forwards.update(("bf16", "bf16"))  # the irrelevant control, again
    forwards[GOLDEN] += 2 * (policies - 1)  # true KL of all but the identical policy
    forwards[GOLDEN] += 2  # what theory predicts
    for pair in {(c.policy, c.reference) for c in configurations}:
        forwards.update(pair)  # executed KL
    tokens = _placing(pipeline, min(settings.seq_lengths), prompt, count, policies - 1)
    for response in settings.seq_lengths:
        length = prompt + response
        tokens[Pass(DRAWN, GOLDEN, length, count)] += count * (response - 1)
        tokens[Pass(SCORED, GOLDEN, prompt)] += count * prompt
        for fmt, number in forwards.items():
            tokens[Pass(SCORED, fmt, length)] += number * count * length
    return tokens


def _placing(pipeline: Pipeline, response: int, prompt: int, count: int, targets: int) -> Tokens:
    """The direction of the policy, and its distance, which is solved for on short responses."""
    texts = [encode(pipeline.policy, text)[:128] for text in load_held_out_sample()]
    width = max(map(len, texts))
    solving = 2 * (1 + 2 * targets) * count * (prompt + response)
    return Tokens(
        {
            Pass(TRAINED, GOLDEN, width): STEPS * 8 * width,
            Pass(SCORED, GOLDEN, prompt + response): solving,
        }
    )


def _h2(count: int, length: int, configurations: Sequence[PrecisionConfig]) -> Tokens:
    formats = {c.reward for c in configurations}
    forwards = Counter(dict.fromkeys(formats | _ALWAYS, 1))
    for fmt in formats:
        forwards[fmt] += 2  # in another batch shape; with a wide head
    forwards.update((GOLDEN, "bf16"))  # again: the FP32 replay, the irrelevant control
    return Tokens({Pass(REWARDED, f, length): n * count * length for f, n in forwards.items()})


def _h3(count: int, length: int, configurations: Sequence[PrecisionConfig]) -> Tokens:
    formats = {c.policy for c in configurations}
    forwards = Counter(dict.fromkeys(formats | _ALWAYS, 1))
    forwards.update(formats)  # in another batch shape
    forwards.update((GOLDEN, "bf16"))  # again: golden head, irrelevant control
    return Tokens({Pass(SCORED, f, length): n * count * length for f, n in forwards.items()})


def _h4(pipeline: Pipeline, budget: Budget, configurations: Sequence[PrecisionConfig]) -> Tokens:
    settings = budget.h4
    length = row_length(pipeline.policy, settings)
    placing = min(PLACING_TOKENS, length - 1)
    tokens = _placing(pipeline, placing, 1, settings.sequences, 1)
    for drawn, count in ((placing, placing), (length, length - 1)):
        tokens[Pass(DRAWN, GOLDEN, drawn, settings.sequences)] += settings.sequences * count
    policies = {c.policy for c in configurations}
    rows = Counter[str]()
    for formats in (policies, {c.reference for c in configurations}):
        for fmt in formats | _ALWAYS:
            rows[fmt] += settings.sequences
        for fmt in formats:
            rows[fmt] += 2 * settings.checked  # identical weights; another batch shape
    # The control that is run again, with what it is measured against; the true KL.
    rows.update({"bf16": 3 * settings.checked, GOLDEN: 3 * settings.checked})
    text = Counter[str]()
    for fmt in policies - {GOLDEN}:
        rows.update({fmt: settings.expected, GOLDEN: settings.expected})
        text.update({fmt: settings.text_windows, GOLDEN: settings.text_windows})
    encoded = sum(len(encode(pipeline.policy, text)) for text in load_held_out_sample())
    width = min(length, encoded // settings.text_windows)
    for kind, number in ((length, rows), (width, text)):
        for fmt, count in number.items():
            tokens[Pass(SCORED, fmt, kind)] += count * kind
    return tokens
