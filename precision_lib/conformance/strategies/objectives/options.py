"""Inputs of functions with an optional argument: regions of the function, and the argument.

The hazard. An argument that is ignored, or used twice, changes nothing where it is 1 or 0, and a
denominator nothing where it is the number of tokens of the call.
"""

import hypothesis.strategies as st
import torch
from hypothesis.strategies import SearchStrategy

from precision_lib.conformance.strategies.advantages import GAE
from precision_lib.conformance.strategies.cases import Case, Region
from precision_lib.conformance.strategies.losses import POLICY_LOSS, VALUE_LOSS
from precision_lib.conformance.strategies.objectives.clipped import (
    CISPO_LOSS,
    DAPO_LOSS,
    GSPO_LOSS,
)
from precision_lib.conformance.strategies.softmax import TOKEN_LOGPROBS
from precision_lib.formats import Format

TEMPERATURES = (0.7, 1.0, 0.1, 1.3, 2.0)
DENOMINATORS = (7.0, 512.0, 1.0, 1000.0, 0.5)


def _with_choice(region: Region, name: str, options: tuple[float, ...], cost: float) -> Region:
    """The region's cases with one more argument."""

    def cases(fmt: Format) -> SearchStrategy[Case]:
        pairs = st.tuples(region.cases(fmt), st.sampled_from(options))
        return pairs.map(lambda p: Case(p[0].inputs | {name: p[1]}, f"{p[0].recipe} {name}={p[1]}"))

    return Region(region.meaning, cases, cost, region.formats)


def _with_bootstrap(region: Region, cost: float) -> Region:
    """The region's cases with a value of -4 to 4 behind every sequence."""

    def widened(drawn: tuple[Case, tuple[int, ...]]) -> Case:
        case, eighths = drawn
        rewards = case.inputs["rewards"]
        values = torch.tensor(eighths).repeat(len(rewards))[: len(rewards)] / 8
        return Case(case.inputs | {"bootstrap": values.to(rewards.dtype)}, case.recipe)

    def cases(fmt: Format) -> SearchStrategy[Case]:
        eighths = st.tuples(*[st.integers(-32, 32)] * 3)
        return st.tuples(region.cases(fmt), eighths).map(widened)

    return Region(region.meaning, cases, cost, region.formats)


def _divided(regions: dict[str, Region], *names: str) -> dict[str, Region]:
    return {name: _with_choice(regions[name], "denominator", DENOMINATORS, 0.3) for name in names}


WITH_OPTIONS = {
    "token_logprobs_with_temperature": {
        name: _with_choice(TOKEN_LOGPROBS[name], "temperature", TEMPERATURES, 0.5)
        for name in ("ordinary", "minus_inf", "confident")
    },
    "gae_with_bootstrap": {
        name: _with_bootstrap(GAE[name], 0.5) for name in ("ordinary", "ragged", "masked_nonfinite")
    },
    "policy_loss_with_denominator": _divided(POLICY_LOSS, "ordinary", "ragged"),
    "value_loss_with_denominator": _divided(VALUE_LOSS, "ordinary", "ragged"),
    "gspo_loss_with_denominator": _divided(GSPO_LOSS, "ordinary", "masked_nonfinite"),
    "cispo_loss_with_denominator": _divided(CISPO_LOSS, "ordinary"),
    "dapo_loss_with_denominator": _divided(DAPO_LOSS, "ordinary"),
}
