"""Log-probs of pairs for dpo_loss, and two models' logits for jsd.

The hazard. log(sigmoid(x)) is exact until exp(-x) overflows or underflows. A divergence of two
models that nearly agree is a small difference of large terms, and one of two models that exclude
different entries meets 0 * -inf.

B pairs, V vocabulary.
"""

from typing import Literal

import numpy as np

from precision_lib.conformance.inputs import Arguments
from precision_lib.conformance.strategies.primitives import Build, Draws, Vector, region

BETAS = (0.1, 0.5, 0.01, 1.0)
SHARES = (0.5, 0.1, 0.9, 0.25)
VOCABULARIES = (2, 3, 5, 17, 50)
_NAMES = ("policy_chosen", "policy_rejected", "ref_chosen", "ref_rejected")
Pairs = Literal["near", "far", "same"]
Logits = Literal["ordinary", "near", "excluded", "apart"]


def _pairs(kind: Pairs, sizes: tuple[int, ...]) -> Build:
    """Sums over responses of 1 to 1,000 nats; policies near their reference, or far."""

    def inputs(draws: Draws) -> Arguments:
        beta, count = draws.choice("beta", BETAS), draws.choice("B", sizes)
        depth = 2.0 ** draws.integer("log2_depth", 0, 9)
        chosen, rejected = (-depth * (1 + np.abs(draws.units(n, count, 4)) / 4) for n in "cr")
        move = {"near": 2.0, "far": 2.0 ** draws.integer("log2_move", 4, 9), "same": 0.0}[kind]
        moves = move * draws.units("moves", 2 * count, 4).reshape(2, count)
        vectors = (chosen + moves[0], rejected + moves[1], chosen, rejected)
        made: Arguments = {name: draws.tensor(x) for name, x in zip(_NAMES, vectors, strict=True)}
        return made | {"beta": beta}

    return inputs


DPO_LOSS = {
    "ordinary": region("responses of 1 to 1,000 nats, margins of a few", _pairs("near", (1, 2, 5))),
    "identical": region(
        "the policy is the reference: every margin is 0", _pairs("same", (1, 2, 5)), cost=0.4
    ),
    "far": region(
        "margins of 16 to 1,000 either way: exp of them overflows, the loss is the margin or 0",
        _pairs("far", (1, 2, 5)),
    ),
    "as_trained": region("64 pairs", _pairs("near", (64,)), cost=0.2),
}


def _excluded(draws: Draws, x: Vector) -> Vector:
    """``x`` [N, V] with -inf at every second or third place, never at all of a row."""
    step, first = draws.integer("every", 2, 3), draws.integer("first", 0, 1)
    x = x.copy()
    x[:, first::step] = -np.inf
    return x


def _logits(kind: Logits, vocabularies: tuple[int, ...]) -> Build:
    def inputs(draws: Draws) -> Arguments:
        beta, size = draws.choice("beta", SHARES), draws.choice("V", vocabularies)
        (sequences, tokens) = draws.shape(3)
        shape = sequences * tokens, size
        student = draws.units("student", shape[0] * size, 16).reshape(shape)
        other = draws.units("teacher", shape[0] * size, 16).reshape(shape)
        scale = 2.0 ** draws.integer("log2_scale", -1, 3)
        if kind == "near":
            teacher = scale * student + 2.0 ** -draws.integer("halvings", 3, 12) * other
        else:
            teacher = scale * other
        student = scale * student
        if kind == "apart":
            student[:, 0] += 30.0
            teacher[:, -1] += 30.0
        if kind == "excluded":
            student, teacher = _excluded(draws, student), _excluded(draws, teacher)
        full = sequences, tokens, size
        return {
            "student_logits": draws.tensor(student).view(full),
            "teacher_logits": draws.tensor(teacher).view(full),
            "beta": beta,
        }

    return inputs


JSD = {
    "ordinary": region("logits of size 1/2 to 8, every share", _logits("ordinary", VOCABULARIES)),
    "near_identical": region(
        "models that differ by 2^-12 to 1/8 nats", _logits("near", VOCABULARIES)
    ),
    "minus_inf": region(
        "entries of probability 0 in one model or in both", _logits("excluded", (3, 5, 17, 50))
    ),
    "apart": region(
        "each model is sure of another entry: a probability underflows", _logits("apart", (2, 17))
    ),
    "as_trained": region("2,050 entries", _logits("ordinary", (2050,)), cost=0.12),
}
