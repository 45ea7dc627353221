"""Weak labels: 1 % of Fashion-MNIST is labelled, a teacher trained on that labels the rest for a student."""

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

SEEDS, SHARE = 3, 0.01
HALF, TEACHER_BATCH, MEMBERS = (10, 25, 250), 64, 3
CROPS = (0, 2)
"""Pixels of random shifts; 0 for none."""
HOW: dict[str, dict[str, Any]] = {
    "labels, all alike": {"weighting": "one"},
    "labels by margin": {"weighting": "margin"},
    "labels by margin, of probability 0.8": {"weighting": "margin", "threshold": 0.8},
    "soft targets, T = 2": {},
}
"""What the student is told of the teacher: options of `pseudo_label`, or nothing but its logits."""

ALONE, TAUGHT, ALL = "labels alone", "the teacher's labels", "labels of a teacher that saw all labels"


def run(cells: Cells) -> None:
    """Trains what is missing."""
    _results(cells)


def _results(cells: Cells) -> dict[str, list[dict[str, Any]]]:
    rate = peak(cells)

    def best(tried: dict[Any, dict[str, Any]]) -> Any:
        return max(tried, key=lambda x: tried[x]["validation"])

    def alone(crop: int, seed: int) -> dict[str, Any]:
        return cells.get(f"weak/{ALONE}/crop={crop}/seed={seed}", lambda: _alone(rate, crop, seed))

    def teacher(crop: int, members: int, seed: int) -> dict[str, Any]:
        name = f"weak/teacher/crop={crop},members={members}/seed={seed}"
        return cells.get(name, lambda: _teacher_cell(rate, crop, members, seed))

    def taught(by: str, how: str, crop: int, seed: int) -> dict[str, Any]:
        name = f"weak/{by}/{how},crop={crop}/seed={seed}"
        return cells.get(name, lambda: _taught(rate, by, how, (teacher_crop, MEMBERS), crop, seed))

    crop = best({c: alone(c, 0) for c in CROPS})
    teacher_crop = best({c: teacher(c, 1, 0) for c in CROPS})
    seeds = students.seeds_of(SEEDS)
    found = {ALONE: [alone(crop, s) | {"how": f"crops of {crop}"} for s in seeds]}
    found["the teacher itself"] = [teacher(teacher_crop, MEMBERS, s) for s in seeds]
    for member in found["the teacher itself"]:
        member["how"] = f"{MEMBERS} LeNets of half the widths, crops of {teacher_crop}"
    how = best({h: taught(TAUGHT, h, 0, 0) for h in HOW})
    own = best({c: taught(TAUGHT, how, c, 0) for c in CROPS})
    for by in (TAUGHT, ALL):
        found[by] = [taught(by, how, own, s) | {"how": f"{how}, crops of {own}"} for s in seeds]
    return found


@functools.cache
def _known(seed: int) -> np.ndarray:
    labels = students.split("train")["labels"]
    return datasets.subset({"labels": labels, "index": np.arange(len(labels))}, SHARE, seed=seed)["index"]


@functools.lru_cache(maxsize=4)
def _runner(rate: float, crop: int, steps: int) -> Any:
    def objective(params: PyTree, given: students.Given) -> tuple[jax.Array, PyTree]:
        batch = given.batch
        images = datasets.random_crop(given.key, batch["inputs"], crop) if crop else batch["inputs"]
        logits = students.logits_of(params, images)
        hard = distillation.weighted_cross_entropy(logits, batch["labels"], batch["weights"])
        soft = distillation.soft_targets(logits, batch["teacher_logits"], temperature=2.0)
        return hard + given.hyper["soft"] * soft, given.memory

    return students.make_run(objective, students.adamw(rate, steps))


def _of_known(rate: float, crop: int, seed: int, widths: Any, batch: int, draw: int) -> PyTree:
    """A network that learns what is labelled, and nothing else."""
    labels = students.training_data()["labels"]
    none = {"weights": jnp.ones(len(labels)), "teacher_logits": jnp.zeros((len(labels), 10))}
    order = students.orders(draw, STEPS, len(labels), batch, _known(seed))
    run = _runner(rate, crop, STEPS)
    hyper = {"soft": jnp.float32(0.0)}
    return run(students.drawn(draw, widths), (), students.training_data() | none, order, hyper, draw).params


def _alone(rate: float, crop: int, seed: int) -> dict[str, float]:
    return students.accuracies(_of_known(rate, crop, seed, QUARTER, students.BATCH, seed), _known(seed))


