"""Frameworks as targets: ``--target trl``, ``verl``, ``openrlhf``, ``torchtune``, ``liger``.

The hazard. An adapter that repairs what it wraps tests itself. These call the framework's own
functions and translate argument names, shapes, mask types and conventions; no upcast, no clean-up,
no arithmetic. Two conventions are translated where a framework has another one: what its callers
leave undefined in padded slots comes out as 0 (``real_only``), and an option that the interface
does not have (dual clipping, re-adding the mean) is set so that it does nothing. What cannot be
reached in this way is not offered, with the reason.

Losses are called by keyword. ``batch`` and ``given`` hold the interface's arguments that a loss
hands on unchanged.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the catalogue of faults is read without torch
    from torch import Tensor

NAMES = ("trl", "verl", "openrlhf", "torchtune", "liger")


def real_only(result: "Tensor", mask: "Tensor") -> "Tensor":
    """0 in padded slots, which the framework leaves undefined; real tokens bit for bit."""
    return result.masked_fill(~mask, 0)


def logps(pairs: "dict[str, Tensor]") -> "dict[str, Tensor]":
    """Log-probs of DPO's pairs under the names of torchtune and OpenRLHF."""
    return {f"{name.replace('ref_', 'reference_')}_logps": x for name, x in pairs.items()}
