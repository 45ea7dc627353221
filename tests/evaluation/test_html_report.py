"""The page of a compression: it says what `inspect` says, measures what it should, and needs no network."""

import html.parser
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

import modelzip_jax as mz
from modelzip_jax.errors import EvaluationError, MissingExtraError, TreeError
from modelzip_jax.evaluation.compression_findings import findings
from modelzip_jax.evaluation.pages.treemap_layout import squarified
from modelzip_jax.evaluation.stored_grids import stored_grid
from modelzip_jax.evaluation.task_scores import named_scores, score_changes
from modelzip_jax.evaluation.weight_errors import weight_error
from modelzip_jax.evaluation.weight_histograms import weight_histogram

RNG = np.random.default_rng(0)
GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("*.mz"))
PARAMS = {
    "dense": {"kernel": RNG.normal(size=(64, 32)).astype(np.float32), "bias": np.zeros(32, np.float32)},
    "a<b>": {"kernel": RNG.normal(size=(16, 16)).astype(np.float32)},
    "table": RNG.normal(size=(40, 8)).astype(np.float32),
    "count": np.arange(3),
}
RECIPE = mz.partition(
    {
        "sparse": mz.chain(mz.prune(sparsity=0.75), mz.quantize(4)),
        "shared": mz.cluster(8),
        "table": mz.entropy_constrained(0.2),
    },
    {"dense/kernel": "sparse", "a<b>/*": "shared", "table": "table"},
)


class Page(html.parser.HTMLParser):
    """Elements that must be closed are, cells by row and field, and what the scripts hold."""

    def __init__(self, text):
        super().__init__()
        self.open, self.rows, self.scripts, self.links = [], [], {}, []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.links += [attributes[name] for name in ("src", "href", "action", "data") if name in attributes]
        if tag == "tr":
            self.rows.append({})
        if tag == "td":
            self.cell = attributes
        if tag not in ("meta", "link", "input", "br"):
            self.open.append((tag, attributes))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_startendtag(self, tag, attributes):
        self.links += [value for name, value in attributes if name in ("href", "xlink:href")]

    def handle_data(self, data):
        if self.open and self.open[-1][0] == "script":
            self.scripts[self.open[-1][1].get("id")] = data
        inside = [tag for tag, _ in self.open]
        if "td" in inside and self.cell.get("data-field"):
            self.rows[-1].setdefault(self.cell["data-field"], self.cell.get("data-value", data))


def report(**more):
    pytest.importorskip("matplotlib")
    return mz.evaluation.html_report(mz.compress(PARAMS, RECIPE), **more)


def test_every_number_that_inspect_has_is_on_the_page_as_it_is_there():
    model = mz.compress(PARAMS, RECIPE)
    text = report(against=PARAMS)
    page, plain = Page(text), json.loads(json.dumps(mz.inspect(model).plain()))
    assert json.loads(page.scripts["inspect"]) == plain
    rows = [row for row in page.rows if row]
    fields = ["file_bytes", "bits_per_weight", "sparsity", "packed_bytes", "dense_bytes", "size"]
    assert len(rows) == len(plain["tensors"]) + 1
    for row, tensor in zip(rows[:-1], plain["tensors"], strict=True):
        assert [row["name"], row["form"]] == [tensor["name"], tensor["form"]]
        assert [json.loads(row[field]) for field in fields] == [tensor[field] for field in fields]
    totals = ["file_bytes", "bits_per_weight", "packed_bytes", "dense_bytes"]
    assert [json.loads(rows[-1][field]) for field in totals] == [plain[field] for field in totals]


def test_the_page_asks_for_nothing_from_elsewhere_and_its_links_lead_somewhere():
    text = report(against=PARAMS, title="<script>alert(1)</script>")
    page = Page(text)
    identities = re.findall(r'\bid="([^"]+)"', text)
    assert {link for link in page.links if not link.startswith(("#", "data:,"))} == set()
    assert [link for link in page.links if link.startswith("#") and link[1:] not in identities] == []
    assert len([i for i in identities if i.startswith("layer-")]) == 5
    assert re.findall(r"url\((?!#)", text) == []
    assert "@import" not in text
    assert "<script>alert" not in text
    assert "a<b>" not in text.replace(page.scripts["inspect"], "")
    assert "#0102" not in text


def test_histograms_only_with_the_weights_before_and_scores_only_with_a_task():
    bare = report()
    assert "Histogram of the weights" not in bare
    assert "Quality" not in bare
    full = report(against=PARAMS, task=lambda params: {"mean of table": params["table"].mean(axis=1)})
    assert full.count("Histogram of the weights") == 3
    assert "mean of table" in full
    assert "±" in full


def test_the_same_model_gives_the_same_page():
    assert report(against=PARAMS) == report(against=PARAMS)


