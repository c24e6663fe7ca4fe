"""A few optimizer steps from the frozen checkpoint, and what they changed in stored weights.

The hazard. A change of 1e-3 nats cannot be seen through the rounding of a bf16 forward, which moves
log-probs by 1e-2. So the gradient is computed in the policy's format, and the change is read with
an FP32 forward of what is stored.

N sequences that are compared, L tokens of the longest, P parameters.
"""

import zlib
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from precision_lib.forensics.h6.updates import (
    Batch,
    H6Settings,
    Steps,
    Stored,
    apply_step,
    minibatch,
    open_stored,
    take_step,
)
from precision_lib.formats import get_format
from precision_lib.metrics.absorption import CopyCounts, Counts, copy_counts, stored_counts
from precision_lib.models.placement import computes_on_cpu
from precision_lib.runtime import deterministic
from precision_lib.scoring.forced import forced
from precision_lib.scoring.forward import formats_of, formats_of_model, rows_per_forward
from precision_lib.scoring.micro import FIRST, REBATCHED, batches_of_run
from precision_lib.scoring.scorer import GOLDEN

#: Formats of the weights whose laws are tested: every one that a master can have.
STORED = ("fp32", "bf16", "fp16")
#: Learning rates at which the first step is tried on stored weights.
LEARNING_RATES = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3)


@dataclass
class Tally:
    """What the steps did to the weights; counts over all steps unless they say otherwise.

    Attributes:
        policy: format of the copy that computes.
        settings: of the steps; None: nothing but the moved weights is counted.
        number: of the step that is taken.
        weights: master format to steps times weights that were looked at.
        moved: master format to weights whose copy in the policy's format changed.
        masters_moved: master format to stored weights that changed.
        laws: master format to its laws, in the last step.
        copies: 16-bit format to law 3 of copies of the FP32 masters, in the first step.
        first_step: 16-bit format to learning rate to the number of weights that move, if the first
            step is scaled to that rate.
    """

    policy: str
    settings: H6Settings | None
    number: int = 0
    weights: Counter[str] = field(default_factory=Counter)
    moved: Counter[str] = field(default_factory=Counter)
    masters_moved: Counter[str] = field(default_factory=Counter)
    laws: dict[str, Counts] = field(default_factory=dict)
    copies: dict[str, CopyCounts] = field(default_factory=dict)
    first_step: dict[str, dict[float, int]] = field(default_factory=dict)

    def see(self, fmt: str, old: Tensor, new: Tensor, step: Tensor) -> None:
        """One parameter in one step, as :data:`Seen` says."""
        low = get_format(self.policy).dtype
        self.weights[fmt] += old.numel()
        self.moved[fmt] += int((new.to(low) != old.to(low)).sum())
        self.masters_moved[fmt] += int((new != old).sum())
        if self.settings and self.number == self.settings.steps - 1:
            self.laws[fmt] = self.laws.get(fmt, Counts()) + stored_counts(old, new, step)
        if self.settings and self.number == 0:
            self._see_first(fmt, old, new, step, self.settings.learning_rate)

    def _see_first(
        self, fmt: str, old: Tensor, new: Tensor, step: Tensor, learning_rate: float
    ) -> None:
        if fmt == GOLDEN:
            for narrow in STORED[1:]:
                counts = copy_counts(old, new, step, get_format(narrow))
                self.copies[narrow] = self.copies.get(narrow, CopyCounts()) + counts
            return
        moving = self.first_step.setdefault(fmt, dict.fromkeys(LEARNING_RATES, 0))
        for rate in moving:
            scaled = apply_step(old, step * (rate / learning_rate))
            moving[rate] += int((scaled != old).sum())


@dataclass(frozen=True)
class Walked:
    """What a walk gave.

    Attributes:
        changes: (master format, run) to [N, L-1] float64, the change of each log-prob of the stored
            weights, nats; 0 where masked. ``None`` stands for the FP32 masters themselves.
        tally: what the steps did to the weights.
        skipped: steps that were left out because the gradient was not finite.
        policy: format of the model that gave the gradients, as observed.
        stored: master format to the format of the stored weights, as observed.
    """

    changes: dict[tuple[str | None, str], Tensor]
    tally: Tally
    skipped: int
    policy: str
    stored: dict[str, str]


