"""Processes killed at random moments: what they leave is old or new, and what goes on ends bit for bit the same.

    python scripts/kill_check.py save|compress|train|parallel [--kills 100] [--seconds 3600] [--seed 0]

save: `mz.save` over an older file. compress: `modelzip compress --force` over an older file. train: a run that is
killed twelve times and then ends, and then the next one. parallel: the same in two processes, one of which is killed,
whichever it is. Half of the kills are aimed at the moments when something is being written. Prints a line of
JSON with the counts; the exit status is 1 if something was half-written, other than it should be, or left over.
"""

from __future__ import annotations

import argparse
import collections
import functools
import json
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
RUN = ROOT / "tests" / "training" / "run_script.py"
SAVE = """
import sys
import modelzip_jax as mz
old, new, target = sys.argv[1:]
models = [mz.load(path) for path in (old, new)]
for model in models:  # What is compiled once would be what all kills hit.
    mz.save(old + ".warm", model)
print("ready", flush=True)
for turn in range(1_000_000):
    mz.save(target, models[turn % 2])
"""
Counts = collections.Counter[str]


class KillError(Exception):
    """What should not have been found after a kill."""


def turns(kills: int, until: float) -> Iterator[tuple[int, bool]]:
    """The kills by number, and whether this is the last: of all, or of those for which there is time."""
    for index in range(kills):
        last = index == kills - 1 or time.monotonic() > until
        yield index, last
        if last:
            return


def require(holds: bool, text: str) -> None:
    """Stops the check, with what was found."""
    if not holds:
        raise KillError(text)


def written(folder: Path) -> Iterator[Path]:
    """What is being written in a folder, or was when its writer was killed."""
    return (path for path in folder.rglob("*") if "tmp" in path.name)


def wait(process: subprocess.Popen[str], folder: Path, stale: set[Path], moment: str, seconds: float) -> None:
    """Until something is being written that was not before, or so many seconds have passed, or the process ends."""
    until = time.monotonic() + (seconds if moment == "any" else 120.0)
    while process.poll() is None and time.monotonic() < until:
        if moment == "writing" and set(written(folder)) - stale:
            return
        time.sleep(0.001)


def kill(process: subprocess.Popen[str], counts: Counts) -> None:
    """Ends a process as a power cut would, and counts whether it still lived."""
    counts["killed" if process.poll() is None else "ended before"] += 1
    process.send_signal(signal.SIGKILL)
    process.communicate()


def weights(folder: Path) -> Path:
    """A checkpoint of 1 MB in a folder that is not watched."""
    rng = np.random.default_rng(0)
    arrays = {f"layer_{i}/kernel": rng.standard_normal((256, 256)).astype("f4") for i in range(4)}
    np.savez(folder / "weights.npz", **arrays)
    return folder / "weights.npz"


def compress(source: Path, target: Path, bits: int) -> list[str]:
    """The command that compresses to so many bits."""
    command = [sys.executable, "-m", "modelzip_jax.cli", "compress", str(source), str(target), "--force"]
    return [*command, "--bits", str(bits)]


def files(folder: Path) -> tuple[list[str], dict[int, bytes]]:
    """Two models in files, the command that makes the second, and the bytes of both."""
    source = weights(folder)
    found = {}
    for bits in (8, 4):
        subprocess.run(compress(source, folder / f"{bits}.mz", bits), check=True, stdout=subprocess.DEVNULL)
        found[bits] = (folder / f"{bits}.mz").read_bytes()
    return compress(source, folder / "out" / "model.mz", 4), found


def check_file(folder: Path, allowed: dict[int, bytes], counts: Counts) -> None:
    """The file is one of the two, whole."""
    content = (folder / "model.mz").read_bytes()
    names = [str(bits) for bits, wanted in allowed.items() if wanted == content]
    require(bool(names), f"{folder / 'model.mz'} is neither the old nor the new file")
    counts[f"the {names[0]}-bit file"] += 1
    counts["temporary files left"] += sum(1 for _ in written(folder))


