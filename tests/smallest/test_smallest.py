"""The smallest file within bytes, or within a drop: targets are met, data helps, and wrong calls are told."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import modelzip_jax as mz
from modelzip_jax.coding.writer import file_sizes
from modelzip_jax.errors import LeafError, TransformError
from modelzip_jax.smallest.step_search import within_bytes, within_drop


class Small(nn.Module):
    """A convolution, a depthwise one, and two dense layers."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3))(x))
        x = nn.relu(nn.Conv(8, (3, 3), feature_group_count=8)(x))
        x = nn.relu(nn.Dense(32)(x.reshape(len(x), -1)))
        return nn.Dense(10)(x)


MODEL = Small()
X = jnp.cumsum(jax.random.normal(jax.random.key(1), (128, 6, 6, 1)), axis=2)
PARAMS = MODEL.init(jax.random.key(0), X)["params"]
HELD = jnp.cumsum(jax.random.normal(jax.random.key(2), (64, 6, 6, 1)), axis=2)
BATCHES = [X[i : i + 32] for i in range(0, 128, 32)]


def apply(params, x):
    return MODEL.apply({"params": params}, x)


def error(params):
    wanted = apply(PARAMS, HELD)
    return float(jnp.mean((apply(params, HELD) - wanted) ** 2) / jnp.mean(wanted**2))


def test_targets_of_bytes_are_met_and_data_helps():
    errors = {}
    for target in (3_000, 4_500, 7_000):
        for name, calibrate in (("free", None), ("calibrated", (apply, BATCHES))):
            packed = mz.compress(PARAMS, mz.smallest(bytes=target), calibrate=calibrate)
            assert 0.99 * target <= file_sizes(packed).total <= target
            errors[name, target] = error(mz.unpack(packed))
        assert errors["calibrated", target] < 0.5 * errors["free", target]
    assert errors["calibrated", 7_000] < errors["calibrated", 4_500] < errors["calibrated", 3_000]


@pytest.mark.parametrize("target", [2_200, 2_900, 3_700, 5_300, 8_100, 10_000])
def test_every_target_without_data(target, tmp_path):
    packed = mz.compress(PARAMS, mz.smallest(bytes=target))
    mz.save(tmp_path / "m.mz", packed)
    assert 0.99 * target <= (tmp_path / "m.mz").stat().st_size <= target


def test_drops_keep_within_the_limit_on_what_was_held_out():
    sizes = []
    for limit in (1e-3, 1e-2):
        packed = mz.compress(PARAMS, mz.smallest(max_drop=limit), calibrate=(apply, BATCHES))
        told = packed.metadata["smallest"]
        assert 0 <= told["drop"] <= told["drop"] + told["drop_error"] <= limit
        assert told["drop"] > 0.2 * limit
        sizes.append(file_sizes(packed).total)
    assert sizes[1] < sizes[0]


def test_a_measure_of_the_users_needs_no_model():
    calls = []

    def score(params):
        calls.append(1)
        return -np.mean((np.asarray(apply(params, HELD)) - np.asarray(apply(PARAMS, HELD))) ** 2, axis=1)

    packed = mz.compress(PARAMS, mz.smallest(max_drop=1e-3, measure=score))
    assert packed.metadata["smallest"]["drop"] <= 1e-3
    assert -score(mz.unpack(packed)).mean() <= 1e-3
    assert len(calls) < 16


def test_without_a_target_and_what_training_goes_on_from(tmp_path):
    packed = mz.compress(PARAMS, mz.smallest(likelihood="categorical"), calibrate=(apply, BATCHES))
    told = packed.metadata["smallest"]
    assert 0 <= told["drop"] <= told["drop"] + told["drop_error"] <= 0.01  # What is promised is agreement.
    assert error(mz.unpack(packed)) < 0.1
    mz.save(tmp_path / "m.mz", packed)
    loaded = mz.load(tmp_path / "m.mz")
    tx = mz.wrap(optax.sgd(1e-2), loaded)
    weights, state = mz.start(tx, mz.unpack(loaded))
    updates, state = tx.update(jax.tree.map(jnp.ones_like, weights), state, weights)
    assert jax.tree.structure(optax.apply_updates(weights, updates)) == jax.tree.structure(weights)


def test_leaves_that_outputs_do_not_depend_on_are_encoded_without_data():
    params = {**PARAMS, "unused": {"kernel": np.random.default_rng(0).normal(size=(40, 30)).astype("f4")}}
    packed = mz.compress(params, mz.smallest(bytes=5_000), calibrate=(apply, BATCHES))
    off = np.asarray(mz.unpack(packed)["unused"]["kernel"]) - params["unused"]["kernel"]
    assert 0 < np.sqrt(np.mean(off**2)) < 0.1


