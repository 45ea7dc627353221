"""A tenth of Fashion-MNIST, chosen by every rule: what a small network learns from it."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from benchmarks.teaching import students
from benchmarks.teaching.cells import Cells, OutOfTimeError
from benchmarks.teaching.quarter import peak
from benchmarks.teaching.students import QUARTER, STEPS
from modelzip_jax import distillation
from modelzip_jax.training import data as datasets
from modelzip_jax.tree import PyTree

__all__ = ["report", "run"]

SEEDS, SHARE = 3, 0.1
EARLY, NETWORKS, WATCHED = 150, 5, 2 * STEPS
"""Steps after which EL2N is taken, of how many networks, and steps in which forgetting is watched."""
SKIPS = (0.0, 0.2, 0.5)
RANDOM, SCORED = "random", ("EL2N", "forgetting")
METHODS = (RANDOM, "herding", "k-centre", *SCORED)


def run(cells: Cells) -> None:
    """Trains what is missing."""
    for method in METHODS:
        _trained(cells, method)


def _trained(cells: Cells, method: str) -> list[dict[str, Any]]:
    rate = peak(cells)

    def cell(skip: float, seed: int) -> dict[str, Any]:
        name = f"subset/{method}{f'/skip={skip:g}' if method in SCORED else ''}/seed={seed}"
        return cells.get(name, lambda: _fit(rate, method, skip, seed)) | {"skip": skip}

    tried = [cell(skip, 0) for skip in (SKIPS if method in SCORED else (0.0,))]
    best = max(tried, key=lambda x: x["validation"])["skip"]
    return [cell(best, seed) for seed in students.seeds_of(SEEDS)]


def _fit(rate: float, method: str, skip: float, seed: int) -> dict[str, float]:
    """Only the random subset is another one for each seed."""
    chosen = _chosen(rate, method, skip, seed if method == RANDOM else 0)
    data = students.training_data()
    order = students.orders(seed, STEPS, len(data["labels"]), chosen=chosen)
    found = _runner(rate)(students.drawn(seed, QUARTER), (), data, order, {}, seed)
    return students.accuracies(found.params, chosen)


@functools.cache
def _chosen(rate: float, method: str, skip: float, seed: int) -> np.ndarray:
    labels = students.split("train")["labels"]
    if method == RANDOM:
        every = {"labels": labels, "index": np.arange(len(labels))}
        return datasets.subset(every, SHARE, seed=seed)["index"]
    if method in SCORED:
        scores = _early(rate) if method == "EL2N" else _forgotten(rate)
        return distillation.hardest(scores, SHARE, labels, skip=skip)
    choose = distillation.herding if method == "herding" else distillation.k_centre
    return choose(np.asarray(students.teacher_outputs(("hidden",))["teacher_hidden"]), SHARE, labels)


@functools.cache
def _runner(rate: float, watched: bool = False) -> Any:
    def objective(params: PyTree, given: students.Given) -> tuple[jax.Array, PyTree]:
        batch, memory = given.batch, given.memory
        logits = students.logits_of(params, batch["inputs"])
        if watched:
            correct = jnp.argmax(logits, -1) == batch["labels"]
            memory = distillation.record_forgetting(memory, batch["index"], correct)
        return students.cross_entropy(logits, batch["labels"]), memory

    return students.make_run(objective, students.adamw(rate, WATCHED if watched else STEPS))


@functools.cache
def _early(rate: float) -> jax.Array:
    data, found = students.training_data(), []
    for seed in (100 + network for network in students.seeds_of(NETWORKS)):
        order = students.orders(seed, EARLY, len(data["labels"]))
        params = _runner(rate)(students.drawn(seed, QUARTER), (), data, order, {}, seed).params
        found.append(students.outputs(params, students.split("train")["inputs"])["logits"])
    return distillation.el2n(jnp.asarray(np.stack(found)), data["labels"])


@functools.cache
def _forgotten(rate: float) -> jax.Array:
    data = students.training_data()
    order = students.orders(100, WATCHED, len(data["labels"]))
    state = distillation.start_forgetting(len(data["labels"]))
    run = _runner(rate, watched=True)
    return distillation.forgetting_scores(
        run(students.drawn(100, QUARTER), state, data, order, {}, 100).memory
    )


def report(cells: Cells, out: harness.Report) -> list[str]:
    """The table of what is done; gives back what is not."""
    done, rows, missing = {}, [], []
    for method in METHODS:
        try:
            done[method] = _trained(cells, method)
        except OutOfTimeError:
            missing.append(f"subsets by {method}")
    if RANDOM not in done:
        return missing
    for method, found in done.items():
        test, gap = (
            np.array([f(x) for x in found]) for f in (lambda x: x["test"], lambda x: x["train"] - x["test"])
        )
        base = np.array([x["test"] for x in done[RANDOM]])
        title = f"{method}, skipping {100 * found[0]['skip']:g} %" if method in SCORED else method
        rows.append([
            title, harness.said(test, digits=2),
            "–" if method == RANDOM else harness.said(test - base, digits=2), harness.said(gap, digits=2),
            float(np.mean([x["validation"] for x in found])),
        ])  # fmt: skip
    columns = ["chosen by", "test, %", "above random", "train − test", "validation, %"]
    title = f"5,500 of 55,000 images for a quarter of LeNet-5's widths, {STEPS} steps, {SEEDS} seeds"
    out.table(title, columns, rows)
    return missing
