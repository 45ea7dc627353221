"""Every row of the distillation benchmark runs: on random images, and a step or two each."""

import jax
import numpy as np
import pytest

from benchmarks.teaching import compressed, losses, quarter, students, subsets, weak
from benchmarks.teaching.cells import Cells

ROWS = {loss.title: loss for loss in losses.LOSSES}
QUICK = ("contrastive, memory (CRD)",)
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


@pytest.mark.parametrize(
    "title", [t if t in QUICK else pytest.param(t, marks=pytest.mark.slow) for t in ROWS]
)
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
