"""Reads a case back from the text that a failure printed.

The text is parsed and never evaluated: literals, ``hex_tensor``, ``right_padded`` and
``torch.tensor`` are understood, everything else is refused.
"""

import ast
from collections.abc import Callable
from typing import Any

import torch

from precision_lib.conformance.inputs import Inputs
from precision_lib.conformance.strategies.cases import Case, hex_tensor, right_padded
from precision_lib.targets import INTERFACE
from precision_lib.targets.objectives import OBJECTIVES

_KNOWN: dict[str, Callable[..., Any]] = {
    "hex_tensor": hex_tensor,
    "right_padded": right_padded,
    "torch.tensor": torch.tensor,
    "Case": lambda inputs: Case(Inputs.of(inputs)),
}


def read_case(text: str) -> Case:
    """The case that printed ``text``, to the last bit.

    Raises:
        ValueError: when the text is not a case, or one that was too large to be printed whole.
    """
    try:
        case = _value(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, TypeError, AttributeError, KeyError, OverflowError, RuntimeError) as error:
        raise ValueError(f"not a printed case ({error}): {text[:80]}") from None
    if not isinstance(case, Case):
        raise ValueError(f"not a printed case: {text[:80]}")
    tensors = case.inputs.tensors.values()
    if not tensors or any(value.device.type != "cpu" for value in tensors):
        raise ValueError(f"not a printed case, whose tensors are on the CPU: {text[:80]}")
    return case


def read_case_of(text: str, function: str) -> Case:
    """:func:`read_case` of a case that this function of the interface can be called with.

    Raises:
        ValueError: when it is not one.
    """
    case = read_case(text)
    arguments = (INTERFACE | OBJECTIVES)[function]
    if set(case.inputs.keywords()) != set(arguments):
        raise ValueError(f"{function} takes {', '.join(arguments)}: {text[:80]}")
    return case


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and ast.unparse(node.func) in _KNOWN:
        arguments = {k.arg: _value(k.value) for k in node.keywords if k.arg}
        return _KNOWN[ast.unparse(node.func)](*(_value(a) for a in node.args), **arguments)
    if isinstance(node, ast.Dict):
        keys = [_value(key) for key in node.keys if key is not None]
        return dict(zip(keys, (_value(v) for v in node.values), strict=True))
    if isinstance(node, ast.List | ast.Tuple):
        items = [_value(item) for item in node.elts]
        return items if isinstance(node, ast.List) else tuple(items)
    return ast.literal_eval(node)
