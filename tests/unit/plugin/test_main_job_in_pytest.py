"""What a user of pytest sees of the main job: refusals before anything is measured, and the bar."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from precision_lib.phases.progress import Progress
from precision_lib.plugin import main_job
from precision_lib.plugin.progress_bar import BAR_SECONDS, ProgressBar
from precision_lib.reporting.bar import SECONDS

DEFAULTS = {
    **{"model": "embedded", "reward_model": "embedded", "gpu": False, "quick": False},
    **{"seed": 0, "target": None, "markexpr": "forensics", "resume": False},
    **{"prompts": None, "chat_template": None},
}


def config(**options: Any) -> pytest.Config:
    """As far as the wiring looks at one."""
    values = DEFAULTS | options
    stub = SimpleNamespace(
        getoption=values.__getitem__,
        stash=pytest.Stash(),
        option=SimpleNamespace(collectonly=options.get("collectonly", False)),
    )
    return cast("pytest.Config", stub)


def test_too_few_positions_are_refused_before_collection(
    saved_checkpoint: Callable[[str], Path],
) -> None:
    """The probe's 512 tokens and a prompt of 32; ``--quick`` fits, and its models are kept."""
    model = str(saved_checkpoint("Llama"))
    with pytest.raises(pytest.UsageError, match=r"--model: .* the model has 256 positions"):
        main_job.check_models(config(model=model))
    fitting = config(model=model, quick=True)
    main_job.check_models(fitting)
    assert fitting.stash[main_job.PIPELINE].policy.name == model


def test_a_directory_of_gguf_files_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "model-q4.gguf").write_bytes(b"GGUF")
    with pytest.raises(pytest.UsageError, match=r"load model-q4.gguf with gguf_file="):
        main_job.check_models(config(model=str(tmp_path)))


def test_prompts_that_do_not_fit_are_refused_before_collection(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("\n".join(f"Prompt number {i}." for i in range(7)))
    with pytest.raises(pytest.UsageError, match=r"mine.txt holds 7 different prompts, 8 are"):
        main_job.check_models(config(prompts=file, quick=True))
    with pytest.raises(pytest.UsageError, match=r"--prompts: .* cannot be read"):
        main_job.check_models(config(prompts=tmp_path / "missing.txt"))
    with pytest.raises(pytest.UsageError, match="a sweep trains on the embedded prompts"):
        main_job.check_models(config(prompts=file, markexpr="sweep"))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"model": "none", "collectonly": True},
        {"model": "none", "target": "trl"},
        {"model": "none", "markexpr": "sweep"},
    ],
)
def test_no_model_is_loaded_where_none_is_measured(options: dict[str, Any]) -> None:
    given = config(**options)
    main_job.check_models(given)
    assert main_job.PIPELINE not in given.stash


@dataclass
class Reporter:
    """pytest's reporter, as far as the bar uses it."""

    isatty: bool
    out: list[str] = field(default_factory=list)

    def write_line(self, line: str) -> None:
        self.out.append(line + "\n")

    def ensure_newline(self) -> None:
        self.out.append("newline")

    def rewrite(self, line: str, erase: bool = False) -> None:
        self.out.append("\r" + line + ("erased" if erase else ""))

    def flush(self) -> None:
        pass


class Capture:
    """Knows whether output may be written."""

    disabled = False

    @contextmanager
    def global_and_fixture_disabled(self) -> Iterator[None]:
        self.disabled = True
        yield
        self.disabled = False


def bar_on(reporter: Reporter | None, now: list[float]) -> ProgressBar:
    plugins = {"terminalreporter": reporter, "capturemanager": Capture()}
    manager = SimpleNamespace(get_plugin=plugins.__getitem__)
    return ProgressBar(cast("pytest.Config", SimpleNamespace(pluginmanager=manager)), now.pop)


QUARTER = Progress("H1", 0.25, 1200.0)


def test_a_log_gets_a_line_now_and_then() -> None:
    reporter, seconds = Reporter(isatty=False), [0.0]
    bar = bar_on(reporter, [0.0])
    bar._clock = lambda: seconds[0]
    for _ in range(600):
        seconds[0] += 0.25
        bar.show(QUARTER)
    assert reporter.out == ["main job: H1, 25%, about 20 min left\n"] * 7
    assert SECONDS == 20


def test_a_terminal_gets_a_bar_that_goes_before_a_result() -> None:
    reporter, seconds = Reporter(isatty=True), [0.0]
    bar = bar_on(reporter, [0.0])
    bar._clock = lambda: seconds[0]
    bar.show(QUARTER)
    assert reporter.out == [], "a moment after the start there is nothing to say"
    bar.pytest_runtest_logreport()
    assert reporter.out == [], "nothing is erased where nothing stands"
    for _ in range(2):
        seconds[0] += BAR_SECONDS
        bar.show(QUARTER)
    line = f"\rH1 [{'#' * 6}{' ' * 18}] 25%, about 20 min left"
    assert reporter.out == ["newline", f"{line}erased", f"{line}erased"]
    reporter.out.clear()
    bar.pytest_runtest_logreport()
    assert reporter.out == ["\rerased", "\r"]


def test_without_a_reporter_nothing_is_written() -> None:
    bar = bar_on(None, [0.0])
    bar._clock = lambda: 1000.0
    bar.show(QUARTER)
    bar.say("line")
