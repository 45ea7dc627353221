"""LeNet-5 to a student of a quarter of its widths, by every loss; weights and temperatures chosen on validation."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import harness
from benchmarks.teaching import students
from benchmarks.teaching.cells import Cells, OutOfTimeError, climb
from benchmarks.teaching.losses import LOSSES, NONE, SOFT, Loss, seen
from benchmarks.teaching.students import QUARTER, STEPS
from modelzip_jax import distillation
from modelzip_jax.tree import PyTree

__all__ = ["SEEDS", "peak", "report", "run"]

SEEDS, MANY = 3, 10
"""Of a row; of none and soft targets, once more."""
PEAKS = (1e-3, 3e-3, 6e-3, 1e-2, 2e-2)


def run(cells: Cells) -> None:
    """Trains what is missing."""
    cells.get("teacher", lambda: students.accuracies(students.teacher_params()))
    best = peak(cells)
    for loss in LOSSES:
        _trained(cells, loss, best)
    for loss in LOSSES[:2]:
        _trained(cells, loss, best, MANY)


def peak(cells: Cells) -> float:
    """The student's own, without a teacher; all others take it."""
    return max(
        PEAKS,
        key=lambda x: cells.get(f"quarter/peak={x:g}", lambda: _fit(LOSSES[0], x, 0.0, 1.0, 0))["validation"],
    )


def _trained(cells: Cells, loss: Loss, best: float, seeds: int = SEEDS) -> list[dict[str, Any]]:
    """The cells of all seeds, of the weight and temperature that are best with seed 0 on the validation split.

    The weight is chosen at the first temperature, and then the temperature at that weight.
    """

    def cell(weight: float, temperature: float, seed: int) -> dict[str, Any]:
        name = f"quarter/{loss.title}/peak={best:g},w={weight:g},T={temperature:g}/seed={seed}"
        made = cells.get(name, lambda: _fit(loss, best, weight, temperature, seed))
        return {**made, "weight": weight, "temperature": temperature}

    first, *others = loss.temperatures
    w = loss.weights[0]
    if len(loss.weights) > 1:
        w = climb(loss.weights, loss.factor, lambda w: cell(w, first, 0)["validation"])
    tried = [cell(w, t, 0) for t in (first, *others)]
    chosen = max(tried, key=lambda x: x["validation"])
    return [cell(chosen["weight"], chosen["temperature"], seed) for seed in students.seeds_of(seeds)]


def _fit(loss: Loss, best: float, weight: float, temperature: float, seed: int) -> dict[str, float]:
    """Trains one student and says how good it is."""
    data = students.training_data()
    if loss.title != NONE:
        data = data | students.teacher_outputs(loss.reads)
    order = students.orders(seed, STEPS, len(data["labels"]))
    hyper = {"weight": jnp.float32(weight), "temperature": jnp.float32(temperature)}
    key = jax.random.fold_in(jax.random.key(100), seed)
    params = {"student": students.drawn(seed, QUARTER), "extra": loss.extra(key)}
    if loss.critic:
        found = _played(loss, best, params, data, order, float(weight), seed)
    else:
        found = _runner(loss, best)(params, loss.memory(key), data, order, hyper, seed).params
    return students.accuracies(found["student"])


@functools.lru_cache(maxsize=2)
def _runner(loss: Loss, best: float) -> Any:
    def objective(params: PyTree, given: students.Given) -> tuple[jax.Array, PyTree]:
        own = students.read(params["student"], given.batch["inputs"], loss.reads)
        hard = students.cross_entropy(own["logits"], given.batch["labels"])
        if loss.term is None:
            return hard, given.memory
        term = loss.term(seen(own, params["extra"], given))
        term, memory = term if isinstance(term, tuple) else (term, given.memory)
        return hard + given.hyper["weight"] * term, memory

    return students.make_run(objective, students.adamw(best))


