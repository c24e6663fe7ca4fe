"""See and replace every value that a model makes, place by place, during one forward.

The hazard. A value that goes past the places carries its error into the next one, and a wrong
module is blamed. So the residual stream is seen where it is added, not only where a layer ends, and
what happens between the two products of attention is seen through the calls themselves. A model
with another attention than two products around one softmax is refused.

A forward runs the model's own code, with whatever is wrong in it.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from precision_lib.attribution.places import (
    EMBEDDING,
    LM_HEAD,
    NORMS,
    ROPE,
    SCORES,
    SOFTMAX,
    VALUE,
    Place,
    UnknownModelError,
    layers_of,
    names_of,
)

#: From a place, the number of its value in this forward and the value to what takes its place.
Visitor = Callable[[Place, int, Tensor], Tensor]
_PRODUCTS = {"matmul", "__matmul__", "bmm"}
#: The first of these behind the product of q and k begins the softmax.
_SOFTMAX_BEGINS = {"softmax", "exp", "amax", "max", "sub", "__sub__", "logsumexp", "sum"}


@contextmanager
def visited(model: Any, visitor: Visitor) -> Iterator[None]:
    """One forward of ``model`` in which ``visitor`` sees every value and may replace it.

    Values that a module of :attr:`places.Names.inputs` reads are replaced in place, because the
    residual branch holds the same tensor. Log-softmax lies outside of the model.

    Raises:
        UnknownModelError: the layers cannot be told, or attention has another form.
    """
    names, counts = names_of(model), Counter[Place]()

    def see(place: Place, value: Tensor) -> Tensor:
        counts[place] += 1
        return visitor(place, counts[place] - 1, value)

    attention = _Attention(see, turned=names.rope)
    with ExitStack() as stack:

        def hook(handle: Any) -> None:
            stack.callback(handle.remove)

        layers = layers_of(model)
        hook(layers[0].register_forward_pre_hook(_first_argument(see, Place(EMBEDDING))))
        for number, layer in enumerate(layers):
            for name, kind in names.inputs.items():
                module = layer.get_submodule(name)
                hook(module.register_forward_pre_hook(_in_place(see, Place(kind, number))))
            for name, kind in names.outputs.items():
                if _has(layer, name):
                    module = layer.get_submodule(name)
                    hook(module.register_forward_hook(_output(see, Place(kind, number))))
            if names.attention:
                module = layer.get_submodule(names.attention)
                hook(module.register_forward_pre_hook(attention.begin(number)))
                hook(module.register_forward_hook(attention.end))
            hook(layer.register_forward_hook(_output(see, Place(names.layer_output, number))))
        if names.final_norm:
            module = model.base_model.get_submodule(names.final_norm)
            hook(module.register_forward_hook(_output(see, Place(NORMS))))
        hook(model.register_forward_hook(_logits(see)))
        if names.attention:
            stack.enter_context(attention)
        yield


def _has(layer: nn.Module, name: str) -> bool:
    module, _, last = name.rpartition(".")
    return hasattr(layer.get_submodule(module), last)


See = Callable[[Place, Tensor], Tensor]


def _first_argument(see: See, place: Place) -> Callable[..., Any]:
    def hook(_module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return see(place, arguments[0]), *arguments[1:]

    return hook


def _in_place(see: See, place: Place) -> Callable[..., None]:
    def hook(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        wanted = see(place, arguments[0])
        if wanted is not arguments[0]:
            arguments[0].copy_(wanted)

    return hook


def _output(see: See, place: Place) -> Callable[..., Any]:
    def hook(_module: nn.Module, _arguments: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return see(place, output[0]), *output[1:]
        return see(place, output)

    return hook


def _logits(see: See) -> Callable[..., Any]:
    def hook(_module: nn.Module, _arguments: Any, output: Any) -> Any:
        output.logits = see(Place(LM_HEAD), output.logits)
        return output

    return hook


class _Attention(TorchFunctionMode):
    """Sees q, k, scores, probabilities and their product with v, between two hooks of a layer."""

    def __init__(self, see: See, *, turned: bool) -> None:
        super().__init__()
        self._see, self._turned = see, turned
        self._layer: int | None = None
        self._next = ROPE

    def begin(self, layer: int) -> Callable[..., None]:
        """A hook that is called before the attention of ``layer``."""

        def hook(_module: nn.Module, _arguments: Any) -> None:
            self._layer, self._next = layer, ROPE

        return hook

    def end(self, module: nn.Module, _arguments: Any, _output: Any) -> None:
        """A hook that is called behind the attention of a layer."""
        if self._next != "":
            raise UnknownModelError(
                f"{type(module).__name__} computed no {self._next} between two matrix products; "
                "use eager attention (attn_implementation='eager')"
            )
        self._layer = None

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if self._layer is None:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name in _PRODUCTS and self._next == ROPE:
            self._next = SCORES
            if self._turned:
                args = [self._at(ROPE, value) for value in args]
        elif name in _PRODUCTS and self._next == SOFTMAX:
            self._next = ""
            return self._at(VALUE, func(self._at(SOFTMAX, args[0]), *args[1:], **kwargs))
        elif name in _SOFTMAX_BEGINS and self._next == SCORES:
            self._next = SOFTMAX
            args = [self._at(SCORES, args[0]), *args[1:]]
        return func(*args, **kwargs)

    def _at(self, kind: str, value: Tensor) -> Tensor:
        return self._see(Place(kind, self._layer), value)
