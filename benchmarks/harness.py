"""What every benchmark uses: its flags, interleaved timing, and the record it leaves.

A benchmark is a module with `main()`, run from the root of the repository:

    python -m benchmarks.coding [--repeats 7] [--device cpu] [--cores 1] [--quick]

It writes `benchmarks/results/<name>.json`; `python -m benchmarks.report` makes `docs/benchmarks.md`
from all of them. Ours and the peers take turns within one process, so that whatever else the
machine does meets all of them alike: ratios are the claims, absolute times are context.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import gc
import importlib.metadata
import json
import math
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

__all__ = [
    "Bar", "Report", "clock", "interleave", "median", "options", "peak_bytes",
    "ratios", "run_cli", "said", "spread", "standard_error",
]  # fmt: skip

RESULTS = Path(__file__).parent / "results"
VERSIONS = (
    "modelzip_jax", "jax", "jaxlib", "numpy", "flax", "optax", "constriction", "zstandard", "qwix",
)  # fmt: skip

Times = dict[str, list[float]]


def options(
    description: str | None, repeats: int, cores: int = 0, flags: Mapping[str, str] | None = None
) -> argparse.Namespace:
    """Reads the command line and applies `--device` and `--cores`, before JAX has a backend.

    flags: further switches and their help.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=repeats, help="rounds of interleaved timing")
    parser.add_argument("--device", help="platform that JAX shall use: cpu, cuda, rocm or tpu")
    parser.add_argument("--cores", type=int, default=cores, help="CPU cores to use; 0 for all")
    parser.add_argument("--quick", action="store_true", help="small cases only, written to no file")
    for flag, meaning in (flags or {}).items():
        parser.add_argument(f"--{flag}", action="store_true", help=meaning)
    chosen = parser.parse_args()
    if chosen.device:
        platforms = chosen.device if chosen.device == "cpu" else f"{chosen.device},cpu"
        os.environ["JAX_PLATFORMS"] = platforms  # For subprocesses.
        jax.config.update("jax_platforms", platforms)
    if chosen.cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: chosen.cores])
    return chosen


def clock() -> Callable[[], float]:
    """CPU seconds where one core does all of the work, so that other programs do not count; else wall."""
    alone = jax.default_backend() == "cpu" and len(os.sched_getaffinity(0)) == 1
    return time.process_time if alone else time.perf_counter


def interleave(cases: Mapping[str, Callable[[], Any]], repeats: int, warmup: int = 1) -> Times:
    """Seconds by `clock` of each call, by case. All cases take turns, in a new order each round.

    Shuffled, not rotated: a rotation keeps every case behind the same predecessor. When the slowest one
    ran before the baseline, pruning seemed to make an MLP's step 7 % faster; it makes it 7 % slower.

    A case must have finished its work when it returns (`jax.block_until_ready`).
    """
    now = clock()
    for _ in range(warmup):
        for case in cases.values():
            case()
    names = list(cases)
    times: Times = {name: [] for name in names}
    order = random.Random(0)
    for _ in range(repeats):
        gc.collect()
        order.shuffle(names)
        for name in names:
            start = now()
            cases[name]()
            times[name].append(now() - start)
    return times


def run_cli(*arguments: str) -> None:
    """The `modelzip` command, in this process."""
    from modelzip_jax import cli

    sys.argv = ["modelzip", *arguments]
    try:
        cli.main()
    except SystemExit as error:
        if error.code:
            raise


def peak_bytes() -> int:
    """The largest resident set of this process so far (Linux).

    Not getrusage: a child inherits its maximum from the parent that it was forked from.
    """
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise SystemExit("this benchmark needs Linux: no VmHWM in /proc/self/status")
    return 1024 * int(found[1])


def median(values: list[float]) -> float:
    """The median, of whatever could be measured."""
    return statistics.median(values) if values else float("nan")


def ratios(times: Times, case: str, baseline: str) -> list[float]:
    """`case` over `baseline` in each round: what disturbed one round disturbed both."""
    return [a / b for a, b in zip(times[case], times[baseline], strict=True)]


