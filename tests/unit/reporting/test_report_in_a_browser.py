"""The page in headless Chromium: no console message, every section, and it prints."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.unit.reporting.test_report_page import PICTURES, PLACES

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--enable-logging=stderr", "--v=0", "--hide-scrollbars"),
)

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium"
)


def browse(page: Path, profile: Path, *flags: str) -> tuple[str, list[str]]:
    """(document after loading, messages of the console) of a page opened from disk."""
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", *flags, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


@pytest.fixture(scope="module")
def page(drawn_results: Path) -> Path:
    """The page of results of every kind."""
    return drawn_results / "plots" / "index.html"


def test_page_opens_without_a_message_and_every_section_and_picture_is_laid_out(
    page: Path, tmp_path: Path
) -> None:
    # What the browser measured is written into the copy's own document, to be read from outside.
    measure = """<script>addEventListener("load", () => { document.title =
      [...document.querySelectorAll("section")].map(s => s.id + ":" + (s.offsetHeight > 40)).join()
      + ";" + [...document.images].map(i => i.naturalWidth > 100 && i.complete).join()
      + ";" + (document.documentElement.scrollWidth <= innerWidth); })</script>"""
    copy = tmp_path / "copy.html"
    text = page.read_text(encoding="utf-8")
    copy.write_text(text.replace("</body>", measure + "</body>"), encoding="utf-8")
    document, messages = browse(copy, tmp_path / "p", "--dump-dom", "--window-size=1200,900")
    assert not messages
    found = re.search(r"<title>(.*?)</title>", document)
    assert found
    sections, images, fits = found.group(1).split(";")
    assert sections == ",".join(f"{place}:true" for place in PLACES)
    assert images == ",".join(["true"] * len(PICTURES))
    assert fits == "true"


def test_a_message_in_the_console_is_seen(page: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    text = page.read_text(encoding="utf-8")
    broken.write_text(
        text.replace("</body>", '<script>throw Error("x")</script></body>'), encoding="utf-8"
    )
    assert browse(broken, tmp_path / "p", "--dump-dom")[1]


def test_page_prints_on_several_pages(page: Path, tmp_path: Path) -> None:
    pdf = tmp_path / "page.pdf"
    browse(page, tmp_path / "p", f"--print-to-pdf={pdf}", "--no-pdf-header-footer")
    assert len(re.findall(rb"/Type\s*/Page\b", pdf.read_bytes())) > 5
