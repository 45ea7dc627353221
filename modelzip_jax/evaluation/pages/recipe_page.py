"""A page of recipes side by side."""

from __future__ import annotations

from collections.abc import Sequence

from modelzip_jax.evaluation.pages.markup import element
from modelzip_jax.evaluation.pages.numbers import exact, shown
from modelzip_jax.evaluation.pages.page_building import document
from modelzip_jax.evaluation.pages.page_tables import Column, sortable_table
from modelzip_jax.evaluation.pages.recipe_figures import front_figure
from modelzip_jax.evaluation.recipe_comparison import ComparedRecipe

__all__ = ["comparison_page"]


def comparison_page(
    compared: Sequence[ComparedRecipe], on_front: Sequence[bool], score: str, title: str
) -> str:
    """Figure and table of recipes, as one HTML file that needs no network.

    Raises:
      MissingExtraError: matplotlib is not installed.
      EvaluationError: the task gave no such number.
    """
    names = [change.name for change in compared[0].scores]
    columns = [
        Column("recipe", False),
        Column("bytes in the file"),
        *map(Column, names),
        Column("on the front", False),
    ]
    rows = [
        [
            element("td", one.name),
            element("td", f"{one.file_bytes:,}", class_="number", data_value=exact(one.file_bytes)),
            *(
                element("td", shown(c.after), class_="number", data_value=exact(float(c.after)))
                for c in one.scores
            ),
            element("td", "yes" if best else ""),
        ]
        for one, best in zip(compared, on_front, strict=True)
    ]
    body = [
        element("h1", title),
        element("p", f"{sum(on_front)} of {len(compared)} recipes are beaten by none", class_="headline"),
        front_figure(compared, on_front, score),
        element("p", "Dashed: before compression. Bars: one standard error.", class_="hint"),
        sortable_table(columns, rows),
    ]
    return document(title, body)
