"""Optimizers under compression: LAMB, SGDR, clipping, batch size and early stopping, beside AdamW with one cosine.

    python -m benchmarks.optimizer_study [--seconds S] [--quick]

LeNet-5 of a quarter of the width on Fashion-MNIST: trained without compression for two epochs, then for one epoch to
90 % zeros and 3 bits, by each way of training. Every way has its own peak rate, the better of two on the validation
split with seed 0; test figures are of three seeds, and differences are taken seed by seed: seeds share their float
network and, where the batch size is one, their batches. A run is kept in
`benchmarks/results/optimizer_study_cells.json` once it is done, so that a study that was stopped, also by --seconds,
goes on where it stood.
"""

from __future__ import annotations

import argparse
import functools
import math
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import modelzip_jax as mz
from benchmarks import harness
from benchmarks.teaching import students
from benchmarks.teaching.cells import Cells, OutOfTimeError, climb
from modelzip_jax.training import config as configs
from modelzip_jax.training import optimizers
from modelzip_jax.tree import PyTree

SEEDS, LOOKS, EXAMPLES = 3, 10, 55_040
"""Looks: how often the validation split is asked, at even distances."""
FLOAT_PEAK, FLOAT_STEPS = 2e-3, 860
SPARSITY, BITS, FINAL_SHARE = 0.9, 3, 0.6
"""Of the steps, after which sparsity stays."""


class Way(NamedTuple):
    """How a network is trained. fields: of `config.optimizer` that differ. peaks: that are tried. batch: its size."""

    fields: dict[str, Any]
    peaks: tuple[float, ...] = (3e-3, 9e-3)
    batch: int = 128


BASE = "AdamW, one cosine"
WAYS = {
    BASE: Way({}),
    "LAMB": Way({"name": "lamb"}, peaks=(3e-2, 9e-2)),
    "SGDR: three cosines, each twice as long": Way({"schedule.name": "sgdr", "schedule.first": 62}),
    "clipped to a norm of 1": Way({"clip": 1.0}),
    "batches of 512": Way({}, peaks=(9e-3, 2.7e-2), batch=512),
    "batches of 32": Way({}, peaks=(1e-3, 3e-3), batch=32),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=math.inf, help="to stop after")
    parser.add_argument("--quick", action="store_true", help="few examples, written to no file")
    chosen = parser.parse_args()
    if chosen.quick:
        students.QUICK.append(20)
    report = harness.Report("optimizer_study", "Optimizers under compression", chosen)
    report.command = "python -m benchmarks.optimizer_study"
    cells = Cells(None if chosen.quick else harness.RESULTS / "optimizer_study_cells.json", chosen.seconds)
    try:
        for title in WAYS:
            _runs(cells, title)
    except OutOfTimeError:
        print("the time is over")
    cells.end = -math.inf
    _tabulate(report, cells)
    report.finish()


def _runs(cells: Cells, title: str) -> tuple[float, list[dict[str, Any]]]:
    """The peak that is best with seed 0 on the validation split, and the cells of all seeds."""

    def cell(peak: float, seed: int) -> dict[str, Any]:
        return cells.get(f"{title}/peak={peak:g}/seed={seed}", lambda: _compressed(title, peak, seed))

    peak = climb(WAYS[title].peaks, 3.0, lambda peak: cell(peak, 0)["validation"][-1], 0)
    return peak, [cell(peak, seed) for seed in range(SEEDS)]


@functools.cache
def _float(seed: int) -> PyTree:
    def objective(
        params: PyTree, memory: PyTree, batch: Any, hyper: Any, key: Any
    ) -> tuple[jax.Array, PyTree]:
        del hyper, key
        return students.cross_entropy(students.logits_of(params, batch["inputs"]), batch["labels"]), memory

    data = students.training_data()
    order = students.orders(seed, FLOAT_STEPS, len(data["labels"]))
    run = students.make_run(objective, students.adamw(FLOAT_PEAK, FLOAT_STEPS))
    return run(students.drawn(seed, students.QUARTER), (), data, order, {}, seed).params


