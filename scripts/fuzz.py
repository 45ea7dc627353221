"""Mutated `.mz` files with repaired checksums: a reader gives a typed error or a model, in bounded time and memory.

    python scripts/fuzz.py --seconds 600 [--findings FOLDER]

The corpus has a file of each stored form (tests/golden, and tests/fuzz/seeds: what was found before). Worker
processes of 4 GB load mutations of them. Whatever else than a `ModelzipError` leaves `mz.load`, takes more than 2 s, or
more memory than 64 MB and 8 times the bytes that the header claims, is a finding: its file is kept, and the exit status
is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import itertools
import os
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import msgpack
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
SECONDS, ADDRESSES, MARGIN = 2.0, 4 << 30, 64 << 20
NUMBERS = [-1, 0, 1, 2, 3, 7, 8, 13, 255, 2**15, 2**20, 2**24, 2**31, 2**40, 2**63, -(2**63), 0.5, None, True]
WORDS = [
    "", "float64", "bfloat16", "(1,", "S0", "O", "group", "dct", "packets", "haar", "db4", "a/b", "\0", b"\x00", [],
    {}, [[1]], {"a": None}, {1: 0, "a": 0},
]  # fmt: skip


def corpus() -> list[bytes]:
    """The files that are mutated."""
    folders = (ROOT / "tests" / "golden", ROOT / "tests" / "fuzz" / "seeds")
    return [path.read_bytes() for folder in folders for path in sorted(folder.glob("*.mz"))]


def parts(data: bytes) -> tuple[int, list, bytes, list[bytes]]:
    """Version, header, tables, and the chunks and raw pieces without their checksums."""
    from modelzip_jax.coding import header as headers

    _, version, stored, tables = headers.PRELUDE.unpack_from(data)
    start = headers.PRELUDE.size
    meta = headers._inflate(data[start : start + stored])
    at = start + stored + tables + headers.CHECKSUM
    pieces = []
    for size in itertools.chain(meta[7][1::2], itertools.repeat(1 << 22)):
        if at >= len(data):
            break
        pieces.append(data[at + headers.CHECKSUM : at + headers.CHECKSUM + size])
        at += headers.CHECKSUM + size
    return version, meta, data[start + stored : start + stored + tables], pieces


def joined(version: int, meta: list, tables: bytes, pieces: list[bytes]) -> bytes:
    """The inverse of `parts`: a file whose checksums are right, whatever it says."""
    from modelzip_jax.coding import header as headers

    stored = headers._deflate(msgpack.packb(meta))
    head = headers.PRELUDE.pack(headers.MAGIC, version, len(stored), len(tables)) + stored + tables
    return head + headers.checksum(head) + b"".join(headers.checksum(piece) + piece for piece in pieces)


def changed(item, rng: np.random.Generator, others: list):
    """The same plain data with one thing in it replaced, removed, doubled, or taken from elsewhere."""
    if isinstance(item, dict | list) and item and rng.random() < 0.9:
        keys = list(item) if isinstance(item, dict) else list(range(len(item)))
        key, copy = keys[rng.integers(len(keys))], item.copy()
        if rng.random() < 0.1:
            if isinstance(item, list):
                copy[key : key + 1] = [] if rng.random() < 0.5 else [item[key]] * 2
            else:
                copy[("x", 3, f"{key}/{key}")[rng.integers(3)]] = copy.pop(key)
            return copy
        copy[key] = changed(item[key], rng, others)
        return copy
    if isinstance(item, list) and rng.random() < 0.4:
        return others[rng.integers(len(others))]
    if isinstance(item, int) and rng.random() < 0.4:
        return int(np.clip(item, -(2**62), 2**62)) + int(rng.integers(-2, 3))
    if isinstance(item, bytes) and item and rng.random() < 0.8:
        at = rng.integers(len(item))
        return item[:at] + bytes([rng.integers(4)]) + item[at + 1 :]
    choices = NUMBERS if rng.random() < 0.6 else WORDS
    return choices[rng.integers(len(choices))]


def flipped(data: bytes, rng: np.random.Generator) -> bytes:
    """One bit flipped, or bytes cut off."""
    if not data or rng.random() < 0.1:
        return data[: rng.integers(len(data) + 1)]
    found = bytearray(data)
    found[rng.integers(len(data))] ^= 1 << rng.integers(8)
    return bytes(found)


def mutation(files: list, rng: np.random.Generator) -> bytes:
    """A file with one to three changes and right checksums. files: what `parts` gave."""
    version, meta, tables, pieces = files[rng.integers(len(files))]
    meta, pieces = list(meta), list(pieces)
    others = [spec for file in (files[rng.integers(len(files))], (0, meta)) for spec in file[1][4]]
    for _ in range(rng.integers(1, 4)):
        how = rng.random()
        if how < 0.75:  # Most of the tries go to the parts that say how large something is.
            part = rng.choice([0, 1, 1, 2, 3, 4, 4, 4, 4, 4, 5, 6, 7, len(meta) - 1])
            meta[part] = changed(meta[part], rng, others)
        elif how < 0.85:
            tables = flipped(tables, rng)
        elif how < 0.9:
            version = int(rng.integers(0, 7))
        elif pieces:
            at = rng.integers(len(pieces))
            pieces[at] = flipped(pieces[at], rng)
    try:
        return joined(version, meta, tables, pieces)
    except (ValueError, OverflowError, TypeError):
        return mutation(files, rng)


def claimed(data: bytes) -> int:
    """Bytes that the header claims, if it can be read."""
    from modelzip_jax.coding.claims import claimed_bytes

    try:
        return sum(map(claimed_bytes, parts(data)[1][4]))
    except Exception:
        return 0


def peak() -> int:
    """The most memory that this process has held since it was last asked to forget."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def forget_peak() -> None:
    """Makes `peak` begin anew, where the system can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def fault(path: Path) -> str | None:
    """What is wrong with how a file is read; None if nothing. What the first time compiles, the second need not."""
    return _fault(path) and _fault(path)


def _fault(path: Path) -> str | None:
    import modelzip_jax as mz

    forget_peak()
    before, start = peak(), time.process_time()
    try:
        mz.load(path)
    except mz.errors.ModelzipError:
        pass
    except BaseException:
        return traceback.format_exc(limit=-3)
    spent, more = time.process_time() - start, peak() - before
    if spent > SECONDS:
        return f"{spent:.1f} s"
    if more > MARGIN and more > MARGIN + 8 * claimed(path.read_bytes()):
        return f"{more >> 20} MB of memory"
    return None


def work(folder: Path, seed: int, count: int, seconds: float) -> None:
    """Tries mutations until there were enough; a finding is a file `finding-*.mz` with its reason in `.txt`."""
    faulthandler.enable()
    end = time.monotonic() + seconds
    files = [parts(data) for data in corpus()]
    warmed = folder / f"warm-{seed}.mz"
    for version, meta, tables, pieces in files:
        warmed.write_bytes(joined(version, meta, tables, pieces))
        fault(warmed)
    warmed.unlink(missing_ok=True)
    resource.setrlimit(resource.RLIMIT_DATA, (ADDRESSES, ADDRESSES))
    path = folder / f"now-{seed}.mz"
    tried = 0
    while tried < count and time.monotonic() < end:
        rng = np.random.default_rng((seed, tried))
        path.write_bytes(mutation(files, rng))
        wrong = fault(path)
        if wrong:
            path.rename(folder / f"finding-{seed}-{tried}.mz")
            (folder / f"finding-{seed}-{tried}.txt").write_text(wrong, encoding="utf-8")
        tried += 1
    path.unlink(missing_ok=True)
    print(tried)


def run(
    folder: Path, seconds: float, count: int = 1 << 40, seed: int = 0, each: int = 4000
) -> tuple[int, list[str]]:
    """Mutations tried, and what was found, by workers one after the other; each begins with fresh memory."""
    folder.mkdir(parents=True, exist_ok=True)
    end, tried, found = time.monotonic() + seconds, 0, []
    while tried < count and time.monotonic() < end:
        left = end - time.monotonic()
        command = [
            sys.executable,
            __file__,
            "--work",
            str(folder),
            str(seed),
            str(min(each, count - tried)),
            str(left),
        ]
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, env=environment, timeout=left + 120, check=False
            )
            status, told = done.returncode, done.stderr
        except subprocess.TimeoutExpired:
            status, told = -1, "it hangs"
        if status:  # The file that it was at is still there.
            for path in folder.glob(f"now-{seed}.mz"):
                path.rename(folder / f"finding-{seed}-crash.mz")
            (folder / f"finding-{seed}-crash.txt").write_text(
                f"status {status}\n{told[-4000:]}", encoding="utf-8"
            )
            tried += 1
        else:
            tried += int(done.stdout.split()[-1])
        seed += 1
    found = [
        f"{path.stem}: {path.read_text(encoding='utf-8')}" for path in sorted(folder.glob("finding-*.txt"))
    ]
    return tried, found


def main() -> int:
    """The command's exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--count", type=int, default=1 << 40)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    parser.add_argument("--findings", type=Path, default=Path(tempfile.gettempdir()) / "modelzip-fuzz")
    parser.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        folder, seed, count, seconds = options.work
        work(Path(folder), int(seed), int(count), float(seconds))
        return 0
    tried, found = run(options.findings, options.seconds, options.count, options.seed)
    print(f"{tried:,} mutations, {len(found)} findings in {options.findings}, first seed {options.seed}")
    print("\n".join(found[:20]))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