@functools.lru_cache(maxsize=2)
def _teacher(rate: float, crop: int, members: int, seed: int) -> distillation.Teacher:
    # A wider network takes the rate of its own that networks of its kind have in `configs/`.
    rate = min(rate, 1e-3)
    trained = [
        _of_known(rate, crop, seed, HALF, TEACHER_BATCH, 100 + 10 * seed + member)
        for member in range(members)
    ]
    return distillation.ensemble([distillation.Teacher(students.logits_of, params) for params in trained])


@functools.lru_cache(maxsize=2)
def _says(rate: float, crop: int, members: int, seed: int, split: str) -> np.ndarray:
    """Its logits of a split."""
    teacher, levels = _teacher(rate, crop, members, seed), students.split(split)["inputs"]
    ask = jax.jit(lambda teacher, levels: teacher(levels))
    return np.concatenate([np.asarray(ask(teacher, levels[i : i + 125])) for i in range(0, len(levels), 125)])


def _teacher_cell(rate: float, crop: int, members: int, seed: int) -> dict[str, float]:
    found = {}
    for split in ("validation", "test"):
        likely = _says(rate, crop, members, seed, split).argmax(1)
        found[split] = 100.0 * float(np.mean(likely == students.split(split)["labels"]))
    if members == 1:
        return found
    logits, truth = _says(rate, crop, members, seed, "train"), students.split("train")["labels"]
    given = distillation.hide_labels(truth, _known(seed))
    weak = distillation.pseudo_label(jnp.asarray(logits), given, weighting="margin")
    noise = distillation.label_noise(weak, truth, 10, given)
    right = logits.argmax(1) == truth
    found["train"] = 100.0 * float(np.mean(right[_known(seed)]))
    return found | {name: 100.0 * float(noise[name]) for name in ("noise", "weighted_noise")}


def _taught(
    rate: float, by: str, how: str, recipe: tuple[int, int], crop: int, seed: int
) -> dict[str, float]:
    data, truth = students.training_data(), students.split("train")["labels"]
    if by == ALL:
        logits = students.teacher_outputs(())["teacher_logits"]
    else:
        logits = jnp.asarray(_says(rate, *recipe, seed, "train"))
    given = distillation.hide_labels(truth, _known(seed))
    options = HOW[how] or {"threshold": 1.0}
    weak = distillation.pseudo_label(logits, given, **options)
    weights = weak.weights if HOW[how] else jnp.asarray(given >= 0, jnp.float32)
    fields = {"labels": weak.labels, "weights": weights, "teacher_logits": logits}
    order = students.orders(seed, STEPS, len(truth))
    hyper = {"soft": jnp.float32(0.0 if HOW[how] else 1.0)}
    run = _runner(rate, crop, STEPS)
    return students.accuracies(
        run(students.drawn(seed, QUARTER), (), data | fields, order, hyper, seed).params
    )


def report(cells: Cells, out: harness.Report) -> list[str]:
    """The table and its bars; gives back what is not finished."""
    try:
        found = _results(cells)
    except OutOfTimeError:
        return ["weak labels"]
    rows, base = [], np.array([x["test"] for x in found[ALONE]])
    for title, cell in found.items():
        test, gap = (
            np.array([f(x) for x in cell]) for f in (lambda x: x["test"], lambda x: x["train"] - x["test"])
        )
        rows.append([
            title, cell[0]["how"], harness.said(test, digits=2),
            "–" if title == ALONE else harness.said(test - base, digits=2), harness.said(gap, digits=2),
            float(np.mean([x["validation"] for x in cell])),
        ])  # fmt: skip
    columns = ["a quarter of LeNet-5's widths learns from", "how", "test, %", "above labels alone", "train − test",
               "validation, %"]  # fmt: skip
    out.table(f"550 labels of 55,000 images, {STEPS} steps, {SEEDS} seeds and draws of labels", columns, rows)
    noise = [
        f"{np.mean([x[n] for x in found['the teacher itself']]):.1f} %" for n in ("noise", "weighted_noise")
    ]
    out.note(
        "weak labels: all students take the peak rate that was chosen with all labels, the teachers 1e-3; rates were "
        "not chosen anew for 550 labels"
    )
    out.note(
        f"weak labels: of the teacher's labels {noise[0]} are wrong, of their weight by margin {noise[1]}"
    )
    gain = np.array([x["test"] for x in found[TAUGHT]]) - base
    out.bar(
        "1 % labelled: the teacher's labels above labels alone, in standard errors of the paired difference", 2.0,
        np.mean(gain) / harness.standard_error(gain), least=True, remark=f"{harness.said(gain, digits=2)} points",
    )  # fmt: skip
    gain = np.array([x["test"] for x in found[ALL]]) - base
    out.bar(
        "1 % labelled: labels of a teacher that saw all, above labels alone", 3.0, np.mean(gain), least=True,
        unit=" points", remark=f"± {harness.standard_error(gain):.2f}",
    )  # fmt: skip
    return []