def test_integer_leaves_and_other_frameworks_params_come_through():
    params = {**PARAMS, "steps": np.int32(7), "ids": np.arange(5)}
    for calibrate in (None, (apply, BATCHES)):
        packed = mz.compress(params, mz.smallest(bytes=5_000), calibrate=calibrate)
        assert 4_950 <= file_sizes(packed).total <= 5_000
        np.testing.assert_array_equal(mz.unpack(packed)["ids"], params["ids"])
    layer = nnx.Linear(24, 16, rngs=nnx.Rngs(0))
    graph, state = nnx.split(layer, nnx.Param)
    model = lambda state, x: nnx.merge(graph, state)(x)  # noqa: E731
    x = np.random.default_rng(0).normal(size=(64, 24)).astype("f4")
    packed = mz.compress(state, mz.smallest(bytes=600), calibrate=(model, [x[:32], x[32:]]))
    assert 594 <= file_sizes(packed).total <= 600


def test_data_without_a_target_keeps_within_a_drop_that_does_not_depend_on_the_network():
    """Whatever the units of the outputs: a step of so many nats would be none of theirs."""
    for scale in (1e-3, 1.0, 1e3):
        packed = mz.compress(
            PARAMS, mz.smallest(), calibrate=(lambda p, x, scale=scale: scale * apply(p, x), BATCHES)
        )
        told = packed.metadata["smallest"]
        assert 1e-3 < told["drop"] <= told["drop"] + told["drop_error"] <= 0.01


def test_one_batch_given_again_and_again_is_held_out_by_its_place():
    packed = mz.compress(PARAMS, mz.smallest(max_drop=0.01), calibrate=(apply, [X] * 4))
    assert packed.metadata["smallest"]["drop"] <= 0.01


def test_leaves_that_are_kept_stay_lossless_whatever_they_hold():
    params = {**PARAMS, "mask": np.triu(np.full((9, 9), -np.inf, np.float32), 1)}
    masked = lambda p, x: apply(p, x) + 0.0 * jnp.exp(p["mask"]).sum()  # noqa: E731
    for calibrate in (None, (masked, BATCHES)):
        packed = mz.compress(
            params, mz.smallest(bytes=5_000, keep=("mask", "Dense_1/*")), calibrate=calibrate
        )
        assert 4_950 <= file_sizes(packed).total <= 5_000
        found = mz.unpack(packed)
        np.testing.assert_array_equal(found["mask"], params["mask"])
        np.testing.assert_array_equal(found["Dense_1"]["kernel"], PARAMS["Dense_1"]["kernel"])
    with pytest.raises(mz.errors.NonFiniteError, match="leaf 'mask'"):
        mz.compress(params, mz.smallest(bytes=5_000))
    with pytest.raises(mz.errors.PatternError, match="nowhere"):
        mz.compress(params, mz.smallest(bytes=5_000, keep="nowhere"))


def test_a_search_is_no_transform_of_a_training_loop():
    with pytest.raises(TransformError, match="Smallest"):
        mz.wrap(optax.sgd(0.1), mz.smallest(bytes=5_000))


