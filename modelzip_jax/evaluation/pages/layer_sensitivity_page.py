"""A page of layers, each compressed alone."""

from __future__ import annotations

from modelzip_jax.evaluation.layer_sensitivities import SensitivityTable, draw_sensitivities
from modelzip_jax.evaluation.pages.drawing import canvas, svg
from modelzip_jax.evaluation.pages.markup import element
from modelzip_jax.evaluation.pages.numbers import exact
from modelzip_jax.evaluation.pages.page_building import document
from modelzip_jax.evaluation.pages.page_tables import Column, search_field, sortable_table

__all__ = ["sensitivity_page"]


def sensitivity_page(found: SensitivityTable, title: str) -> str:
    """Figure and table, as one HTML file that needs no network.

    Raises:
      MissingExtraError: matplotlib is not installed.
    """
    with canvas(9.0, 1.2 + 0.22 * max(len(found.order), 8), "sensitivity") as figure:
        draw_sensitivities(figure, found)
        drawn = svg(figure, f"{found.unit} of {len(found.order)} layers, each compressed alone")
    columns = [
        Column("layer", False), Column("values"), Column("candidate", False), Column("bytes dense"),
        Column("bytes in the file"), Column(found.unit),
    ]  # fmt: skip
    rows = [
        [
            element("td", row.name),
            element("td", f"{row.size:,}", class_="number", data_value=exact(row.size)),
            element("td", row.candidate),
            element("td", f"{row.dense_bytes:,}", class_="number", data_value=exact(row.dense_bytes)),
            element("td", f"{row.file_bytes:,}", class_="number", data_value=exact(row.file_bytes)),
            element("td", f"{row.error:.4g}", class_="number", data_value=exact(row.error)),
        ]
        for row in sorted(found.rows, key=lambda row: -row.error)
    ]
    body = [
        element("h1", title),
        element("p", "Each layer compressed alone, all others as they were.", class_="hint"),
        drawn,
        search_field("tbody tr", "layers"),
        sortable_table(columns, rows),
    ]
    return document(title, body)
