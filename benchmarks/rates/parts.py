"""What else is asked of ours: fewer inputs to calibrate with, numbers of bytes to meet, seconds."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

import modelzip_jax as mz
from benchmarks import harness
from benchmarks.rates import ours
from benchmarks.rates.case import Case
from benchmarks.rates.curves import met
from benchmarks.rates.methods import METHODS
from benchmarks.rates.records import Record, curve
from modelzip_jax.coding.writer import encoded, file_sizes
from modelzip_jax.smallest import recipes

__all__ = ["PARTS", "calibration_sizes", "seconds", "targets"]

_SEEDS = 3
"""Draws of the inputs where they are few."""
_FEW = 32


def calibration_sizes(record: Record) -> None:
    """Drops by how many inputs calibrate, at the bytes of ours calibrated at the middle goal.

    And for few inputs at those of ours without data, where both still work.
    """
    goals = record.case.plan.goals[0]
    for method, most in (("calibrated", math.inf), ("data_free", _FEW)):
        points = [point for _, point in curve(record.data, method, goals.measure)]
        found = met(points, goals.drops[1], goals.logarithmic)
        if found is None:
            print(f"  left out: the curve of {METHODS[method].title} does not reach the middle goal")
            continue
        held = record.data.setdefault("sizes", {}).setdefault(
            method, {"bytes": round(found.bytes), "rows": []}
        )
        asked = [(n, seed) for n in record.case.plan.sizes for seed in range(_SEEDS if n <= _FEW else 1)]
        for count, seed in ((0, 0), *((n, seed) for n, seed in asked if n <= most)):
            _with_inputs(record, held, count, seed)


def _with_inputs(record: Record, held: dict[str, Any], count: int, seed: int) -> None:
    """A row, if it is missing."""
    if any(row["count"] == count and row["seed"] == seed for row in held["rows"]):
        return
    record.check_time()
    task = record.case.task
    batches = task.calibration(count, seed) if count else []
    given: dict[str, Any] = {"calibrate": (task.apply, batches)} if count else {}
    search = mz.smallest(bytes=held["bytes"], likelihood=task.likelihood)  # type: ignore[arg-type]
    params = mz.unpack(mz.compress(task.params, search, **given))
    drops = {part: record.case.drops(params, part) for part in task.parts}
    held["rows"].append({"count": count, "seed": seed, "drops": drops})
    measure = task.measures[0].name
    print(f"  {count} inputs, seed {seed}: drop {drops['test'][measure][0]} of test", flush=True)
    record.save()


def targets(record: Record) -> None:
    """Random numbers of bytes, between half a bit and six bits a weight: what the files have."""
    case = record.case
    rng = np.random.default_rng(0)
    held = record.data.setdefault("targets", [])
    for mode in ("data-free", "calibrated"):
        # Each try of a calibrated one runs the model over all batches.
        count = case.plan.targets if mode == "data-free" else case.plan.targets // 4
        least = _smallest(record, "data_free" if mode == "data-free" else "calibrated")
        for share in rng.uniform(size=count):
            target = int(math.exp(math.log(least) + share * math.log(0.75 * case.task.weights / least)))
            if any(row["target"] == target and row["mode"] == mode for row in held):
                continue
            record.check_time()
            given: dict[str, Any] = {}
            if mode == "calibrated":
                given = {"calibrate": (case.task.apply, case.batches[: max(len(case.batches) // 4, 1)])}
            search = mz.smallest(bytes=target, likelihood=case.task.likelihood)  # type: ignore[arg-type]
            size = file_sizes(mz.compress(case.task.params, search, **given)).total
            held.append({"mode": mode, "target": target, "bytes": size})
            print(f"  {mode}: {size} of {target} bytes", flush=True)
            record.save()


def _smallest(record: Record, method: str) -> float:
    """The least bytes of a curve, a little more of them."""
    points = record.data["methods"].get(method, {"points": []})["points"]
    known = [entry["bytes"] for entry in points if entry["bytes"]]
    return 1.1 * min(known, default=record.case.task.weights / 16)


def seconds(record: Record) -> None:
    """Of ours at the middle goal: the Fisher information once, compressing at a step, writing and reading the file."""
    case, goals = record.case, record.case.plan.goals[0]
    held = record.data.setdefault("seconds", {})
    for method, first in (("data_free", recipes.QUALITY), ("calibrated", ours.unit_step(case))):
        entries = curve(record.data, method, goals.measure)
        found = met([point for _, point in entries], goals.drops[1], goals.logarithmic)
        if found is None or method in held:
            continue
        record.check_time()
        step = first * 2 ** (entries[found.finer][0]["k"] / 4)
        held[method] = _seconds_of(case, method, step)
        print(f"  {held[method]}", flush=True)
        record.save()


def _seconds_of(case: Case, method: str, step: float) -> dict[str, Any]:
    def tell() -> ours.Told:
        return ours.data_free(case) if method == "data_free" else ours.calibrated(case, case.batches)

    (recipe, given), statistics = _timed(tell)

    def make() -> mz.Packed:
        return mz.compress(case.task.params, recipe(step), **given)

    make()  # Compiles.
    packed, each = _timed(make)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.mz"
        mz.save(path, packed)
        cases: dict[str, Callable[[], Any]] = {
            "encode": lambda: encoded(packed),
            "decode": lambda: jax.block_until_ready(mz.unpack(mz.load(path))),
        }
        times = harness.interleave(cases, 5)
    return {
        "statistics": statistics, "compress": each, "bytes": len(encoded(packed)),
        **{what: harness.median(t) for what, t in times.items()},
    }  # fmt: skip


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    now = harness.clock()
    start = now()
    found = call()
    jax.block_until_ready(found.params if isinstance(found, mz.Packed) else found[1])
    return found, now() - start


PARTS: dict[str, Callable[[Record], None]] = {
    "sizes": calibration_sizes,
    "targets": targets,
    "seconds": seconds,
}
