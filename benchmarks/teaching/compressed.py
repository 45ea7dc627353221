"""LeNet-5 at 2 bits and at 98 % sparsity, with and without distillation from its float self, in equal steps."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import modelzip_jax as mz
from benchmarks import harness
from benchmarks.teaching import students
from benchmarks.teaching.cells import Cells, OutOfTimeError, climb
from modelzip_jax import distillation
from modelzip_jax.tree import PyTree

__all__ = ["report", "run"]

SEEDS, STEPS = 3, 429
PLAIN, DISTILLED = "labels", "labels and soft targets"
TRANSFORMS: dict[str, Any] = {
    "2 bits": lambda: mz.quantize(2, learned=True, range=mz.ranges.percentile(85.0), axis=-1),
    "98 % sparse": lambda: mz.prune(
        sparsity=mz.schedules.cubic(0.98, begin=0, end=250), every=25, allocation="global"
    ),
}
PEAKS = {"2 bits": (3e-4,), "98 % sparse": (3e-4, 1e-3)}
"""Of 2 bits as `benchmarks.qat` chose it, on the validation split."""
WEIGHTS, TEMPERATURES = (1.0, 4.0), (2.0, 4.0)


def run(cells: Cells) -> None:
    """Trains what is missing."""
    for title in TRANSFORMS:
        _trained(cells, title, PLAIN)
        _trained(cells, title, DISTILLED)


def _trained(cells: Cells, title: str, method: str) -> list[dict[str, Any]]:
    """The cells of all seeds, of the choices that are best with seed 0 on the validation split.

    The peak rate is chosen without a teacher, with one the weight and then the temperature.
    """

    def cell(peak: float, weight: float, temperature: float, seed: int) -> dict[str, Any]:
        name = f"compressed/{title}/peak={peak:g},w={weight:g},T={temperature:g}/seed={seed}"
        made = cells.get(name, lambda: _fit(title, peak, weight, temperature, seed))
        return {**made, "peak": peak, "weight": weight, "temperature": temperature}

    def best(tried: list[dict[str, Any]]) -> dict[str, Any]:
        return max(tried, key=lambda x: x["validation"])

    chosen = best([cell(peak, 0.0, 1.0, 0) for peak in PEAKS[title]])
    if method == DISTILLED:
        first, *others = TEMPERATURES
        rate = chosen["peak"]
        weight = climb(WEIGHTS, 4.0, lambda w: cell(rate, w, first, 0)["validation"])
        chosen = best([cell(chosen["peak"], weight, t, 0) for t in (first, *others)])
    return [
        cell(chosen["peak"], chosen["weight"], chosen["temperature"], seed)
        for seed in students.seeds_of(SEEDS)
    ]


def _fit(title: str, peak: float, weight: float, temperature: float, seed: int) -> dict[str, float]:
    data = students.training_data() | students.teacher_outputs(())
    order = students.orders(seed, STEPS, len(data["labels"]))
    hyper = {"weight": jnp.float32(weight), "temperature": jnp.float32(temperature)}
    run = _runner(title, peak)(students.teacher_params(), (), data, order, hyper, seed)
    return students.accuracies(run.params)


@functools.lru_cache(maxsize=2)
def _runner(title: str, peak: float) -> Any:
    def objective(params: PyTree, given: students.Given) -> tuple[jax.Array, PyTree]:
        batch, hyper = given.batch, given.hyper
        logits = students.logits_of(params, batch["inputs"])
        soft = distillation.soft_targets(logits, batch["teacher_logits"], temperature=hyper["temperature"])
        return students.cross_entropy(logits, batch["labels"]) + hyper["weight"] * soft, given.memory

    tx = mz.wrap(students.adamw(peak, STEPS), mz.only("**/kernel", TRANSFORMS[title]()))
    return students.make_run(objective, tx, wrapped=True)


def report(cells: Cells, out: harness.Report) -> list[str]:
    """The table and its bars, of what is done; gives back what is not."""
    rows: list[list[Any]] = []
    missing: list[str] = []
    for title in TRANSFORMS:
        try:
            found = {method: _trained(cells, title, method) for method in (PLAIN, DISTILLED)}
        except OutOfTimeError:
            missing.append(f"LeNet-5 at {title}")
            continue
        test = {method: np.array([x["test"] for x in cell]) for method, cell in found.items()}
        gain = test[DISTILLED] - test[PLAIN]
        for method, cell in found.items():
            soft, gaps = method == DISTILLED, np.array([x["train"] - x["test"] for x in cell])
            rows.append([
                title, method, f"{cell[0]['peak']:g}", f"{cell[0]['weight']:g}" if soft else "–",
                f"{cell[0]['temperature']:g}" if soft else "–", harness.said(test[method], digits=2),
                harness.said(gain, digits=2) if soft else "–", harness.said(gaps, digits=2),
                float(np.mean([x["validation"] for x in cell])),
            ])  # fmt: skip
        out.bar(
            f"LeNet-5 at {title}: distilled above not, in standard errors of the paired difference", 2.0,
            np.mean(gain) / harness.standard_error(gain), least=True, remark=f"{harness.said(gain, digits=2)} points",
        )  # fmt: skip
    columns = [
        "kernels", "loss", "peak rate", "weight", "T", "test, %", "above labels alone", "train − test", "validation, %",
    ]  # fmt: skip
    teacher = cells.found.get("teacher", {}).get("test", float("nan"))
    title = f"LeNet-5 ({teacher:.2f} % in floats) compressed, {STEPS} steps, {SEEDS} seeds"
    if rows:
        out.table(title, columns, rows)
    return missing