def check_files(kind: str, kills: int, rng: random.Random, base: Path, until: float) -> Counts:
    """Kills of writers of one file."""
    counts: Counts = collections.Counter()
    command, allowed = files(base)
    folder = base / "out"
    folder.mkdir()
    started = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    usual = time.monotonic() - started
    for index, _ in turns(kills, until):
        moment, stale = ("writing", "any")[index % 2], set(written(folder))
        if kind == "compress":
            (folder / "model.mz").write_bytes(allowed[8])
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, text=True)
            wait(process, folder, stale, moment, rng.uniform(0, usual))
        else:
            script = [
                sys.executable,
                "-c",
                SAVE,
                str(base / "8.mz"),
                str(base / "4.mz"),
                str(folder / "model.mz"),
            ]
            process = subprocess.Popen(script, stdout=subprocess.PIPE, text=True)
            require(
                process.stdout is not None and process.stdout.readline() == "ready\n", "it does not begin"
            )
            wait(process, folder, stale, moment, rng.uniform(0, 0.2))
        time.sleep(rng.uniform(0, 0.05))
        kill(process, counts)
        check_file(folder, allowed, counts)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    require((folder / "model.mz").read_bytes() == allowed[4], "the file after the kills is another one")
    left = sorted(path.name for path in folder.iterdir())
    require(left == ["model.mz"], f"left over: {left}")
    return counts


def launch(folder: Path, processes: int) -> list[subprocess.Popen[str]]:
    """The processes of a run of 40 steps with a checkpoint every 4."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, str(RUN), str(folder), "--config.save_every=4"]
    if processes > 1:
        command += [
            f"--config.distributed.processes={processes}",
            f"--config.distributed.coordinator={coordinator}",
        ]
    places = [
        [f"--config.distributed.process={index}"] if processes > 1 else [] for index in range(processes)
    ]
    return [
        subprocess.Popen([*command, *place], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        for place in places
    ]


def ended(folder: Path, processes: int) -> None:
    """Runs to the end."""
    running = launch(folder, processes)
    errors = [process.communicate(timeout=300)[1] for process in running]
    require(all(process.returncode == 0 for process in running), f"it does not go on: {errors}")


def log(folder: Path) -> list[dict[str, float]]:
    """The lines of a run's log, without what depends on the time."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{name: x for name, x in line.items() if name != "steps_per_second"} for line in lines]


def same_run(folder: Path, whole: Path) -> None:
    """A run that was killed has ended as an uninterrupted one, and nothing is left of the kills."""
    for name in ("model.mz", "result.json", "config.json"):
        require(
            (folder / name).read_bytes() == (whole / name).read_bytes(), f"{folder / name} is another one"
        )
    require(log(folder) == log(whole), f"the log in {folder} is another one")
    for path in ("", "checkpoints"):
        names = [sorted(x.name for x in (run / path).iterdir()) for run in (folder, whole)]
        require(names[0] == names[1], f"{folder / path} holds {names[0]}, not {names[1]}")


def check_runs(kills: int, rng: random.Random, base: Path, until: float, processes: int) -> Counts:
    """Kills of a run, begun again after every 12th; each of these must end as the uninterrupted one does."""
    counts: Counts = collections.Counter()
    ended(base / "whole", processes)
    folder = base / "run 0"
    for index, last in turns(kills, until):
        running = launch(folder, processes)
        first = rng.choice(running)
        before = (folder / "log.jsonl").stat().st_mtime_ns if (folder / "log.jsonl").exists() else 0
        moment = ("writing", "any")[index % 2]
        while all(process.poll() is None for process in running):
            path = folder / "log.jsonl"
            begun = path.exists() and path.stat().st_mtime_ns > before
            if begun and (moment == "any" or next(written(folder / "checkpoints"), None)):
                break
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.1 if moment == "any" else 0.01))
        kill(first, counts)
        for process in running:
            if process is not first:
                end_soon(process, counts)
        if index % 12 == 11 or last:
            ended(folder, processes)
            same_run(folder, base / "whole")
            counts["runs that ended the same"] += 1
            folder = base / f"run {index + 1}"
    return counts


def end_soon(process: subprocess.Popen[str], counts: Counts) -> None:
    """Another process of the run gets a moment to notice by itself."""
    try:
        process.communicate(timeout=5)
        counts["the other noticed"] += 1
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        counts["the other had to be killed, too"] += 1


def main() -> int:
    """The command's exit status."""
    kinds: dict[str, Callable[[int, random.Random, Path, float], Counts]] = {
        "save": functools.partial(check_files, "save"),
        "compress": functools.partial(check_files, "compress"),
        "train": functools.partial(check_runs, processes=1),
        "parallel": functools.partial(check_runs, processes=2),
    }
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kind", choices=kinds)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=3600.0, help="end with fewer kills after so long")
    options = parser.parse_args()
    until = time.monotonic() + options.seconds
    with tempfile.TemporaryDirectory() as base:
        try:
            counts = kinds[options.kind](options.kills, random.Random(options.seed), Path(base), until)
        except KillError as error:
            print(f"{options.kind}, seed {options.seed}: {error}")
            return 1
    print(json.dumps({"kind": options.kind, "seed": options.seed, **counts}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
