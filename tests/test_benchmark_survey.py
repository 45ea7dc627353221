"""The survey-wide experiment takes every recipe, and its table says what its cells say."""

import argparse
import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks import harness
from benchmarks.teaching.cells import Cells
from benchmarks.terms import tables, ways

LAYERS = {
    f"{layer}/{leaf}": [size, 8 * size, 0.5]
    for layer, sizes in {
        "Conv_0": (500, 20), "Conv_1": (25_000, 50), "Dense_0": (400_000, 500), "Dense_1": (5_000, 10),
    }.items()
    for leaf, size in zip(("kernel", "bias"), sizes, strict=True)
}  # fmt: skip


def test_every_recipe_is_a_row():
    text = (Path(ways.__file__)).read_text()
    used = set(re.findall(r"_recipe\(\"(\w+)\"\)", text))
    assert used == {path.stem for path in ways.RECIPES.glob("*.json")}
    names = [way.name for way in ways.WAYS]
    assert len(set(names)) == len(names)


def cell(size, test, **more):
    return {"bytes": size, "at_once": 50.0, "train": test + 2.0, "validation": test, "test": test,
            "layers": LAYERS, **more}  # fmt: skip


def test_the_table_is_of_the_cells():
    pytest.importorskip("matplotlib")
    cells = Cells(None)
    floats, small = ways.WAYS[0], ways.WAYS[4]
    for seed in range(2):
        cells.found[f"{floats.name}/seed={seed}"] = cell(1_400_000, 90.0 + seed, call=1.0)
        cells.found[f"{small.name}/seed={seed}"] = cell(100_000, 89.0 + seed, call=1.5)
    chosen = argparse.Namespace(repeats=3, quick=True)
    out = harness.Report("survey", "a title", chosen)
    tables.report(cells, out)
    (table,) = out.tables
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
    assert [row["way"] for row in rows] == [floats.title, small.title]
    assert rows[1]["file, bytes"] == 100_000
    assert rows[1]["times smaller"] == pytest.approx(17.24, abs=0.01)
    assert rows[1]["test, %"] == "89.50 ± 0.50"
    assert rows[1]["above the float network"] == "-1.00 ± 0.00"
    assert rows[1]["train − test"] == "2.00 ± 0.00"
    # 8 bits a weight: a byte each at 20.3 pJ a bit, and 2.3 million products at 4.6 pJ.
    energy = rows[1]["energy of a call, estimated, µJ"]
    assert energy == pytest.approx(1e-6 * (431_080 * 8 * 20.3125 + 2_293_000 * 4.6), rel=0.05)
    drawn = tables.draw([(floats, 1.4e6, 90.5), (small, 1e5, 89.5)])
    offsets = np.concatenate([np.asarray(c.get_offsets()) for c in drawn.axes[0].collections])
    np.testing.assert_allclose(sorted(offsets.tolist()), [[100.0, 89.5], [1400.0, 90.5]])
