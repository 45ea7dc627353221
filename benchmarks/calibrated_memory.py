"""Memory of the smallest file of a model of 135 million weights, beside that of plain compression.

    python -m benchmarks.calibrated_memory [--quick]

A decoder of the usual kind (30 layers of width 576, three matrices of 1536 in each, a tied table of 49,152 words), its
weights random, its layers a scan or one by one. Every figure is the peak resident set of a process of its own above
that of the same process with the weights in memory. Calibration sees 8 texts of 32 tokens.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import modelzip_jax as mz
from benchmarks import harness

WIDTH, INNER, HEADS = 576, 1536, 9
PLAIN = mz.only("**", mz.quantize(6), min_ndim=2, floating=True)
METHODS = ("6 bits", "data-free", "calibrated", "calibrated, layers in a scan")


def weights(layers: int, words: int, scanned: bool) -> dict[str, Any]:
    """Random ones, float32, in NumPy."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32) / np.float32(np.sqrt(shape[-2]))

    def layer(*stack: int) -> dict[str, np.ndarray]:
        square = {name: normal(*stack, WIDTH, WIDTH) for name in ("query", "key", "value", "output")}
        wide = {name: normal(*stack, WIDTH, INNER) for name in ("gate", "up")}
        return {
            **square,
            **wide,
            "down": normal(*stack, INNER, WIDTH),
            "scale": np.ones((*stack, WIDTH), "f4"),
        }

    blocks = layer(layers) if scanned else {f"layer{i}": layer() for i in range(layers)}
    return {"embedding": normal(words, WIDTH), "blocks": blocks}


def decoder(params: Any, ids: jax.Array) -> jax.Array:
    """Logits `(batch, length, words)`."""

    def norm(x: jax.Array) -> jax.Array:
        return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + 1e-6)

    def block(x: jax.Array, p: Any) -> tuple[jax.Array, None]:
        y = norm(x) * p["scale"]
        q, k, v = ((y @ p[name]).reshape(*y.shape[:2], HEADS, -1) for name in ("query", "key", "value"))
        x = x + jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(x.shape) @ p["output"]
        y = norm(x)
        return x + (jax.nn.silu(y @ p["gate"]) * (y @ p["up"])) @ p["down"], None

    x, blocks = params["embedding"][ids], params["blocks"]
    if "query" in blocks:
        x = jax.lax.scan(block, x, blocks)[0]
    else:
        for name in sorted(blocks, key=lambda name: int(name.removeprefix("layer"))):
            x = block(x, blocks[name])[0]
    return norm(x) @ params["embedding"].T


def work(method: str, layers: int, words: int) -> None:
    """The process that is measured: prints one line of JSON."""
    params = weights(layers, words, method.endswith("scan"))
    count, size = sum(w.size for w in jax.tree.leaves(params)), mz.tree.nbytes(params)
    ids = np.random.default_rng(1).integers(0, words, (8, 32)).astype(np.int32)
    jax.devices()
    before, start = harness.peak_bytes(), time.perf_counter()
    if method == "6 bits":
        packed = mz.compress(params, PLAIN)
    elif method == "data-free":
        packed = mz.compress(params, mz.smallest())
    else:
        # As many bytes as there are at about three bits a weight.
        search = mz.smallest(bytes=count * 3 // 8, likelihood="categorical")
        packed = mz.compress(params, search, calibrate=(decoder, [ids]))
    print(
        json.dumps(
            {
                "weights": count, "floats": size, "peak": harness.peak_bytes() - before, "packed": packed.nbytes,
                "seconds": time.perf_counter() - start,
            }
        )
    )  # fmt: skip


def main() -> None:
    """Runs the benchmark."""
    if sys.argv[1:2] == ["--work"]:
        work(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
        return
    chosen = harness.options(__doc__, repeats=1)
    report = harness.Report("calibrated_memory", "Memory of the smallest file", chosen)
    layers, words = (2, 4096) if chosen.quick else (30, 49_152)
    found = {}
    for method in METHODS:
        command = [
            sys.executable,
            "-m",
            "benchmarks.calibrated_memory",
            "--work",
            method,
            str(layers),
            str(words),
        ]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        found[method] = json.loads(output.splitlines()[-1])
        print(method, found[method], flush=True)
    floats = found["6 bits"]["floats"]
    gram = 4 * max(INNER, WIDTH) ** 2
    report.table(
        f"{found['6 bits']['weights'] / 1e6:.0f} million weights, {floats / 1e6:.0f} MB of float32 in memory",
        ["method", "peak above them, MB", "÷ float bytes", "packed, MB", "s"],
        [[m, f["peak"] / 1e6, f["peak"] / floats, f["packed"] / 1e6, f["seconds"]] for m, f in found.items()],
    )
    allowed = found["6 bits"]["peak"] + gram
    for method in METHODS[1:]:
        report.bar(f"{method}: peak ÷ (that of 6 bits + the largest Gram matrix)", 1.0, found[method]["peak"] / allowed,
                   unit=" ×")  # fmt: skip
    report.finish()


if __name__ == "__main__":
    main()
