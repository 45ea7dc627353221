"""Every row of the distillation benchmark runs: on random images, and a step or two each."""

import argparse
import itertools

import jax
import numpy as np
import pytest

from benchmarks import harness
from benchmarks.distillation import PARTS as EVERY_PART
from benchmarks.teaching import compressed, losses, quarter, step_time, students, subsets, weak
from benchmarks.teaching.cells import Cells

ROWS = {loss.title: loss for loss in losses.LOSSES}
PARTS = {"compressed": compressed, "weak": weak, "subsets": subsets}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Random images with the shapes of the real ones, and a teacher that nobody has trained."""
    monkeypatch.setattr(students, "QUICK", [2])
    cached = [students.split, students.training_data, students.teacher_params, students._teacher, subsets._chosen,
              weak._known, subsets._early, subsets._forgotten]  # fmt: skip
    for function in cached:
        function.cache_clear()

    def split(name):
        drawn = np.random.default_rng(0)
        count = 13_000 if name == "train" else 125
        images = drawn.integers(0, 256, (count, 28, 28, 1)).astype("u1")
        return {"inputs": images, "labels": (np.arange(count) % 10).astype("i4")}

    images = {name: split(name) for name in ("train", "validation", "test")}
    monkeypatch.setattr(students, "split", images.__getitem__)
    monkeypatch.setattr(students, "teacher_params", lambda: students.drawn(9, students.FULL))
    monkeypatch.setattr(quarter, "PEAKS", (1e-2,))
    yield
    for function in cached:
        function.cache_clear()


def assert_finite(cell):
    assert all(np.isfinite(x) for x in jax.tree.leaves(cell))


@pytest.mark.slow
@pytest.mark.parametrize("title", ROWS)
def test_a_row_of_the_losses(title):
    loss = ROWS[title]
    assert_finite(quarter._fit(loss, 1e-2, loss.weights[0], loss.temperatures[-1], 0))


@pytest.mark.slow
@pytest.mark.parametrize("name", PARTS)
def test_a_part(name):
    cells = Cells(None)
    PARTS[name].run(cells)
    assert cells.found
    jax.tree.map(assert_finite, cells.found)


def test_every_part_is_studied_and_reported(monkeypatch, capsys):
    """All cells that a study asks for, and the tables of them; nothing is trained."""
    drawn = itertools.count()

    def cell(*_):
        seed = np.random.default_rng(next(drawn))
        names = ("train", "validation", "test", "noise", "weighted_noise")
        return {name: float(seed.uniform(80, 95)) for name in names}

    for module in (quarter, compressed, subsets):
        monkeypatch.setattr(module, "_fit", cell)
    for name in ("_alone", "_teacher_cell", "_taught"):
        monkeypatch.setattr(weak, name, cell)
    monkeypatch.setattr(students, "accuracies", cell)
    ratios = dict.fromkeys(("before", "within", "cached", "control"), 1.0)
    cases = (
        step_time.STUDENT,
        step_time.AGAIN,
        step_time.TEACHER,
        step_time.TAUGHT,
        step_time.WITHIN,
        step_time.CACHED,
    )
    times = {"ms": dict.fromkeys(cases, 1.0), **ratios, **{f"{name}_spread": 0.0 for name in ratios}}
    monkeypatch.setattr(step_time, "_by_another", lambda environment: times)
    cells, out = Cells(None), harness.Report("distillation", "Distillation", argparse.Namespace(quick=True))
    for module in EVERY_PART.values():
        module.run(cells)
    assert not [title for module in EVERY_PART.values() for title in module.report(cells, out)]
    out.finish()
    said = capsys.readouterr().out
    assert all(title in said for title in (*ROWS, *compressed.TRANSFORMS, *cases))
    assert len(out.tables) == len(EVERY_PART)
    assert [len(table["rows"]) for table in out.tables] == [len(ROWS), 4, 4, len(subsets.METHODS), len(cases)]
