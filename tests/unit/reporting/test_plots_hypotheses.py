"""What the pictures of the hypotheses show is what the record says, and what was derived."""

import copy
import math
from typing import Any

import numpy as np
import pytest

from precision_lib.forensics.h1 import law
from precision_lib.reporting.plots import h1, h2, h3, h4, verdicts
from precision_lib.reporting.plots.cells import groups, same_as
from precision_lib.reporting.table import curve_of
from tests.unit import small_blocks as small
from tests.unit.reporting import report_results as given


@pytest.mark.parametrize("kl", [1e-6, 1e-4, 1e-2])
def test_grid_law_is_what_rounding_does(kl: float) -> None:
    """Two values at a random phase of a grid, rounded: zeros and noise within 5 standard errors."""
    generator, step, n = np.random.default_rng(0), 0.0156, 400_000
    move = generator.normal(0, math.sqrt(2 * kl), n)
    phase = generator.uniform(0, 1, n) * step
    seen = (np.rint((phase + move) / step) - np.rint(phase / step)) * step
    zero = (seen == 0).astype(float)
    assert zero.mean() == pytest.approx(law.zero_share(kl, step), abs=5 * zero.std() / n**0.5)
    square = (seen - move) ** 2
    wanted = law.grid_noise(kl, step) ** 2 * 2 * kl
    assert square.mean() == pytest.approx(wanted, abs=5 * square.std() / n**0.5)
    assert zero.mean() != pytest.approx(law.zero_share(kl, 2 * step), abs=5 * zero.std() / n**0.5)


def test_noise_of_rounded_models_is_what_their_kl_is_too_large_by() -> None:
    generator, kl, noise = np.random.default_rng(1), 1e-4, 0.03
    move = generator.normal(0, math.sqrt(2 * kl), 10**6)
    executed = ((move + generator.normal(0, noise, move.size)) ** 2).mean() / 2
    wanted = noise / math.sqrt(2 * kl)
    # Five standard errors of a mean square, as a share of what is left of it, halved by the root.
    share = 2.5 * math.sqrt(2 / move.size) * executed / (executed - kl)
    assert law.model_noise(kl, kl, executed) == pytest.approx(wanted, rel=share)
    assert law.model_noise(100 * kl, kl, executed) == pytest.approx(wanted / 10, rel=share)


def test_step_is_found_from_the_value_and_refused_where_there_is_none() -> None:
    for function in (law.zero_share, law.grid_noise):
        assert law.step_for(function, 1e-4, function(1e-4, 0.02)) == pytest.approx(0.02)
    with pytest.raises(ValueError, match="no grid step"):
        law.step_for(law.zero_share, 1e-4, 1.5)


def test_h1_prediction_meets_the_measured_curve_which_it_was_not_fitted_to() -> None:
    block = given.record()
    cells = {g.names[0]: g.cell for g in groups(block, "H1")}
    lines = h1.derived(block)
    assert [(name, key) for name, key, _ in lines] == [
        ("fp32_bf16_kl", h1.ZEROS),
        ("fp32_bf16_kl", h1.NOISE),
        ("bf16_fp32_kl", h1.NOISE),
    ]
    for name, key, points in lines:
        curve = curve_of(cells[name])
        assert [kl for kl, _ in points] == [p.true_kl for p in curve]
        for (_, predicted), point in zip(points, curve, strict=True):
            measured = point.metrics[key].value
            if key == h1.ZEROS:  # a share
                assert abs(predicted - measured) < 0.06
            else:  # over four decades
                assert 0.75 < predicted / measured < 1.25


def test_h1_says_so_where_nothing_can_be_derived() -> None:
    block = given.block()
    names = block["thresholds"]["H1"]["promoted"], block["thresholds"]["H1"]["demoted"]
    block["cells"] = [c for c in block["cells"] if c["configuration"] not in names]
    picture = h1.collapse_curve(small.record(block))
    assert "nothing that a prediction could be derived from" in picture.caption
    assert not [row for row in picture.table.rows if "derived" in row[0]]


def test_configurations_that_a_hypothesis_cannot_tell_apart_are_one_curve() -> None:
    block = given.block()
    record = small.record(block)
    found = groups(record, "H2")
    assert sorted(len(g.names) for g in found) == [6, 6]
    assert sum(len(g.names) for g in groups(record, "H4")) == 12
    assert "bf16_pure also stands for bf16_fp32_kl" in same_as(found)
    cell = next(c for c in block["cells"] if c["hypothesis"] == "H2")
    cell["metrics"]["advantage_rms_error"]["value"] *= 2  # the same formats, another damage
    assert sorted(len(g.names) for g in groups(small.record(block), "H2")) == [1, 5, 6]


def test_tables_hold_the_figures_of_the_record() -> None:
    block = given.record()
    rows = {row[0]: row for row in h4.drift(block).table.rows}
    metric = next(g for g in groups(block, "H4") if g.names[0] == "bf16_pure").cell.metrics
    assert rows["bf16_pure"][1].startswith(f"{metric[h4.SLOPE].value:.2f} [")
    families = h2.rewards(block).table.rows
    assert families[0][0] == "this reward model's"
    assert ("binary 0 and 1", "–", "0.0 %", "0.0", "–", "0.0 %") in families
    sizes = [row for row in h3.values(block).table.rows if row[1] == "RMS value 1"]
    assert {row[2] for row in sizes} == {"0.0078", "1.2e-07"}  # 2^-7 and 2^-23


def test_fitted_line_has_the_slope_and_goes_through_the_points() -> None:
    x = np.array([8.0, 16, 64, 256])
    line = h4.through_the_middle(x, 3 * x**0.5, 0.5)
    assert line == pytest.approx(3 * x**0.5)
    flat = h4.through_the_middle(x, np.array([0, 1.0, 1.0, 1.0]), 0.0)
    assert flat == pytest.approx(np.ones(4))


def test_a_cell_that_was_not_measured_is_a_hole_with_a_name() -> None:
    block = given.block()
    lost = block["cells"].pop(0)
    assert (lost["hypothesis"], lost["configuration"]) == ("H1", "bf16_pure")
    picture = verdicts.heat_map(small.record(block))
    row = next(r for r in picture.table.rows if r[0] == "bf16_pure")
    assert row[1] == "not measured"
    texts = [t.get_text() for t in picture.figure.axes[0].texts]
    assert texts.count("not measured") == 1
    assert len(texts) == 2 * len(given.record().cells) - 1
    assert not [r for r in verdicts.heat_map(given.record()).table.rows if "not measured" in r]


def test_figures_that_are_not_finite_are_drawn_around() -> None:
    block = copy.deepcopy(given.block())
    for cell in block["cells"]:
        if cell["configuration"] == "bf16_pure":
            _spoil(cell["evidence"])
    for draw in (h1.collapse_curve, h3.values, h4.drift):
        draw(small.record(block)).figure.draw_without_rendering()


def _spoil(evidence: dict[str, Any]) -> None:
    """One value of each curve becomes what a record holds in place of NaN or inf."""
    if "curve" in evidence:
        evidence["curve"][0]["log_ratio_nsr"]["value"] = "inf"
    if "by_magnitude" in evidence:
        evidence["by_magnitude"][0]["advantage_rms_error"]["value"] = "nan"
    if "sampled" in evidence:
        evidence["sampled"]["by_position"][0]["accumulated_rms"] = "nan"
