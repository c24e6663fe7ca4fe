"""``python -m tools.tables``: tables of one kind of record in a document.

``absorption``, ``attribution`` and ``fp16`` take a directory of records, the other kinds a file.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from precision_lib.exit_codes import OK, USAGE
from precision_lib.record.files import load_calibration, load_self_test, load_sweep
from tools.absorption import load_rates
from tools.absorption_tables import rates_table
from tools.attribution_tables import attribution_table, load_attributions
from tools.documents import MarkerError, write_between
from tools.fp16_tables import fp16_table, load_fp16
from tools.gate_tables import calibration_table, self_test_tables
from tools.real_model_tables import load_real_model, real_model_tables
from tools.scaling_tables import load_scaling, scaling_table
from tools.training_tables import training_tables

#: Name of the markers to (how the record is read, its tables).
KINDS: dict[str, tuple[Callable[[Path], Any], Callable[[Any], str]]] = {
    "training": (load_sweep, training_tables),
    "calibration": (load_calibration, calibration_table),
    "absorption": (load_rates, rates_table),
    "attribution": (load_attributions, attribution_table),
    "fp16": (load_fp16, fp16_table),
    "real-model": (load_real_model, real_model_tables),
    "scaling": (load_scaling, scaling_table),
    "self-test": (load_self_test, self_test_tables),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Put the tables of one record between a document's markers."""
    parser = argparse.ArgumentParser(prog="python -m tools.tables")
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("record", type=Path, metavar="RECORD")
    parser.add_argument("--into", type=Path, metavar="FILE.md", required=True)
    options = parser.parse_args(arguments)
    read, tables = KINDS[options.kind]
    try:
        write_between(options.into, options.kind, tables(read(options.record)))
    except (MarkerError, OSError, ValueError) as error:
        print(error, file=sys.stderr)  # noqa: T201
        return USAGE
    return OK


if __name__ == "__main__":
    sys.exit(main())
