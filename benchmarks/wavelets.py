"""Speed of wavelet transforms beside PyWavelets and jaxwt: forward and inverse, 2048² floats.

    python -m benchmarks.wavelets [--repeats 15] [--device cpu] [--cores 1] [--quick]

PyWavelets comes with the extra `test`. jaxwt (EUPL) is a peer of this benchmark only, and needs nothing else:

    pip install --no-deps --target /tmp/jaxwt jaxwt && PYTHONPATH=/tmp/jaxwt python -m benchmarks.wavelets

glibc keeps freed memory here, for all three alike (`keep_freed_memory`). As it comes, it hands arrays of this size back
to the system or not, by the layout of its heap; where it does, page faults take longer than Haar itself, and ratios
differ severalfold from process to process.

jaxwt has no periodization: it extends by symmetry and returns a few coefficients more. Each peer is timed on
its own call for separable 2-D transforms, jaxwt's compiled by `jax.jit`.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from modelzip_jax.wavelets.multilevel import dwt, idwt

BARS = {"haar": {"PyWavelets": 20.0, "jaxwt": 8.0}, "db4": {"PyWavelets": 3.0, "jaxwt": 6.0}}
COPIES = 4.0


def keep_freed_memory() -> str:
    """Tells glibc to take all arrays from one heap and never to shrink it (mallopt(3)); what to note of it."""
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return "not glibc: page faults are part of the times"
    trim_threshold, mmap_max, arena_max = -1, -4, -8
    for option, value in ((arena_max, 1), (trim_threshold, -1), (mmap_max, 0)):
        mallopt(option, value)
    return "glibc keeps freed memory (mallopt), for all libraries: no page faults in the times"


def ours(x: np.ndarray, name: str, levels: int) -> Callable[[], Any]:
    """Forward, then inverse, each one compiled program."""
    held = jnp.asarray(x)
    forward = functools.partial(dwt, filter=name, levels=levels, axes=(0, 1))
    inverse = functools.partial(idwt, filter=name, levels=levels, axes=(0, 1))
    return lambda: jax.block_until_ready(inverse(forward(held)))


def pywavelets(x: np.ndarray, name: str, levels: int) -> Callable[[], Any]:
    """wavedec2 and waverec2 by periodization, in float32."""
    import pywt

    return lambda: pywt.waverec2(pywt.wavedec2(x, name, "periodization", level=levels), name, "periodization")


def jaxwt(x: np.ndarray, name: str, levels: int) -> Callable[[], Any]:
    """wavedec2 and waverec2, each compiled."""
    import jaxwt

    held = jnp.asarray(x)
    forward = jax.jit(lambda x: jaxwt.wavedec2(x, name, level=levels, mode="symmetric"))
    inverse = jax.jit(lambda c: jaxwt.waverec2(c, name))
    return lambda: jax.block_until_ready(inverse(forward(held)))


def copies(report: harness.Report, x: np.ndarray, chosen: Any) -> None:
    """One level of Haar, forward or inverse, against a copy of the array."""
    held = jnp.asarray(x)
    copy = jax.jit(lambda x: jnp.copy(x))
    cases: dict[str, Callable[[], Any]] = {
        "copy": lambda: jax.block_until_ready(copy(held)),
        "haar forward": lambda: jax.block_until_ready(dwt(held, "haar", 1, (0, 1))),
        "haar inverse": lambda: jax.block_until_ready(idwt(held, "haar", 1, (0, 1))),
    }
    times = harness.interleave(cases, chosen.repeats, warmup=2)
    rows = []
    for case in cases:
        ratio = harness.ratios(times, case, "copy")
        rows.append([case, 1e3 * harness.median(times[case]), 1e3 * min(times[case]), harness.median(ratio)])
        if case != "copy":
            report.bar(f"{case}, one level, ÷ a copy", COPIES, harness.median(ratio), unit=" ×")
    report.table("One level over both axes", ["what", "median, ms", "min, ms", "÷ copy"], rows)


def main() -> None:
    """Runs the benchmark."""
    memory = keep_freed_memory()  # Before JAX starts threads.
    chosen = harness.options(__doc__, repeats=15, cores=1)
    report = harness.Report("wavelets", "Wavelet transforms", chosen)
    report.note(memory)
    size = 512 if chosen.quick else 2048
    x = np.random.default_rng(0).normal(size=(size, size)).astype(np.float32)
    makers = {"modelzip_jax": ours, "PyWavelets": pywavelets, "jaxwt": jaxwt}
    rows = []
    for levels in (1, 3):
        for name in ("haar", "db4", "sym8", "bior4.4"):
            cases = {}
            for peer, make in makers.items():
                try:
                    cases[peer] = make(x, name, levels)
                    cases[peer]()
                except ImportError as error:
                    report.note(f"{peer} skipped: {error}")
            times = harness.interleave(cases, chosen.repeats)
            mine = "modelzip_jax"
            for peer in cases:
                ratio = harness.median(harness.ratios(times, peer, mine))
                rows.append(
                    [name, levels, peer, 1e3 * harness.median(times[peer]), 1e3 * min(times[peer]), ratio]
                )
                if peer in BARS.get(name, {}):
                    report.bar(
                        f"{name}, {levels} levels, forward + inverse of {size}²: {peer} ÷ ours",
                        BARS[name][peer], ratio, least=True, unit=" ×",
                    )  # fmt: skip
    columns = ["filter", "levels", "library", "median, ms", "min, ms", "÷ ours"]
    report.table(f"Forward + inverse, {size}² float32", columns, rows)
    copies(report, x, chosen)
    report.finish()


if __name__ == "__main__":
    main()
