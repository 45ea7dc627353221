"""Bytes at equal quality: ours without data and calibrated, beside peers, on the networks of `benchmarks.tasks`.

    python -m benchmarks.rate_distortion [TASK ...] [--methods NAME ...] [--seconds S] [--anew] [--quick]

Every method gives a curve, from about eight bits a weight to where quality breaks, of files at many steps (see
`benchmarks.rates`). What a curve comes to at a given drop of quality is read from its points on the validation part,
and reported with what the points on both sides of it come to on the other parts. Calibrated methods get the same
inputs; leaves that a peer says nothing of are coded alike for all of these, see `benchmarks.rates.by_layers`.

--methods: some of the methods, or of the parts "sizes" (fewer and more inputs that calibrate), "targets" (numbers of
bytes that are to be met) and "seconds". --seconds: to stop after so many; the next run goes on where this one stopped.
--anew: what is recorded of these methods and parts is thrown away first, as it must be when they have changed.
NNCodec needs an interpreter of its own, see `benchmarks/coding.py`.
"""

from __future__ import annotations

import argparse
import math
import os

from benchmarks import harness, tasks
from benchmarks.networks import MissingPackageError
from benchmarks.rates import parts, tables
from benchmarks.rates.case import Case
from benchmarks.rates.goals import plan_of
from benchmarks.rates.methods import METHODS, missing
from benchmarks.rates.records import OutOfTimeError, Record, path_of
from modelzip_jax.errors import DataError, MissingExtraError


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [*METHODS, *parts.PARTS]
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=", ".join(tasks.NAMES))
    parser.add_argument(
        "--methods", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names)
    )
    parser.add_argument("--seconds", type=float, default=math.inf, help="to stop after")
    parser.add_argument("--anew", action="store_true", help="throw away what is recorded of these methods")
    parser.add_argument("--quick", action="store_true", help="fewer of everything, written to no file")
    chosen = parser.parse_args()
    for name in chosen.tasks or tasks.NAMES:
        try:
            task = tasks.load(name, quick=chosen.quick)
        except (MissingPackageError, MissingExtraError, DataError) as error:
            print(f"{name} is left out: {error}")
            continue
        print(f"{name}: {task.weights:,} weights", flush=True)
        if not _run(task, chosen):
            print(f"{name} is not done: the time is over")
            break


def _run(task: tasks.Task, chosen: argparse.Namespace) -> bool:
    """Whether all was done that was asked for."""
    load_before = os.getloadavg()
    case = Case(task, plan_of(task, chosen.quick))
    record = Record(case, None if chosen.quick else path_of(task.name), chosen.seconds)
    if chosen.anew:
        for name in chosen.methods:
            (record.data["methods"] if name in METHODS else record.data).pop(name, None)
    done = True
    try:
        for method in chosen.methods:
            if method not in METHODS:
                continue
            reason = missing(method)
            record.data.setdefault("left_out", {}).pop(method, None)
            if reason and not record.data["methods"].get(method, {}).get("done"):
                record.data["left_out"][method] = reason
                print(f" {METHODS[method].title} is left out: {reason}", flush=True)
                continue
            print(f" {METHODS[method].title}", flush=True)
            record.run(method)
        for part in chosen.methods:
            if part in parts.PARTS:
                print(f" {part}", flush=True)
                parts.PARTS[part](record)
    except OutOfTimeError:
        done = False
    report = harness.Report(path_of(task.name).stem, f"Rate and distortion: {task.name}", chosen)
    report.load_before = load_before
    report.command = f"python -m benchmarks.rate_distortion {task.name}"
    report.data = record.data
    tables.fill(report, record.data)
    report.finish()
    return done


if __name__ == "__main__":
    main()
