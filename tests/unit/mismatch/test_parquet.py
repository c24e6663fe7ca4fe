"""Parquet, where the extra is installed: ``.ci/versions`` installs it."""

import json
from pathlib import Path

import numpy as np
import pytest

from precision_lib.mismatch.reading import read_dump
from precision_lib.mismatch.schema import DumpError
from tests.unit.mismatch.dump_files import CLAIMED, columns, npz, row_dictionaries


def test_parquet_gives_the_dump_of_the_npz(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="the extra parquet is not installed")
    from pyarrow import parquet

    table = pyarrow.Table.from_pylist(row_dictionaries(columns()))
    table = table.replace_schema_metadata({"claimed": json.dumps(CLAIMED)})
    parquet.write_table(table, tmp_path / "d.parquet")
    got, want = read_dump(tmp_path / "d.parquet"), read_dump(npz(tmp_path / "d.npz"))
    assert got.claims == want.claims
    assert np.array_equal(got.trainer, want.trainer)
    whole = (tmp_path / "d.parquet").read_bytes()
    (tmp_path / "d.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DumpError, match=r"d\.parquet is truncated or no parquet"):
        read_dump(tmp_path / "d.parquet")
