"""What an accelerator changes: steps, decoding, thresholds, wavelets, k-means and int4 products.

Bytes are those that an operation has to read and write once; shares are of the bandwidth of `x + 1` in the same run.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import modelzip_jax as mz
from benchmarks import harness, packed_memory
from modelzip_jax.compute.int4_products import WAYS
from modelzip_jax.masking.threshold import keep_largest
from modelzip_jax.sharing.lloyd import kmeans
from modelzip_jax.wavelets import dwt, idwt

COPY = "x + 1"
FLOAT = "float weights"
COPIES = 8
"""Of a matrix, which a program of products multiplies in turn, as the layers of a network would."""


def on_accelerator() -> bool:
    return jax.default_backend() != "cpu"


def edge() -> int:
    """Of the square matrices that are measured."""
    return 8192 if on_accelerator() else 1024


def jitted(f: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    """One call that waits for its result; compiled here."""
    program = jax.jit(f)
    jax.block_until_ready(program(*arguments))
    return lambda: jax.block_until_ready(program(*arguments))


def timed(
    report: harness.Report, makers: dict[str, Callable[[], Callable[[], Any]]], repeats: int
) -> harness.Times:
    """Interleaved times; what cannot run here is noted."""
    cases = {}
    for name, make in makers.items():
        try:
            cases[name] = make()
        except Exception as error:  # Whatever a backend's compiler raises is what this table is to tell.
            report.note(
                f"{name} does not run here: {type(error).__name__}: {str(error).splitlines()[0]:.160}"
            )
    return harness.interleave(cases, repeats)


def random(shape: tuple[int, ...], seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def bytes_table(
    report: harness.Report,
    title: str,
    makers: dict[str, tuple[int, Callable[[], Callable[[], Any]]]],
    repeats: int,
) -> harness.Times:
    """makers: bytes to read and write, and what makes the case. A copy of the same size takes turns with them."""
    n = edge()
    x = random((n, n))
    every = {COPY: (2 * x.nbytes, lambda: jitted(lambda x: x + 1, x)), **makers}
    times = timed(report, {name: make for name, (_, make) in every.items()}, repeats)
    speed = {name: every[name][0] / harness.median(seconds) for name, seconds in times.items()}
    rows = [
        [
            name,
            1e3 * harness.median(seconds),
            1e3 * min(seconds),
            speed[name] / 1e9,
            speed[name] / speed[COPY],
        ]
        for name, seconds in times.items()
    ]
    columns = ["what", "median, ms", "min, ms", "GB/s", "share of bandwidth"]
    report.table(f"{title}, {n} × {n}", columns, rows)
    return times


def decoding(report: harness.Report, chosen: argparse.Namespace) -> None:
    n = edge()
    w = np.random.default_rng(0).normal(size=(n, n)).astype(np.float32)
    recipes = {
        "int8": mz.quantize(8, axis=-1),
        "int4": mz.quantize(4, axis=-1),
        "int4, groups of 64": mz.quantize(4, axis=-1, granularity="group", group_size=64),
        "int2": mz.quantize(2, axis=-1),
        "nf4": mz.quantize(4, axis=-1, grid=mz.grids.nf4()),
        "cluster(16)": mz.cluster(16),
        "pruned by half, int4": mz.chain(mz.prune(sparsity=0.5), mz.quantize(4, axis=-1)),
    }

    def maker(recipe: mz.Transform) -> tuple[int, Callable[[], Callable[[], Any]]]:
        packed = mz.to_device(mz.compress(w, recipe)).params
        return packed.nbytes + w.nbytes, lambda: jitted(lambda p: p.unpack(), packed)

    names = list(recipes)[:3] if chosen.quick else list(recipes)
    bytes_table(report, "Decoding to float32", {k: maker(recipes[k]) for k in names}, chosen.repeats)


def transforms(report: harness.Report, chosen: argparse.Namespace) -> None:
    x = random((edge(), edge()))
    flat = x.reshape(-1)
    moved = 2 * x.nbytes
    makers: dict[str, tuple[int, Callable[[], Callable[[], Any]]]] = {
        "dwt, Haar, 3 levels": (moved, lambda: jitted(lambda x: dwt(x, "haar", 3, 0), x)),
        "idwt, Haar, 3 levels": (moved, lambda: jitted(lambda x: idwt(x, "haar", 3, 0), x)),
        "dwt, db4, 3 levels": (moved, lambda: jitted(lambda x: dwt(x, "db4", 3, 0), x)),
        "idwt, db4, 3 levels": (moved, lambda: jitted(lambda x: idwt(x, "db4", 3, 0), x)),
        "exact threshold, half": (
            x.nbytes, lambda: jitted(lambda x: keep_largest([x], jnp.int32(x.size // 2), jnp.abs, jnp.uint32(0)), x)
        ),
        "k-means, 16 values": (x.nbytes, lambda: jitted(lambda x: kmeans(x, 16), flat)),
    }  # fmt: skip
    if not chosen.quick:
        makers["jnp.sort of magnitudes"] = (x.nbytes, lambda: jitted(lambda x: jnp.sort(jnp.abs(x)), flat))
    bytes_table(report, "Wavelets, threshold, k-means", makers, max(chosen.repeats // 2, 3))


def several(f: Callable[..., Any], x: jax.Array, weights: Any) -> Callable[[], Any]:
    """One program of products with several copies of the weights: more than fits a cache, and one launch for all."""
    copies = [jax.tree.map(jnp.copy, weights) for _ in range(COPIES)]
    return jitted(lambda x, each: [f(x, w) for w in each], x, copies)


def products(report: harness.Report, chosen: argparse.Namespace) -> None:
    k, n = (4096, 14336) if on_accelerator() else (1024, 1024)
    w = np.random.default_rng(0).normal(size=(k, n)).astype(np.float32)
    dtype = jnp.bfloat16 if on_accelerator() else jnp.float32
    dense = jnp.asarray(w, dtype)
    copied = random((edge(), edge()))
    copy = harness.interleave({COPY: jitted(lambda x: x + 1, copied)}, chosen.repeats)[COPY]
    bandwidth = 2 * copied.nbytes / harness.median(copy)
    for what, options in {
        "channels": {},
        "groups of 128": {"granularity": "group", "group_size": 128},
    }.items():
        packed = mz.compress(w, mz.quantize(4, axis=-1, **options)).params
        held = {"": mz.int4_matrix(packed), ", jnp.int4": mz.int4_matrix(packed, native=True)}
        planes = mz.to_device(packed)
        for rows in (1,) if chosen.quick else (1, 16, 256):
            x = random((rows, k)).astype(dtype)
            cases: dict[str, tuple[Any, str | None]] = {"bit planes, dequantize": (planes, None)}
            for layout, matrix in held.items():
                for way in WAYS:
                    taken = not (way == "after" and options) and not (way == "kernel" and layout)
                    slow = way == "kernel" and not on_accelerator()  # interpreted
                    if taken and not slow:
                        cases[way + layout] = (matrix, way)
            makers: dict[str, Callable[[], Callable[[], Any]]] = {
                FLOAT: lambda x=x: several(jnp.matmul, x, dense)
            }
            for name, (matrix, way) in cases.items():
                makers[name] = lambda x=x, matrix=matrix, way=way: several(
                    lambda x, m: mz.packed_matmul(x, m, way), x, matrix
                )
            times = timed(report, makers, chosen.repeats)
            lines = []
            for name, seconds in times.items():
                seconds = [s / COPIES for s in seconds]
                size = dense.nbytes if name == FLOAT else cases[name][0].nbytes
                took = harness.median(seconds)
                ratio = harness.median(harness.ratios(times, name, FLOAT))
                lines.append([name, 1e6 * took, 1e6 * min(seconds), ratio, size / took / bandwidth])
            report.table(
                f"int4, {what}: ({rows}, {k}) × ({k}, {n}), {jnp.dtype(dtype).name}",
                ["way", "median, µs", "min, µs", "÷ float", "weights read, share of bandwidth"], lines,
            )  # fmt: skip


def steps(report: harness.Report, chosen: argparse.Namespace) -> None:
    from benchmarks import step_overhead as overhead

    model = overhead.WideMLP() if on_accelerator() else overhead.MLP()
    recipes = {
        "prune, fixed masks": mz.prune(sparsity=0.8),
        "quantize(4), fixed": mz.quantize(4, axis=-1),
        "quantize(4), learned": mz.quantize(4, axis=-1, learned=True),
        "prune, refresh each step": mz.prune(sparsity=0.8, every=1),
        "wavelet, Haar": mz.wavelet("haar", 3, 0),
        "cluster(16), fixed indices": mz.cluster(16),
    }
    names = list(recipes)[:2] if chosen.quick else list(recipes)
    makers: dict[str, Callable[[], Callable[[], Any]]] = {overhead.PLAIN: lambda: overhead._plain(model)}
    makers |= {name: lambda name=name: overhead._ours(model, recipes[name]) for name in names}
    times = timed(report, makers, chosen.repeats)
    rows = [
        [
            name,
            1e3 * harness.median(s),
            1e3 * min(s),
            harness.median(harness.ratios(times, name, overhead.PLAIN)),
        ]
        for name, s in times.items()
    ]
    report.table(
        f"Training step of {type(model).__name__}", ["case", "median, ms", "min, ms", "÷ plain"], rows
    )


def memory(report: harness.Report, chosen: argparse.Namespace) -> None:
    packed_memory.run(report, chosen)


MEASURES: dict[str, Callable[[harness.Report, argparse.Namespace], None]] = {
    "int4 products": products,
    "decoding": decoding,
    "wavelets, threshold, k-means": transforms,
    "training steps": steps,
    "memory of packed weights": memory,
}
