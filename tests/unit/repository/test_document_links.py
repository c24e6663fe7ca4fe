"""Every link of a document leads to a file of the repository and to a heading in it."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    *sorted(f"docs/{p.name}" for p in ROOT.glob("docs/*.md")),
]


def broken_links(text: str, folder: Path) -> list[str]:
    """Relative links without a file, or with an anchor that no heading has."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(text)):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        path = folder / name
        if name and not path.exists():
            broken.append(link)
            continue
        there = path.read_text(encoding="utf-8") if name and anchor else text
        if anchor and anchor not in anchors(there):
            broken.append(link)
    return broken


def without_code(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def anchors(text: str) -> set[str]:
    """Anchors as GitHub derives them from the headings."""
    headings = re.findall(r"^#+ (.+)$", without_code(text), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name: str) -> None:
    path = ROOT / name
    assert broken_links(path.read_text(encoding="utf-8"), path.parent) == []


def test_a_link_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text("# A heading of `code`\n")
    text = "[a](there.md#a-heading-of-code) [b](there.md#gone) [c](gone.md) [d](#gone)"
    assert broken_links(text, tmp_path) == ["there.md#gone", "gone.md", "#gone"]
