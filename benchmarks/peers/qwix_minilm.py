"""MiniLM's kernels by Qwix's methods: round to nearest, AWQ and GPTQ layer by layer on the float network's statistics,
and QEP stage by stage, each with the inputs that the stages before it give once they are quantized."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.peers.qwix_client import ask_qwix
from modelzip_jax import trace
from modelzip_jax.tree import PyTree, map_named, named_leaves

__all__ = ["METHODS", "by_qwix"]

METHODS = ("rtn", "awq", "gptq", "qep")
WIDEST = 384
"""Inputs of a kernel up to which GPTQ and QEP are tried: Qwix unrolls its loop over them, whose compiling takes a
minute at 384 and did not end at 1,536 in a quarter of an hour. Wider kernels are rounded to nearest there."""
Kernels = dict[str, np.ndarray]


def by_qwix(
    model: nn.Module, params: PyTree, stats: PyTree, batches: Sequence[tuple[Any, ...]], bits: int, group: int
) -> dict[str, tuple[Kernels, float, str]] | None:
    """By method, the kernels that it gives by name, its seconds without compiling, and Qwix's version.

    GPTQ and QEP are left out at 3 bits, for which Qwix's GPTQ has no type.

    Returns:
      None where Qwix is not installed.
    """
    methods = METHODS if bits in (2, 4, 8) else METHODS[:2]
    layers = _layers(params, stats)
    found: dict[str, tuple[Kernels, float, str]] = {}
    for method in methods[:3]:
        taken = {n: x for n, x in layers.items() if method != "gptq" or len(x["weight"]) <= WIDEST}
        answer = ask_qwix(taken, bits, group, methods=[method])
        if answer is None:
            return None
        kernels = {name: w for (name, _), w in answer.weights.items()}
        rest = found["rtn"][0] if found else {}
        found[method] = {**rest, **kernels}, sum(answer.seconds.values()), answer.version
    if "qep" in methods:
        kernels, seconds = _in_turn(model, params, found["rtn"][0], batches, bits, group)
        found["qep"] = kernels, seconds, found["rtn"][2]
    return found


def _layers(params: PyTree, stats: PyTree) -> dict[str, dict[str, np.ndarray]]:
    measured = dict(named_leaves(stats, lambda x: isinstance(x, trace.Measured)))
    found = {}
    for name, w in named_leaves(params):
        seen = measured[name]
        if len(seen) == 1 and seen[0].inputs is not None and seen[0].inputs.gram is not None:
            gram = np.asarray(seen[0].inputs.gram)
            found[name] = {
                "weight": np.asarray(w),
                "gram": gram.reshape(-1, gram.shape[-1]),
                "mean_abs": np.asarray(seen[0].inputs.mean_abs).reshape(-1),
            }
    return found


def _in_turn(
    model: nn.Module,
    params: PyTree,
    nearest: Kernels,
    batches: Sequence[tuple[Any, ...]],
    bits: int,
    group: int,
) -> tuple[Kernels, float]:
    """QEP's kernels, and its seconds."""
    weights, seconds = dict(named_leaves(params)), 0.0
    changed: Kernels = {}
    for stage in _stages(list(nearest)):
        if len(weights[stage[0]]) > WIDEST:
            changed |= {name: nearest[name] for name in stage}
            continue
        now = map_named(lambda name, w, changed=changed: changed.get(name, w), params)
        sums = [np.zeros(2 * (len(weights[stage[0]]),)) for _ in range(2)]
        count = 0
        for batch in batches:
            exact, here = (_inputs(model, p, stage[0], batch) for p in (params, now))
            for total, x in zip(sums, (here, exact - here), strict=True):
                total += x.T @ here
            count += len(here)
        seen = {"gram_quantized": sums[0] / count, "cross": sums[1] / count}
        asked = {name: {"weight": np.asarray(weights[name]), **seen} for name in stage}
        answer = ask_qwix(asked, bits, group, methods=["qep"])
        assert answer is not None
        changed |= {name: answer.weights[name, "qep"] for name in stage}
        seconds += sum(answer.seconds.values())
        print("QEP", *stage, flush=True)
    return changed, seconds


def _stages(names: list[str]) -> Iterator[list[str]]:
    """Kernels in the order in which the network meets them, those that share their inputs together."""
    for i in range(1 + max(int(name.split("/")[1].removeprefix("layer_")) for name in names)):
        here = f"encoder/layer_{i}"
        yield [f"{here}/attention/{part}/kernel" for part in ("query", "key", "value")]
        yield [f"{here}/attention/output/kernel"]
        yield [f"{here}/intermediate/kernel"]
        yield [f"{here}/output/kernel"]


_captured: dict[Any, Any] = {}


def _inputs(model: nn.Module, params: PyTree, name: str, batch: tuple[Any, ...]) -> np.ndarray:
    """What the dense layer of a kernel multiplies it by, float32 (positions, inputs)."""
    path = tuple(name.split("/")[:-1])
    run = _captured.setdefault((model, path), jax.jit(_capturing(model, path)))
    return np.asarray(run(params, *batch))


def _capturing(model: nn.Module, path: tuple[str, ...]) -> Any:
    def call(params: Mapping[str, Any], *inputs: Any) -> jax.Array:
        held = []

        def keep(method: Any, args: Any, kwargs: Any, context: Any) -> Any:
            if context.module.path == path and context.method_name == "__call__":
                held.append(args[0])
            return method(*args, **kwargs)

        with nn.intercept_methods(keep):
            model.apply({"params": params}, *inputs)
        (x,) = held
        return jnp.reshape(x, (-1, x.shape[-1]))

    return call
