"""What a comparison of two sides says: findings by tensor, and the whole."""

from dataclasses import dataclass, field

from precision_lib.jsonio import JsonObject

#: Kind of a finding -> what it means. The order is the report's.
KINDS = {
    "undelivered": "the trainer has it, the engine does not",
    "stale": "the engine holds an earlier step's values",
    "swapped": "the engine holds another tensor's values here",
    "duplicated": "the engine holds a copy of values that belong elsewhere",
    "cast": "the values went through a format that the contract does not allow here",
    "transposed": "rows and columns are exchanged",
    "scaled": "all values are multiplied by a factor",
    "zero": "values are 0 that are not 0 at the trainer",
    "non-finite": "NaN or infinity where the trainer has a number",
    "missing": "a part is missing that the tensor needs: rows, or a scale",
    "quantised wrongly": "codes or scales are not those of the recipe",
    "different": "other values, and no reason was found",
    "extra": "the engine has it, the trainer does not",
    "moved": "it moved in a step that should move nothing",
    "unmoved": "it did not move in a step that should move it",
}


@dataclass(frozen=True)
class Finding:
    """One tensor that did not arrive as the contract says.

    Attributes:
        kind: a key of :data:`KINDS`.
        tensor: its name without wrappers.
        detail: the evidence, one sentence.
        exact: False where statistics alone say it.
        trainer, engine: stored names, with the rows of a fused tensor; "" on a side without it.
    """

    kind: str
    tensor: str
    detail: str
    exact: bool = True
    trainer: str = ""
    engine: str = ""


@dataclass(frozen=True)
class Moved:
    """One step of a series: names of its two ends, tensor -> share of changed 16-bit codes."""

    since: str
    to: str
    shares: dict[str, float]


@dataclass
class Outcome:
    """All that two sides told about each other.

    Attributes:
        findings: one per tensor.
        equal: how tensors were equal ("bitwise", "cast to bf16", ...) -> how many.
        unread: name -> why nothing can be said about it.
        ignored: names that one side may have alone.
        must_stay: name -> formats at trainer and engine, of what must stay FP32.
        notes: sentences about the whole.
        elements: how many were compared.
        moved: the trainer's steps since the older weights, the earliest first.
    """

    findings: list[Finding] = field(default_factory=list)
    equal: dict[str, int] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    must_stay: dict[str, tuple[str, str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    elements: int = 0
    moved: list[Moved] = field(default_factory=list)

    @property
    def compared(self) -> int:
        """Tensors about which something was said."""
        return sum(self.equal.values()) + len(self.findings)

    @property
    def verdict(self) -> str:
        """``equal``, ``different``, or ``cannot say`` where not all is known."""
        if self.findings:
            return "different"
        return "cannot say" if self.unread or not self.equal else "equal"

    def count(self, way: str) -> None:
        """Count a tensor as equal in this way."""
        self.equal[way] = self.equal.get(way, 0) + 1


@dataclass(frozen=True)
class Contract:
    """What the two sides agreed on, beyond equality.

    Attributes:
        keep_fp32: groups of ``contract.toml`` that must stay FP32 besides those always listed.
        quantised_from: "master", "bf16", or "either" of them for all tensors alike.
        lora_scale: factor of B A; None takes alpha / r of the adapter's configuration.
    """

    keep_fp32: tuple[str, ...] = ()
    quantised_from: str = "either"
    lora_scale: float | None = None


def as_json(outcome: Outcome) -> JsonObject:
    """The object that ``--json`` writes."""
    keys = ("kind", "tensor", "detail", "exact", "trainer", "engine")
    return {
        "schema": "precision-forensics/weights-comparison/1",
        "verdict": outcome.verdict,
        "findings": [{key: getattr(f, key) for key in keys} for f in outcome.findings],
        "compared": {"tensors": outcome.compared, "elements": outcome.elements},
        "equal": outcome.equal,
        "cannot_say": outcome.unread,
        "ignored": outcome.ignored,
        "must_stay_fp32": {
            name: {"wanted": "fp32", "trainer": trainer, "engine": engine}
            for name, (trainer, engine) in outcome.must_stay.items()
        },
        "changed_codes": outcome.moved[-1].shares if outcome.moved else {},
        "changed_codes_by_step": [vars(moved) for moved in outcome.moved],
        "notes": outcome.notes,
    }