def standard_error(values: Sequence[float] | np.ndarray) -> float:
    """Of the mean; NaN for one value."""
    return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def said(values: Sequence[float] | np.ndarray, scale: float = 1.0, digits: int = 3) -> str:
    """Mean ± standard error, times `scale`."""
    return f"{scale * np.mean(values):.{digits}f} ± {scale * standard_error(values):.{digits}f}"


def spread(values: list[float]) -> float:
    """Half of the interquartile range."""
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / 2


@dataclasses.dataclass
class Bar:
    """A promise and what became of it.

    what: the promise. limit, figure: numbers in `unit`. least: whether the figure must be at least the
    limit rather than at most. remark: what the reader should know about the figure.
    """

    what: str
    limit: float
    figure: float
    least: bool = False
    unit: str = ""
    remark: str = ""

    @property
    def hit(self) -> bool:
        return self.figure >= self.limit if self.least else self.figure <= self.limit


class Report:
    """Collects the tables, bars and notes of one benchmark.

    command: that made it. data: what else is to be recorded, for other scripts to read.
    """

    def __init__(self, name: str, title: str, chosen: argparse.Namespace):
        self.name, self.title, self.chosen = name, title, chosen
        self.tables: list[dict[str, Any]] = []
        self.bars: list[Bar] = []
        self.notes: list[str] = []
        self.command = " ".join(["python -m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]])
        self.data: Any = None
        self.load_before = os.getloadavg()

    def table(self, title: str, columns: list[str], rows: list[list[Any]]) -> None:
        """Adds a table; numbers are kept to four digits."""
        self.tables.append(
            {"title": title, "columns": columns, "rows": [[_short(x) for x in r] for r in rows]}
        )

    def bar(self, what: str, limit: float, figure: float, **more: Any) -> None:
        """Adds a bar, see `Bar`; its figure is rounded unless that would change whether it is hit."""
        exact, short = (Bar(what, limit, x, **more) for x in (float(figure), _short(float(figure))))
        self.bars.append(short if short.hit == exact.hit else exact)

    def note(self, text: str) -> None:
        """Adds a remark, such as a case that could not run, and prints it."""
        print(f"note: {text}", flush=True)
        self.notes.append(text)

    def finish(self) -> None:
        """Prints everything; writes it unless the run was a quick one."""
        for table in self.tables:
            print(f"\n{table['title']}\n{' | '.join(table['columns'])}")
            for row in table["rows"]:
                print(" | ".join(str(x) for x in row))
        for bar in self.bars:
            print(f"{'hit ' if bar.hit else 'MISS'} {bar.what}: {bar.figure} (bar {bar.limit}) {bar.unit}")
        if self.chosen.quick:
            return
        record = {
            "name": self.name,
            "title": self.title,
            "command": self.command,
            "machine": _machine(self.load_before),
            "options": vars(self.chosen),
            "tables": self.tables,
            "bars": [{**dataclasses.asdict(bar), "hit": bool(bar.hit)} for bar in self.bars],
            "notes": self.notes,
        }
        if self.data is not None:
            record["data"] = self.data
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{self.name}.json"
        path.write_text(json.dumps(record, indent=1) + "\n")
        print(f"wrote benchmarks/results/{path.name}; now run: python -m benchmarks.report")


def _short(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _machine(load_before: tuple[float, float, float]) -> dict[str, Any]:
    device = jax.devices()[0]
    found = {}
    for package in VERSIONS:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return {
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": f"{device.platform} ({device.device_kind})",
        "device_peak_bytes": (device.memory_stats() or {}).get("peak_bytes_in_use"),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "clock": "CPU" if clock() is time.process_time else "wall",
        "load_before": round(load_before[0], 2),
        "load_after": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": {name: version for name, version in found.items() if version},
    }


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(
            command, check=True, capture_output=True, text=True, cwd=RESULTS.parent
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
