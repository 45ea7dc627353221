"""Factors are the best of their rank, in each layer's own, and are stored as what follows makes of them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import modelzip_jax as mz
from modelzip_jax.errors import LeafError, PatternError, TransformError
from modelzip_jax.packed import Dense
from modelzip_jax.quantization.factored import Factored

RNG = np.random.default_rng(5)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def best(matrix, rank):
    """The squared error of the nearest matrix of a rank, in float64."""
    return np.sum(np.square(np.linalg.svd(matrix.astype(np.float64), compute_uv=False)[rank:]))


def error(leaf, transform):
    found = mz.decoded({"w": leaf}, transform)["w"]
    assert found.shape == leaf.shape
    assert found.dtype == leaf.dtype
    return np.sum(np.square(np.asarray(found, np.float64) - leaf))


def test_no_matrix_of_the_rank_is_nearer():
    kernel, flat = normal(3, 3, 4, 20), normal(40, 12)
    np.testing.assert_allclose(error(flat, mz.low_rank(5)), best(flat, 5), rtol=1e-5)
    np.testing.assert_allclose(error(kernel, mz.low_rank(7)), best(kernel.reshape(36, 20), 7), rtol=1e-5)
    assert error(flat, mz.low_rank(100)) < 1e-9 * np.sum(np.square(flat))
    blocks = normal(6, 2, 10, 3)  # Layers along the second and the last axis.
    each = sum(best(blocks[:, i, :, j], 4) for i in range(2) for j in range(3))
    np.testing.assert_allclose(error(blocks, mz.low_rank(4, layers=(1, 3))), each, rtol=1e-5)
    encoded = mz.low_rank(4, layers={"w": (3, 1)}).init({"w": blocks}, mz.Context())
    assert [x.shape for x in encoded.latents["w"]] == [(3, 2, 6, 4), (3, 2, 4, 10)]
    np.testing.assert_allclose(
        encoded.latents["w"].left[2, 1] @ encoded.latents["w"].right[2, 1],
        mz.low_rank(4).relaxed(mz.low_rank(4).init({"w": blocks[:, 1, :, 2]}, mz.Context()))["w"],
        atol=1e-5,
    )


def test_factors_are_balanced_and_a_zero_matrix_trains():
    left, right = mz.low_rank(3).init({"w": normal(9, 6)}, mz.Context()).latents["w"]
    np.testing.assert_allclose(jnp.linalg.norm(left, axis=0), jnp.linalg.norm(right, axis=1), rtol=1e-5)
    tx = mz.wrap(optax.sgd(0.1), mz.low_rank(2))
    target = jnp.outer(jnp.arange(6.0), jnp.ones(4)) / 6
    params, state = mz.start(tx, {"w": jnp.zeros((6, 4))})
    assert not np.any(params["w"])
    traces = []

    @jax.jit
    def step(params, state):
        traces.append(1)
        updates, state = tx.update({"w": params["w"] - target}, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(300):
        params, state = step(params, state)
    np.testing.assert_allclose(params["w"], target, atol=1e-3)
    assert len(traces) == 1


def test_energy_takes_the_least_rank_that_keeps_it():
    w = (normal(30, 30) * np.exp(-np.arange(30) / 5)).astype(np.float32)
    squares = np.square(np.linalg.svd(w.astype(np.float64), compute_uv=False))
    for energy in (0.3, 0.9, 0.999):
        rank = mz.low_rank(energy=energy).init({"w": w}, mz.Context()).latents["w"].right.shape[0]
        assert squares[:rank].sum() >= energy * squares.sum() > squares[: rank - 1].sum()
    thin = np.outer(np.arange(8), np.arange(5)).astype(np.float32) * np.float32(2.0**100)
    assert mz.low_rank(energy=1).init({"w": thin}, mz.Context()).latents["w"].left.shape == (8, 1)
    two = np.stack([thin[:5], np.eye(5, dtype=np.float32)])
    assert mz.low_rank(energy=0.9, layers=0).init({"w": two}, mz.Context()).latents["w"].left.shape == (
        2,
        5,
        5,
    )
    assert mz.low_rank(energy=0.5).init({"w": jnp.zeros((4, 3))}, mz.Context()).latents["w"].left.shape == (
        4,
        1,
    )
    with pytest.raises(TransformError, match=r"'w' .* jit"):
        jax.jit(lambda w: mz.decoded({"w": w}, mz.low_rank(energy=0.9)))(w)


def test_what_follows_encodes_the_factors():
    packed = mz.compress({"w": normal(64, 32)}, mz.chain(mz.low_rank(8), mz.quantize(4, axis=-1))).params["w"]
    assert packed.left.codes.count == 64 * 8
    assert packed.right.codes.count == 8 * 32
    assert packed.nbytes == (64 * 8 + 8 * 32) * 4 // 8 + 4 * (8 + 32)
    masked = mz.chain(mz.prune(sparsity=0.5), mz.low_rank(8))
    assert np.mean(np.asarray(mz.decoded({"w": normal(64, 32)}, masked)["w"]) == 0) == 0.5


def test_leaves_without_factors_are_kept_and_half_precision_is_computed_wide():
    params = {
        "bias": jnp.asarray(normal(5), jnp.bfloat16), "none": np.zeros((0, 4), np.float32),
        "scale": np.float32(0.3), "w": jnp.asarray(normal(8, 6), jnp.bfloat16),
    }  # fmt: skip
    encoded = mz.low_rank(6).init(params, mz.Context())
    assert {x.dtype for x in jax.tree.leaves(encoded.latents)} == {np.dtype("float32")}
    packed = mz.compress(params, mz.low_rank(6))
    for name, leaf in mz.unpack(packed).items():
        np.testing.assert_array_equal(leaf, params[name])
        assert leaf.dtype == params[name].dtype
    assert packed.params["bias"].nbytes == 2 * 5
    stacked = mz.low_rank(2, layers=0).init({"w": normal(3, 6)}, mz.Context())
    assert stacked.latents["w"].shape == (3, 6)  # A vector a layer.


def test_importance_is_that_of_an_error_of_each_factor_alone():
    w, h = normal(2, 5, 4), np.abs(normal(2, 5, 4))
    transform = mz.low_rank(2, layers=0)
    encoded = transform.init({"w": w}, mz.Context())
    told = transform.follow(encoded, mz.Context(importance={"w": h})).importance
    jacobian = jax.jacobian(lambda z: transform.relaxed(encoded._replace(latents=z))["w"])(encoded.latents)[
        "w"
    ]
    for found, slope in zip(told["w"], jacobian, strict=True):
        np.testing.assert_allclose(found, np.tensordot(h, np.square(slope), 3), rtol=1e-4)


@pytest.mark.parametrize(
    "transform",
    [
        pytest.param(
            mz.chain(mz.low_rank(2, layers={"blocks/**": 0}), mz.quantize(4, learned=True)),
            marks=pytest.mark.slow,
        ),
        pytest.param(mz.chain(mz.rigl(sparsity=0.5, every=1, end=4), mz.low_rank(2)), marks=pytest.mark.slow),
        pytest.param(mz.low_rank(energy=0.8), marks=pytest.mark.slow),
    ],
    ids=["quantized", "after moving masks", "energy"],
)
def test_laws(transform):
    params = {"blocks": {"kernel": normal(3, 6, 4)}, "bias": jnp.asarray(normal(4), jnp.bfloat16)}
    mz.testing.check_laws(transform, params, steps=2, ulp=16)


@pytest.mark.parametrize(
    "arguments",
    [{}, {"rank": 0}, {"rank": True}, {"rank": 2.0}, {"rank": 2, "energy": 0.5}, {"energy": 0}, {"energy": 1.1},
     {"energy": True}, {"energy": float("nan")}, {"rank": 2, "layers": -1}],
    ids=str,
)  # fmt: skip
def test_wrong_arguments(arguments):
    with pytest.raises(TransformError):
        mz.low_rank(**arguments)


def test_wrong_leaves():
    with pytest.raises(LeafError, match="int32"):
        mz.compress({"w": jnp.zeros((2, 2), int)}, mz.low_rank(1))
    with pytest.raises(LeafError, match="layers"):
        mz.compress({"w": normal(4, 4)}, mz.low_rank(1, layers=3))
    with pytest.raises(PatternError, match="blocks"):
        mz.compress({"w": normal(4, 4)}, mz.low_rank(1, layers={"blocks/*": 0}))
    dense = {s: Dense(np.zeros(s, np.float32), s) for s in [(4, 2), (2, 3), (3,), (2, 4, 2), (2, 2, 3)]}
    Factored(dense[4, 2], dense[2, 3], (), (4, 3), "float32").check()
    Factored(dense[2, 4, 2], dense[2, 2, 3], (1,), (4, 2, 3), "float32").check()
    for left, right, layers, shape in (
        ((4, 2), (2, 3), (), (4, 4)),
        ((4, 2), (4, 2), (), (4, 2)),
        ((3,), (3,), (), (3, 3)),
        ((4, 2), (2, 3), (7,), (4, 3)),
        ((2, 4, 2), (2, 2, 3), (1, 1), (4, 2, 3)),
        ((2, 4, 2), (2, 2, 3), (0,), (4, 2, 3)),
    ):
        with pytest.raises(ValueError, match="factors"):
            Factored(dense[left], dense[right], layers, shape, "float32").check()
    with pytest.raises(ValueError, match="factors"):
        Factored(dense[4, 2], None, (), (4, 3), "float32").check()
