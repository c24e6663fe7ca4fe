"""Results of every kind, drawn once."""

from pathlib import Path

import pytest

from precision_lib import cli
from tests.unit.reporting import report_results


@pytest.fixture(scope="session")
def drawn_results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory ``results`` with results of every kind, drawn into its ``plots``."""
    results = report_results.write_results(tmp_path_factory.mktemp("report") / "results")
    assert cli.main(["analyze", "--results_dir", str(results)]) == 0
    return results
