"""Docstrings are written to be read in an editor; Sphinx reads them as reStructuredText."""

from __future__ import annotations

import re
from typing import Any

# Doctests up to the next empty line, code in backticks, and all else.
PARTS = re.compile(r"(^ *>>>.*?(?=^\s*$|\Z))|``([^`]+)``|`([^`]+)`|([^`>]+|>|`)", re.DOTALL | re.MULTILINE)
# A field of a class, `name, other: what they are`, whose text goes on in indented lines.
FIELD = re.compile(r"^([a-z]\w*(?:, [a-z]\w*)*): (?=\S)")


def as_rst(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Changes a docstring's lines in place: what is code stays code, and nothing else is markup."""
    if isinstance(thing, dict | tuple):
        lines.clear()  # it is its type's
    text = "".join(_converted(part) for part in PARTS.finditer("\n".join(lines)))
    lines[:] = "\n\n".join(_listed(paragraph) for paragraph in text.split("\n\n")).split("\n")


def _converted(part: re.Match[str]) -> str:
    doctest, double, single, prose = part.groups()
    if doctest:
        return doctest
    if prose is None:
        before, after = part.string[part.start() - 1 : part.start()], part.string[part.end() : part.end() + 1]
        # Code within a word, as in `x`s, takes a mark that is not shown.
        left = "" if re.fullmatch(r"[\s(\[{'\"/:-]?", before) else "\\ "
        right = "" if re.fullmatch(r"[\s)\]}'\"/:.,;!?-]?", after) else "\\ "
        return f"{left}``{' '.join((double or single).split())}``{right}"
    # A list's star stands alone; others, and bars and underscores behind words, are what they look like.
    return re.sub(r"[\\`|]|\*(?!\s)|(?<=\S)\*|_(?!\w)", lambda found: "\\" + found[0], prose)


def _listed(paragraph: str) -> str:
    """A paragraph of fields as a list; others as they are."""
    lines = paragraph.strip("\n").split("\n")
    if not FIELD.match(lines[0]) or not all(FIELD.match(line) or line.startswith("  ") for line in lines):
        return paragraph
    return "\n".join(FIELD.sub(r"- **\1**: ", line) for line in lines)
