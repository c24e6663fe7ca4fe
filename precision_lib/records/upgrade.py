"""Records and baselines of schema 1, brought to the layout of this version.

Schema 1 held one ``noise_floor`` per cell: the damage metric of the configuration against itself in
another batch shape. Schema 2 calls that number ``batch_variance``, a metric of the cell, and keeps
two figures beside it: ``golden_floor``, the same of ``fp32_baseline``, and ``batch_shift``, how far
the damage metric itself differs between the two batch shapes. Schema 1 did not measure the shift;
the batch variance is an upper bound of it.
"""

from typing import Any

from precision_lib.forensics.hypothesis import BATCH_VARIANCE

#: The configuration whose own noise is the noise of the FP32 truth.
REFERENCE_RUN = "fp32_baseline"


def upgrade_block(block: dict[str, Any]) -> None:
    """Bring the ``precision`` block of a record from schema 1 to 2, in place."""
    floors = {
        (cell["hypothesis"], cell["configuration"]): cell.get("evidence", {}).pop("noise_floor")
        for cell in block["cells"]
        if "noise_floor" in cell.get("evidence", {})
    }
    for cell in block["cells"]:
        hypothesis = cell["hypothesis"]
        own = floors.get((hypothesis, cell["configuration"]))
        if own is not None:
            truth = floors.get((hypothesis, REFERENCE_RUN), own)
            cell["metrics"][BATCH_VARIANCE] = own
            cell["evidence"] |= {"golden_floor": truth, "batch_shift": own["value"]}
    block["noise_floors"] = _of_the_truth(block.get("noise_floors", {}))
    block["schema"] = 2


def upgrade_baseline(baseline: dict[str, Any]) -> None:
    """Bring a baseline from schema 1 to 2, in place."""
    for hypothesis, floors in baseline.get("noise_floors", {}).items():
        for configuration, own in floors.items():
            cell = baseline["cells"].get(hypothesis, {}).get(configuration)
            if cell is not None:
                cell["metrics"][BATCH_VARIANCE] = own
                cell["batch_shift"] = own["value"]
    baseline["noise_floors"] = _of_the_truth(baseline.get("noise_floors", {}))
    baseline["schema"] = 2


def _of_the_truth(floors: dict[str, Any]) -> dict[str, Any]:
    """Every cell's own floor replaced by that of ``fp32_baseline``, where it was measured."""
    return {
        hypothesis: {name: own.get(REFERENCE_RUN, floor) for name, floor in own.items()}
        for hypothesis, own in floors.items()
    }
