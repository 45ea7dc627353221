"""Memory of a decoder whose weights stay packed, as XLA's compiled program states it.

    python -m benchmarks.packed_memory [--device cpu] [--quick]

Arguments and temporaries of one forward pass, from `compiled.memory_analysis()`: of the float model, of packed
weights decoded up front, and of `mz.rewrites.decode_inside`, where each step of the scan decodes its own layer.
Random weights; the layers of one model are scanned, those of the other in a row.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import modelzip_jax as mz
from benchmarks import harness
from modelzip_jax.models.language_model import LanguageModel

LAYERS = {"blocks/**": 0}
DEPTH_FIRST = "--xla_cpu_enable_concurrency_optimized_scheduler=false"
"""XLA:CPU decodes everything at first otherwise, for the sake of threads. A flag of the whole process."""


def recipes() -> dict[str, mz.Transform]:
    groups = {"granularity": "group", "group_size": 64}
    return {
        "int4, channels": mz.quantize(4, axis=-1, layers=LAYERS),
        "int4, groups of 64": mz.quantize(4, axis=-1, layers=LAYERS, **groups),
        "int3, channels": mz.quantize(3, axis=-1, layers=LAYERS),
        "int2, channels": mz.quantize(2, axis=-1, layers=LAYERS),
        "nf4, channels": mz.quantize(4, axis=-1, layers=LAYERS, grid=mz.grids.nf4()),
        "pruned by half, int4": mz.chain(mz.prune(sparsity=0.5), mz.quantize(4, axis=-1, layers=LAYERS)),
    }


def needed(f: Callable[..., Any], *arguments: Any) -> tuple[int, int]:
    """Bytes of a program's arguments and temporaries."""
    found = jax.jit(f).lower(*arguments).compile().memory_analysis()
    return found.argument_size_in_bytes, found.temp_size_in_bytes


def random_params(model: LanguageModel, tokens: jax.Array) -> Any:
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(0, 0.02, x.shape).astype(x.dtype), shapes)


def measure(report: harness.Report, width: int, layers: int, dtype: Any) -> None:
    model = LanguageModel(num_layers=layers, num_heads=4, embed_dim=width, max_length=64, dtype=dtype)
    tokens = jnp.zeros((1, 16), jnp.int32)
    params = random_params(model, tokens)

    def apply(params: Any, tokens: jax.Array) -> jax.Array:
        return model.apply({"params": params}, tokens)

    dense = needed(apply, params, tokens)
    rows = [["float32 weights", *(x / 1e6 for x in dense), 1.0, ""]]
    chosen = recipes()
    for name, recipe in chosen.items():
        packed = mz.compress(params, mz.only("blocks/*/**/kernel", recipe, min_ndim=3))
        held = mz.to_device(mz.layered(packed, LAYERS)).params
        inside = mz.rewrites.decode_inside(apply)
        found, early = needed(inside, held, tokens), needed(lambda p, t: apply(mz.unpack(p), t), held, tokens)
        rows.append([name, *(x / 1e6 for x in found), sum(found) / sum(dense), sum(early) / sum(dense)])
        if name in ("int4, channels", "int4, groups of 64", "nf4, channels") and dtype == jnp.float32:
            report.bar(
                f"{name}: arguments and temporaries ÷ the float model's, scan", 0.3, sum(found) / sum(dense)
            )
    report.table(
        f"Scan of {layers} layers of width {width}, computing in {jnp.dtype(dtype).name}",
        ["weights", "arguments, MB", "temporaries, MB", "both ÷ float", "decoded up front: both ÷ float"],
        rows,
    )


def in_a_row(width: int, layers: int) -> list[float]:
    """Layers that are no scan, decoded inside: MB of arguments and temporaries, and both ÷ the float model's."""

    def apply(params: Any, x: jax.Array) -> jax.Array:
        for name in sorted(params):
            x = jnp.tanh(x @ params[name])
        return x

    rng = np.random.default_rng(0)
    params = {f"layer_{i:02}": rng.normal(size=(width, width)).astype(np.float32) for i in range(layers)}
    held, x = mz.to_device(mz.compress(params, mz.quantize(4, axis=-1))).params, jnp.ones((16, width))
    dense, found = needed(apply, params, x), needed(mz.rewrites.decode_inside(apply), held, x)
    return [*(v / 1e6 for v in found), sum(found) / sum(dense)]


def schedules(report: harness.Report, width: int, layers: int) -> None:
    """What XLA's schedule makes of layers in a row."""
    rows: list[list[Any]] = [["as XLA does by itself", *in_a_row(width, layers)]]
    if jax.default_backend() == "cpu":
        command = [sys.executable, "-m", "benchmarks.packed_memory", "--row", str(width), str(layers)]
        flags = f"{os.environ.get('XLA_FLAGS', '')} {DEPTH_FIRST}"
        said = subprocess.run(
            command, check=True, capture_output=True, text=True, env={**os.environ, "XLA_FLAGS": flags}
        )
        rows.append([f"XLA_FLAGS={DEPTH_FIRST}", *json.loads(said.stdout.splitlines()[-1])])
    report.table(
        f"{layers} matrices of {width}² in a row, int4, decoded inside",
        ["schedule", "arguments, MB", "temporaries, MB", "both ÷ float"], rows,
    )  # fmt: skip


def run(report: harness.Report, chosen: argparse.Namespace) -> None:
    width, layers = (64, 12) if chosen.quick else (256, 12)
    for dtype in (jnp.float32,) if chosen.quick else (jnp.float32, jnp.bfloat16):
        measure(report, width, layers, dtype)
    schedules(report, width, layers)


def main() -> None:
    """Runs the benchmark."""
    if sys.argv[1:2] == ["--row"]:
        print(json.dumps(in_a_row(*map(int, sys.argv[2:]))))
        return
    chosen = harness.options(__doc__, repeats=1)
    report = harness.Report("packed_memory", "Memory of packed weights", chosen)
    run(report, chosen)
    report.finish()


if __name__ == "__main__":
    main()
