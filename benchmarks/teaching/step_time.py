"""What distillation adds to a training step: LeNet-5 teaches a quarter of its widths.

Measured twice: with glibc's settings, and with memory that a process keeps. A program of student and teacher has
temporaries of more than 32 MiB, which glibc gives back after each step, so that each step has all their pages mapped
anew; programs of the one or of the other do not.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks import harness
from benchmarks.teaching import students
from benchmarks.teaching.cells import Cells
from benchmarks.teaching.students import BATCH, QUARTER
from modelzip_jax import distillation
from modelzip_jax.tree import PyTree

__all__ = ["report", "run"]

ROUNDS = 200
STUDENT, AGAIN, TEACHER = "student step", "student step, a second time", "teacher forward"
TAUGHT, CACHED = "teacher forward, then a distilled step", "distilled step, cached logits"
WITHIN = "distilled step, teacher in the same program"
CELLS = {"as it is": "step times", "memory kept": "step times, memory kept"}
KEPT = {"MALLOC_MMAP_THRESHOLD_": "4000000000", "MALLOC_TRIM_THRESHOLD_": "4000000000"}
"""Environment in which glibc keeps what is freed."""


def run(cells: Cells) -> None:
    """Times what has not been timed. Ask for one core: then CPU time counts, and other programs do not."""
    for name, environment in zip(CELLS.values(), ({}, KEPT), strict=True):
        cells.get(name, functools.partial(_by_another, environment))


def _by_another(environment: dict[str, str]) -> dict[str, Any]:
    """`measured` of a process that begins with this environment."""
    rounds = 2 if students.QUICK else ROUNDS
    code = f"import json; from benchmarks.teaching import step_time; print(json.dumps(step_time.measured({rounds})))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measured(rounds: int) -> dict[str, Any]:
    """Medians of milliseconds by case, and of ratios."""
    data = students.training_data()
    images, labels = data["inputs"][:BATCH], data["labels"][:BATCH]
    forward = jax.jit(students.logits_of)
    teacher = students.teacher_params()
    logits = jax.block_until_ready(forward(teacher, images))
    logits = logits.astype(jnp.float16)

    def cached(_: jax.Array, logits: jax.Array) -> jax.Array:
        return logits

    cases: dict[str, Callable[[], Any]] = {
        STUDENT: _step(lambda *_: None, images, labels),
        AGAIN: _step(lambda *_: None, images, labels),
        TEACHER: lambda: jax.block_until_ready(forward(teacher, images)),
        TAUGHT: _step(cached, images, labels, lambda: forward(teacher, images)),
        WITHIN: _step(
            lambda images, teacher: students.logits_of(teacher, images), images, labels, lambda: teacher
        ),
        CACHED: _step(cached, images, labels, lambda: logits),
    }
    times = harness.interleave(cases, rounds, warmup=3)
    sums = {**times, "both": [a + b for a, b in zip(times[STUDENT], times[TEACHER], strict=True)]}
    found: dict[str, Any] = {"ms": {case: 1e3 * harness.median(seconds) for case, seconds in times.items()}}
    for name, (case, baseline) in {
        "before": (TAUGHT, "both"), "within": (WITHIN, "both"),
        "cached": (CACHED, STUDENT), "control": (AGAIN, STUDENT),
    }.items():  # fmt: skip
        each = harness.ratios(sums, case, baseline)
        found[name] = harness.median(each)
        found[f"{name}_spread"] = harness.spread(each)
    return found


def _step(
    teacher_of: Callable[..., jax.Array | None],
    images: jax.Array,
    labels: jax.Array,
    given: Callable[[], Any] = tuple,
) -> Callable[[], None]:
    """One step, as a callable that waits for it.

    given: called before each step. `teacher_of(images, given())`, in the step: the teacher's logits, or None.
    """
    tx = students.adamw(1e-3)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: PyTree, state: Any, images: jax.Array, labels: jax.Array, given: Any) -> Any:
        def loss(params: PyTree) -> jax.Array:
            logits = students.logits_of(params, images)
            hard, target = students.cross_entropy(logits, labels), teacher_of(images, given)
            return hard if target is None else hard + distillation.soft_targets(logits, target)

        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    params = students.drawn(0, QUARTER)
    held = [params, tx.init(params)]

    def run() -> None:
        held[:] = jax.block_until_ready(step(*held, images, labels, given()))

    return run


def report(cells: Cells, out: harness.Report) -> list[str]:
    """The table and its bars; gives back what is not measured."""
    done = {title: cells.found[name] for title, name in CELLS.items() if name in cells.found}
    if len(done) < len(CELLS):
        return ["step times"]
    rows = [
        [case, *(found["ms"][case] for found in done.values())]
        for case in (STUDENT, AGAIN, TEACHER, TAUGHT, WITHIN, CACHED)
    ]
    columns = ["case", *(f"{title}, median, ms" for title in done)]
    out.table(f"Step time, batch {BATCH}, LeNet-5 and a quarter of its widths", columns, rows)
    said = {
        "as it is": "glibc's settings",
        "memory kept": "memory kept, " + " ".join(f"{k}={v}" for k, v in KEPT.items()),
    }
    both = "÷ (student step + teacher forward)"
    for title, what, name, limit in (
        ("as it is", f"teacher forward, then a distilled step {both}", "before", 1.05),
        ("as it is", f"distilled step, teacher in the same program {both}", "within", 1.05),
        ("memory kept", f"distilled step, teacher in the same program {both}", "within", 1.05),
        ("as it is", "distilled step with cached logits ÷ student step", "cached", 1.03),
    ):
        found = done[title]
        remark = (
            f"{said[title]}; ± {found[f'{name}_spread']:.3f}; a student step against itself "
            f"{found['control']:.3f} ± {found['control_spread']:.3f}"
        )
        out.bar(f"LeNet-5 to a quarter: {what}", limit, found[name], unit=" ×", remark=remark)
    return []
