"""What is kept of a task between runs: every point, as soon as it is known."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS
from benchmarks.rates.case import Case
from benchmarks.rates.curves import Point, front
from benchmarks.rates.methods import METHODS, lines_of
from benchmarks.rates.sweep import Line, Made, sweep
from modelzip_jax.atomic import atomic_file

__all__ = ["OutOfTimeError", "Record", "curve", "path_of"]

Entry = dict[str, Any]
"""A point: line, k, bytes, seconds, and drops by part and measure; no bytes where a line ends."""


class OutOfTimeError(Exception):
    """The time for this run is over; the next one goes on from here."""


def path_of(task: str) -> Path:
    """The file of a task."""
    return RESULTS / f"rate_distortion_{task}.json"


def curve(
    data: dict[str, Any], method: str, measure: str, part: str = "validation"
) -> list[tuple[Entry, Point]]:
    """The points of a method, and of the one beside it, that have this measure of this part."""
    names = [method, *([METHODS[method].beside] if METHODS[method].beside else [])]
    entries = [entry for name in names for entry in data["methods"].get(name, {"points": []})["points"]]
    return [
        (entry, Point(entry["bytes"], _drop(entry, part, measure)))
        for entry in entries
        if entry["bytes"] and measure in entry["drops"].get(part, {})
    ]


def _drop(entry: Entry, part: str, measure: str) -> float:
    """The mean; infinite where outputs were no numbers."""
    mean = entry["drops"][part][measure][0]
    return math.inf if mean is None else mean


class Record:
    """The data of a task, written after each point unless `path` is None."""

    def __init__(self, case: Case, path: Path | None, seconds: float):
        self.case, self.path = case, path
        self.until = time.monotonic() + seconds
        self.data: dict[str, Any] = {"methods": {}}
        if path is not None and path.exists():
            self.data = json.loads(path.read_text())["data"]
        self.data["task"] = case.task.name
        self.data["weights"] = case.task.weights
        self.data["calibration"] = case.plan.calibration
        self.data["goals"] = [goals._asdict() for goals in case.plan.goals]
        if "float" not in self.data:
            self.data["float"] = {part: case.float_quality(part) for part in case.task.parts}

    def save(self) -> None:
        """Into the task's file, whose tables are those of the last whole run."""
        if self.path is None:
            return
        whole = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.path.parent.mkdir(exist_ok=True)
        with atomic_file(self.path) as file:
            file.write((json.dumps({**whole, "data": self.data}, indent=1) + "\n").encode())

    def check_time(self) -> None:
        """Raises where the time is over."""
        if time.monotonic() > self.until:
            raise OutOfTimeError

    def run(self, method: str) -> None:
        """All lines of a method, and what its best points come to on the parts that are reported."""
        held = self.data["methods"].setdefault(method, {"points": [], "done": []})
        lines = {line.label: line for line in lines_of(method, self.case)}
        if held["done"] == list(lines):
            return
        made: dict[tuple[str, int], Made | None] = {}
        held["points"] = [entry for entry in held["points"] if entry["line"] in lines]
        first = self.case.plan.goals[0]
        for line in lines.values():

            def measured(ks: Sequence[int], line: Line = line) -> list[Point | None]:
                return self._measured(held["points"], made, line, ks)

            # One line to the finest steps is enough.
            whole = line if line is next(iter(lines.values())) else dataclasses.replace(line, whole=False)
            sweep(whole, measured, first, self.case.task.weights, self.case.plan.near)
        self._report(method, lines, made)
        held["done"] = list(lines)
        self.save()

    def _measured(
        self, points: list[Entry], made: dict[tuple[str, int], Made | None], line: Line, ks: Sequence[int]
    ) -> list[Point | None]:
        known = {p["k"]: p for p in points if p["line"] == line.label}
        new = [k for k in ks if k not in known]
        for k, file in zip(new, self._made(line, new), strict=True):
            made[line.label, k] = file
            known[k] = {"line": line.label, "k": k, "bytes": file.bytes if file else None, "drops": {}}
            if file:
                known[k]["seconds"] = file.seconds
                known[k]["drops"]["validation"] = self._drops(file, "validation")
            points.append(known[k])
            self._say(known[k])
        if new:
            self.save()
        first = self.case.plan.goals[0].measure
        return [
            Point(known[k]["bytes"], _drop(known[k], "validation", first)) if known[k]["bytes"] else None
            for k in ks
        ]

    def _made(self, line: Line, ks: Sequence[int]) -> Sequence[Made | None]:
        if ks:
            self.check_time()
        return line.make(ks) if ks else []

    def _drops(self, file: Made, part: str) -> dict[str, list[float | None]]:
        return self.case.drops(self.case.params(file.leaves), part)

    def _report(self, method: str, lines: dict[str, Line], made: dict[tuple[str, int], Made | None]) -> None:
        """Of every point that some goal's curve goes through, the other parts."""
        own = self.data["methods"][method]["points"]
        wanted: list[Entry] = []
        for goals in self.case.plan.goals:
            found = curve(self.data, method, goals.measure)
            for place in front([point for _, point in found]):
                entry, point = found[place]
                if point.drop <= goals.broken and entry not in wanted and entry in own:
                    wanted.append(entry)
        for entry in wanted:
            rest = [part for part in self.case.task.parts if part not in entry["drops"]]
            if not rest:
                continue
            key = entry["line"], entry["k"]
            file = made[key] if key in made else self._made(lines[key[0]], [key[1]])[0]
            assert file is not None, "it had bytes"
            for part in rest:
                entry["drops"][part] = self._drops(file, part)
            self.save()

    def _say(self, entry: Entry) -> None:
        measure = self.case.plan.goals[0].measure
        drop = _drop(entry, "validation", measure) if entry["bytes"] else math.nan
        print(f"  {entry['line']} {entry['k']}: {entry['bytes']} bytes, drop {drop:.5f}", flush=True)
