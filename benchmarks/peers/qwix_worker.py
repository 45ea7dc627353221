"""Qwix's own quantizers (round to nearest, GPTQ, AWQ, QEP) on given matrices and statistics.

Run by an interpreter that has Qwix, which may have another JAX than ours:

    $MODELZIP_QWIX_PYTHON benchmarks/peers/qwix_worker.py in.npz out.npz '{"bits": 4, "group": 64}'

Called are the functions that Qwix 0.1.8's providers call for each weight, so that both sides read the very same
statistics and no interception of a model is compared:

    how = qwix._src.core.qarray.HowToQuantize(qtype=..., channelwise_axes=[0], tiled_axes={1: group})
    rtn    qarray.quantize(W, how)                                     what qwix.quantize_params (PtqProvider) does
    gptq   qwix.contrib.gptq_core.quantize_weight(W, H, how, blocksize=128, percdamp=0.01)
    awq    qwix.contrib.awq_core.quantize_weight(W, mean|x|, how, n_grid=20), then divided by its scales, as
           AwqInferenceProvider does
    qep    qwix.contrib.qep_core.weight_correct(W, H of the quantized inputs, H_delta, correction_factor=0.5,
           damping_factor=0.01), then gptq on what it gives with that H, as qwix.contrib.qep.quantize does

Theirs is the layout (out, in); here and in the archives a matrix is a kernel (in, out). Steps are absmax /
(2**(bits - 1) - 0.5), Qwix's default, in groups of `group` inputs; `group` null means one step an output.

The archive in.npz holds, for each layer, `NAME|weight` float32 (in, out), `NAME|gram` (in, in), E[x xᵀ] or
any multiple of it, `NAME|mean_abs` (in,), and for QEP `NAME|gram_quantized` E[x̂ x̂ᵀ] and `NAME|cross`
E[(x − x̂) x̂ᵀ] of the inputs x̂ that the layers quantized before it give, in the same multiple; without those two QEP
is left out, without mean_abs AWQ. out.npz holds `NAME|METHOD`, float32 (in, out), the weights as they
decode. Printed is a line of JSON: `version`, `jax`, and `seconds` by name and method, of the second call, or
of the only one where "repeat" is false; compiled where Qwix's function can be (`jit`).
"""

import importlib.metadata
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from qwix._src.core import qarray
from qwix.contrib import awq_core, gptq_core, qep_core

METHODS = ("rtn", "gptq", "awq", "qep")


def quantizers(how: Any) -> dict[str, tuple[Callable[..., jax.Array], tuple[str, ...]]]:
    """By method: a function of W (out, in) and statistics, and which ones it takes."""

    def rtn(w: jax.Array) -> jax.Array:
        return qarray.dequantize(qarray.quantize(w, how))

    def gptq(w: jax.Array, gram: jax.Array) -> jax.Array:
        return qarray.dequantize(gptq_core.quantize_weight(w, gram, how)[0])

    def awq(w: jax.Array, mean_abs: jax.Array) -> jax.Array:
        quantized, scales = awq_core.quantize_weight(w, mean_abs, how)
        return qarray.dequantize(quantized) / scales

    def corrected(w: jax.Array, gram: jax.Array, cross: jax.Array) -> jax.Array:
        return qep_core.weight_correct(w, gram, cross)

    return {
        "rtn": (rtn, ()),
        "gptq": (gptq, ("gram",)),
        "awq": (awq, ("mean_abs",)),
        "corrected": (corrected, ("gram_quantized", "cross")),
    }


def seconds_of(call: Callable[[], jax.Array]) -> tuple[jax.Array, float]:
    """What it gives and how long it took."""
    start = time.perf_counter()
    found = jax.block_until_ready(call())
    return found, time.perf_counter() - start


def main(source: str, target: str, options: str) -> None:
    """Quantizes an archive's layers by every method that their statistics allow, and prints the result."""
    chosen = {
        "bits": 4,
        "group": None,
        "methods": METHODS,
        "repeat": True,
        "jit": True,
        **json.loads(options),
    }
    bits, group = chosen["bits"], chosen["group"]
    qtype = {4: jnp.int4, 8: jnp.int8}.get(bits, f"int{bits}")
    how = qarray.HowToQuantize(qtype=qtype, channelwise_axes=[0], tiled_axes={1: group} if group else {})
    with np.load(source, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    functions = quantizers(how)
    compiled = {name: jax.jit(f) if chosen["jit"] else f for name, (f, _) in functions.items()}
    # One compiled GPTQ for both: its loop over columns is unrolled, which takes minutes.
    compiled["qep"] = lambda w, gram, cross: compiled["gptq"](compiled["corrected"](w, gram, cross), gram)
    functions["qep"] = functions["corrected"]
    found, seconds = {}, {}
    for layer in dict.fromkeys(name.rpartition("|")[0] for name in arrays):
        w = jnp.asarray(arrays[f"{layer}|weight"].T, jnp.float32)
        for method in chosen["methods"]:
            wanted = [f"{layer}|{statistic}" for statistic in functions[method][1]]
            if not all(name in arrays for name in wanted):
                continue
            given = [w, *(jnp.asarray(arrays[name], jnp.float32) for name in wanted)]
            for _ in range(1 + chosen["repeat"]):
                weights, took = seconds_of(lambda m=method, g=given: compiled[m](*g))
            found[f"{layer}|{method}"], seconds[f"{layer}|{method}"] = np.asarray(weights).T, round(took, 6)
    np.savez(target, **found)
    versions = {name: importlib.metadata.version(name) for name in ("qwix", "jax")}
    print(json.dumps({"version": versions["qwix"], "jax": versions["jax"], "seconds": seconds}))


if __name__ == "__main__":
    main(*sys.argv[1:])
