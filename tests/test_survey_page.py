"""Each term of the survey has a function that is there, a test that is there, and a place where it was measured."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "survey.md").read_text()
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in PAGE.splitlines()
    if line.startswith("| ") and not line.startswith(("| term", "| ---"))
]
BENCHMARKS = (ROOT / "docs" / "benchmarks.md").read_text()


def slug(heading):
    """As a link to a heading is made from it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def sections():
    """What stands under each heading, smaller headings included."""
    found = {}
    for level in ("##", "###"):
        parts = re.split(rf"^#{{2,{len(level)}}} ", BENCHMARKS, flags=re.MULTILINE)[1:]
        found = {slug(part.splitlines()[0]): part for part in parts} | found
    return found


SECTIONS = sections()


def found(name):
    """What `mz.room.thing` is."""
    parts = name.replace("mz.", "modelzip_jax.", 1).split(".")
    for cut in range(len(parts) - 1, 0, -1):
        try:
            thing = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            thing = getattr(thing, part)
        return thing
    raise AttributeError(name)


def test_there_are_terms():
    assert len(ROWS) > 45
    assert {len(row) for row in ROWS} == {4}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: slug(row[0])[:40])
def test_a_term_is_built_tested_and_measured(row):
    _, where, tests, measured = row
    names = re.findall(r"`(mz\.[\w.]+)`", where)
    assert names
    for name in names:
        assert found(name) is not None
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", tests)
    assert named
    for path, test in named:
        assert re.search(rf"^def {test}\(", (ROOT / path).read_text(), re.MULTILINE), f"{path}::{test}"
    anchors = re.findall(r"\]\(benchmarks\.md#([^)]+)\)", measured)
    assert anchors
    for anchor in anchors:
        assert anchor in SECTIONS
    ours = (ROOT / "benchmarks" / "terms" / "ways.py").read_text()
    for way, waiting in re.findall(r"“([^”]+)”( \(not yet run\))?", measured):
        assert f'"{way}"' in ours
        assert waiting or any(f"| {way} |" in SECTIONS[anchor] for anchor in anchors)


def test_figures_are_those_of_the_section_they_link_to():
    """A paragraph's figures in bold stand in a section that it links to."""
    answers = PAGE.split("## Questions")[1]
    seen = 0
    for paragraph in answers.split("\n\n"):
        paragraph = " ".join(paragraph.split())
        figures = re.findall(r"\*\*([^*]+)\*\*", paragraph)
        linked = " ".join(SECTIONS[a] for a in re.findall(r"benchmarks\.md#([\w-]+)\)", paragraph))
        for figure in figures:
            assert re.search(rf"(?<![\d.,]){re.escape(figure)}(?![\d]|[.,]\d)", linked), figure
            seen += 1
    assert seen > 10