def test_what_it_refuses():
    for wrong in ({"bytes": 5, "max_drop": 0.1}, {"bytes": 0}, {"bytes": 1e6}, {"max_drop": 0.0}, {"max_drop": "1%"},
                  {"measure": len}, {"likelihood": "softmax"}, {"keep": (1,)}, {"rate_weight": -1.0}):  # fmt: skip
        with pytest.raises(TransformError):
            mz.smallest(**wrong)
    with pytest.raises(
        TransformError, match=r"smallest file that there can be of this model has [\d,]+ bytes"
    ):
        mz.compress(PARAMS, mz.smallest(bytes=200))
    with pytest.raises(
        TransformError, match=r"smallest file that there can be of this model has [\d,]+ bytes"
    ):
        mz.compress(PARAMS, mz.smallest(bytes=200), calibrate=(apply, BATCHES))
    with pytest.raises(TransformError, match="max_drop= needs something to measure"):
        mz.compress(PARAMS, mz.smallest(max_drop=0.1))
    with pytest.raises(TransformError, match="sequence of batches was empty"):
        mz.compress(PARAMS, mz.smallest(bytes=5_000), calibrate=(apply, []))
    with pytest.raises(TransformError, match="at least two"):
        mz.compress(PARAMS, mz.smallest(max_drop=0.1), calibrate=(apply, BATCHES[:1]))
    with pytest.raises(TransformError, match="finds stats= itself"):
        mz.compress(PARAMS, mz.smallest(bytes=5_000), stats=PARAMS)
    with pytest.raises(TransformError, match="outputs depend on no leaf"):
        mz.compress(PARAMS, mz.smallest(bytes=5_000), calibrate=(lambda p, x: x.reshape(len(x), -1), BATCHES))
    with pytest.raises(mz.errors.TraceError):
        mz.compress(PARAMS, mz.smallest(bytes=5_000), calibrate=(apply, [jnp.ones((4, 7))]))
    with pytest.raises(mz.errors.NonFiniteError):
        mz.compress(jax.tree.map(lambda x: x * jnp.nan, PARAMS), mz.smallest(bytes=5_000))
    with pytest.raises(LeafError, match="no floating-point leaf"):
        mz.compress({"n": np.arange(4)}, mz.smallest(bytes=5_000))
    for gives, said in ((lambda y: jnp.argmax(y, -1), r"gives int32\[32\]"), (lambda y: (y, y), "gives a tuple"),
                        (jnp.sum, r"gives float32\[\]")):  # fmt: skip
        with pytest.raises(TransformError, match=said):
            mz.compress(
                PARAMS, mz.smallest(bytes=5_000), calibrate=(lambda p, x, g=gives: g(apply(p, x)), BATCHES)
            )
    for measured in ({}, "good", np.zeros(0)):
        with pytest.raises(TransformError, match="measure= must give a score"):
            mz.compress(PARAMS, mz.smallest(max_drop=0.1, measure=lambda _, m=measured: m))
    with pytest.raises(LeafError, match="kept by keep="):
        mz.compress(PARAMS, mz.smallest(bytes=5_000, min_ndim=7))
    with pytest.raises(TransformError, match="only= takes path patterns"):
        mz.smallest(only=3)
    with pytest.raises(TransformError, match="outside of jit"):
        jax.jit(lambda p: mz.compress(p, mz.smallest()))(PARAMS)
    with pytest.raises(mz.errors.TraceError, match=r"batch 0 of those held out.*KeyError: 'w9'"):
        mz.compress(PARAMS, mz.smallest(max_drop=0.1), calibrate=(lambda p, x: x @ p["w9"], BATCHES))
    with pytest.raises(TransformError, match="did you mean 'calibrate'"):
        mz.compress(PARAMS, mz.smallest(bytes=5_000), calibrates=(apply, BATCHES))
    for how in (mz.smallest(bytes=5_000), mz.quantize(4, rounding=mz.rounding.error_feedback())):
        with pytest.raises(TransformError, match=r"not one array, of shape \(128, 6, 6, 1\)"):
            mz.compress(PARAMS, how, calibrate=(apply, X))
    with pytest.raises(TransformError, match="from 0 to 1"):
        mz.compress(PARAMS, mz.smallest(max_drop=2), calibrate=(apply, BATCHES))
    with pytest.raises(mz.errors.TraceError, match=r"cannot be run on batch 0, of shapes .*KeyError: 'w9'"):
        mz.compress(PARAMS, mz.smallest(bytes=5_000), calibrate=(lambda p, x: x @ p["w9"], BATCHES))
    seen = []

    def first_then_nan(params):
        seen.append(1)
        return np.full(64, np.nan if len(seen) > 1 else 1.0)

    with pytest.raises(TransformError, match=r"gave \(64,\) scores, 64 of them no number"):
        mz.compress(PARAMS, mz.smallest(max_drop=0.1, measure=first_then_nan))


@pytest.mark.parametrize("seed", range(12))
def test_searches_end_on_any_falling_curve(seed):
    rng = np.random.default_rng(seed)
    floor, steepness, scale = rng.integers(50, 500), rng.uniform(0.3, 3.0), rng.uniform(1e3, 1e6)
    tries = []

    def make(step):
        tries.append(step)
        return None, int(floor + scale / (1.0 + step**steepness))

    target = int(floor + 0.37 * scale)
    found = within_bytes(make, 10.0 ** rng.uniform(-3, 3), target, int(scale))
    assert 0.99 * target <= found.figure <= target
    assert len(tries) < 30
    drop = within_drop(lambda step: (None, 1e-3 * step**steepness), 10.0 ** rng.uniform(-2, 2), 0.02)
    assert 0.02 * 2 ** (-0.06 * steepness) <= drop.figure <= 0.02


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_the_batch_that_holds_nan_is_named(value):
    batches = [BATCHES[0], BATCHES[1].at[3, 2].set(value)]
    with pytest.raises(mz.errors.NonFiniteError, match="batch 1 of calibrate= holds NaN or infinity"):
        mz.compress(PARAMS, mz.smallest(bytes=5_000), calibrate=(apply, batches))
    bad = lambda p, x: apply(p, x) * value  # noqa: E731
    with pytest.raises(mz.errors.NonFiniteError, match="outputs or gradients"):
        mz.compress(PARAMS, mz.smallest(bytes=5_000), calibrate=(bad, BATCHES))


def test_inputs_of_zeros_tell_nothing_of_kernels_that_they_meet():
    packed = mz.compress(PARAMS, mz.smallest(bytes=8_000), calibrate=(apply, [jnp.zeros_like(X)]))
    assert file_sizes(packed).total <= 8_000


@pytest.mark.parametrize("measure", [lambda p: 1.0, lambda p: -float(np.sum(np.abs(p["Dense_0"]["kernel"])))])
def test_a_measure_that_never_falls_is_an_error_and_no_empty_file(measure):
    with pytest.raises(TransformError, match="however coarse the weights are"):
        mz.compress(PARAMS, mz.smallest(max_drop=0.1, measure=measure))


def test_the_smallest_file_that_is_named_can_be_had():
    found = []
    for target in (200, None):
        target = target or found[0]
        try:
            packed = mz.compress(PARAMS, mz.smallest(bytes=target))
            assert file_sizes(packed).total <= target
        except TransformError as error:
            found.append(int(re.search(r"has ([\d,]+) bytes", str(error))[1].replace(",", "")))
    assert len(found) == 1
