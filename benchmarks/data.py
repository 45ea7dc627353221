"""Images a second from memory and from disk into a training loop.

    python -m benchmarks.data [--device cpu] [--repeats 7] [--cores 2] [--quick]

Fashion-MNIST in batches of 128, shuffled, each ending as an array on the device: `Batches`, gathered by
NumPy or on the device; `stream`, which reads records; and their peers, a grain pipeline example by
example (from memory and from the records) and a loop over `tfds.data_source`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import tensorflow_datasets as tfds

from benchmarks import harness
from modelzip_jax.errors import DataError
from modelzip_jax.training import data

NAME, BATCH = "fashion_mnist", 128

HOST, DEVICE = "Batches, gathered by NumPy", "Batches, gathered on the device"
STREAM, WORKERS = "stream", "stream, 2 worker processes"
GRAIN, GRAIN_DISK, LOOP = (
    "grain example by example, from memory", "grain example by example, from tfds", "loop over tfds.data_source",
)  # fmt: skip
# What is read ahead while other cases have their turn must be few batches: grain's default is 500.
AHEAD = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)


@jax.jit
def consume(inputs: jax.Array, labels: jax.Array) -> jax.Array:
    """The smallest training step: it reads every pixel of a batch."""
    return inputs.astype(jnp.int32).sum() + labels.sum()


@jax.jit
def consume_indices(inputs: jax.Array, labels: jax.Array, indices: jax.Array) -> jax.Array:
    """The same for several batches, int32 `(steps, batch)`, gathered on the device."""

    def step(total: jax.Array, batch: jax.Array) -> tuple[jax.Array, None]:
        return total + consume(inputs[batch], labels[batch]), None

    return jax.lax.scan(step, jnp.int32(0), indices)[0]


def feed(batches: Iterable[dict[str, np.ndarray]], count: int) -> None:
    """Hands `count` batches to the device and waits for the last."""
    for batch in itertools.islice(batches, count):
        total = consume(batch["inputs"], batch["labels"])
    total.block_until_ready()


class Rows:
    """Arrays as grain's source of examples."""

    def __init__(self, arrays: dict[str, np.ndarray]):
        self.arrays = arrays

    def __len__(self) -> int:
        return len(self.arrays["labels"])

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        return {name: array[number] for name, array in self.arrays.items()}


def renamed(record: dict[str, Any]) -> dict[str, Any]:
    """A record of tfds under our names."""
    return {"inputs": record["image"], "labels": np.int32(record["label"])}


def pipeline(source: Any, transform: Callable[[Any], Any] | None = None) -> Iterable[Any]:
    """What grain's tutorial does: shuffle, map, batch. As far ahead as `stream`, see `AHEAD`."""
    dataset = grain.MapDataset.source(source).shuffle(0)
    dataset = dataset.map(transform) if transform else dataset
    return iter(dataset.repeat().batch(BATCH, drop_remainder=True).to_iter_dataset(AHEAD))


def loop(source: Any) -> Iterable[dict[str, np.ndarray]]:
    """Records in random order, stacked."""
    for epoch in itertools.count():
        order = np.random.default_rng(epoch).permutation(len(source))
        for numbers in order[: len(order) // BATCH * BATCH].reshape(-1, BATCH).tolist():
            examples = [renamed(source[number]) for number in numbers]
            yield {name: np.stack([x[name] for x in examples]) for name in examples[0]}


def main() -> None:
    """Runs the benchmark."""
    chosen = harness.options(__doc__, repeats=7)
    report = harness.Report("data", "Feeding a training loop", chosen)
    try:
        arrays = data.load_split(NAME, "validation" if chosen.quick else "train")
    except DataError as error:
        raise SystemExit(str(error)) from error
    on_device = {name: jnp.asarray(array) for name, array in arrays.items()}
    batches = data.Batches(arrays, BATCH)
    source = tfds.data_source(NAME, split="train", download=False)
    feeds: dict[str, tuple[int, Iterable[Any]]] = {
        HOST: (400, data.Batches(arrays, BATCH)),
        STREAM: (60, data.stream(NAME, "train", BATCH)),
        WORKERS: (120, data.stream(NAME, "train", BATCH, workers=2)),
        GRAIN: (120, pipeline(Rows(arrays))),
        GRAIN_DISK: (60, pipeline(source, renamed)),
        LOOP: (20, loop(source)),
    }
    cases = {name: lambda f=f, n=n: feed(f, n) for name, (n, f) in feeds.items()}
    counts = {name: n for name, (n, _) in feeds.items()} | {DEVICE: 400}
    cases[DEVICE] = lambda: consume_indices(*on_device.values(), batches.take(400)).block_until_ready()
    times = harness.interleave(cases, chosen.repeats)
    rates = {name: [counts[name] * BATCH / t for t in times[name]] for name in counts}
    rows = [
        [name, harness.median(rates[name]), max(rates[name]), harness.median(harness.ratios(rates, HOST, name))]
        for name in (HOST, DEVICE, STREAM, WORKERS, GRAIN, GRAIN_DISK, LOOP)
    ]  # fmt: skip
    report.table(
        f"Fashion-MNIST in batches of {BATCH}",
        ["source", "median, images/s", "best, images/s", f"{HOST} ÷ this"],
        rows,
    )
    for name in (HOST, DEVICE):
        report.bar(
            f"{name}: images a second", 150_000, harness.median(rates[name]), least=True, unit=" images/s"
        )
    report.bar("stream ÷ grain example by example from tfds", 1.0,
               harness.median(harness.ratios(rates, STREAM, GRAIN_DISK)), least=True, unit=" ×")  # fmt: skip
    report.note(
        "All grain pipelines have 2 threads and read 4 batches ahead, the workers' in each of them; up to that "
        "much was read while another case had its turn. All decode PNG with Pillow."
    )
    report.finish()


if __name__ == "__main__":
    main()