@functools.lru_cache(maxsize=1)
def _trainer(title: str) -> tuple[optax.GradientTransformation, Any, int]:
    """The wrapped optimizer at a peak of 1, a compiled part of a run at any peak, and the steps of a run."""
    way = WAYS[title]
    steps = EXAMPLES // way.batch
    config = configs.base().optimizer
    config.weight_decay = students.DECAY
    config.schedule.peak = 1.0
    for name, value in way.fields.items():
        config.update_from_flattened_dict({name: value})
    sparsity = mz.schedules.cubic(SPARSITY, begin=0, end=round(FINAL_SHARE * steps))
    pruned = mz.prune(sparsity=sparsity, every=max(steps // 20, 1), allocation="global")
    transform = mz.only("**/kernel", mz.chain(pruned, mz.quantize(BITS)))

    def wrapped(peak: Any) -> optax.GradientTransformation:
        # The rate is the last factor of each of them: one program for all peaks.
        return mz.wrap(optax.chain(optimizers.optimizer(config, steps), optax.scale(peak)), transform)

    @jax.jit
    def part(params: PyTree, opt_state: Any, data: Any, order: jax.Array, peak: Any) -> tuple[PyTree, Any]:
        tx = wrapped(peak)

        def step(carry: Any, rows: jax.Array) -> tuple[Any, None]:
            params, opt_state = carry

            def loss(params: PyTree) -> jax.Array:
                logits = students.logits_of(params, data["inputs"][rows])
                return students.cross_entropy(logits, data["labels"][rows])

            updates, opt_state = tx.update(jax.grad(loss)(params), opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), None

        return jax.lax.scan(step, (params, opt_state), order)[0]

    return wrapped(1.0), part, steps


def _compressed(title: str, peak: float, seed: int) -> dict[str, Any]:
    """Accuracies in %, by split, at each look."""
    tx, part, steps = _trainer(title)
    data = students.training_data()
    order = students.orders(seed, steps, len(data["labels"]), WAYS[title].batch)
    params, opt_state = mz.start(tx, _float(seed))
    found: dict[str, list[float]] = {"train": [], "validation": [], "test": []}
    size = max(len(order) // LOOKS, 1)
    for start in range(0, size * LOOKS, size):
        params, opt_state = part(params, opt_state, data, order[start : start + size], peak)
        for split, accuracy in students.accuracies(mz.params(opt_state, params)).items():
            found[split].append(accuracy)
    kernels = [np.asarray(x) for x in jax.tree.leaves(mz.params(opt_state, params)) if x.ndim > 1]
    zeros = sum(int(np.sum(x == 0)) for x in kernels) / sum(x.size for x in kernels)
    return {**found, "last": found["test"][-1], "zeros": zeros}


def _tabulate(report: harness.Report, cells: Cells) -> None:
    rows: list[list[Any]] = []
    missing: list[str] = []
    first = round(FINAL_SHARE * LOOKS)
    done: dict[str, np.ndarray] = {}
    for title, way in WAYS.items():
        try:
            peak, found = _runs(cells, title)
        except OutOfTimeError:
            missing.append(title)
            continue
        test = np.array([cell["test"] for cell in found])
        validation = np.array([cell["validation"] for cell in found])
        train = np.array([cell["train"][-1] for cell in found])
        # Of the looks at which sparsity has come to its end, that which is best on the validation split.
        best = first + validation[:, first:].argmax(axis=1)
        stopped = test[np.arange(len(test)), best]
        done[title] = test[:, -1]
        against = harness.said(test[:, -1] - done[BASE], digits=2) if title != BASE and BASE in done else "–"
        rows.append([
            title, f"{peak:g}", way.batch, harness.said(test[:, -1], digits=2), against,
            harness.said(train - test[:, -1], digits=2), harness.said(stopped - test[:, -1], digits=2),
        ])  # fmt: skip
    report.table(
        f"Accuracy on the test split at {SPARSITY:.0%} zeros and {BITS} bits, in %, ± standard error of {SEEDS} seeds",
        [
            "training", "peak rate", "batch", "test", f"less {BASE}", "train − test",
            "early stopping less the last step",
        ],
        rows,
    )  # fmt: skip
    report.note(
        "Early stopping takes, of the looks after sparsity has come to its end, the one that is best on validation."
    )
    if missing:
        report.note(f"not finished: {', '.join(missing)}")


if __name__ == "__main__":
    main()
