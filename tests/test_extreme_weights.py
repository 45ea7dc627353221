"""Finite weights decode to finite weights, or are refused by name before anything is stored."""

import extreme_weights as ends
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_drawn_chains import classes_in

import modelzip_jax as mz
from modelzip_jax import recipe
from modelzip_jax.errors import LeafError, NonFiniteError

NEVER_ZERO = {"dorefa"}
"""Grids without a zero, at any step."""


def given(tree):
    ones = jax.tree.map(lambda w: np.ones(w.shape, np.float32), tree)
    return {"grads": ones, "scores": ones, "importance": ones}


def compressed(tree, transform, **options):
    told = {} if isinstance(transform, mz.Search) else given(tree)
    with np.errstate(all="raise", under="ignore"):
        return mz.unpack(mz.compress(tree, transform, **told, **options))


def finite_or_refused(leaf, w, transform, **options):
    try:
        found = compressed({leaf: w}, transform, **options)[leaf]
    except (NonFiniteError, LeafError) as error:
        return f"'{leaf}" in str(error)  # Of factors, "leaf/left".
    return np.isfinite(np.asarray(found, np.float64)).all()


def check_gentle(transform, dtype, name):
    found = compressed(ends.gentle(dtype), transform)
    for leaf, w in found.items():
        assert w.dtype == jnp.dtype(dtype)
        assert np.isfinite(np.asarray(w, np.float32)).all(), leaf
    if name not in NEVER_ZERO:
        assert not np.asarray(found["zeros"], np.float32).any()
        assert not np.asarray(found["minus zeros"], np.float32).any()


def check_extreme(transform, dtype, only=None):
    for leaf, w in ends.extreme(dtype).items():
        if only is not None and leaf not in only:
            continue
        assert finite_or_refused(leaf, w, transform), leaf


@pytest.mark.parametrize("name", ends.FEW)
def test_few(name):
    check_gentle(ends.FEW[name], "float32", name)
    check_extreme(ends.FEW[name], "float32", ("largest", "one of 2e19"))
    check_extreme(ends.FEW[name], "float16", ("largest and others",))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ends.DTYPES)
@pytest.mark.parametrize("name", [*ends.FEW, *ends.MANY])
def test_many(name, dtype):
    transform = (ends.FEW | ends.MANY)[name]
    check_gentle(transform, dtype, name)
    check_extreme(transform, dtype)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n == "error feedback" else pytest.mark.slow) for n in ends.CALIBRATED],
)
def test_calibrated(name):
    batches = [np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32)]
    for leaf, w in {**ends.gentle("float32"), **ends.extreme("float32")}.items():
        if w.shape == ends.SHAPE:
            calibrate = (lambda params, x: x @ params["w"], batches)
            assert finite_or_refused("w", w, ends.CALIBRATED[name], calibrate=calibrate), leaf


def test_nothing_of_ours_is_left_out():
    listed = [*ends.FEW.values(), *ends.MANY.values(), *ends.CALIBRATED.values()]
    found = {cls for transform in listed for cls in classes_in(transform)}
    ours = {cls for cls in recipe._classes.values() if cls.__module__.startswith("modelzip_jax")}
    ours = {cls for cls in ours if not issubclass(cls, mz.activations.ActivationQuantizer)}  # Of no weights.
    names = {cls.__name__ for cls in ours - found}
    # Schedules know no weights; a range that is given has none to choose; `rigl` is a Regrow.
    assert names <= {"Polynomial", "Alternating", "ErrorControlled", "Followed", "Constant", "Opaque"}


def test_a_loop_that_ends_at_the_largest_is_refused_when_it_is_packed():
    tx = mz.wrap(optax.sgd(1.0), mz.prune(sparsity=0.1))
    params = {"w": jnp.full((8, 4), 60_000.0, jnp.float16).at[0].set(-1.0)}
    params, state = mz.start(tx, params)
    updates, state = tx.update({"w": jnp.full((8, 4), -60_000.0, jnp.float16)}, state, params)
    params = optax.apply_updates(params, updates)
    with pytest.raises(NonFiniteError, match="'w' decodes to"):
        mz.pack(state, params)


def test_an_asymmetric_range_that_is_no_number_is_refused():
    """It lost all weights of one sign."""
    w = {"w": np.array([[3e38, -3e38], [1.0, 2.0]], np.float32)}
    with pytest.raises(NonFiniteError, match=r"'w' reaches from -3e\+38 to 3e\+38"):
        mz.compress(w, mz.quantize(8, symmetric=False))
    np.testing.assert_allclose(mz.unpack(mz.compress(w, mz.quantize(8)))["w"], w["w"], rtol=0.01, atol=2e36)
