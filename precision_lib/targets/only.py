"""Values of an argument that a core takes, where it takes no others: its ``ONLY``.

The hazard. A core that has two of three modes would fail every check that draws the third, and
these failures would hide what is wrong with the two. So the target says what it takes, the header
of the run shows it, and a check draws nothing else.
"""

from collections.abc import Mapping
from typing import Any

from precision_lib.targets.errors import TargetError

#: Argument to the values that a function takes.
Taken = Mapping[str, tuple[Any, ...]]


def read_only(target: str, said: Any, arguments: Mapping[str, tuple[str, ...]]) -> dict[str, Taken]:
    """Function to what it takes, from the ``ONLY`` of a core; {} for None.

    Args:
        arguments: function of the interface to the names of its arguments.

    Raises:
        TargetError: when it is no such mapping, a name is not of the interface, or no value is
            left.
    """
    if said is None:
        return {}
    ok = isinstance(said, Mapping) and all(
        isinstance(taken, Mapping)
        and all(
            key in arguments.get(function, ()) and isinstance(values, tuple) and values
            for key, values in taken.items()
        )
        for function, taken in said.items()
    )
    if not ok:
        raise TargetError(
            f"target {target!r}: ONLY is {said!r}; give names of the interface and tuples of "
            'values, such as {"importance_weights": {"level": ("token", "sequence")}}'
        )
    return dict(said)


def shown(only: Mapping[str, Taken]) -> str:
    """``; importance_weights takes level token, sequence`` and so on."""
    return "".join(
        f"; {function} takes {key} {', '.join(map(str, values))} alone"
        for function, taken in only.items()
        for key, values in taken.items()
    )
