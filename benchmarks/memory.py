"""Memory of compressing and loading, and what decoding costs a fresh process.

    python -m benchmarks.memory [--device cpu] [--repeats 3] [--quick]

Every figure comes from a process of its own. Memory is the peak resident set (Linux: VmHWM) above
that of the same process when it had imported modelzip_jax, JAX's backend started. The large
checkpoint, 2 GB in 20 tensors of random normal floats, is written to a temporary directory first:
4 GB of disk and 8 GB of memory should be free. The commands run in the measured process itself.
"""

from __future__ import annotations

import argparse
import json
import os
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

import modelzip_jax as mz
from benchmarks import harness
from benchmarks.networks import NETWORKS, MissingPackageError
from modelzip_jax import checkpoints
from modelzip_jax.coding.reader import Archive

HEADLINE = "MiniLM-L6"


def compress_model(source: str, target: str) -> None:
    """From a checkpoint to a file; no name holds the params, so that each leaf is freed once packed."""
    zipper = mz.only("**", mz.quantize(6), min_ndim=2, floating=True)
    mz.save(target, mz.compress(checkpoints.read(source), zipper))


def load_model(source: str) -> None:
    """The packed model and its weights, both alive."""
    packed = mz.load(source)
    jax.block_until_ready(mz.unpack(packed))


def compress(source: str, target: str) -> None:
    """`modelzip compress`."""
    harness.run_cli("compress", source, target, "--bits", "6")


def decompress(source: str, target: str) -> None:
    """`modelzip decompress`."""
    harness.run_cli("decompress", source, target, "--force")


def decode(source: str) -> None:
    """Every chunk of a file, and nothing else."""
    with Archive(source) as archive:
        for chunk in range(len(archive.header.chunks)):
            archive._chunk(chunk)


TASKS: dict[str, Callable[..., None]] = {
    f.__name__: f for f in (compress_model, load_model, compress, decompress, decode)
}


