"""Tables of a page that can be sorted and searched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from modelzip_jax.evaluation.compression_findings import Findings
from modelzip_jax.evaluation.pages.markup import Markup, concatenated, element
from modelzip_jax.evaluation.pages.numbers import exact, share, shown
from modelzip_jax.evaluation.task_scores import ScoreChange

__all__ = ["Column", "layer_table", "score_table", "search_field", "sortable_table"]


class Column(NamedTuple):
    """A heading, and whether numbers stand below it."""

    heading: str
    is_number: bool = True


def sortable_table(
    columns: Sequence[Column], rows: Sequence[Sequence[Markup]], foot: Sequence[Markup] = ()
) -> Markup:
    """Rows of cells below headings that sort by a click."""
    headings = [
        element(
            "th",
            element("button", column.heading, type="button"),
            scope="col",
            class_="number" if column.is_number else None,
        )
        for column in columns
    ]
    parts = [
        element("thead", element("tr", *headings)),
        element("tbody", *(element("tr", *row) for row in rows)),
        element("tfoot", element("tr", *foot)) if foot else None,
    ]
    return element("div", element("table", *parts, class_="sorted"), class_="scroll")


def search_field(of: str, what: str) -> Markup:
    """A field that hides what is found by the selector `of` unless its text holds all words."""
    field = element(
        "input", type="search", placeholder=f"search {what}", aria_label=f"search {what}", data_of=of
    )
    return element("div", field, " ", element("span", class_="count hint"))


def _number(
    value: float | int | None, text: str, field: str | None = None, part: float | None = None
) -> Markup:
    """A cell; `part`: the length of a bar below the number, from 0 to 1."""
    bar = element("span", class_="bar", style=f"width:{100 * part:.1f}%") if part else None
    return element("td", text, bar, class_="number", data_value=exact(value), data_field=field)


def layer_table(found: Findings) -> Markup:
    """A row for each tensor: what `inspect` says of it, and its error."""
    columns = [
        Column("tensor", False), Column("shape", False), Column("dtype", False), Column("stored as", False),
        Column("bytes in the file"), Column("share of the file"), Column("bits a weight"), Column("sparsity"),
        Column("packed bytes"), Column("dense bytes"), Column("values"),
    ]  # fmt: skip
    compared = any(layer.error is not None for layer in found.layers)
    if compared:
        columns += [Column("relative error"), Column("largest error")]
    total = max(found.report.file_bytes, 1)
    largest = max((layer.row.file_bytes for layer in found.layers), default=0) or 1
    most = max((layer.row.bits_per_weight for layer in found.layers), default=0.0) or 1.0
    rows = []
    for index, layer in enumerate(found.layers):
        row, error = layer.row, layer.error
        cells = [
            element("td", element("a", row.name, href=f"#layer-{index}"), data_field="name"),
            element("td", "×".join(map(str, row.shape)) or "scalar"),
            element("td", row.dtype, data_field="dtype"),
            element("td", row.form, data_field="form"),
            _number(row.file_bytes, f"{row.file_bytes:,}", "file_bytes", row.file_bytes / largest),
            _number(row.file_bytes / total, share(row.file_bytes / total)),
            _number(
                row.bits_per_weight,
                f"{row.bits_per_weight:.2f}",
                "bits_per_weight",
                row.bits_per_weight / most,
            ),
            _number(row.sparsity, share(row.sparsity), "sparsity", row.sparsity),
            _number(row.packed_bytes, f"{row.packed_bytes:,}", "packed_bytes"),
            _number(row.dense_bytes, f"{row.dense_bytes:,}", "dense_bytes"),
            _number(row.size, f"{row.size:,}", "size"),
        ]
        if compared:
            relative, most_off = (error.relative, error.largest) if error else (None, None)
            cells += [
                _number(relative, share(relative)),
                _number(most_off, shown(most_off) if most_off else "–"),
            ]
        rows.append(cells)
    return concatenated(
        search_field("#layers tbody tr", "tensors"), sortable_table(columns, rows, _totals(found, compared))
    )


def _totals(found: Findings, compared: bool) -> list[Markup]:
    report = found.report
    rest = report.file_bytes - sum(row.file_bytes for row in report.tensors)
    foot = [
        element("td", f"{len(report.tensors)} tensors, and {rest:,} bytes of header and checksums"),
        *[element("td")] * 3,
        _number(report.file_bytes, f"{report.file_bytes:,}", "file_bytes"),
        element("td"),
        _number(report.bits_per_weight, f"{report.bits_per_weight:.2f}", "bits_per_weight"),
        _number(found.sparsity, share(found.sparsity)),
        _number(report.packed_bytes, f"{report.packed_bytes:,}", "packed_bytes"),
        _number(report.dense_bytes, f"{report.dense_bytes:,}", "dense_bytes"),
        _number(report.size, f"{report.size:,}"),
    ]
    if compared and found.error:
        relative, largest = found.error.relative, found.error.largest
        foot += [_number(relative, share(relative)), _number(largest, shown(largest))]
    return foot


def score_table(scores: Sequence[ScoreChange]) -> Markup:
    """A row for each number of a task: before, after, and the difference."""
    columns = [Column("score", False), Column("before"), Column("after"), Column("change")]
    rows = [
        [
            element("td", change.name),
            *(_number(_value(x), shown(x)) for x in (change.before, change.after, change.change)),
        ]
        for change in scores
    ]
    return sortable_table(columns, rows)


def _value(score: object) -> float | None:
    return None if score is None else float(score)  # type: ignore[arg-type]
