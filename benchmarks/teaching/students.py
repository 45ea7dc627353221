"""LeNets of any width on Fashion-MNIST: their data, the outputs of their teacher, their training and accuracy."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import modelzip_jax as mz
from benchmarks.tasks import lenets
from modelzip_jax import distillation
from modelzip_jax.models.lenet import LeNet5
from modelzip_jax.training import data as datasets
from modelzip_jax.tree import PyTree

__all__ = [
    "BATCH", "FULL", "QUARTER", "QUICK", "STEPS", "Given", "Objective", "accuracies", "adamw", "cross_entropy", "drawn",
    "logits_of",
    "make_run", "orders", "outputs", "read", "seeds_of", "split", "standardised", "teacher_outputs", "teacher_params",
    "training_data",
]  # fmt: skip

FULL, QUARTER = (20, 50, 500), (5, 12, 125)
BATCH, STEPS = 128, 858
"""Two epochs of the 55,000 training images."""
DECAY = 0.05
QUICK: list[int] = []
"""The most steps of a run; filled by `--quick`."""
PLACES = {
    "first": ("Conv_0/kernel", "activations"),
    "maps": ("Dense_0/kernel", "inputs"),
    "hidden": ("Dense_1/kernel", "inputs"),
}
"""Features by name, the weight at which they are read, and the place there."""


class Given(NamedTuple):
    """What an objective reads beside params. memory: of the step before. batch: fields of the data, and "index"."""

    memory: PyTree
    batch: dict[str, jax.Array]
    hyper: dict[str, jax.Array]
    key: jax.Array


Objective = Callable[[PyTree, Given], tuple[jax.Array, PyTree]]
"""From params and what is given: what training minimises, and the next memory."""


def seeds_of(count: int) -> range:
    """Of a row; two under `--quick`, the fewest that have a standard error."""
    return range(min([count, *([2] if QUICK else [])]))


@functools.cache
def split(name: str) -> dict[str, np.ndarray]:
    arrays = datasets.load_split("fashion_mnist", name)
    if QUICK:
        arrays = {field: array[: 13_000 if name == "train" else 500] for field, array in arrays.items()}
    return arrays


@functools.cache
def training_data() -> dict[str, jax.Array]:
    """Images, uint8, and labels, on the device."""
    return {name: jnp.asarray(split("train")[name]) for name in ("inputs", "labels")}


def standardised(levels: jax.Array) -> jax.Array:
    spec = datasets.spec("fashion_mnist")
    return datasets.normalize(levels, spec.mean, spec.std)


def drawn(seed: int, widths: Sequence[int]) -> PyTree:
    """Weights of a LeNet-5 before training."""
    module = LeNet5(widths=tuple(widths))
    return jax.jit(module.init)(jax.random.key(seed), jnp.zeros((1, 28, 28, 1)))["params"]


def logits_of(params: PyTree, levels: jax.Array) -> jax.Array:
    return lenets.lenet5_by_patches(params, standardised(levels))


def read(params: PyTree, levels: jax.Array, names: Sequence[str]) -> dict[str, jax.Array]:
    """ "logits", and of features the named ones: "first" (n, 12, 12, c), "maps" (n, 4, 4, c), "hidden" (n, c)."""
    if not names:
        return {"logits": logits_of(params, levels)}
    places: Any = dict(PLACES[name] for name in names)
    logits, found = distillation.features(
        lenets.lenet5_by_patches, params, standardised(levels), layers=places
    )
    made, n = {"logits": logits}, len(levels)
    for name in names:
        x = found[PLACES[name][0]]
        if name == "hidden":
            made[name] = x.T
        elif name == "maps":
            made[name] = x.reshape(4, 4, -1, n).transpose(3, 0, 1, 2)
        else:  # Before pooling.
            made[name] = x.reshape(-1, 12, 2, 12, 2, n).max((2, 4)).transpose(3, 1, 2, 0)
    return made


@functools.cache
def _reader(names: tuple[str, ...]) -> Any:
    return jax.jit(functools.partial(read, names=names))


def outputs(params: PyTree, levels: np.ndarray, names: Sequence[str] = (), block: int = 125) -> Any:
    """`read` of any number of images, float16 but for logits."""
    rows = [_reader(tuple(names))(params, levels[i : i + block]) for i in range(0, len(levels), block)]
    found: dict[str, np.ndarray] = {}
    for name in rows[0]:
        dtype = np.float32 if name == "logits" else np.float16
        found[name] = np.concatenate([np.asarray(row[name]).astype(dtype) for row in rows])
    return found


@functools.cache
def teacher_params() -> PyTree:
    """LeNet-5, by `configs/` with all labels; in `runs/tasks`."""
    params = lenets.load("lenet5-fashion_mnist-0", quick=False).params
    return jax.tree.map(jnp.asarray, params)


@functools.cache
def _teacher(name: str) -> jax.Array:
    found = outputs(teacher_params(), split("train")["inputs"], () if name == "logits" else (name,))
    return jnp.asarray(found[name])


def teacher_outputs(names: Sequence[str]) -> dict[str, jax.Array]:
    """What the teacher says of the training images, once: the fields "teacher_<name>" of the data."""
    return {f"teacher_{name}": _teacher(name) for name in ("logits", *names)}


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def adamw(peak: float, steps: int = STEPS) -> optax.GradientTransformation:
    return optax.adamw(optax.cosine_decay_schedule(peak, steps), weight_decay=DECAY)


def orders(seed: int, steps: int, examples: int, batch: int = BATCH, chosen: Any = None) -> jax.Array:
    """Indices of batches (steps, batch), of all examples or of the chosen ones."""
    count = examples if chosen is None else len(chosen)
    order = datasets.Batches({"index": np.arange(count)}, batch, seed=seed).take(min([steps, *QUICK]))
    return jnp.asarray(order if chosen is None else np.asarray(chosen)[order])


class Run(NamedTuple):
    """What training ends with."""

    params: PyTree
    memory: PyTree


def make_run(objective: Objective, tx: optax.GradientTransformation, wrapped: bool = False) -> Any:
    """`run(params, memory, data, order, hyper, seed) -> Run`: one step for each row of `order`, compiled once."""

    @jax.jit
    def scanned(
        params: PyTree, opt_state: Any, memory: PyTree, data: Any, order: Any, hyper: Any, key: Any
    ) -> Any:
        def step(carry: Any, row: Any) -> tuple[Any, None]:
            params, opt_state, memory = carry
            index, number = row
            batch = {**{name: array[index] for name, array in data.items()}, "index": index}
            given = Given(memory, batch, hyper, jax.random.fold_in(key, number))
            (_, memory), grads = jax.value_and_grad(objective, has_aux=True)(params, given)
            updates, opt_state = tx.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state, memory), None

        rows = (order, jnp.arange(len(order)))
        return jax.lax.scan(step, (params, opt_state, memory), rows)[0]

    def run(params: PyTree, memory: PyTree, data: Any, order: Any, hyper: Any, seed: int) -> Run:
        params, opt_state = mz.start(tx, params) if wrapped else (params, tx.init(params))
        key = jax.random.key(1_000 + seed)
        params, opt_state, memory = scanned(params, opt_state, memory, data, order, hyper, key)
        return Run(mz.params(opt_state, params) if wrapped else params, memory)

    return run


def accuracies(params: PyTree, train: Any = None) -> dict[str, float]:
    """In %, by split; of the training images the first 5,000, or those at the indices `train`."""
    found = {}
    for name in ("train", "validation", "test"):
        arrays = split(name)
        first = np.arange(500 if QUICK else 5_000)
        rows = (first if train is None else np.asarray(train)) if name == "train" else slice(None)
        logits = outputs(params, arrays["inputs"][rows])["logits"]
        found[name] = 100.0 * float(np.mean(logits.argmax(1) == arrays["labels"][rows]))
    return found