@functools.lru_cache(maxsize=2)
def _game(loss: Loss, best: float) -> tuple[Any, Any]:
    """A min–max game, and many steps of it."""
    assert loss.critic is not None

    def student(params: PyTree, variables: Any, batch: Any, key: Any) -> distillation.StudentOutput:
        own = students.read(params["student"], batch["inputs"], loss.reads)
        view = own[loss.view]
        if params["extra"]:
            view = distillation.project(params["extra"], view)
        hard = students.cross_entropy(own["logits"], batch["labels"])
        return distillation.StudentOutput({"labels": hard}, {"critic": view})

    def teacher(_: Any, batch: Any) -> dict[str, jax.Array]:
        return {"critic": batch[f"teacher_{loss.view}"].astype(jnp.float32)}

    game = distillation.min_max_game(
        student, teacher, {"critic": loss.critic()}, students.adamw(best), optax.adam(1e-3)
    )

    @jax.jit
    def scanned(state: Any, data: Any, order: Any) -> Any:
        def step(state: Any, index: jax.Array) -> tuple[Any, None]:
            return game.step(state, {name: array[index] for name, array in data.items()})[0], None

        return jax.lax.scan(step, state, order)[0]

    return game, scanned


def _played(
    loss: Loss, best: float, params: PyTree, data: Any, order: Any, weight: float, seed: int
) -> PyTree:
    game, scanned = _game(loss, best)
    first = {name: array[order[0]] for name, array in data.items()}
    state = game.init(params, first, jax.random.key(1_000 + seed))
    # As fixed_weights would, without compiling anew for each weight.
    state = state._replace(balance={"labels": jnp.float32(1.0), "critic": jnp.float32(weight)})
    return scanned(state, data, order).params


def report(cells: Cells, out: harness.Report) -> list[str]:
    """The table and its bar, of the losses that are done; gives back what is not."""
    missing: list[str] = []
    try:
        best = peak(cells)
    except OutOfTimeError:
        return ["all losses"]
    rows, done = [], {}
    for loss in LOSSES:
        try:
            done[loss.title] = _trained(cells, loss, best)
        except OutOfTimeError:
            missing.append(loss.title)
    if NONE not in done:
        return missing
    for title, found in done.items():
        test, gap = (
            np.array([f(x) for x in found]) for f in (lambda x: x["test"], lambda x: x["train"] - x["test"])
        )
        base = np.array([x["test"] for x in done[NONE]])
        soft = np.array([x["test"] for x in done.get(SOFT, done[NONE])])
        validation = float(np.mean([x["validation"] for x in found]))
        plain = title == NONE
        rows.append([
            title, "–" if plain else f"{found[0]['weight']:g}",
            f"{found[0]['temperature']:g}" if found[0]["temperature"] != 1 or "soft" in title else "–",
            harness.said(test, digits=2), "–" if plain else harness.said(test - base, digits=2),
            "–" if title in (NONE, SOFT) else harness.said(test - soft, digits=2), harness.said(gap, digits=2),
            validation,
        ])  # fmt: skip
    columns = [
        "beside labels", "weight", "T", "test, %", "above none", "above soft targets", "train − test", "validation, %",
    ]  # fmt: skip
    out.table(f"LeNet-5 to a quarter of its widths, {STEPS} steps, {SEEDS} seeds", columns, rows)
    if SOFT in done:
        gain = np.array([x["test"] for x in done[SOFT]]) - np.array([x["test"] for x in done[NONE]])
        out.bar(
            "soft targets above none, in standard errors of the paired difference", 2.0,
            np.mean(gain) / harness.standard_error(gain), least=True, remark=f"{harness.said(gain, digits=2)} points",
        )  # fmt: skip
    try:
        none, soft = (np.array([x["test"] for x in _trained(cells, loss, best, MANY)]) for loss in LOSSES[:2])
    except OutOfTimeError:
        return [*missing, f"{MANY} seeds"]
    out.note(
        f"over {MANY} seeds: none {harness.said(none, digits=2)}, soft targets {harness.said(soft, digits=2)}, the "
        f"difference {harness.said(soft - none, digits=2)}"
    )
    return missing
