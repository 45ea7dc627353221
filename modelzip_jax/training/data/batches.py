"""Batches from memory: an order of examples that is a pure function of seed and position.

Index arithmetic and gathering are vectorised over whole batches. grain, which `stream` uses for data
that memory cannot hold, shuffles and gathers example by example in Python: 75,000 indices a second
before any image is touched. Its shuffle also gives epoch 1 of seed 0 the order of epoch 0 of seed 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from modelzip_jax.errors import DataError

__all__ = ["Batches", "epoch_order"]


class Batches(Iterator[dict[str, np.ndarray]]):
    """Endless (or `epochs` long) batches of arrays in memory, for one process of possibly many.

    arrays: by name, all with the same number of examples along axis 0.
    batch_size: examples of a batch over all processes.
    seed: of the order; every epoch has another one, and no other seed has the same.
    shuffle: False for the order of the arrays.
    epochs: how many; None for no end.
    drop_remainder: whether an epoch ends before the examples that fill no batch. Otherwise its last
      batch is smaller.
    shard: `(process_index, process_count)`. Batch i is the same list of examples for any number of
      processes, and process p takes the p-th contiguous slice of it.

    The position is all there is to remember: `get_state` and `set_state` are plain numbers and cost
    nothing, and a run may resume on another number of processes.

    Raises:
      DataError: there are no examples, the arrays differ in length, a number is out of range, or the
        batch cannot be divided among the processes.

    >>> arrays = {"inputs": np.arange(10) * 10, "labels": np.arange(10)}
    >>> batches = Batches(arrays, batch_size=4, shuffle=False)
    >>> next(batches)["inputs"], batches.steps_per_epoch
    (array([ 0, 10, 20, 30]), 2)
    >>> batches.take(2)  # The second batch of this epoch, the first of the next.
    array([[4, 5, 6, 7],
           [0, 1, 2, 3]], dtype=int32)
    >>> batches.position
    3
    """

    def __init__(
        self,
        arrays: Mapping[str, np.ndarray],
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        epochs: int | None = None,
        drop_remainder: bool = True,
        shard: tuple[int, int] = (0, 1),
    ):
        self.arrays = dict(arrays)
        self.examples = _common_length(self.arrays)
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.epochs = epochs
        self.drop_remainder = drop_remainder
        self.shard = shard
        self._check()
        self.position = 0
        self._order: tuple[int, np.ndarray] | None = None  # of the latest epoch

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch, a smaller last one included."""
        whole, rest = divmod(self.examples, self.batch_size)
        return whole + (rest > 0 and not self.drop_remainder)

    def take(self, k: int) -> np.ndarray:
        """Indices of the next `k` batches, int32 `(k, batch_size / process_count)`.

        All rows have one length: where an epoch has a smaller last batch (`drop_remainder=False`), the
        rows end before it, and the next call returns that batch alone. At the end of the last epoch
        there are fewer rows.

        Raises:
          StopIteration: nothing is left.
          DataError: `k` is less than 1.
        """
        if k < 1:
            raise DataError(f"take({k}): at least one batch must be taken")
        parts: list[np.ndarray] = []
        width = 0
        while k > 0 and not self._is_over():
            epoch, step = divmod(self.position, self.steps_per_epoch)
            count, size = self._alike(step, k)
            if width not in (0, size):
                break
            parts.append(self._indices(epoch, step, count, size))
            width = size
            self.position += count
            k -= count
        if not parts:
            raise StopIteration
        return np.concatenate(parts)

    def __next__(self) -> dict[str, np.ndarray]:
        """The examples of the next batch, gathered: every array with a leading axis of the local batch."""
        (indices,) = self.take(1)
        return {name: array.take(indices, axis=0) for name, array in self.arrays.items()}

    def get_state(self) -> dict[str, int]:
        """What `set_state` needs to go on from here."""
        return {"position": self.position, **self._identity()}

    def set_state(self, state: Mapping[str, int]) -> None:
        """Goes on from where `get_state` was called, by whichever process.

        Raises:
          DataError: the state comes from another order of examples: another seed, batch size, number
            of examples, or another choice of `shuffle` or `drop_remainder`.
        """
        for name, here in self._identity().items():
            if state.get(name) != here:
                raise DataError(
                    f"the position to resume belongs to {name}={state.get(name)}, and these batches have "
                    f"{name}={here}: resume with the same data and settings, or start anew"
                )
        self.position = int(state["position"])

    def _identity(self) -> dict[str, int]:
        return {
            "seed": self.seed,
            "batch_size": self.batch_size,
            "examples": self.examples,
            "shuffle": int(self.shuffle),
            "drop_remainder": int(self.drop_remainder),
        }

    def _is_over(self) -> bool:
        return self.epochs is not None and self.position >= self.epochs * self.steps_per_epoch

    def _alike(self, step: int, k: int) -> tuple[int, int]:
        """How many of the next `k` batches have one size within this epoch, and that global size."""
        whole, rest = divmod(self.examples, self.batch_size)
        return (min(k, whole - step), self.batch_size) if step < whole else (1, rest)

    def _indices(self, epoch: int, step: int, count: int, size: int) -> np.ndarray:
        """This process's columns of `count` batches of `size` examples, int32."""
        start = step * self.batch_size
        rows = self._epoch(epoch)[start : start + count * size].reshape(count, size)
        index, processes = self.shard
        return rows[:, index * size // processes : (index + 1) * size // processes]

    def _epoch(self, epoch: int) -> np.ndarray:
        if self._order is None or (self.shuffle and self._order[0] != epoch):
            order = epoch_order(self.seed, epoch, self.examples) if self.shuffle else np.arange(self.examples)
            self._order = epoch, order.astype(np.int32)
        return self._order[1]

    def _check(self) -> None:
        index, processes = self.shard
        if not 0 <= index < processes:
            raise DataError(f"shard={self.shard} is no (process_index, process_count)")
        if self.batch_size < 1 or self.batch_size % processes:
            raise DataError(
                f"batch_size={self.batch_size} must be a positive multiple of the {processes} processes"
            )
        if self.seed < 0 or (self.epochs is not None and self.epochs < 0):
            raise DataError(f"seed={self.seed} and epochs={self.epochs} must not be negative")
        if self.steps_per_epoch == 0:
            raise DataError(
                f"{self.examples} examples fill no batch of {self.batch_size}: take a smaller batch_size or "
                "drop_remainder=False"
            )


def epoch_order(seed: int, epoch: int, examples: int) -> np.ndarray:
    """The order of an epoch, an int32 permutation of `range(examples)`.

    A sort of random bits, because NumPy promises that the bits of a seed stay the same in all its
    versions (NEP 19), and does not promise it for `permutation`.

    >>> epoch_order(seed=0, epoch=0, examples=5), epoch_order(seed=0, epoch=1, examples=5)
    (array([0, 3, 1, 2, 4], dtype=int32), array([3, 4, 2, 1, 0], dtype=int32))
    """
    bits = np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(examples)
    return np.argsort(bits, kind="stable").astype(np.int32)


def _common_length(arrays: Mapping[str, np.ndarray]) -> int:
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) != 1:
        raise DataError(
            f"arrays need one common number of examples along axis 0, and have {lengths or 'none'}"
        )
    return next(iter(lengths.values()))
