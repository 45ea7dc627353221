"""Whether integer products pay on a CPU: MiniLM's shapes, float32, int8 and decoded weights.

    python -m benchmarks.int8_cpu [--repeats 15] [--cores 1] [--quick]

All cases take turns. "int8" is `dot_general` of int8 operands with int32 sums, as `quantize_activations` has it,
"int16" the same of int16; "codes as float32" multiplies codes that are exact in float32, sums up to 2^24;
"int8 weights, decoded" and "int4 weights, decoded" hold packed weights and decode them in the program. What the
program calls for each product is read from the compiled program.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import modelzip_jax as mz
from benchmarks import harness

SHAPES = ((384, 384), (384, 1536), (1536, 384))
ROWS = (1, 32, 512)
FLOAT = "float32"


def integer_dot(x: jax.Array, w: jax.Array) -> jax.Array:
    return jax.lax.dot_general(x, w, (((1,), (0,)), ((), ())), preferred_element_type=jnp.int32)


def float_dot(x: jax.Array, w: jax.Array) -> jax.Array:
    return x @ w


def float_codes(x: jax.Array, w: jax.Array) -> jax.Array:
    return (x.astype(jnp.float32) @ w.astype(jnp.float32)).astype(jnp.int32)


def decoded(x: jax.Array, w: Any) -> jax.Array:
    return x @ w.unpack()


def cases(rows: int, k: int, n: int) -> dict[str, tuple[Callable[..., Any], Any, Any]]:
    """Functions and their operands."""
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((rows, k), (k, n)))
    p, q = (jnp.asarray(rng.integers(-127, 128, shape), jnp.int8) for shape in ((rows, k), (k, n)))
    packed = {bits: mz.to_device(mz.compress(w, mz.quantize(bits, axis=-1))).params for bits in (4, 8)}
    return {
        FLOAT: (float_dot, x, w),
        "int8": (integer_dot, p, q),
        "int16": (integer_dot, p.astype(jnp.int16), q.astype(jnp.int16)),
        "codes as float32": (float_codes, p, q),
        "int8 weights, decoded": (decoded, x, packed[8]),
        "int4 weights, decoded": (decoded, x, packed[4]),
    }


def product_of(compiled: Any) -> str:
    """What computes the product: a library that XLA calls (YNNPACK since jaxlib 0.10), or its own code."""
    found = re.search(r'"kind":"_*(\w+?)_fusion"', compiled.as_text())
    return {"ynn": "YNNPACK", "onednn": "oneDNN"}.get(found[1], found[1]) if found else "XLA's own code"


def main() -> None:
    """Runs the benchmark."""
    chosen = harness.options(__doc__, repeats=15, cores=1)
    report = harness.Report("int8_cpu", "Integer products on a CPU", chosen)
    rows, fastest = [], []
    for k, n in SHAPES[:1] if chosen.quick else SHAPES:
        for count in ROWS:
            compiled = {
                name: (jax.jit(f).lower(x, w).compile(), x, w)
                for name, (f, x, w) in cases(count, k, n).items()
            }
            exact = [
                np.asarray(f(x, w))
                for name, (f, x, w) in compiled.items()
                if name in ("int8", "codes as float32")
            ]
            assert np.array_equal(*exact), "sums of codes differ"
            # Many calls a turn: one lasts as long as it takes to start it.
            calls = max(1, 20_000_000 // (count * k * n))
            times = harness.interleave(
                {name: functools.partial(_repeat, *case, calls) for name, case in compiled.items()},
                chosen.repeats,
            )
            for name, (program, _, _) in compiled.items():
                ratio = harness.median(harness.ratios(times, name, FLOAT))
                if name != FLOAT:
                    fastest.append(ratio)
                rows.append(
                    [f"({count}, {k}) × ({k}, {n})", name, 1e6 * harness.median(times[name]) / calls,
                     1e6 * min(times[name]) / calls, ratio, product_of(program)]
                )  # fmt: skip
    report.table("A product, µs", ["shape", "operands", "median", "min", "÷ float32", "computed by"], rows)
    report.bar("fastest integer or packed product ÷ float32, over all shapes", 1.0, min(fastest), unit=" ×")
    report.finish()


def _repeat(f: Callable[..., Any], x: Any, w: Any, calls: int) -> None:
    for _ in range(calls):
        y = f(x, w)
    jax.block_until_ready(y)


if __name__ == "__main__":
    main()
