"""The page of one compression: what it says first, and what it says on a click."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any

from modelzip_jax.decimal_units import human_bytes
from modelzip_jax.evaluation.compression_findings import MOST_HISTOGRAMS, Findings, findings
from modelzip_jax.evaluation.estimate import Estimate
from modelzip_jax.evaluation.pages.byte_figures import bars, treemap
from modelzip_jax.evaluation.pages.change_figures import MOST_LEVELS, histogram_figure, score_figure
from modelzip_jax.evaluation.pages.markup import Markup, concatenated, element
from modelzip_jax.evaluation.pages.numbers import share, shown
from modelzip_jax.evaluation.pages.page_tables import layer_table, score_table, search_field
from modelzip_jax.packing import Packed
from modelzip_jax.tree import PyTree

__all__ = ["document", "html_report", "page"]

# Nothing is asked of any network, whatever names a file has.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def html_report(
    model: Packed,
    *,
    title: str = "compressed model",
    against: PyTree = None,
    task: Callable[[PyTree], Any] | None = None,
) -> str:
    """One compression as a page to look at: a single HTML file that needs no network.

    It shows where the bytes go, bits and sparsity of each layer, the recipe and versions; with `against` also errors of
    each layer and histograms of its weights, with the grid that they were rounded to; with a task its numbers.

    Args:
      model: what `mz.compress`, `mz.pack` and `mz.load` give. title: what the page is called.
      against, task: the params before compression, and what measures quality: see `findings`.

    Raises:
      MissingExtraError: matplotlib is not installed.
      TreeError, EvaluationError: as `findings`.

    >>> import pytest; _ = pytest.importorskip("matplotlib")
    >>> import numpy as np, modelzip_jax as mz
    >>> params = {"w": np.eye(64, dtype=np.float32)}
    >>> html_report(mz.compress(params, mz.quantize(bits=4)), against=params)[:15]
    '<!DOCTYPE html>'
    """
    return page(findings(model, against=against, task=task), title)


def page(found: Findings, title: str) -> str:
    """What was found, as HTML."""
    report = found.report
    headline = f"{human_bytes(report.dense_bytes)} → {human_bytes(report.file_bytes)}: {found.ratio:.1f} times smaller"
    sections = [
        _quality(found),
        _section("Where the bytes go: every tensor", layer_table(found), id_="layers"),
        _section("Bits and sparsity of each layer", _layer_figures(found)),
        _section("Layer by layer", _layers(found), id_="each"),
        _section("Recipe", element("pre", _json(report.recipe))),
        _section("Metadata", element("pre", _json(dict(report.metadata)))) if report.metadata else None,
        _section("Versions", _facts(list(found.versions.items()))),
    ]
    body = [
        element("h1", title),
        element("p", headline, class_="headline"),
        _facts(_glance(found)),
        treemap(found.layers),
        element(
            "p", "Area: bytes in the file. Stronger colour: more bits a weight. A click shows the layer.", class_="hint"
        ),
        *sections,
        _data(report.plain()),
    ]  # fmt: skip
    return document(f"{title}: {headline}", body)


def document(title: str, body: Sequence[Markup | None]) -> str:
    """A whole file of HTML, with style and script within it."""
    head = [
        element("meta", charset="utf-8"),
        element("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("link", rel="icon", href="data:,"),
        element("title", title),
        element("style", Markup(_read("page.css"))),
    ]
    script = element("script", Markup(_read("page.js")))
    content = element("body", element("main", *body), script)
    whole = element("html", element("head", *head), content, lang="en")
    return f"<!DOCTYPE html>\n{whole}\n"


def _data(plain: Any) -> Markup:
    """What `inspect --json` prints, for programs that read the page."""
    text = _json(plain, None).replace("<", "\\u003c")
    return element("script", Markup(text), type="application/json", id_="inspect")


@functools.cache
def _read(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _json(value: Any, indent: int | None = 1) -> str:
    return json.dumps(value, indent=indent, default=lambda x: x.hex() if isinstance(x, bytes) else str(x))


def _section(title: str, content: Markup, *, opened: bool = False, id_: str | None = None) -> Markup:
    return element("details", element("summary", title), content, open=opened, id_=id_)


def _facts(pairs: list[tuple[str, str]]) -> Markup:
    boxes = (element("div", element("dt", name), element("dd", value)) for name, value in pairs)
    return element("dl", *boxes, class_="facts")


def _glance(found: Findings) -> list[tuple[str, str]]:
    report = found.report
    pairs = [
        ("bits a weight", f"{report.bits_per_weight:.2f}"),
        ("bytes in the file", f"{report.file_bytes:,}"),
        ("packed in memory", human_bytes(report.packed_bytes)),
        ("values", f"{report.size:,}"),
    ]
    if found.sparsity:
        pairs.append(("set to zero", share(found.sparsity)))
    if found.error is not None:
        pairs.append(("error of the weights", share(found.error.relative)))
    if report.step:
        pairs.append(("steps of training", f"{report.step:,}"))
    for change in found.scores[:3]:
        before = "" if change.before is None else f"{float(change.before):.4g} → "
        pairs.append((change.name, f"{before}{float(change.after):.4g}"))
    return pairs


def _quality(found: Findings) -> Markup | None:
    if not found.scores:
        return None
    figures = [element("div", element("h3", c.name), score_figure(c)) for c in found.scores[:12]]
    hints = []
    if any(isinstance(c.after, Estimate) for c in found.scores):
        hints.append("± and bars: one standard error.")
    if any(c.paired for c in found.scores):
        hints.append("Changes are of the same examples, one by one.")
    content = [score_table(found.scores), element("p", " ".join(hints), class_="hint") if hints else None]
    return _section("Quality", concatenated(*content, element("div", *figures, class_="scores")), opened=True)


def _layer_figures(found: Findings) -> Markup:
    rows = [layer.row for layer in found.layers]
    figures = [bars(found.layers, [row.bits_per_weight for row in rows], "bits a weight", "", 2)]
    if any(row.sparsity for row in rows):
        figures.append(bars(found.layers, [100 * row.sparsity for row in rows], "sparsity, %", " %", 1))
    if found.error is not None:
        errors = [100 * layer.error.relative if layer.error else 0.0 for layer in found.layers]
        finite = [e if e < float("inf") else 0.0 for e in errors]
        figures.append(bars(found.layers, finite, "relative error, %", " %", 2))
    return element("div", *figures, class_="figures")


def _about_grid(levels: int) -> Markup:
    drawn = "thin lines" if levels <= MOST_LEVELS else "too many to draw"
    return element("p", f"Levels of the grid in this range: {levels:,}, {drawn}.", class_="hint")


def _layers(found: Findings) -> Markup:
    parts = []
    for index, layer in enumerate(found.layers):
        row, error, histogram = layer.row, layer.error, layer.histogram
        told = f"{human_bytes(row.file_bytes)}, {row.bits_per_weight:.2f} bits a weight"
        told += f", {share(row.sparsity)} zeros" if row.sparsity else ""
        told += f", error {share(error.relative)}" if error and error.squared else ""
        facts = [
            ("shape", "×".join(map(str, row.shape)) or "scalar"),
            ("stored as", row.form),
            ("dtype", row.dtype),
        ]
        if error is not None:
            facts += [("relative error", share(error.relative)), ("largest error", shown(error.largest))]
        content = [_facts(facts), histogram_figure(row.name, histogram) if histogram else None]
        if histogram and histogram.levels is not None:
            content.append(_about_grid(len(histogram.levels)))
        summary = element("summary", row.name, " ", element("span", told))
        names = {"class_": "layer", "id_": f"layer-{index}", "data_search": f"{row.name} {row.form}"}
        parts.append(element("details", summary, *content, **names))
    compared = any(layer.histogram for layer in found.layers)
    hint = f"Weights before and after, of the {MOST_HISTOGRAMS} largest compressed tensors at most." if compared else (
        "Give the weights before compression to see errors, and weights before and after."
    )  # fmt: skip
    return concatenated(search_field("details.layer", "layers"), element("p", hint, class_="hint"), *parts)
