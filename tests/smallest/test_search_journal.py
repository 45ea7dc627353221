"""A search that was stopped goes on where it was, and ends alike."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import modelzip_jax as mz
from modelzip_jax.errors import TransformError

KEYS = jax.random.split(jax.random.key(0), 3)
PARAMS = {"a": jax.random.normal(KEYS[0], (24, 32)) / 5, "b": jax.random.normal(KEYS[1], (32, 8)) / 6}
X = jax.random.normal(KEYS[2], (4, 16, 24))


def model(params, x):
    return jnp.tanh(x @ params["a"]) @ params["b"]


def distance(params):
    return -np.sum(np.square(model(params, X[0]) - model(PARAMS, X[0])), axis=-1)


DATA = {"calibrate": (model, list(X))}
SEARCHES = {
    "bytes": ({"bytes": 500}, {}),
    "bytes, calibrated": ({"bytes": 560}, DATA),
    "drop, calibrated": ({"max_drop": 0.001}, DATA),
    "own measure": ({"max_drop": 0.01, "measure": distance}, {}),
}


class StoppedError(Exception):
    """As Ctrl-C."""


def searched(path, options, given, stop=None):
    """The packed model, and how often weights were packed."""
    packings = []

    def tried(number, *_):
        if number == stop:
            raise StoppedError

    search = mz.smallest(**options, journal=path, tried=tried)
    packed = mz.compress(PARAMS, search, progress=lambda name, _: packings.append(name), **given)
    return packed, len(packings)


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("stop", [1, 2])
def test_it_goes_on(name, stop, tmp_path):
    options, given = SEARCHES[name]
    path = tmp_path / "m.tries"
    whole, all_packings = searched(None, options, given)
    with pytest.raises(StoppedError):
        searched(path, options, given, stop)
    assert path.exists()
    again, packings = searched(path, options, given)
    assert packings < all_packings
    assert not path.exists()
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)
    assert whole.metadata == again.metadata


@pytest.mark.parametrize(
    "other",
    [{"bytes": 510}, {"bytes": 500, "before": mz.prune(sparsity=0.1)}, {"bytes": 1_500, "keep": ("b",)}],
)
def test_tries_of_another_search_are_not_taken(other, tmp_path):
    path = tmp_path / "m.tries"
    with pytest.raises(StoppedError):
        searched(path, {"bytes": 500}, {}, stop=2)
    _, packings = searched(path, other, {})
    assert packings == searched(None, other, {})[1]


def test_a_damaged_end_is_left_off_and_a_journal_that_cannot_be_kept_is_said(tmp_path):
    path = tmp_path / "m.tries"
    with pytest.raises(StoppedError):
        searched(path, {"bytes": 500}, {}, stop=2)
    path.write_bytes(path.read_bytes()[:-7])
    assert searched(path, {"bytes": 500}, {})[0].nbytes == searched(None, {"bytes": 500}, {})[0].nbytes
    path.write_bytes(b"\xff\xfe\x00")
    searched(path, {"bytes": 500}, {})
    with pytest.raises(TransformError, match=r"the journal of the search, .* cannot be kept"):
        searched(tmp_path / "absent" / "m.tries", {"bytes": 500}, {})
    with pytest.raises(TransformError, match="smallest file that there can be"):
        searched(path, {"bytes": 30}, {})
    assert not path.exists()
