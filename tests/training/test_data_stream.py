"""Streams: what `load_split` holds, in grain's order, over threads, processes and restarts."""

import numpy as np
import pytest

from modelzip_jax.errors import DataError
from modelzip_jax.training import data

TRAIN = data.spec("digits").sizes.train


def rows(batch):
    """A batch as a sorted list of bytes, to compare sets of examples."""
    return sorted(bytes(x) + bytes([y]) for x, y in zip(batch["inputs"], batch["labels"], strict=True))


def half(example):
    return {"inputs": example["inputs"][::2], "labels": example["labels"]}


def test_an_epoch_is_the_split():
    batches = list(data.stream("digits", "test", 36, epochs=1))
    assert len(batches) == 10
    joined = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    loaded = data.load_split("digits", "test")
    assert rows(joined) == rows(loaded)
    assert {name: array.dtype for name, array in joined.items()} == {
        name: array.dtype for name, array in loaded.items()
    }


def test_unshuffled_is_the_order_of_load():
    batch = next(data.stream("digits", "train", 8, shuffle=False))
    np.testing.assert_array_equal(batch["inputs"], data.load_split("digits", "train")["inputs"][:8])


def test_epochs_and_seeds_differ():
    def epoch(seed, skip):
        batches = data.stream("digits", "train", TRAIN, seed=seed, threads=0)
        return [next(batches)["labels"].tolist() for _ in range(skip + 1)][-1]

    orders = [epoch(seed, skip) for seed in range(3) for skip in range(3)]
    assert len({tuple(order) for order in orders}) == 9


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_batches_of_one(processes):
    whole = data.stream("digits", "train", 100, seed=3)
    shards = [data.stream("digits", "train", 100, seed=3, shard=(p, processes)) for p in range(processes)]
    for _ in range(30):  # over two ends of an epoch
        parts = [next(shard) for shard in shards]
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        assert rows(joined) == rows(next(whole))


@pytest.mark.parametrize("threads", [0, 3])
def test_a_state_goes_on(threads):
    batches = data.stream("digits", "train", 100, seed=1, threads=threads)
    for _ in range(17):
        next(batches)
    resumed = data.stream("digits", "train", 100, seed=1, threads=threads)
    resumed.set_state(batches.get_state())
    for _ in range(5):
        np.testing.assert_array_equal(next(batches)["inputs"], next(resumed)["inputs"])


def test_a_transform_sees_single_examples():
    assert next(data.stream("digits", "train", 4, transform=half))["inputs"].shape == (4, 4, 8, 1)


def test_text_has_windows():
    try:
        batch = next(data.stream("kjv", "validation", 4))
    except DataError as error:
        pytest.skip(str(error))
    np.testing.assert_array_equal(batch["inputs"][:, 1:], batch["labels"][:, :-1])


def test_records_of_tfds(tiny):
    root, images = tiny
    batch = next(data.stream("tiny_color", "train[5:]", 10, shuffle=False, data_dir=root))
    np.testing.assert_array_equal(batch["inputs"], images["tiny_color"][5:15])
    assert batch["labels"].tolist() == list(range(5, 15))


@pytest.mark.slow
def test_worker_processes(tiny):
    batches = data.stream("tiny_gray", "train", 4, epochs=2, data_dir=tiny[0], transform=half, workers=2)
    first = [next(batches) for _ in range(3)]
    state = batches.get_state()
    rest = list(batches)
    assert len(first) + len(rest) == 10
    resumed = data.stream("tiny_gray", "train", 4, epochs=2, data_dir=tiny[0], transform=half, workers=2)
    resumed.set_state(state)
    for mine, other in zip(rest, resumed, strict=True):
        np.testing.assert_array_equal(mine["inputs"], other["inputs"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 5, "shard": (0, 2)}, "multiple of the processes"),
        ({"shard": (1, 1)}, r"shard=\(1, 1\)"),
        ({"batch_size": 10_000}, "1257 examples, which fill no batch of 10000"),
    ],
)
def test_what_cannot_work_is_refused(change, message):
    with pytest.raises(DataError, match=message):
        data.stream("digits", "train", **{"batch_size": 4, **change})
