"""Batches of sets that memory cannot hold: a grain pipeline over the records that tfds prepared."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from modelzip_jax.errors import DataError, MissingExtraError
from modelzip_jax.training.data import prepared, sets

if TYPE_CHECKING:
    import grain

__all__ = ["stream"]

Example = dict[str, Any]


def stream(
    name: str,
    split: str,
    batch_size: int,
    *,
    seed: int = 0,
    shuffle: bool = True,
    epochs: int | None = None,
    shard: tuple[int, int] = (0, 1),
    transform: Callable[[Example], Example] | None = None,
    threads: int = 2,
    workers: int = 0,
    data_dir: str | os.PathLike[str] | None = None,
) -> grain.DatasetIterator[dict[str, np.ndarray]]:
    """Reads a split batch by batch, in a new order every epoch; the last, incomplete batch is left out.

    name, split: as for `load_split`; or any image set of tfds with the features `image` and `label`, and a
      split as tfds writes it.
    batch_size: examples of a batch over all processes.
    shard: `(process_index, process_count)`. Batch i is the same set of examples for any number of
      processes; process p takes every `process_count`-th of them.
    transform: from one example to one, `{"inputs": uint8 (height, width, channels), "labels": int32}`:
      such as bringing images to one size. With workers it must be a function that can be pickled.
    threads, workers: threads that read and decode ahead, and processes that do (0: none but this one).

    Returns grain's iterator, of `{"inputs": ..., "labels": ...}` as in `load_split`, with `get_state` and
    `set_state`, which grain's and Orbax's checkpoints know. The order is grain's, not that of `Batches`.

    Raises:
      DataError: the set is not prepared, or an epoch has no complete batch.
      MissingExtraError: a package of the extra `data` is not installed.

    >>> batches = stream("digits", "train", batch_size=32)
    >>> next(batches)["inputs"].shape
    (32, 8, 8, 1)
    """
    grain = _grain()
    index, processes = shard
    if not 0 <= index < processes or batch_size < 1 or batch_size % processes:
        raise DataError(
            f"batch_size={batch_size} must be a positive multiple of the processes, and shard={shard} "
            "(process_index, process_count)"
        )
    read = _reader(name, split, data_dir, transform)
    examples = len(read.records) // batch_size * batch_size
    if examples == 0:
        raise DataError(
            f"{split!r} of {name} has {len(read.records)} examples, which fill no batch of {batch_size}"
        )
    # Seeded through the pool: `shuffle(seed)` would give epoch 1 of seed 0 the order of epoch 0 of seed 1.
    numbers = grain.MapDataset.range(len(read.records)).seed(seed)
    numbers = numbers.shuffle() if shuffle else numbers
    numbers = numbers[:examples][index::processes].batch(batch_size // processes).repeat(epochs)
    # The numbers are batched before anything is read: array_record reads a list of them much faster.
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * max(threads, 1))
    dataset = numbers.map(read).to_iter_dataset(options)
    if workers:
        _parse_flags()
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    return iter(dataset)


@dataclasses.dataclass(frozen=True)
class _Reader:
    """From numbers of records to a batch; travels to worker processes."""

    records: Any
    decode: Callable[[Example], Example]
    transform: Callable[[Example], Example] | None

    def __call__(self, numbers: np.ndarray) -> dict[str, np.ndarray]:
        examples = [self.decode(record) for record in self.records.__getitems__(numbers.tolist())]
        if self.transform:
            examples = [self.transform(example) for example in examples]
        return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


class _Rows:
    """Arrays in memory as records by number."""

    def __init__(self, arrays: dict[str, np.ndarray]):
        self.arrays = arrays

    def __len__(self) -> int:
        return len(self.arrays["labels"])

    def __getitems__(self, numbers: Sequence[int]) -> list[Example]:
        return [{name: array[number] for name, array in self.arrays.items()} for number in numbers]


def _reader(
    name: str,
    split: str,
    data_dir: str | os.PathLike[str] | None,
    transform: Callable[[Example], Example] | None,
) -> _Reader:
    if name in ("digits", "kjv") or (name in sets.names() and sets.spec(name).kind == "scenes"):
        return _Reader(_Rows(sets.load_split(name, split, data_dir=data_dir)), _same, transform)
    split = sets.tfds_split(name, split) if name in sets.names() else split
    return _Reader(prepared.source(name, split, data_dir), _decode, transform)


def _same(row: Example) -> Example:
    return row


def _decode(record: Example) -> Example:
    return {"inputs": prepared.decode_image(record["image"]), "labels": np.int32(record["label"])}


def _parse_flags() -> None:
    """Lets grain start workers in programs that are not run by absl: it reads absl's flags for them."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def _grain() -> Any:
    try:
        import grain
    except ImportError as error:
        raise MissingExtraError("streaming needs grain: pip install 'modelzip_jax[data]'") from error
    return grain