def work(task: str, arguments: list[str]) -> None:
    """The process that is measured: prints one line of JSON."""
    compiled: list[str] = []

    def listen(event: str, _: float, **more: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(str(more.get("fun_name", "?")))

    jax.monitoring.register_event_duration_secs_listener(listen)
    jax.devices()
    before, start = harness.peak_bytes(), time.perf_counter()
    TASKS[task](*arguments)
    seconds = time.perf_counter() - start
    print(json.dumps({"bytes": harness.peak_bytes() - before, "seconds": seconds, "compiled": compiled}))


def run(task: str, *arguments: str) -> dict[str, Any]:
    """One task in a fresh process, `wall` being all of its life."""
    command = [sys.executable, "-m", "benchmarks.memory", "--work", task, *arguments]
    start = time.perf_counter()
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return {**json.loads(output.splitlines()[-1]), "wall": time.perf_counter() - start}


def write_checkpoint(path: Path, tensors: int, rows: int) -> int:
    """A `.safetensors` file of float32 tensors `(rows, 1024)`; returns the bytes of one."""
    one = 4 * 1024 * rows
    header = json.dumps(
        {
            f"layer{i:02d}.kernel": {
                "dtype": "F32", "shape": [rows, 1024], "data_offsets": [i * one, (i + 1) * one]
            }
            for i in range(tensors)
        }
    ).encode()  # fmt: skip
    header += b" " * (-len(header) % 8)
    rng = np.random.default_rng(0)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for _ in range(tensors):
            file.write(rng.standard_normal((rows, 1024), np.float32))
    return one


def report_model(report: harness.Report, folder: Path, chosen: argparse.Namespace) -> None:
    """Memory, time and compilations with MiniLM."""
    network = NETWORKS["g2p-en" if chosen.quick else HEADLINE]
    try:
        source = network.path()
    except MissingPackageError as error:
        report.note(f"{HEADLINE} skipped: {error}")
        return
    raw = sum(x.nbytes for x in jax.tree.leaves(network.load()))
    packed, out = str(folder / "model.mz"), str(folder / "out.safetensors")
    tiny, tiny_packed = folder / "tiny.safetensors", str(folder / "tiny.mz")
    write_checkpoint(tiny, 1, 16)
    tasks = {
        "mz.compress + mz.save, int6": ("compress_model", (str(source), packed), (str(tiny), tiny_packed)),
        "mz.load + mz.unpack": ("load_model", (packed,), (tiny_packed,)),
    }
    rows = []
    for name, (task, arguments, small) in tasks.items():
        found, floor = run(task, *arguments), run(task, *small)
        ratio = found["bytes"] / raw
        rows.append(
            [name, found["bytes"] / 1e6, ratio, floor["bytes"] / 1e6, found["seconds"],
             len(found["compiled"])]
        )  # fmt: skip
        report.bar(
            f"{HEADLINE}: {name}, peak memory ÷ float bytes", 2.0, ratio, unit=" ×",
            remark=f"{(found['bytes'] - floor['bytes']) / raw:.2f} × above what a 64 kB model takes",
        )  # fmt: skip
    columns = [
        "task", "peak above the imported interpreter, MB", "÷ float bytes",
        "the same with a 64 kB model, MB", "s", "compilations",
    ]  # fmt: skip
    report.table(f"{HEADLINE}, {raw / 1e6:.1f} MB of floats", columns, rows)

    cold = [run("decompress", packed, out) for _ in range(chosen.repeats)]
    decoding = run("decode", packed)
    wall = harness.median([c["wall"] for c in cold])
    rows = [
        ["modelzip decompress, whole process", wall, min(c["wall"] for c in cold), len(cold[0]["compiled"])],
        ["its work after the imports", harness.median([c["seconds"] for c in cold]),
         min(c["seconds"] for c in cold), len(cold[0]["compiled"])],
        ["all chunks, after the imports", decoding["seconds"], decoding["seconds"],
         len(decoding["compiled"])],
    ]  # fmt: skip
    report.table(
        f"A cold process reads {HEADLINE} int6", ["what", "median, s", "min, s", "compilations"], rows
    )
    report.bar(f"modelzip decompress of {HEADLINE}, cold", 8, wall, unit=" s")
    report.bar("compilations to decode a file", 4, len(decoding["compiled"]))
    report.note(f"Compiled to decode: {', '.join(decoding['compiled'])}.")
    report.note(f"Compiled by decompress: {', '.join(sorted(set(cold[0]['compiled'])))}.")


def report_checkpoint(report: harness.Report, folder: Path, chosen: argparse.Namespace) -> None:
    """Memory of `modelzip compress` on a large checkpoint."""
    source, target = folder / "large.safetensors", folder / "large.mz"
    rows = 2_400 if chosen.quick else 24_400
    largest = write_checkpoint(source, 20, rows)
    size = source.stat().st_size
    found = run("compress", str(source), str(target))
    allowed = size + 3 * largest
    report.table(
        "A large checkpoint of 20 equal tensors",
        ["task", "checkpoint, MB", "peak above the imported interpreter, MB", "allowed, MB", "s", "file, MB"],
        [
            ["modelzip compress --bits 6", size / 1e6, found["bytes"] / 1e6, allowed / 1e6, found["seconds"],
             target.stat().st_size / 1e6]
        ],
    )  # fmt: skip
    report.bar(
        f"{size / 1e9:.1f} GB checkpoint, modelzip compress: peak memory ÷ (size + 3 × largest tensor)",
        1.0, found["bytes"] / allowed, unit=" ×",
    )  # fmt: skip


def main() -> None:
    """Runs the benchmark."""
    if sys.argv[1:2] == ["--work"]:
        work(sys.argv[2], sys.argv[3:])
        return
    chosen = harness.options(__doc__, repeats=3)
    report = harness.Report("memory", "Memory and cold starts", chosen)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # The host's memory is what is measured.
    with tempfile.TemporaryDirectory() as folder:
        report_model(report, Path(folder), chosen)
        report_checkpoint(report, Path(folder), chosen)
    report.finish()


if __name__ == "__main__":
    main()
