"""One row of the survey-wide experiment, one seed: trained, stored, read back, and measured."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import modelzip_jax as mz
from benchmarks import harness
from benchmarks.teaching import students
from benchmarks.terms import ways
from modelzip_jax import distillation
from modelzip_jax.tree import PyTree

__all__ = ["fitted"]

BATCH, REPEATS, TEMPERATURE = 100, 15, 4.0


def fitted(way: ways.Way, seed: int) -> dict[str, Any]:
    """The cell of a row and a seed.

    bytes: of the file. at_once: test accuracy before training, in %. train, validation, test: accuracy of the file, in
    %. call: what a call of the model costs whose weights are decoded in it, over one of the float model of full width.
    layers: for each tensor [values, bits in the file, share of zeros].
    """
    params = students.drawn(seed, way.width) if way.from_scratch else ways.float_params(seed)
    params = jax.tree.map(jnp.asarray, params)
    given = ways.given_samples(seed, params) if way.samples else {}
    transform = way.recipe(params)
    tx = mz.wrap(way.optimizer(), transform, given=given)
    start, _ = mz.start(tx, params)
    at_once = accuracy(start, "test")
    packed = _trained(way, seed, tx, params) if way.steps else mz.compress(params, transform, **given)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.mz"
        size = mz.save(path, packed).total
        loaded, rows = mz.load(path, like=params), mz.inspect(path).tensors
    weights = mz.unpack(loaded)
    cell: dict[str, Any] = {"bytes": size, "at_once": at_once}
    cell |= {part: accuracy(weights, part) for part in ("train", "validation", "test")}
    cell["layers"] = {r.name: [r.size, 8 * r.file_bytes, r.sparsity] for r in rows}
    return {**cell, "call": _call(loaded)} if seed == 0 else cell


def _trained(way: ways.Way, seed: int, tx: Any, params: PyTree) -> mz.Packed:
    data = students.training_data()
    if way.soft:
        data = data | {"teacher_logits": _teacher_logits(seed)}
    order = students.orders(seed, way.steps, len(data["labels"]))
    # What a recipe was given by samples differs from seed to seed.
    run = _compiled(_Key(way, seed if way.samples else 0, tx))
    params, opt_state = run(*mz.start(tx, params), data, order)
    return mz.pack(opt_state, params)


@dataclasses.dataclass(frozen=True)
class _Key:
    """What is compiled once."""

    way: ways.Way
    seed: int
    tx: Any = dataclasses.field(compare=False)


@functools.lru_cache(maxsize=64)
def _compiled(key: _Key) -> Any:
    way, tx = key.way, key.tx

    @jax.jit
    def run(params: PyTree, opt_state: Any, data: Any, order: jax.Array) -> Any:
        def loss(params: PyTree, batch: dict[str, jax.Array]) -> jax.Array:
            logits = students.logits_of(params, batch["inputs"])
            found = students.cross_entropy(logits, batch["labels"])
            if not way.soft:
                return found
            soft = distillation.soft_targets(logits, batch["teacher_logits"], temperature=TEMPERATURE)
            return found + way.soft * soft

        def step(carry: Any, index: jax.Array) -> tuple[Any, None]:
            params, opt_state = carry
            batch = {name: array[index] for name, array in data.items()}
            grads = jax.grad(loss)(params, batch)
            updates, opt_state = tx.update(grads, opt_state, params)
            return (jax.tree.map(jnp.add, params, updates), opt_state), None

        return jax.lax.scan(step, (params, opt_state), order)[0]

    return run


@functools.lru_cache(maxsize=3)
def _teacher_logits(seed: int) -> jax.Array:
    teacher = jax.tree.map(jnp.asarray, ways.float_params(seed))
    return jnp.asarray(students.outputs(teacher, students.split("train")["inputs"])["logits"])


def accuracy(params: PyTree, part: str) -> float:
    """In %; of the training images the first 5,000."""
    arrays = students.split(part)
    rows = slice(5_000) if part == "train" else slice(None)
    logits = students.outputs(params, arrays["inputs"][rows])["logits"]
    return 100.0 * float(np.mean(logits.argmax(1) == arrays["labels"][rows]))


def _call(packed: mz.Packed) -> float:
    """Ratio of medians, in turns."""
    images = jnp.asarray(students.split("test")["inputs"][:BATCH])
    full = jax.tree.map(jnp.asarray, ways.float_params(0))
    held = jax.device_put(packed.params)
    decoding = jax.jit(lambda packed, images: students.logits_of(mz.unpack(packed), images))
    plain = jax.jit(students.logits_of)
    times = harness.interleave(
        {
            "packed": lambda: jax.block_until_ready(decoding(held, images)),
            "float": lambda: jax.block_until_ready(plain(full, images)),
        },
        REPEATS,
    )
    return harness.median(times["packed"]) / harness.median(times["float"])