def test_without_matplotlib_the_error_names_the_command(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'modelzip_jax\[report\]'"):
        mz.evaluation.html_report(mz.compress(PARAMS, RECIPE))


def test_errors_of_layers_are_those_of_the_weights():
    model = mz.compress(PARAMS, RECIPE)
    found = findings(model, against={"params": PARAMS})
    values = mz.unpack(model)
    by_name = {layer.row.name: layer for layer in found.layers}
    change = np.asarray(values["table"]) - PARAMS["table"]
    error = by_name["table"].error
    assert error.relative == pytest.approx(np.linalg.norm(change) / np.linalg.norm(PARAMS["table"]), rel=1e-5)
    assert error.largest == pytest.approx(np.abs(change).max())
    assert by_name["dense/bias"].error.relative == 0.0
    assert by_name["count"].error is None
    assert found.error.squared == pytest.approx(sum(x.error.squared for x in found.layers if x.error))
    assert weight_error(np.zeros(2, np.float32), np.ones(2, np.float32)).relative == float("inf")


def test_weights_that_do_not_fit_are_refused_by_name():
    model = mz.compress(PARAMS, RECIPE)
    with pytest.raises(TreeError, match="'dense/kernel' has the shape"):
        findings(model, against={**PARAMS, "dense": {"bias": np.zeros(32), "kernel": np.zeros((2, 2))}})
    with pytest.raises(TreeError, match="have no 'table'"):
        findings(model, against={k: v for k, v in PARAMS.items() if k != "table"})


GRIDS = {
    "channel": mz.quantize(3),
    "tensor": mz.quantize(3, granularity="tensor"),
    "with zero": mz.quantize(3, granularity="group", group_size=16, symmetric=False),
    "normal floats": mz.quantize(grid=mz.grids.nf4()),
    "clusters": mz.cluster(9),
    "rows": mz.entropy_constrained(0.3, spread=mz.spreads.root_deviation(axis=-1)),
    "masked": mz.chain(mz.prune(sparsity=0.5), mz.quantize(4)),
}


@pytest.mark.parametrize("name", GRIDS)
def test_what_is_stored_lies_on_its_grid(name):
    weights = RNG.normal(size=(48, 16)).astype(np.float32)
    leaf = mz.compress({"w": weights}, GRIDS[name]).params["w"]
    grid, values = stored_grid(leaf), np.asarray(mz.unpack(leaf))
    kept = values[values != 0] if name == "masked" else values
    units = (np.broadcast_to(x, values.shape) for x in (grid.unit, grid.shift))
    unit, shift = (x[values != 0] if name == "masked" else x for x in units)
    places = kept / unit + shift
    assert np.abs(places[..., None] - grid.levels).min(axis=-1).max() < 1e-3
    histogram = weight_histogram(leaf, weights, values)
    assert histogram.before.sum() == pytest.approx(1.0)
    assert histogram.after.sum() == pytest.approx(1.0)
    assert histogram.in_steps == (not grid.is_of_values)
    assert len(histogram.levels) > 1


def test_leaves_without_a_grid_have_a_histogram_all_the_same():
    weights = RNG.normal(size=(32, 32)).astype(np.float32)
    leaf = mz.compress({"w": weights}, mz.wavelet("haar", levels=1)).params["w"]
    assert stored_grid(leaf) is None
    assert weight_histogram(leaf, weights, weights).levels is None
    assert weight_histogram(leaf, np.full(4, np.nan), np.ones(4)) is None


def test_scores_of_the_same_examples_are_compared_one_by_one():
    before, after = RNG.normal(size=100), RNG.normal(size=100) * 1e-3
    (row,) = score_changes({"x": before + after}, {"x": before})
    assert row.paired
    assert row.change.standard_error < row.after.standard_error / 100
    (other,) = score_changes({"x": before[:50]}, {"x": before})
    assert not other.paired
    (number,) = score_changes({"x": 2.0}, {"x": 1.5})
    assert number.change == 0.5
    for wrong in (3, {"x": "much"}, {"x": np.zeros((2, 2))}, {"x": np.zeros(0)}):
        with pytest.raises(EvaluationError):
            named_scores(wrong)


@pytest.mark.parametrize("sizes", [[1], [5, 3, 2, 2, 1, 1], [1000, 1], list(range(40, 0, -1))])
def test_a_treemap_fills_its_frame_in_proportion(sizes):
    found = squarified(sizes, 3.0, 2.0)
    areas = np.array([r.width * r.height for r in found])
    np.testing.assert_allclose(areas, np.array(sizes) * 6.0 / sum(sizes))
    for i, a in enumerate(found):
        assert min(a.x, a.y) >= 0
        assert (a.x + a.width, a.y + a.height) <= (3.0 + 1e-9, 2.0 + 1e-9) or a.y + a.height <= 2.0 + 1e-9
        for b in found[:i]:
            apart_x = a.x >= b.x + b.width - 1e-9 or b.x >= a.x + a.width - 1e-9
            apart_y = a.y >= b.y + b.height - 1e-9 or b.y >= a.y + a.height - 1e-9
            assert apart_x or apart_y


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_findings_of_every_stored_form(path):
    packed = mz.load(path)
    weights = jax.tree.map(lambda w: np.asarray(w) * 1.01 if w.dtype.kind == "f" else w, mz.unpack(packed))
    found = findings(packed, against=weights)
    assert {name for name, _ in mz.tree.named_leaves(weights)} <= {row.name for row in found.report.tensors}
