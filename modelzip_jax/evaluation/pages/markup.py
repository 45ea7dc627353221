"""HTML from Python: elements whose text is escaped, and what is already HTML."""

from __future__ import annotations

import html

__all__ = ["Markup", "concatenated", "element"]

_EMPTY = {"br", "input", "link", "meta"}


class Markup(str):
    """Text that is HTML already; whatever else is put into an element is escaped.

    >>> element("p", Markup("<b>x</b>"))
    '<p><b>x</b></p>'
    """

    __slots__ = ()


def element(name: str, *children: object, **attributes: object) -> Markup:
    """An element with children in order, and attributes; "_" stands for "-", one behind a name is left out.

    Of attributes, True gives the bare name, and None and False nothing. Children that are None are left out.

    >>> element("td", "a < b", data_value=0.5, hidden=True, class_="num", title=None)
    '<td data-value="0.5" hidden class="num">a &lt; b</td>'
    """
    told = []
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            told.append(f" {key}")
        elif value is not None and value is not False:
            told.append(f' {key}="{html.escape(str(value))}"')
    start = f"<{name}{''.join(told)}>"
    return Markup(start if name in _EMPTY else f"{start}{concatenated(*children)}</{name}>")


def concatenated(*children: object) -> Markup:
    """Children one after the other, text escaped."""
    parts = (
        child if isinstance(child, Markup) else html.escape(str(child))
        for child in children
        if child is not None
    )
    return Markup("".join(parts))
