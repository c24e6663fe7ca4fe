"""Every picture can be read: letters of 8 points, nothing cut off, units, numbers beside it."""

from collections.abc import Callable
from typing import Any

import pytest

from precision_lib.record.files import load_self_test, load_sweep
from precision_lib.record.sweep import Sweep
from precision_lib.reporting.benchmarks import results_of
from precision_lib.reporting.plots import (
    benchmarks,
    faults,
    h1,
    h2,
    h3,
    h4,
    training,
    verdicts,
)
from precision_lib.reporting.plots.appearance import WIDTH, new_figure, rendered
from precision_lib.reporting.plots.picture import Picture
from tests.unit.reporting import report_results as given

RECORDS = given.ROOT / "docs" / "records"
SMALLEST = 8.0


def swept() -> Sweep:
    """The committed sweep."""
    return load_sweep(given.SWEEP)


Maker = Callable[[], Picture]
#: Name, how it is drawn, and words with units that it has to hold.
PICTURES: dict[str, tuple[Maker, tuple[str, ...]]] = {
    "verdicts": (lambda: verdicts.heat_map(given.record()), ("impaired", "healthy", "limit 0.32")),
    "h1_collapse_curve": (
        lambda: h1.collapse_curve(given.record()),
        ("true KL, nats per token", "% of tokens", "RMS / RMS", "derived"),
    ),
    "h2_rewards": (
        lambda: h2.rewards(given.record()),
        ("reward units", "step of bf16", "RMS error / RMS", "offset / spread", "derived"),
    ),
    "h3_values": (
        lambda: h3.values(given.record()),
        ("RMS value, reward units", "stand still, %", "advantage error, std", "offset / spread"),
    ),
    "h4_drift": (
        lambda: h4.drift(given.record()),
        ("position, tokens", "nats", "slope 0.58", "square root", "linear"),
    ),
    "ppo_curves": (
        lambda: training.pictures(load_sweep(given.SWEEP))[0],
        ("PPO step", "nats per token"),
    ),
    "ppo_gain_lost": (
        lambda: training.pictures(load_sweep(given.SWEEP))[1],
        ("lost, %", "impaired above"),
    ),
    "benchmarks": (
        lambda: benchmarks.ratios(results_of(given.benchmarks())),
        ("this suite's time", "slow peer", "fp32"),
    ),
    "committed_benchmarks": (
        lambda: benchmarks.ratios(results_of(given.committed("benchmarks"))),
        ("token_logprobs + backward · bf16", "openrlhf (torch.compile)"),
    ),
    "committed_fault_matrix": (
        lambda: faults.matrix(load_self_test(RECORDS / "self_test.json")),
        ("gate", "gather_minus_logsumexp_in_input_dtype"),
    ),
    "fault_matrix": (lambda: faults.matrix(given.typed_self_test()), ("core", "gate", "fault_119")),
}


def out_of_view(figure: Any) -> set[Any]:
    """Labels of ticks that lie outside the limits of their axis and are not drawn."""
    labels = set()
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
            if not low <= tick.get_loc() <= high:
                labels |= {tick.label1, tick.label2}
    return labels


def unreadable(figure: Any) -> list[str]:
    """Texts of a figure that are too small or reach beyond its edge."""
    figure.draw_without_rendering()
    width, height = figure.canvas.get_width_height()
    found = []
    hidden = out_of_view(figure)
    for text in figure.findobj(lambda a: hasattr(a, "get_fontsize") and hasattr(a, "get_text")):
        if not text.get_text().strip() or not text.get_visible() or text in hidden:
            continue
        box = text.get_window_extent()
        if text.get_fontsize() < SMALLEST:
            found.append(f"{text.get_text()!r} is of {text.get_fontsize():g} points")
        if box.x0 < -1 or box.y0 < -1 or box.x1 > width + 1 or box.y1 > height + 1:
            found.append(f"{text.get_text()!r} is cut off")
    return found


@pytest.mark.parametrize("name", PICTURES)
def test_picture_is_readable_and_holds_its_units(name: str) -> None:
    make, words = PICTURES[name]
    picture = make()
    assert picture.name == name.removeprefix("committed_")
    assert not unreadable(picture.figure)
    assert picture.figure.get_figwidth() == WIDTH
    text = rendered(picture.figure)["svg"].decode()
    assert not [word for word in words if word not in text]
    assert picture.caption
    assert picture.alt
    assert picture.table.rows
    assert {len(row) for row in picture.table.rows} == {len(picture.table.headings)}


def test_small_letters_and_cut_words_are_seen() -> None:
    figure, axes = new_figure(2.0)
    axes[0, 0].text(0.5, 0.5, "tiny", fontsize=6)
    figure.text(0.95, 0.5, "a long word at the edge", fontsize=9)
    assert [text.split(" is ")[1] for text in unreadable(figure)] == ["of 6 points", "cut off"]


def test_files_are_the_same_each_time_and_no_setting_of_matplotlib_stays_changed() -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    first, second = (rendered(h2.rewards(given.record()).figure) for _ in range(2))
    assert first == second
    assert b"<dc:date>" not in first["svg"]
    assert dict(mpl.rcParams) == before
