"""How packed models and packed arrays show themselves in notebooks."""

from __future__ import annotations

import dataclasses
import html
from typing import TYPE_CHECKING, Any

import jax

from modelzip_jax.evaluation.report import inspect
from modelzip_jax.evaluation.stored_forms import describe
from modelzip_jax.packed import PackedArray, is_packed

if TYPE_CHECKING:
    from modelzip_jax.packing import Packed

__all__ = ["html_of", "treescope_of"]

_LEFT = 4
"""Columns of words, before those of numbers."""


def html_of(model: Packed) -> str:
    """The table of `inspect`; a line without one where a `tree.map` has replaced the arrays.

    >>> import numpy as np, modelzip_jax as mz
    >>> "int4 channel" in html_of(mz.compress({"w": np.eye(8, dtype=np.float32)}, mz.quantize(4)))
    True
    """
    packed = jax.tree.leaves(model.params, is_leaf=is_packed)
    if not all(map(is_packed, packed)) or not _are_stored(model):
        return "<pre>Packed, of something else than stored arrays</pre>"
    found = inspect(model)
    heading, *rows = found.cells()
    align = ["left" if index < _LEFT else "right" for index in range(len(heading))]
    head = "".join(_cell("th", text, side) for text, side in zip(heading, align, strict=True))
    lines = (
        "<tr>" + "".join(_cell("td", text, side) for text, side in zip(row, align, strict=True)) + "</tr>"
        for row in rows
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return f"<p>{html.escape(repr(model))}</p>{table}"


def _are_stored(tree: Any) -> bool:
    """Whether all are arrays that a file could hold: no tracers, and not what a tree.map put in their place."""
    return all(hasattr(x, "dtype") and not isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(tree))


def _cell(name: str, text: str, side: str) -> str:
    return f'<{name} style="text-align: {side}">{html.escape(text)}</{name}>'


def treescope_of(packed: PackedArray, path: str | None, subtree_renderer: Any) -> Any:
    """A packed array as treescope draws an object with fields, with a comment behind its name."""
    from treescope import rendering_parts as parts

    fields = [f.name for f in dataclasses.fields(packed)]  # type: ignore[arg-type]
    children = parts.build_field_children(packed, path, subtree_renderer, fields_or_attribute_names=fields)
    return parts.build_foldable_tree_node_from_children(
        prefix=parts.siblings(parts.maybe_qualified_type_name(type(packed)), "("),
        children=children,
        suffix=")",
        path=path,
        first_line_annotation=parts.comment_color(parts.text(f"  # {_told(packed)}")),
    )


def _told(packed: PackedArray) -> str:
    if not _are_stored(packed):
        return "not of stored arrays"
    shape = "×".join(map(str, packed.shape)) or "scalar"
    return f"{describe(packed)}, {shape}, {packed.nbytes:,} bytes"
