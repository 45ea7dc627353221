"""The exact k-th largest of 10 million magnitudes: counting passes and time, beside a sort.

    python -m benchmarks.threshold [--repeats 9] [--device cpu] [--cores 1] [--quick]

Ours and `jnp.sort` take turns. "Warm" starts from the threshold of the same data before they changed, by noise of a
thousandth of a standard deviation: at the same sparsity, and at one that has risen by a thousandth.
Masks are compared with those of a sort, ties included.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from modelzip_jax.masking.threshold import Kept, keep_largest

KINDS = ("normal", "Laplace", "Student t, 1.2", "uniform", "half zeros")
SPARSITIES = (0.5, 0.8, 0.95)


@jax.jit
def ours(x: jax.Array, keep: jax.Array, near: jax.Array) -> Kept:
    return keep_largest([x], keep, jnp.abs, near)


@jax.jit
def by_sort(x: jax.Array, keep: jax.Array) -> jax.Array:
    """The mask, with ties kept in order as by a stable sort; keep is positive."""
    magnitudes = jnp.abs(x)
    least = jnp.sort(magnitudes)[x.size - keep]
    above, tied = magnitudes > least, magnitudes == least
    return above | (tied & (jnp.cumsum(tied) <= keep - jnp.sum(above)))


def made(kind: str, size: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    x = rng.normal(size=size)
    found = {
        "normal": lambda: x,
        "Laplace": lambda: rng.laplace(size=size),
        "Student t, 1.2": lambda: rng.standard_t(1.2, size),
        "uniform": lambda: rng.random(size),
        "half zeros": lambda: np.where(rng.random(size) < 0.5, 0.0, x),
    }
    return found[kind]().astype(np.float32)


def main() -> None:
    """Runs the benchmark."""
    chosen = harness.options(__doc__, repeats=9, cores=1)
    report = harness.Report("threshold", "Exact threshold", chosen)
    size = 1_000_000 if chosen.quick else 10_000_000
    noise = jnp.asarray(1e-3 * np.random.default_rng(1).normal(size=size), jnp.float32)
    rows, exact = [], True
    for kind in KINDS:
        x = jnp.asarray(made(kind, size))
        moved = x + noise * (x != 0)
        for sparsity in SPARSITIES:
            keep = jnp.int32(round(size * (1 - sparsity)))
            cold = ours(x, keep, jnp.uint32(0))
            fewer = keep - size // 1000
            warm, rising = ours(moved, keep, cold.threshold), ours(moved, fewer, cold.threshold)
            exact &= bool(jnp.all(cold.masks[0] == by_sort(x, keep)))
            exact &= bool(jnp.all(warm.masks[0] == by_sort(moved, keep)))
            exact &= bool(jnp.all(rising.masks[0] == by_sort(moved, fewer)))
            rows.append([kind, sparsity, int(cold.passes), int(warm.passes), int(rising.passes)])
    report.table(
        f"Counting passes over {size:,} values", ["values", "sparsity", "cold", "warm", "warm, rising"], rows
    )
    smooth = [row for row in rows if row[0] in KINDS[:3]]
    report.bar("counting passes, cold, median of all", 12, float(np.median([r[2] for r in rows])))
    report.bar("counting passes, cold, largest of the smooth densities", 12, max(r[2] for r in smooth))
    report.bar("counting passes, warm, median of all", 6, float(np.median([r[3] for r in rows])))
    report.bar(
        "counting passes, warm, rising sparsity, median of all", 6, float(np.median([r[4] for r in rows]))
    )
    report.note(f"masks equal those of a sort: {exact}")

    x, keep = jnp.asarray(made("normal", size)), jnp.int32(size // 10)
    near = ours(x, keep, jnp.uint32(0)).threshold
    times = harness.interleave(
        {
            "ours, cold": functools.partial(_wait, ours, x, keep, jnp.uint32(0)),
            "ours, warm": functools.partial(_wait, ours, x + noise, keep, near),
            "jnp.sort": functools.partial(_wait, jnp.sort, x),
        },
        chosen.repeats,
    )
    report.table(
        f"Time for {size:,} normal values, 90 % pruned",
        ["case", "median, ms", "jnp.sort ÷ it"],
        [
            [case, 1e3 * harness.median(seconds), harness.median(harness.ratios(times, "jnp.sort", case))]
            for case, seconds in times.items()
        ],
    )
    ratio = harness.median(harness.ratios(times, "jnp.sort", "ours, cold"))
    report.bar("jnp.sort ÷ ours, cold", 30, ratio, least=True, unit=" ×")
    report.finish()


def _wait(function: object, *args: jax.Array) -> None:
    jax.block_until_ready(function(*args))  # type: ignore[operator]


if __name__ == "__main__":
    main()
