"""Does fusion help generalisation? Equal layers that share their coefficients, beside ones that do not.

    python -m benchmarks.wavelets_fusion [--repeats 5] [--quick]

A perceptron of five hidden layers of 64 units on scikit-learn's digits, four of its kernels of one shape, trained on
all 1,257 examples and on 200 of them. The arms differ in what these four kernels are made of; everything else, the
number of steps included, is the same. A repeat is a seed: of the initial weights, the order of examples and the
subset. Rate, weight decay and, where there is one, the coarseness of the residual are chosen for each arm by the mean
loss on the validation split; losses, accuracies and gaps are of the test split.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import modelzip_jax as mz
from benchmarks import harness
from benchmarks.digits import digits_by_split
from benchmarks.harness import said
from modelzip_jax.coding.writer import file_sizes
from modelzip_jax.models.mlp import MLP
from modelzip_jax.tree import PyTree
from modelzip_jax.wavelets.fusion import fuse, unfuse

LAYERS, BATCH, STEPS = 4, 64, 1_000
PATTERN = "hidden/*/kernel"
RATES, DECAYS, GAINS = (1e-3, 3e-3), (0.1, 1.0, 3.0), (2.0, 4.0, 8.0)
EXAMPLES = (1_257, 200)


@dataclasses.dataclass(frozen=True)
class Arm:
    """What is trained.

    width: of the hidden layers. equal: whether the four kernels start as one. fused: whether there is a DCT across
    layers, and Haar within. keep: of that DCT. bits: of the quantizer; 0 for none.
    """

    title: str
    width: int = 64
    equal: bool = False
    fused: bool = False
    keep: int | None = None
    bits: int = 0

    def zipper(self, gain: float) -> mz.Transform:
        """What the four kernels are trained as."""
        parts: list[mz.Transform] = []
        if self.fused:
            gains = (1.0, gain) if self.bits and self.keep is None else ()
            parts += [
                mz.cosines(LAYERS, axes=0, keep=self.keep, gains=gains),
                mz.wavelet("haar", 3, axes=(1, 2)),
            ]
        if self.bits:
            parts.append(mz.quantize(bits=self.bits, granularity="tensor", learned=True))
        return mz.only("fused/**", mz.chain(*parts)) if parts else mz.identity()

    @property
    def parameters(self) -> int:
        kept = self.keep or LAYERS
        return 75 * self.width + 10 + LAYERS * self.width + kept * self.width**2


ARMS = (
    Arm("separate"),
    Arm("separate, equal at the start", equal=True),
    Arm("fused: one shared set (keep=1)", equal=True, fused=True, keep=1),
    Arm("separate and narrow, parameters as shared", width=39),
    Arm("separate, 4 bits", bits=4),
    Arm("fused: mean and coarser residual, 4 bits", equal=True, fused=True, bits=4),
)


def nested(params: PyTree) -> PyTree:
    """The params of `MLP`, its hidden layers after the first under a name of their own."""
    hidden = {f"Dense_{i}": params[f"Dense_{i}"] for i in range(1, LAYERS + 1)}
    return {"hidden": hidden, "rest": {n: layer for n, layer in params.items() if n not in hidden}}


def numbers(model: MLP, params: PyTree, x: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross entropy in nats, and accuracy."""
    logits = model.apply({"params": {**params["hidden"], **params["rest"]}}, x)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    return jnp.stack([loss, jnp.mean(logits.argmax(-1) == labels)])


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def train(
    arm: Arm, gain: float, examples: int, rate: float, decay: float, seeds: jax.Array, sets: PyTree
) -> Any:
    """For each seed loss and accuracy on train, validation and test `(seeds, 3, 2)`, and what was trained."""
    model, zipper = MLP((arm.width,) * (LAYERS + 1)), arm.zipper(gain)
    schedule = optax.cosine_decay_schedule(rate, STEPS)
    tx = mz.wrap(optax.adamw(schedule, weight_decay=decay), zipper)

    def one(seed: jax.Array) -> Any:
        keys = jax.random.split(jax.random.key(seed), 3)
        like = nested(model.init(keys[0], sets["train"][0][:1])["params"])
        chosen = jax.random.permutation(keys[1], len(sets["train"][0]))[:examples]
        x, labels = (array[chosen] for array in sets["train"])
        params = fuse(like, PATTERN)
        if arm.equal:
            params = {
                n: jnp.broadcast_to(w[:1], w.shape) if n.startswith("fused/") else w
                for n, w in params.items()
            }

        def loss(params: PyTree, batch: jax.Array) -> jax.Array:
            return numbers(model, unfuse(params, PATTERN, like), x[batch], labels[batch])[0]

        def step(carry: PyTree, key: jax.Array) -> tuple[PyTree, None]:
            params, state = carry
            grads = jax.grad(loss)(params, jax.random.randint(key, (BATCH,), 0, examples))
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, state), _ = jax.lax.scan(step, mz.start(tx, params), jax.random.split(keys[2], STEPS))
        weights = unfuse(params, PATTERN, like)
        tests = [(x, labels), sets["validation"], sets["test"]]
        return jnp.stack([numbers(model, weights, *s) for s in tests]), (params, state)

    return jax.vmap(one)(seeds)


