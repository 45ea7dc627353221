"""Tables and bars of one task, from what was recorded."""

from __future__ import annotations

import itertools
import math
from typing import Any

from benchmarks import harness
from benchmarks.rates.curves import Met, met
from benchmarks.rates.goals import Goals
from benchmarks.rates.methods import METHODS
from benchmarks.rates.records import Entry, curve

__all__ = ["OURS", "bytes_at", "fill", "ratio"]

OURS = ("calibrated", "data_free")
_SINGLE = ("q4_k", "gptq")


def bytes_at(data: dict[str, Any], method: str, goals: Goals, drop: float) -> Met | None:
    """What a method's curve on the validation part comes to at a drop."""
    return met([point for _, point in curve(data, method, goals.measure)], drop, goals.logarithmic)


def ratio(data: dict[str, Any], ours: str, peer: str, goals: Goals, drop: float) -> float | None:
    """Bytes of ours over the peer's at one drop; at the peer's own drop where it has a single file."""
    if peer in _SINGLE:
        points = [point for _, point in curve(data, peer, goals.measure)]
        found = bytes_at(data, ours, goals, points[0].drop) if points else None
        return found.bytes / points[0].bytes if found else None
    here, there = bytes_at(data, ours, goals, drop), bytes_at(data, peer, goals, drop)
    return here.bytes / there.bytes if here and there else None


def fill(report: harness.Report, data: dict[str, Any]) -> None:
    """All tables, bars and notes of a task."""
    first = data["goals"][0]["measure"]
    floats = "; ".join(f"{part} {values[first]:.4f}" for part, values in data["float"].items())
    report.note(f"The float network of {data['weights']:,} weights: {first}, {floats}.")
    report.note(
        f"Calibrated with {data['calibration']} inputs. Bytes at a drop of the mean over the validation part, log-"
        "linear between the two files on both sides of it, of those that no other file of the method beats; behind "
        "them, what these two files come to on the other parts, the smaller one first."
    )
    for method, reason in data.get("left_out", {}).items():
        report.note(f"{METHODS[method].title} is left out: {reason}.")
    for goals in (Goals(g["measure"], tuple(g["drops"]), g["logarithmic"]) for g in data["goals"]):
        _goals(report, data, goals)
    _sizes(report, data)
    _targets(report, data)
    _seconds(report, data)


def _goals(report: harness.Report, data: dict[str, Any], goals: Goals) -> None:
    parts = [part for part in data["float"] if part != "validation" and goals.measure in data["float"][part]]
    columns = ["method", "files"]
    for drop in goals.drops:
        columns += [f"bytes, drop {drop:g}", *(f"drops, {part}" for part in parts)]
    rows, single = [], []
    for method in data["methods"]:
        found = curve(data, method, goals.measure)
        if method in _SINGLE:
            for entry, point in found:
                elsewhere = [_of(entry, part, goals.measure) for part in parts]
                ratios = [ratio(data, ours, method, goals, 0.0) for ours in OURS]
                single.append([METHODS[method].title, point.bytes, point.drop, *elsewhere, *ratios])
            continue
        row: list[Any] = [METHODS[method].title, len(found)]
        for drop in goals.drops:
            at = bytes_at(data, method, goals, drop)
            row.append(round(at.bytes) if at else None)
            for part in parts:
                ends = [_of(found[i][0], part, goals.measure) for i in (at.coarser, at.finer)] if at else []
                row.append(" … ".join("–" if x is None else f"{x:.4g}" for x in ends) or None)
        rows.append(row)
    report.table(f"Bytes at a drop of {goals.measure}", columns, rows)
    _ratios(report, data, goals)
    if single:
        beside = [f"{METHODS[ours].title} / it, at this drop" for ours in OURS]
        titles = ["method", "bytes", "drop, validation", *(f"drop, {part}" for part in parts), *beside]
        report.table(f"Single files: {goals.measure}", titles, single)


def _ratios(report: harness.Report, data: dict[str, Any], goals: Goals) -> None:
    peers = [method for method in data["methods"] if method not in (*OURS, *_SINGLE)]
    titles = [f"{METHODS[ours].title}, drop {drop:g}" for ours in OURS for drop in goals.drops]
    rows = [
        [
            METHODS[peer].title,
            *(ratio(data, ours, peer, goals, drop) for ours in OURS for drop in goals.drops),
        ]
        for peer in peers
    ]
    if rows:
        report.table(f"Bytes of ours over the peer's at a drop of {goals.measure}", ["peer", *titles], rows)


def _of(entry: Entry, part: str, measure: str) -> float | None:
    return entry["drops"].get(part, {}).get(measure, [None])[0]


def _sizes(report: harness.Report, data: dict[str, Any]) -> None:
    measure = data["goals"][0]["measure"]
    parts = [part for part in data["float"] if measure in data["float"][part]]
    for method, held in data.get("sizes", {}).items():
        rows = [
            [
                row["count"] or "none: data-free",
                row["seed"],
                *(_said(row["drops"][p][measure]) for p in parts),
            ]
            for row in held["rows"]
        ]
        at = f"at {held['bytes']:,} bytes, those of {METHODS[method].title}"
        report.table(f"Inputs that calibrate, {at}: drop of {measure}", ["inputs", "draw", *parts], rows)
        by_count: dict[int, list[float]] = {}
        for row in held["rows"]:
            mean = row["drops"]["test"][measure][0]
            by_count.setdefault(row["count"], []).append(math.inf if mean is None else mean)
        least = min((count for count in by_count if count), default=0)
        if 0 in by_count and least:
            worst = max(by_count[least]) - by_count[0][0]
            report.bar(f"{least} inputs, worst draw: drop beyond data-free", 0.0, worst, remark=f"test, {at}")


def _said(drop: list[float | None]) -> str:
    """A mean and its standard error."""
    mean, error = drop
    return "no numbers" if mean is None else f"{mean:.5f} ± {error:.5f}"


def _targets(report: harness.Report, data: dict[str, Any]) -> None:
    held = data.get("targets")
    if not held:
        return
    shares = [row["bytes"] / row["target"] for row in held]
    count = f"{len(held)} random numbers of bytes"
    report.bar(f"{count}: the largest share that a file has", 1.0, max(shares))
    report.bar(f"{count}: the smallest share", 0.99, min(shares), least=True)
    wrong = 0
    for mode in {row["mode"] for row in held}:
        sizes = [row["bytes"] for row in sorted(held, key=lambda r: r["target"]) if row["mode"] == mode]
        wrong += sum(a > b for a, b in itertools.pairwise(sizes))
    report.bar(f"{count}: larger targets with smaller files", 0, wrong)


def _seconds(report: harness.Report, data: dict[str, Any]) -> None:
    rows = [
        [METHODS[method].title, s["bytes"], s["statistics"], s["compress"], s["encode"], s["decode"]]
        for method, s in data.get("seconds", {}).items()
    ]
    points = [e for m in data["methods"].values() for e in m["points"] if e.get("seconds")]
    if points and rows:
        # The file of NNCodec that is nearest in bytes.
        entry = min(points, key=lambda e: abs(e["bytes"] - rows[-1][1]))
        rows.append(["NNCodec, quantizing included", entry["bytes"], None, None, *entry["seconds"]])
    if rows:
        columns = [
            "method",
            "bytes",
            "Fisher information, s",
            "compress at a step, s",
            "encode, s",
            "decode, s",
        ]
        report.table("Seconds, the first call of the Fisher information with its compilation", columns, rows)
