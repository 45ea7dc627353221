"""What `mz.wrap` adds to tracing and compiling the training step of a network of many layers.

    python -m benchmarks.compile_time [--repeats 5] [--device cpu] [--quick]

A decoder of 24 unstacked layers, 195 leaves: eight a layer, without biases, and narrow, as the time of both depends
on the number of operations and not on their size. Plain AdamW and the same wrapped take turns; JAX's caches are
cleared before each, and the compilation cache on disk is off. Tracing is `jax.jit(step).trace`, from Python to a
jaxpr; lowering goes from there to StableHLO; compiling is XLA's part.
"""

from __future__ import annotations

import collections
import functools
import random
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

import modelzip_jax as mz
from benchmarks import harness

WIDTH, HEADS = 32, 2
PHASES = ("trace", "lower", "compile")
RISING = mz.schedules.cubic(0.8, begin=0, end=1_000)
RECIPES: dict[str, mz.Transform] = {
    "prune": mz.prune(sparsity=RISING),
    "prune, fixed": mz.prune(sparsity=0.8),
    "prune, global": mz.prune(sparsity=RISING, allocation="global"),
    "quantize": mz.quantize(4),
    "quantize, learned": mz.quantize(4, learned=True),
    "prune and quantize": mz.chain(mz.prune(sparsity=RISING), mz.quantize(4)),
    "prune and learned": mz.chain(mz.prune(sparsity=RISING), mz.quantize(4, learned=True)),
    "wavelet and quantize": mz.chain(mz.wavelet("haar", 2), mz.quantize(4)),
    "cluster": mz.cluster(16),
}
PROMISED = ("prune", "quantize", "prune and quantize")
LIMIT = 2.0


class Layer(nn.Module):
    """Attention and an MLP, each behind a norm: six kernels and two scales."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        dense = functools.partial(nn.Dense, use_bias=False)
        y = nn.RMSNorm()(x)
        query, key, value = (dense(WIDTH)(y).reshape(*y.shape[:2], HEADS, -1) for _ in range(3))
        y = jax.nn.dot_product_attention(query, key, value, is_causal=True)
        x = x + dense(WIDTH)(y.reshape(x.shape))
        return x + dense(WIDTH)(nn.gelu(dense(4 * WIDTH)(nn.RMSNorm()(x))))


class Decoder(nn.Module):
    """Tokens to logits; the head is the embedding."""

    layers: int

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        embed = nn.Embed(64, WIDTH)
        x = embed(tokens) + self.param("positions", nn.initializers.normal(0.02), (*tokens.shape[1:], WIDTH))
        for _ in range(self.layers):
            x = Layer()(x)
        return embed.attend(nn.RMSNorm()(x))


def steps(layers: int) -> tuple[dict[str, Callable[[], tuple[Any, ...]]], int]:
    """For each case what gives the step and its arguments, anew; and the number of leaves."""
    model = Decoder(layers)
    tokens = jnp.zeros((4, 16), jnp.int32)
    params = model.init(jax.random.key(0), tokens)["params"]

    def loss(params: Any, tokens: jax.Array) -> jax.Array:
        logits = model.apply({"params": params}, tokens)
        return optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:]).mean()

    def case(tx: optax.GradientTransformation) -> Callable[[], tuple[Any, ...]]:
        state = tx.init(params)

        def fresh() -> tuple[Any, ...]:
            def step(params: Any, state: Any, tokens: jax.Array) -> tuple[Any, Any]:
                grads = jax.grad(loss)(params, tokens)
                updates, state = tx.update(grads, state, params)
                return optax.apply_updates(params, updates), state

            return step, params, state, tokens

        return fresh

    inner = optax.adamw(1e-3)
    wrapped = {name: mz.wrap(inner, mz.only("**/kernel", recipe)) for name, recipe in RECIPES.items()}
    cases = {"plain adamw": inner, **wrapped}
    return {name: case(tx) for name, tx in cases.items()}, len(jax.tree.leaves(params))


def measured(fresh: Callable[[], tuple[Any, ...]]) -> dict[str, float]:
    """Seconds of each phase, nothing cached."""
    step, *arguments = fresh()
    jax.clear_caches()
    begun = time.perf_counter()
    traced = jax.jit(step, donate_argnums=(0, 1)).trace(*arguments)
    at_trace = time.perf_counter()
    lowered = traced.lower()
    at_lower = time.perf_counter()
    lowered.compile()
    return dict(
        zip(PHASES, (at_trace - begun, at_lower - at_trace, time.perf_counter() - at_lower), strict=True)
    )


def main() -> None:
    """Runs the benchmark."""
    chosen = harness.options(__doc__, repeats=5)
    jax.config.update("jax_enable_compilation_cache", False)
    report = harness.Report("compile_time", "Tracing and compiling a step of many layers", chosen)
    cases, leaves = steps(4 if chosen.quick else 24)
    found: dict[str, dict[str, list[float]]] = collections.defaultdict(lambda: collections.defaultdict(list))
    names = list(cases)
    shuffled = random.Random(0)
    for _ in range(chosen.repeats):
        shuffled.shuffle(names)
        for name in names:
            for phase, seconds in measured(cases[name]).items():
                found[name][phase].append(seconds)
    rows = []
    for name in cases:
        middle = [harness.median(found[name][phase]) for phase in PHASES]
        over = [
            harness.median(
                [a / b for a, b in zip(found[name][phase], found["plain adamw"][phase], strict=True)]
            )
            for phase in PHASES
        ]
        rows.append([name, *middle, *over])
        if name in PROMISED:
            for index, what in ((0, "tracing"), (2, "compiling")):
                report.bar(f"{name}: {what} the step, of plain adamw's", LIMIT, over[index], unit=" times")
    columns = ["case", *(f"{phase}, s" for phase in PHASES), *(f"{phase}, ratio" for phase in PHASES)]
    report.table(f"A decoder of {leaves} leaves, layers unstacked; medians", columns, rows)
    report.finish()


if __name__ == "__main__":
    main()
