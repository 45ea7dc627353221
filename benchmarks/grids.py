"""How fast weights become codes, on every grid.

    python -m benchmarks.grids [--cores 1] [--repeats 9] [--quick]

Levels and scales are given. Timed is what turns weights into the codes that a file stores, and the rounding in a
training step. Groups of 64; bytes are those of the float weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import modelzip_jax as mz
from benchmarks import harness

GRIDS: dict[str, Any] = {
    "int8": (8, None),
    "int4": (4, None),
    "NF4": (4, mz.grids.nf4()),
    "normal floats, 6 bits": (6, mz.grids.nf4()),
    "shift": (4, mz.grids.power_of_two()),
    "two shifts": (5, mz.grids.power_of_two(2)),
    "halving": (8, mz.grids.halving()),
    "ternary": (2, mz.grids.ternary()),
    "fp8 e4m3": (8, mz.grids.fp8()),
    "fp8 e5m2": (8, mz.grids.fp8("e5m2")),
    "MXFP4": (4, mz.grids.mx()),
    "MXFP6": (6, mz.grids.mx("e3m2")),
    "NVFP4": (4, mz.grids.nvfp4()),
    "quantile": (4, mz.grids.quantile()),
    "weighted entropy": (4, mz.grids.weighted_entropy()),
}


def cases(count: int) -> tuple[dict[str, Callable[[], Any]], dict[str, Callable[[], Any]]]:
    """Encoding and fake quantization (what a training step decodes) of that many weights, by grid."""
    rng = np.random.default_rng(0)
    w = {"w": jnp.asarray(rng.normal(size=(count // 1024, 1024)), jnp.float32)}
    coded: dict[str, Callable[[], Any]] = {}
    decoded: dict[str, Callable[[], Any]] = {}
    for name, (bits, grid) in GRIDS.items():
        t = mz.quantize(bits, grid=grid, granularity="group", group_size=64, axis=-1)
        encoded = t.init(w, mz.Context())
        state = encoded.state["w"]
        leaf = t.leaf_of(state, state.step, state.zero)
        coded[name] = lambda leaf=leaf: leaf.stored(w["w"])
        decode = jax.jit(t.decode)
        decoded[name] = lambda decode=decode, e=encoded: jax.block_until_ready(decode(e))
    return coded, decoded


def main() -> None:
    """Times every grid, and the memory's own speed beside them."""
    chosen = harness.options(__doc__, repeats=9, cores=1)
    report = harness.Report("grids", "Codes of every grid", chosen)
    count = 1 << 20 if chosen.quick else 10 << 20
    size = 4 * count
    for title, found in zip(("to codes", "rounded, as in a training step"), cases(count), strict=True):
        times = harness.interleave(found, chosen.repeats)
        rows = [
            [name, size / harness.median(t) / 1e9, harness.median(harness.ratios(times, name, "int8"))]
            for name, t in times.items()
        ]
        report.table(f"{count:,} weights in groups of 64, {title}", ["grid", "GB/s", "time / int8"], rows)
        if title == "to codes":
            slowest = min(rows, key=lambda row: row[1])
            report.bar(
                "slowest grid, weights to codes on one core",
                1.0,
                slowest[1],
                least=True,
                unit="GB/s",
                remark=slowest[0],
            )
            report.bar("NF4 / int8, weights to codes", 2.0, {r[0]: r[2] for r in rows}["NF4"], unit="×")
    report.finish()


if __name__ == "__main__":
    main()
