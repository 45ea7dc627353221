"""The order of batches is a function of seed and position, whoever reads it and however often it stops."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelzip_jax.errors import DataError
from modelzip_jax.training.data import Batches
from modelzip_jax.training.data.batches import epoch_order


def arrays(examples):
    return {"inputs": np.arange(examples * 3).reshape(examples, 3), "labels": np.arange(examples)}


def everything(batches, k=3):
    """The batches that are left, by `take(k)`, a list of index arrays."""
    rows = []
    while True:
        try:
            rows.extend(batches.take(k))
        except StopIteration:
            return rows


settings_of_batches = st.fixed_dictionaries(
    {
        "batch_size": st.integers(1, 8),
        "seed": st.integers(0, 2**40),
        "shuffle": st.booleans(),
        "drop_remainder": st.booleans(),
    }
)


@settings(deadline=None)
@given(examples=st.integers(8, 40), epochs=st.integers(1, 3), k=st.integers(1, 7), chosen=settings_of_batches)
def test_an_epoch_holds_each_example_once(examples, epochs, k, chosen):
    batches = Batches(arrays(examples), epochs=epochs, **chosen)
    rows = everything(batches, k)
    assert len(rows) == epochs * batches.steps_per_epoch == batches.position
    for start in range(0, len(rows), batches.steps_per_epoch):
        seen = np.concatenate(rows[start : start + batches.steps_per_epoch]).tolist()
        assert len(seen) == len(set(seen)) <= examples
        assert len(seen) > examples - (chosen["batch_size"] if chosen["drop_remainder"] else 1)


@settings(deadline=None)
@given(
    examples=st.integers(12, 40),
    processes=st.sampled_from([1, 2, 3, 4]),
    k=st.integers(1, 7),
    chosen=settings_of_batches,
)
def test_processes_share_the_batches_of_one(examples, processes, k, chosen):
    chosen["batch_size"] = 12
    whole = everything(Batches(arrays(examples), epochs=2, **chosen), k)
    shards = [
        everything(Batches(arrays(examples), epochs=2, shard=(p, processes), **chosen), k)
        for p in range(processes)
    ]
    assert len({len(shard) for shard in shards}) == 1
    for row, parts in zip(whole, zip(*shards, strict=True), strict=True):
        np.testing.assert_array_equal(row, np.concatenate(parts))


@settings(deadline=None)
@given(examples=st.integers(8, 40), taken=st.integers(0, 30), chosen=settings_of_batches)
def test_a_state_goes_on_bit_for_bit(examples, taken, chosen):
    batches = Batches(arrays(examples), **chosen)
    for _ in range(taken):
        next(batches)
    state = json.loads(json.dumps(batches.get_state()))
    resumed = Batches(arrays(examples), **chosen)
    resumed.set_state(state)
    assert resumed.position == batches.position == taken
    for _ in range(9):
        mine, other = next(batches), next(resumed)
        assert mine.keys() == other.keys()
        np.testing.assert_array_equal(mine["inputs"], other["inputs"])


@settings(deadline=None)
@given(examples=st.integers(8, 40), k=st.integers(1, 9), chosen=settings_of_batches)
def test_takes_and_single_batches_agree(examples, k, chosen):
    together, alone = (Batches(arrays(examples), epochs=2, **chosen) for _ in range(2))
    rows = everything(together, k)
    singles = list(alone)
    assert len(rows) == len(singles)
    for row, batch in zip(rows, singles, strict=True):
        np.testing.assert_array_equal(row, batch["labels"])


def test_epochs_and_seeds_differ():
    orders = [epoch_order(seed, epoch, 100).tolist() for seed in range(5) for epoch in range(5)]
    assert len({tuple(order) for order in orders}) == 25
    assert all(sorted(order) == list(range(100)) for order in orders)


def test_the_order_never_changes():
    # Recorded: a run resumes on another machine, with another NumPy.
    assert epoch_order(7, 3, 10).tolist() == [7, 1, 9, 6, 0, 4, 2, 8, 3, 5]
    assert Batches(arrays(10), 4, seed=7).take(2).tolist() == [[8, 4, 3, 6], [2, 1, 0, 5]]


def test_take_stops_before_a_smaller_batch():
    batches = Batches(arrays(10), 4, drop_remainder=False, epochs=2)
    assert [batches.take(5).shape for _ in range(4)] == [(2, 4), (1, 2), (2, 4), (1, 2)]
    with pytest.raises(StopIteration):
        batches.take(1)


def test_shards_of_a_smaller_batch_stay_in_step():
    # 3 examples for 2 processes: one of them has its usual 2, and must not run ahead.
    shards = [Batches(arrays(7), 4, drop_remainder=False, shard=(p, 2)) for p in range(2)]
    assert [[s.take(3).shape for _ in range(3)] for s in shards] == [
        [(1, 2), (1, 1), (1, 2)],
        [(1, 2), (1, 2), (1, 2)],
    ]


def test_no_epochs_are_no_batches():
    assert list(Batches(arrays(4), 2, epochs=0)) == []


def test_indices_are_int32_and_batches_are_gathered():
    batches = Batches(arrays(10), 4, seed=1)
    indices = batches.take(2)
    assert indices.dtype == np.int32
    again = Batches(arrays(10), 4, seed=1)
    np.testing.assert_array_equal(next(again)["inputs"], batches.arrays["inputs"][indices[0]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 5, "shard": (0, 2)}, "multiple of the 2 processes"),
        ({"shard": (2, 2)}, r"shard=\(2, 2\)"),
        ({"seed": -1}, "seed=-1"),
        ({"epochs": -1}, "epochs=-1"),
        ({"batch_size": 11}, "10 examples fill no batch of 11"),
        ({"arrays": {}}, "have none"),
        ({"arrays": {"inputs": np.zeros(3), "labels": np.zeros(2)}}, "'inputs': 3, 'labels': 2"),
    ],
)
def test_what_cannot_work_is_refused(change, message):
    with pytest.raises(DataError, match=message):
        Batches(**{"arrays": arrays(10), "batch_size": 4, **change})


@pytest.mark.parametrize("change", [{"seed": 1}, {"batch_size": 2}, {"shuffle": False}])
def test_the_state_of_another_order_is_refused(change):
    state = Batches(arrays(10), **{"batch_size": 4, "seed": 0, **change}).get_state()
    with pytest.raises(DataError, match=next(iter(change))):
        Batches(arrays(10), 4).set_state(state)


def test_take_needs_a_positive_number():
    with pytest.raises(DataError, match=r"take\(0\)"):
        Batches(arrays(10), 4).take(0)
