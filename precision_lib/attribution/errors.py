"""The rounding errors of one run, place by place, and what each does to the log-probs.

Three steps, on the same tokens and in the same micro-batches:

1. The tested model runs; every value that it makes is kept.
2. The FP32 model runs, and each place reads the tested model's own values. What it then gives
   differs from what the tested model gave by the error that is *made there*.
3. The FP32 model runs again with the errors of some places added. With none it is FP32, with all
   it is the tested model, with those of one place it is FP32 in which that place alone is demoted,
   with all but those it is the tested model in which that place alone is promoted.

So a place is blamed for what it rounds and not for what it was given. A place rounds its weights
and its results.

n rows, T response tokens.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from precision_lib.attribution.places import LOG_SOFTMAX, SCORES, Place
from precision_lib.attribution.values import visited
from precision_lib.forensics.forwards import response_logits
from precision_lib.formats import get_format
from precision_lib.models.placement import computes_on_cpu
from precision_lib.ppo.logprobs import token_logprobs
from precision_lib.runtime import deterministic
from precision_lib.trajectories.sampling import Responses

#: A score below this is that of a masked position: its size is a convention, not a number.
_MASKED = -1e4
Errors = dict[tuple[Place, int], Tensor]


class PlacesDifferError(RuntimeError):
    """Tested and FP32 model make other values; the message names the first difference."""


class BatchErrors:
    """The errors of one micro-batch, and the log-probs that follow from any of them.

    Attributes:
        exact: [n, T] FP32 log-probs of the tokens.
        tested: [n, T] log-probs of the tested model, widened.
    """

    def __init__(self, reference: Any, tested: Any, batch: Responses, kl_format: str) -> None:
        """Run both models.

        Args:
            reference: FP32 causal LM. tested: the same architecture with parameters in another
                format, or with something else that is wrong.
            kl_format: format of the tested log-softmax.

        Raises:
            UnknownModelError: the model's values cannot be seen.
            PlacesDifferError: the models make different values.
        """
        self._reference, self._batch = reference, batch
        self._known: dict[frozenset[Place], Tensor] = {}
        values: Errors = {}

        def keep(place: Place, number: int, value: Tensor) -> Tensor:
            values[place, number] = value.float()
            return value

        native = not computes_on_cpu(tested)
        with torch.no_grad(), deterministic(native_products=native), visited(tested, keep):
            logits, tokens = response_logits(tested, batch)
            dtype = get_format(kl_format).dtype
            self.tested = token_logprobs(logits, tokens, dtype).float()
            own = token_logprobs(logits.float(), tokens, torch.float32)
        self._of_log_softmax = self.tested - own
        self._errors = self._differences(values)
        self.exact = self.logprobs(())

    def _differences(self, values: Errors) -> Errors:
        errors: Errors = {}

        def compare(place: Place, number: int, value: Tensor) -> Tensor:
            given = values.pop((place, number), None)
            if given is None or given.shape != value.shape:
                raise PlacesDifferError(
                    f"value {number} of {place.kind} in {place.stage}: FP32 has "
                    f"{tuple(value.shape)}, the tested model "
                    f"{'none' if given is None else tuple(given.shape)}; both models must be of "
                    "one architecture"
                )
            error = given.to(value.device) - value
            if place.kind == SCORES:
                error = torch.where(value < _MASKED, 0.0, error)
            errors[place, number] = error
            return value + error

        with self._fp32(), visited(self._reference, compare):
            response_logits(self._reference, self._batch)
        if values:
            place, number = next(iter(values))
            raise PlacesDifferError(
                f"value {number} of {place.kind} in {place.stage}: FP32 has none, the tested model "
                "has; both models must be of one architecture"
            )
        return errors

    def logprobs(self, places: Iterable[Place]) -> Tensor:
        """[n, T] log-probs of FP32 with the errors of ``places`` added; each set runs once."""
        chosen = frozenset(places)
        inside = chosen - {Place(LOG_SOFTMAX)}
        if inside not in self._known:
            self._known[inside] = self._forward(inside)
        return self._known[inside] + (self._of_log_softmax if inside != chosen else 0.0)

    def _forward(self, places: frozenset[Place]) -> Tensor:
        def add(place: Place, number: int, value: Tensor) -> Tensor:
            return value + self._errors[place, number] if place in places else value

        with self._fp32(), visited(self._reference, add):
            logits, tokens = response_logits(self._reference, self._batch)
            return token_logprobs(logits.float(), tokens, torch.float32)

    @staticmethod
    @contextmanager
    def _fp32() -> Iterator[None]:
        """FP32 multiplies the same with and without the rule for 16-bit products, and faster."""
        with torch.no_grad(), deterministic(native_products=True):
            yield
