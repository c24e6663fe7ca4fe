"""What else is right or wrong about a failing input: the change after which it passes.

The hazard. The sentence of a region tells what is hard there, and the fault may be another one:
finite padding that overflows fails in every region with a mask. So the input that failed is called
again, once for each of a few changes, and what makes it pass is said.
"""

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from precision_lib.conformance.calls import call
from precision_lib.conformance.compare import compare
from precision_lib.conformance.contract import CONTRACTS
from precision_lib.conformance.failure import ConformanceFailure
from precision_lib.conformance.inputs import Inputs
from precision_lib.conformance.sameness import by_sequence
from precision_lib.conformance.truth import truths

#: Larger inputs are not called again: a diagnosis may cost a second, and not a minute.
LARGEST_INPUT = 20_000
#: Tokens of a scalar loss that are asked one by one.
MOST_TOKENS = 24

Function = Callable[..., Any]


def place_of(function: Function) -> str:
    """``file.py:12``, where the function is defined; "" where Python does not know."""
    try:
        code = inspect.unwrap(function).__code__
    except AttributeError:
        return ""
    return f"{Path(code.co_filename).name}:{code.co_firstlineno}"


def diagnosis(name: str, function: Function, inputs: Inputs) -> list[str]:
    """Sentences about an input on which the function's values are wrong; none where it is large."""
    sizes = [x.numel() for x in inputs.tensors.values()]
    if not sizes or max(sizes) > LARGEST_INPUT or _passes(name, function, inputs):
        return []
    lines = [sentence for sentence, changed in _changes(inputs) if _passes(name, function, changed)]
    if name in CONTRACTS and not CONTRACTS[name].like and "mask" in inputs:
        lines += _token_by_token(name, function, inputs)
    return lines


def _changes(inputs: Inputs) -> Iterator[tuple[str, Inputs]]:
    """(what it means if this passes, the changed inputs)."""
    floats, mask = inputs.floating(), inputs.mask
    if mask is not None and not bool(mask.all()):
        zeros = {k: x.masked_fill(~mask, 0) for k, x in floats.items() if x.shape == mask.shape}
        held = sorted({str(float(inputs[k][~mask][0])) for k in zeros})
        what = f"right with 0 in the padded slots: fails only with {', '.join(held)} there"
        yield what, inputs | zeros
    if any(x.dtype != torch.float32 for x in floats.values()):
        wide = {k: x.float() for k, x in floats.items()}
        what = "right with the same values in float32: fails only in 16-bit input"
        yield what, inputs | wide
    rows = by_sequence(inputs, lambda x: x.repeat_interleave(11, 0))
    what = "right with each sequence eleven times, a shape that was not called before: the result "
    yield what + "depends on earlier calls, or on the size of the batch", rows


def _passes(name: str, function: Function, inputs: Inputs) -> bool:
    try:
        got = call(name, function, inputs)
        for part, truth in truths(name, inputs).items():
            if part in got:
                compare(name, got[part], truth, inputs)
    except ConformanceFailure:
        return False
    return True


def _token_by_token(name: str, function: Function, inputs: Inputs) -> list[str]:
    """The first real token for which the result is wrong when it is the only one."""
    places = [tuple(place) for place in inputs["mask"].nonzero().tolist()[:MOST_TOKENS]]
    if len(places) < 2:
        return []
    for place in places:
        mask = torch.zeros_like(inputs["mask"])
        mask[place] = True
        wrong = _alone(name, function, inputs | {"mask": mask})
        if wrong:
            shown = ", ".join(f"{k} {v:.9g}" for k, v in _values_at(inputs, place).items())
            return [f"token {list(place)} alone is wrong: {wrong} ({shown})"]
    return ["the result is right for each token alone: look at the sum, the count, the gradient"]


def _values_at(inputs: Inputs, place: tuple[int, ...]) -> dict[str, float]:
    """Name to value of every floating-point input at one token."""
    shape = inputs["mask"].shape
    return {k: float(x[place]) for k, x in inputs.floating().items() if x.shape == shape}


def _alone(name: str, function: Function, inputs: Inputs) -> str:
    """What is wrong with the result; "" where it is right."""
    truth = truths(name, inputs)["result"]
    try:
        got = call(name, function, inputs)["result"]
        compare(name, got, truth, inputs)
    except ConformanceFailure as failure:
        if "values of the result" not in str(failure.args[0]):
            return str(failure.args[0]).splitlines()[0]
        return f"got {float(got):.9g}, want {float(truth.want):.9g}"
    return ""