def best(arm: Arm, examples: int, seeds: jax.Array, sets: PyTree) -> tuple[np.ndarray, list[Any]]:
    """Figures `(seeds, 3, 2)` of the choice of least validation loss, and what is said of it: choice and file."""
    found: list[tuple[float, np.ndarray, list[Any]]] = []
    for gain, rate, decay in itertools.product(GAINS if arm.fused and arm.bits else (1.0,), RATES, DECAYS):
        figures, trained = train(arm, gain, examples, rate, decay, seeds, sets)
        figures = np.asarray(figures, np.float64)
        params, state = jax.tree.map(lambda x: x[0], trained)
        size = file_sizes(mz.pack(state, params)).total
        choice = f"{rate:g}, {decay:g}" + (f", residual {gain:g} times coarser" if gain > 1 else "")
        found.append((float(figures[:, 1, 0].mean()), figures, [size, choice]))
    least = min(found, key=lambda each: each[0] if math.isfinite(each[0]) else math.inf)
    return least[1], least[2]


def main() -> None:
    """Runs the study."""
    chosen = harness.options(__doc__, repeats=5)
    report = harness.Report("wavelets_fusion", "Fusion and generalisation", chosen)
    seeds, sets = jnp.arange(2 if chosen.quick else chosen.repeats), digits_by_split()
    for examples in EXAMPLES[1:] if chosen.quick else EXAMPLES:
        rows, gaps, losses = [], {}, {}
        for arm in ARMS:
            figures, about = best(arm, examples, seeds, sets)
            gaps[arm], losses[arm] = figures[:, 2, 0] - figures[:, 0, 0], figures[:, 2, 0]
            rows.append([
                arm.title, arm.parameters, about[0], said(figures[:, 0, 0]), said(losses[arm]), said(gaps[arm]),
                said(figures[:, 2, 1], 100, 2), said(figures[:, 0, 1] - figures[:, 2, 1], 100, 2),
                said(gaps[arm] - gaps[ARMS[0]]), said(losses[arm] - losses[ARMS[0]]), about[1],
            ])  # fmt: skip
            print(*rows[-1], flush=True)
        report.table(
            f"{examples:,} training examples, {len(seeds)} seeds, mean ± standard error",
            ["kernels", "parameters", "file, bytes", "train loss", "test loss", "gap of losses", "test accuracy, %",
             "gap of accuracies, %", "gap less that of separate", "test loss less that of separate", "rate, decay"],
            rows,
        )  # fmt: skip
        for fused, control in ((2, 0), (2, 3), (5, 4)):
            pair = gaps[ARMS[fused]] - gaps[ARMS[control]], losses[ARMS[fused]] - losses[ARMS[control]]
            report.note(
                f'{examples:,} examples, "{ARMS[fused].title}" less "{ARMS[control].title}", paired by seed: gap '
                f"{said(pair[0])}, test loss {said(pair[1])}."
            )
    report.finish()


if __name__ == "__main__":
    main()
