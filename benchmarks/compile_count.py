"""What it costs that every tensor has a shape of its own: `modelzip compress` in a cold process.

    python -m benchmarks.compile_count [--repeats 3] [--device cpu] [--quick]

XLA compiles a program for each shape it meets, and compiling takes a hundred times as long as running it once.
The checkpoint has 60 tensors of 60 shapes, kernels of two and of four axes, 13 MB in all. Every figure comes from a
fresh process without a compilation cache: seconds and peak memory are those of its whole life, interpreter,
imports and writing of the file included; `compressing` is what the command itself says it took. Linux only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import harness

SHAPES = 60
BASES = 25
SECONDS = 15.0
GIGABYTES = 0.6
SETTINGS = {
    "--sparsity 0.5 --bits 6": ("--sparsity", "0.5", "--bits", "6"),
    "--sparsity 0.5 --allocation global --bits 6": (
        "--sparsity", "0.5", "--allocation", "global", "--bits", "6",
    ),
    "--bits 6": ("--bits", "6"),
    "--sparsity 0.5 --bits 0": ("--sparsity", "0.5", "--bits", "0"),
    "--bits 4 --granularity group --range mse": ("--bits", "4", "--granularity", "group", "--range", "mse"),
}  # fmt: skip
HEADLINE = "--sparsity 0.5 --bits 6"
BASIS = "mz.best_basis of 1.4M weights"


def shapes(count: int) -> list[tuple[int, ...]]:
    """`count` different shapes of 2 and of 4 axes, some 55,000 weights each.

    >>> shapes(3), len(set(shapes(60)))
    ([(97, 540), (3, 3, 67, 98), (103, 508)], 60)
    """
    found: list[tuple[int, ...]] = []
    for index in range(count):
        if index % 2 == 0:
            rows = 97 + 3 * index
            found.append((rows, 52_400 // rows))
        else:
            inputs = 66 + index
            found.append((3, 3, inputs, 6_600 // inputs))
    return found


def write_checkpoint(path: Path, count: int) -> int:
    """An `.npz` of float32 tensors of those shapes; returns its bytes of weights."""
    rng = np.random.default_rng(0)
    made = {f"layer{i:02d}.kernel": rng.standard_normal(s, np.float32) for i, s in enumerate(shapes(count))}
    np.savez(path, **made)  # type: ignore[arg-type]
    return sum(x.nbytes for x in made.values())


def work(arguments: list[str]) -> None:
    """The process that is measured: runs the command, then prints one line of JSON."""
    import jax

    compiled: list[str] = []
    seconds = 0.0

    def listen(event: str, duration: float, **more: Any) -> None:
        nonlocal seconds
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(str(more.get("fun_name", "?")))
            seconds += duration

    jax.monitoring.register_event_duration_secs_listener(listen)
    if arguments[0] == "best_basis":
        best_basis(arguments[1])
    else:
        harness.run_cli(*arguments)
    peak = harness.peak_bytes()
    print(
        json.dumps({"compiled": Counter(compiled), "xla": seconds, "bytes": peak, "cpu": time.process_time()})
    )


def best_basis(source: str) -> None:
    """Chooses bases for the first 25 tensors of the checkpoint."""
    import modelzip_jax as mz

    with np.load(source) as file:
        params = {name: file[name] for name in list(file)[:BASES]}
    mz.best_basis(params, 1e-3)


def run(*arguments: str) -> dict[str, Any]:
    """One command in a fresh process: wall and CPU seconds of all its life, its peak memory, its programs."""
    command = [sys.executable, "-m", "benchmarks.compile_count", "--work", *arguments]
    cold = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_COMPILATION_CACHE", "XLA_FLAGS"))}
    started = time.perf_counter()
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=cold).stdout
    return {**json.loads(said.splitlines()[-1]), "wall": time.perf_counter() - started}


def main() -> None:
    """Runs the benchmark."""
    if sys.argv[1:2] == ["--work"]:
        work(sys.argv[2:])
        return
    chosen = harness.options(__doc__, repeats=3)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # The host's memory is what is measured.
    report = harness.Report("compile_count", "Many shapes in a cold process", chosen)
    with tempfile.TemporaryDirectory() as folder:
        source, target, back = (str(Path(folder) / name) for name in ("model.npz", "model.mz", "back.npz"))
        size = write_checkpoint(Path(source), 8 if chosen.quick else SHAPES)
        tasks = {
            f"modelzip compress {name}": ("compress", source, target, "--force", *flags)
            for name, flags in SETTINGS.items()
        }
        tasks["modelzip decompress of the last"] = ("decompress", target, back, "--force")
        tasks[BASIS] = ("best_basis", source)
        rows, found = [], {}
        for name, arguments in tasks.items():
            # Only what has a bar is repeated; the others are context.
            repeats = chosen.repeats if HEADLINE in name or name == BASIS else 1
            runs = [run(*arguments) for _ in range(repeats)]
            middle = {key: harness.median([r[key] for r in runs]) for key in ("wall", "cpu", "xla", "bytes")}
            found[name] = middle
            rows.append(
                [name, middle["wall"], min(r["wall"] for r in runs), middle["cpu"], middle["xla"],
                 middle["bytes"] / 1e6, sum(runs[0]["compiled"].values())]
            )  # fmt: skip
            listed = ", ".join(f"{n} {count}" for n, count in runs[0]["compiled"].items())
            report.note(f"Compiled by {name}: {listed or 'nothing'}.")
    columns = ["task", "wall, s", "min, s", "CPU, s", "of it compiling, s", "peak memory, MB", "programs"]
    report.table(f"{size / 1e6:.1f} MB of floats in tensors of different shapes", columns, rows)
    headline = found[f"modelzip compress {HEADLINE}"]
    report.bar(f"modelzip compress {HEADLINE}, 60 shapes, cold", SECONDS, headline["wall"], unit=" s")
    report.bar(
        f"modelzip compress {HEADLINE}, 60 shapes, peak memory",
        GIGABYTES,
        headline["bytes"] / 1e9,
        unit=" GB",
    )
    report.bar(f"{BASIS}, 25 shapes, cold", SECONDS, found[BASIS]["wall"], unit=" s")
    report.finish()


if __name__ == "__main__":
    main()
