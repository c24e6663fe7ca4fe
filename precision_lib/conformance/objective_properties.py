"""What the functions of today's objectives have to keep, beside any split of a batch.

Masked slots may be taken out, doubled or moved; identical policies have a ratio of 1; chunks of
rows and shards of the vocabulary add up. ``split_properties.py`` has the split of a batch.

``mask[b, t]`` is True for a real token; B sequences, T tokens.
"""

import torch
from torch import Tensor

from precision_lib.conformance import splits
from precision_lib.conformance.calls import call, returned, upstream
from precision_lib.conformance.compare import compare
from precision_lib.conformance.failure import ConformanceFailure
from precision_lib.conformance.inputs import Arguments, Inputs
from precision_lib.conformance.properties import Function, Property
from precision_lib.conformance.split_properties import CUT_BY_SEQUENCE, SPLIT_PROPERTIES
from precision_lib.conformance.truth import truths

#: Those that leave every sequence in a row of its own.
_IN_PLACE = ("left_padding", "removed_masked_slots", "doubled_masked_slots")


def _masked_slots(name: str, function: Function, inputs: Inputs) -> int:
    """Masked slots taken out, doubled, or moved to the left: the value of every token stays.

    The order of a sum may change with them, so that each call is held to its own bound.
    """
    _within(name, function, inputs, "")
    compared = 0
    for kind in _IN_PLACE:
        cut, what = CUT_BY_SEQUENCE[kind]
        for filler in (torch.nan, 0.0):
            changed = splits.part_of(inputs, cut(inputs["mask"])[0], filler)
            compared += _within(name, function, changed, f"right as it is, wrong with {what}")
    return compared


def _within(name: str, function: Function, inputs: Inputs, note: str) -> int:
    """How many elements were compared; the failure gets the note."""
    got, compared = call(name, function, inputs), 0
    try:
        for part, truth in truths(name, inputs).items():
            compared += compare(name, got[part], truth, inputs)[0] if part in got else 0
    except ConformanceFailure as failure:
        failure.notes += [note] if note else []
        raise
    return compared


def _empty(name: str, function: Function, inputs: Inputs) -> int:
    """No real token at all: a loss of 0, weights of 0, ratios of 1, or a ValueError."""
    changed = inputs | {"mask": torch.zeros_like(inputs["mask"])}
    try:
        return _within(name, function, changed, "the mask is empty")
    except ConformanceFailure as failure:
        if isinstance(failure.__cause__, ValueError):
            return 1
        raise


def _weight_is_one(name: str, function: Function, inputs: Inputs) -> int:
    """Identical log-probs: every weight, and every ratio, is exactly 1; also where the cap is 1."""
    names = [k for k in inputs.tensors if k.endswith("logprobs")]
    same = torch.where(inputs["mask"], inputs[names[0]], 0)
    changed, compared = inputs | dict.fromkeys(names, same), 0
    caps: tuple[Arguments, ...] = ({"cap": 2.0}, {"cap": 1.0}) if "cap" in inputs else ({},)
    for given in (changed | cap for cap in caps):
        got = call(name, function, given)["result"].float()
        want = inputs["mask"].float() if got.dim() == 2 else torch.ones_like(got)
        if not torch.equal(got, want):
            what = "a weight" if got.dim() == 2 else "a ratio"
            raise ConformanceFailure(f"{name}: {what} of identical policies is not 1", given)
        compared += got.numel()
    return compared


def _chunks(name: str, function: Function, inputs: Inputs) -> int:
    """The gradients of the weight of two halves of the rows add up to that of all rows.

    Each is held to the bound of all rows and one rounding of each half.
    """
    wanted = truths(name, inputs)
    whole, total = wanted["gradient_of_weight"], torch.zeros(inputs["weight"].shape).double()
    weights = upstream(inputs["tokens"].shape)
    limit = whole.limit.clone()
    for keep in (0, 1):
        rows = (torch.arange(weights.numel()).view(weights.shape) % 2) == keep
        copies = inputs.copied()
        copies["weight"].requires_grad_(True)
        with torch.enable_grad():
            result = returned(name, function, copies, inputs)
        if not result.requires_grad:  # the finding of ``gradient_exists``
            return 1
        up = torch.where(rows, weights, 0).to(result)
        (slope,) = torch.autograd.grad(result, copies["weight"], up)
        total += slope.double()
        limit += whole.limit + torch.finfo(slope.dtype).eps * slope.double().abs()
    if not bool(((total - whole.want).abs() <= limit).all()):
        raise ConformanceFailure(
            f"{name}: the gradient of the weight from two halves of the rows is not that of all "
            "rows: a chunk overwrites another, or a row counts without its upstream gradient",
            inputs,
        )
    return total.numel()


def _vocabulary_shards(name: str, function: Function, inputs: Inputs) -> int:
    """log-sum-exp of two halves of the vocabulary, joined, is that of the whole.

    From a shard with a chosen entry k: its log-sum-exp is z_k minus the log-prob.
    """
    weight, hidden = inputs["weight"], inputs["hidden"].double()
    half = max(1, len(weight) // 2)
    z = hidden @ weight.double().T / inputs.number("temperature")
    sums, limit = [], torch.zeros(z.shape[:-1], dtype=torch.float64)
    for shard, first in ((weight[:half], 0), (weight[half:], half)):
        given = inputs | {"weight": shard, "tokens": torch.zeros_like(inputs["tokens"])}
        limit += truths(name, given)["result"].limit
        got = call(name, function, given)["result"].double()
        sums.append(z[..., first] - got)
    chosen = z.gather(-1, inputs["tokens"].unsqueeze(-1)).squeeze(-1)
    joined: Tensor = chosen - torch.logaddexp(*sums)
    want = truths(name, inputs)["result"].want
    if not bool(((joined - want).abs() <= limit + 1e-12 * (1 + want.abs())).all()):
        raise ConformanceFailure(
            f"{name}: two shards of the vocabulary do not add up to the whole: entries that fill "
            "up a block are counted, or a block is left out",
            inputs,
        )
    return joined.numel()


_WITH_MASK = {
    "masked_slots_do_not_matter": Property(
        "masked slots taken out, doubled or moved to the left change no value",
        _masked_slots,
        "masked_nonfinite",
    ),
    "empty_mask_is_no_nan": Property(
        "no real token at all: no NaN, or a ValueError", _empty, cost=0.2
    ),
}
_IDENTICAL = {
    "one_for_identical_policies": Property("identical log-probs: exactly 1", _weight_is_one)
}

OBJECTIVE_PROPERTIES: dict[str, dict[str, Property]] = SPLIT_PROPERTIES | {
    "aggregate": SPLIT_PROPERTIES["aggregate"] | _WITH_MASK,
    "importance_weights": _WITH_MASK | _IDENTICAL,
    "sequence_ratio": _WITH_MASK | _IDENTICAL,
    **dict.fromkeys(("gspo_loss", "cispo_loss", "dapo_loss"), _WITH_MASK),
    "linear_token_logprobs": {
        "chunks_of_rows_add_up": Property("the gradient of the weight is a sum over rows", _chunks),
        "vocabulary_shards_add_up": Property(
            "two shards of the vocabulary, joined, are the whole",
            _vocabulary_shards,
            "far_below_zero",
        ),
    },
}
