"""What sharing neurons costs: the survey's initialisation beside random groups, nearest groups and no sharing.

    python -m benchmarks.share_neurons [--repeats 3] [--quick]

A perceptron 300-100 on scikit-learn's digits, its two hidden kernels shared, trained on all 1,257 examples and on 200
of them. A repeat is a seed: of the initial weights, the groups, the order of examples and the subset. Rate and
weight decay are chosen for each arm by the mean loss on the validation split; figures are of the test split.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import modelzip_jax as mz
from benchmarks import harness
from benchmarks.digits import digits_by_split
from benchmarks.harness import said
from modelzip_jax.models.mlp import MLP
from modelzip_jax.sharing.grouping import share_initialization
from modelzip_jax.tree import PyTree

HIDDEN = ("Dense_0", "Dense_1")
WIDTHS, BATCH, STEPS = (300, 100), 64, 1_000
# Within 1 % of the parameters that 300-100 has with shared neurons.
NARROW = {2: (198, 63), 4: (121, 44)}
RATES, DECAYS, EXAMPLES = (1e-3, 3e-3), (0.1, 1.0), (1_257, 200)


class Arm(NamedTuple):
    """factor: neurons in a group. groups: how they are found: "survey", "random", "nearest", "" for none."""

    title: str
    factor: int = 1
    groups: str = ""
    widths: tuple[int, ...] = WIDTHS

    @property
    def zipper(self) -> mz.Transform:
        if self.factor == 1:
            return mz.identity()
        return mz.chain(*[mz.only(f"{name}/kernel", mz.share_neurons(self.factor)) for name in HIDDEN])


def arms(factor: int) -> tuple[Arm, ...]:
    return (
        Arm(f"shared, factor {factor}: the survey's initialisation", factor, "survey"),
        Arm(f"shared, factor {factor}: nearest weights, no samples", factor, "nearest"),
        Arm(f"shared, factor {factor}: random groups", factor, "random"),
        Arm(f"not shared, narrow: parameters of factor {factor}", widths=NARROW[factor]),
    )


def first_weights(arm: Arm, params: PyTree, x: jax.Array, key: jax.Array) -> PyTree:
    """The hidden kernels with groups of equal columns."""
    seen = x.reshape(len(x), -1)
    for name, part in zip(HIDDEN, jax.random.split(key, len(HIDDEN)), strict=True):
        kernel = params[name]["kernel"]
        if arm.groups == "survey":
            kernel = share_initialization(kernel, arm.factor, seen, part)
        elif arm.groups == "random":
            columns = jax.random.permutation(part, kernel.shape[1]) // arm.factor
            kernel = kernel[:, columns]
        params = {**params, name: {**params[name], "kernel": kernel}}
        seen = jax.nn.relu(seen @ kernel + params[name]["bias"])
    return params


@functools.partial(jax.jit, static_argnums=(0, 1))
def train(arm: Arm, examples: int, rate: float, decay: float, seeds: jax.Array, sets: PyTree) -> Any:
    """For each seed loss and accuracy on train, validation and test `(seeds, 3, 2)`."""
    model = MLP(arm.widths)
    tx = mz.wrap(optax.adamw(optax.cosine_decay_schedule(rate, STEPS), weight_decay=decay), arm.zipper)

    def numbers(params: PyTree, x: jax.Array, labels: jax.Array) -> jax.Array:
        logits = model.apply({"params": params}, x)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return jnp.stack([loss, jnp.mean(logits.argmax(-1) == labels)])

    def one(seed: jax.Array) -> jax.Array:
        keys = jax.random.split(jax.random.key(seed), 4)
        chosen = jax.random.permutation(keys[1], len(sets["train"][0]))[:examples]
        x, labels = (array[chosen] for array in sets["train"])
        params = first_weights(arm, model.init(keys[0], x[:1])["params"], x, keys[3])

        def step(carry: PyTree, key: jax.Array) -> tuple[PyTree, None]:
            params, state = carry
            batch = jax.random.randint(key, (BATCH,), 0, examples)
            grads = jax.grad(lambda p: numbers(p, x[batch], labels[batch])[0])(params)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(step, mz.start(tx, params), jax.random.split(keys[2], STEPS))
        return jnp.stack([numbers(params, *s) for s in [(x, labels), sets["validation"], sets["test"]]])

    return jax.lax.map(one, seeds)


def parameters(arm: Arm, x: jax.Array) -> int:
    """What is trained: latents, with each shared vector counted once."""
    params = MLP(arm.widths).init(jax.random.key(0), x[:1])["params"]
    if arm.factor > 1:
        latents = arm.zipper.init(params, mz.Context()).latents
        return sum(leaf.size for leaf in jax.tree.leaves(latents))
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def main() -> None:
    chosen = harness.options(__doc__, repeats=3)
    report = harness.Report("share_neurons", "Shared neurons", chosen)
    seeds, sets = jnp.arange(2 if chosen.quick else chosen.repeats), digits_by_split()
    for examples in EXAMPLES[1:] if chosen.quick else EXAMPLES:
        rows = []
        for arm in (Arm("not shared"), *arms(2), *arms(4)):
            tried = [
                np.asarray(train(arm, examples, rate, decay, seeds, sets), np.float64)
                for rate, decay in itertools.product(RATES, DECAYS)
            ]
            figures = min(tried, key=lambda f: float(f[:, 1, 0].mean()))
            rows.append([
                arm.title, parameters(arm, sets["train"][0]), said(figures[:, 2, 1], 100, 2),
                said(figures[:, 0, 1] - figures[:, 2, 1], 100, 2), said(figures[:, 2, 0]),
                said(figures[:, 2, 0] - figures[:, 0, 0]),
            ])  # fmt: skip
            print(*rows[-1], flush=True)
        report.table(
            f"{examples:,} training examples, {len(seeds)} seeds, mean ± standard error",
            ["hidden kernels", "parameters", "test accuracy, %", "gap of accuracies, %", "test loss", "gap of losses"],
            rows,
        )  # fmt: skip
    report.finish()


if __name__ == "__main__":
    main()
