"""What the site does beside Sphinx: API pages, names that link to them, guides that list themselves, and checks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import api_pages
import docstrings
import public_names
from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.directives.other import TocTree
from sphinx.util import logging
from sphinx.util.osutil import relative_uri

LOGGER = logging.getLogger(__name__)


class OtherGuides(TocTree):
    """A toctree of the pages in `docs/` that no other toctree names: a new guide appears by itself."""

    def run(self) -> list[nodes.Node]:
        front = Path(self.env.srcdir, "docs", "index.md").read_text()
        guides = sorted(Path(self.env.srcdir, "docs").glob("*.md"))
        named = re.findall(r"^\w+$", front, re.MULTILINE)
        for guide in guides:
            if guide.stem not in named and guide.stem != "index":
                self.content.append(guide.stem, "docs/index.md")
        return super().run()


def link_names(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """`mz.prune`, `mz.prune(...)` and `trace.cost`, written as code in a page, lead to the pages of the names.

    So do the bare names of a room on its own pages, unless they are parameters there; those of `mz` are too common as
    words: its `params` are rarely meant.
    """
    known = app.env.modelzip_pages  # type: ignore[attr-defined]
    place = docname.removeprefix("docs/api/") if docname.startswith("docs/api/") else "mz"
    room = place if place in public_names.rooms() else place.rpartition(".")[0]
    parameters = {
        name.astext()
        for parameter in doctree.findall(addnodes.desc_parameter)
        for name in parameter.findall(addnodes.desc_sig_name)
    }
    for node in list(doctree.findall(nodes.literal)):
        if any(isinstance(parent, nodes.reference | nodes.title) for parent in _parents(node)):
            continue
        written = re.sub(r"\(.*", "", node.astext()).replace("modelzip_jax.", "mz.", 1)
        page = known.get(written) or ("." in written and known.get(f"mz.{written}"))
        if not page and room != "mz" and written not in parameters:
            page = known.get(f"{room}.{written}")
        if page and page != docname:
            target = relative_uri(app.builder.get_target_uri(docname), app.builder.get_target_uri(page))
            node.replace_self(nodes.reference("", "", node.deepcopy(), refuri=target, internal=True))


def _parents(node: nodes.Node) -> list[nodes.Node]:
    found = []
    while node.parent is not None:
        node = node.parent
        found.append(node)
    return found


def known_pages() -> dict[str, str]:
    """The pages by what a text may call them."""
    found = {}
    for name in public_names.names():
        found[name.path] = name.page
    for room, module in public_names.rooms().items():
        found.setdefault(room, f"docs/api/{room}")
        found.setdefault(module.__name__, f"docs/api/{room}")
    return found


def before_reading(app: Sphinx) -> None:
    """Before Sphinx looks which pages there are."""
    api_pages.write(Path(app.srcdir))


def with_pages(app: Sphinx, env: Any, docnames: list[str]) -> None:
    """What `link_names` looks up, known to every process that writes pages."""
    env.modelzip_pages = known_pages()


def check_names(app: Sphinx, env: Any) -> None:
    """Every public name has been described, on the page that it should have."""
    described = {(name, entry.docname) for name, entry in env.domaindata["py"]["objects"].items()}
    for name in public_names.names():
        module = public_names.rooms()[name.room].__name__
        pages = {page for path, page in described if path.rpartition(".")[2] == name.name}
        if (f"{module}.{name.name}", name.page) not in described and name.page not in pages:
            LOGGER.warning("the public name %s has no page", name.path)


def front_door(app: Sphinx, failure: Exception | None) -> None:
    """The site's own address leads to its first page."""
    if failure is None and app.builder.name == "html":
        refresh = '<meta http-equiv="refresh" content="0; url=docs/index.html">'
        Path(app.outdir, "index.html").write_text(f"<!doctype html><title>modelzip_jax</title>{refresh}\n")


def setup(app: Sphinx) -> dict[str, bool]:
    """As Sphinx asks for."""
    app.add_directive("other-guides", OtherGuides)
    app.connect("builder-inited", before_reading)
    app.connect("env-before-read-docs", with_pages)
    app.connect("autodoc-process-docstring", docstrings.as_rst, priority=400)
    app.connect("env-check-consistency", check_names)
    app.connect("doctree-resolved", link_names)
    app.connect("build-finished", front_door)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
