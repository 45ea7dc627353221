"""The documentation site without Sphinx, which `make docs` runs: which pages it makes, and of what."""

import importlib
import inspect
import re
from pathlib import Path

import pytest
from test_names import ROOMS

import modelzip_jax as mz

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def site_modules(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "site"))


def site(name):
    return importlib.import_module(name)


def test_every_public_name_has_a_page_that_describes_it():
    pages, described = site("api_pages").pages(), {}
    for name in site("public_names").names():
        described[id(name.thing), name.name] = pages[f"{name.page}.rst"]
    for room in ROOMS:
        for name in room.__all__:
            thing = getattr(room, name)
            if not inspect.ismodule(thing):
                assert re.search(rf"^\.\. auto\w+:: .*\.{name}$", described[id(thing), name], re.M), name


def test_every_room_lists_its_names_and_stands_in_the_index():
    pages = site("api_pages").pages()
    for room, module in site("public_names").rooms().items():
        listed = re.findall(r"^\| \[`(\w+)`\]", pages[f"docs/api/{room}.md"], re.M)
        assert sorted(listed) == sorted(n for n in module.__all__ if not inspect.ismodule(getattr(module, n)))
        assert f"/docs/api/{room}\n" in pages["docs/api/index.md"]


def test_pages_differ_by_more_than_the_case_of_letters():
    pages = [name.lower() for name in site("api_pages").pages()]
    assert len(set(pages)) == len(pages)


def test_pages_that_are_public_no_more_go(tmp_path):
    (tmp_path / "docs" / "api").mkdir(parents=True)
    (tmp_path / "docs" / "api" / "mz.gone.rst").write_text("gone")
    site("api_pages").write(tmp_path)
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")}
    assert written == set(site("api_pages").pages())


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("`a |x|` and ``b``", ["``a |x|`` and ``b``"]),
        ("|x| to *args, a_ and `code\n  that goes on`", [r"\|x\| to \*args, a\_ and ``code that goes on``"]),
        (
            "step: of `it`.\nkey, seed: what\n  is drawn.",
            ["- **step**: of ``it``.", "- **key, seed**: what", "  is drawn."],
        ),
        (">>> 2 ** 3 | 1\n9\n\n2 * 3 |", [">>> 2 ** 3 | 1", "9", "", r"2 * 3 \|"]),
        ("several `x`s, no `y`", [r"several ``x``\ s, no ``y``"]),
        ("* one\n* two", ["* one", "* two"]),
    ],
)
def test_a_docstring_means_what_it_looks_like(written, read):
    lines = written.split("\n")
    site("docstrings").as_rst(None, "function", "f", mz.prune, None, lines)
    assert lines == read
