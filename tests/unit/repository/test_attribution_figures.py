"""The attributions in docs/findings.md are those of the committed records."""

import json
import re
from pathlib import Path

import pytest

from precision_lib.record.attribution import load_attribution, write_attribution_record
from tests.unit.repository.test_readme_figures import RECORDS, between, document
from tools.attribution_tables import attribution_table, load_attributions

DIRECTORY = RECORDS / "attribution"


def test_the_table_is_the_records() -> None:
    text = document("docs/findings.md")
    assert between(text, "attribution") == attribution_table(load_attributions(DIRECTORY))


def test_the_sentences_are_the_records() -> None:
    text = re.sub(r"\s+", " ", document("docs/findings.md"))
    _, real, rounded = load_attributions(DIRECTORY)
    for record in (real, rounded):
        assert f"{record.power.value**0.5:.3f} nats RMS" in text
        assert record.closure == 0
        assert record.context.commit
        assert not record.context.commit.dirty
    assert real.kinds
    head = next(part for part in real.kinds.parts if part.name == "LM head")
    for metric in (head.demoted, head.promoted):
        value, low, high = (100 * x for x in (metric.value, metric.low, metric.high))
        assert f"{value:.1f} % [{low:.1f}, {high:.1f}]" in text
    assert all(record.kinds and record.kinds.adds_up for record in load_attributions(DIRECTORY))


@pytest.mark.parametrize("path", sorted(DIRECTORY.glob("*.json")), ids=lambda path: path.stem)
def test_a_record_that_is_read_and_written_has_every_figure(path: Path, tmp_path: Path) -> None:
    write_attribution_record(tmp_path / "again.json", load_attribution(path))
    assert json.loads((tmp_path / "again.json").read_text()) == json.loads(path.read_text())


def test_a_directory_without_attributions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no attribution"):
        load_attributions(tmp_path)