@dataclass
class Walker:
    """Walks from one checkpoint; each walk is made once.

    Attributes:
        original: FP32 causal LM, unchanged.
        batch: the groups, one after the other, on the CPU; size: sequences of each.
    """

    original: Any
    batch: Batch
    size: int
    settings: H6Settings
    _walks: dict[tuple[str, tuple[str, ...], str], Walked] = field(default_factory=dict)
    _starts: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        groups = len(self.batch.tokens) // self.size
        self.compared = self.batch.rows(torch.arange(groups) * self.size)

    def at(self, learning_rate: float) -> "Walker":
        """Another walker from the same checkpoint; what was computed of the checkpoint is kept."""
        settings = replace(self.settings, learning_rate=learning_rate)
        return Walker(self.original, self.batch, self.size, settings, _starts=self._starts)

    def whole(self, policy: str) -> Walked:
        """All steps with gradients in ``policy``, evaluated in two batch shapes."""
        return self._once(policy, STORED, FIRST)

    def beginning(self, policy: str, master: str, run: str) -> Walked:
        """The first steps alone, taken once more for every ``run``."""
        return self._once(policy, (master,), f"beginning {run}")

    def _once(self, policy: str, formats: tuple[str, ...], run: str) -> Walked:
        key = (policy, formats, run)
        if key not in self._walks:
            native = policy == GOLDEN or not computes_on_cpu(self.original)
            with deterministic(zlib.crc32(repr(key).encode()), native_products=native):
                self._walks[key] = self._walked(policy, formats, whole=run == FIRST)
        return self._walks[key]

    def _walked(self, policy: str, formats: tuple[str, ...], *, whole: bool) -> Walked:
        settings = self.settings
        steps = settings.steps if whole else settings.repeated
        shapes = (FIRST, REBATCHED) if whole else (FIRST,)
        stored = open_stored(self.original, formats)
        starts = {fmt: self._at_the_start(stored, fmt) for fmt in (GOLDEN, *formats)}
        optimizer = Steps(list(self.original.parameters()), settings.learning_rate)
        tally, skipped = Tally(policy, settings if whole else None), 0
        groups = len(self.batch.tokens) // self.size
        for tally.number in range(steps):
            rows = minibatch(tally.number, groups, self.size, settings.sequences)
            batch = self.batch.rows(rows).to(self.original.device)
            skipped += not take_step(stored, policy, batch, optimizer, tally.see)
        seen = formats_of_model(stored.working)
        changes = {}
        for fmt in (None, *formats):
            model = stored.show(fmt)
            for shape in shapes:
                start = starts[fmt or GOLDEN][shape].double()
                changes[fmt, shape] = self._logprobs(model, shape).double() - start
        weights = {fmt: formats_of(of_format) for fmt, of_format in stored.weights.items()}
        return Walked(changes, tally, skipped, seen, weights)

    def _at_the_start(self, stored: Stored, fmt: str) -> dict[str, Tensor]:
        """Log-probs of the checkpoint stored in ``fmt``, in both batch shapes; computed once."""
        if fmt not in self._starts:
            model = stored.show(None if fmt == GOLDEN else fmt)
            self._starts[fmt] = {s: self._logprobs(model, s) for s in (FIRST, REBATCHED)}
        return self._starts[fmt]

    def _logprobs(self, model: Any, shape: str) -> Tensor:
        """[N, L-1] FP32 log-probs of the sequences that are compared, 0 where masked."""
        given = self.compared
        usual = rows_per_forward(given.tokens.shape[1], model)
        micro = batches_of_run(usual, len(given.tokens), shape)
        return forced(model, given.tokens, given.mask, micro, kl_formats=(GOLDEN,)).logprobs[GOLDEN]
