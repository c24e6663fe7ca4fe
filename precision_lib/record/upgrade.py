"""Records and baselines of earlier schemas, brought to the layout of this version.

Schema 1 held one ``noise_floor`` per cell: the damage metric of the configuration against itself in
another batch shape. Schema 2 calls that number ``batch_variance``, a metric of the cell, and keeps
two figures beside it: ``golden_floor``, the same of ``fp32_baseline``, and ``batch_shift``, how far
the damage metric itself differs between the two batch shapes. Schema 1 did not measure the shift;
the batch variance is an upper bound of it. Schema 3 keeps the golden floor in its
cell alone, and holds evidence that several cells share once. Schema 4 leaves out of the evidence
what the metrics of the cell say, and schema 5 writes what remains of a metric as a list
(``sharing.py``).
"""

from precision_lib.forensics.hypothesis import BATCH_VARIANCE
from precision_lib.jsonio import Json

#: The configuration whose own noise is the noise of the FP32 truth.
REFERENCE_RUN = "fp32_baseline"


def upgrade_block(block: Json, schema: int) -> None:
    """Bring the ``precision`` block of a record from a schema to the third, in place."""
    if schema < 2:
        _first_to_second(block)
    for cell in block["cells"] if schema == 2 else ():
        floors = block.get("noise_floors", {}).get(cell["hypothesis"], {})
        if cell["configuration"] in floors:
            cell["evidence"].setdefault("golden_floor", floors[cell["configuration"]])
    block.pop("noise_floors", None)
    block.get("training", {}).pop("schema", None)
    block.setdefault("complete", False)
    block.setdefault("planted_fault", None)
    for name in ("expected", "regressions"):
        block.setdefault(name, [])


def _first_to_second(block: Json) -> None:
    floors = {
        (cell["hypothesis"], cell["configuration"]): cell.get("evidence", {}).pop("noise_floor")
        for cell in block["cells"]
        if "noise_floor" in cell.get("evidence", {})
    }
    for cell in block["cells"]:
        own = floors.get((cell["hypothesis"], cell["configuration"]))
        if own is not None:
            truth = floors.get((cell["hypothesis"], REFERENCE_RUN), own)
            cell["metrics"][BATCH_VARIANCE] = own
            cell["evidence"] |= {"golden_floor": truth, "batch_shift": own["value"]}


def upgrade_baseline(baseline: Json, schema: int) -> None:
    """Bring a baseline from a schema to the third, in place."""
    for counts in (baseline["conformance"] or {}).get("functions", {}).values():
        counts.pop("errors", None)  # how large a known failure is, is not compared
    if schema > 1:
        return
    for hypothesis, floors in baseline.get("noise_floors", {}).items():
        for configuration, own in floors.items():
            cell = baseline["cells"].get(hypothesis, {}).get(configuration)
            if cell is not None:
                cell["metrics"][BATCH_VARIANCE] = own
                cell["batch_shift"] = own["value"]
        truth = floors.get(REFERENCE_RUN)
        baseline["noise_floors"][hypothesis] = {n: truth or floor for n, floor in floors.items()}
