"""CERWU: GPTQ where bits are free, the exact optimum where inputs are independent, fewer bits elsewhere."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg

import modelzip_jax as mz
from benchmarks.peers.cerwu import absmax_step, cerwu, code_by_cerwu
from benchmarks.peers.coded import code_bits
from modelzip_jax import trace
from modelzip_jax.errors import LeafError, NonFiniteError


def layer(rows, n, seed=0, correlation=0.8):
    rng = np.random.default_rng(seed)
    i = np.arange(n)
    scale = np.exp(rng.normal(size=n) / 2)
    gram = correlation ** np.abs(i[:, None] - i) * np.outer(scale, scale)
    return rng.laplace(size=(rows, n)), gram


def by_gptq(w, gram, step, damping=0.01):
    """Codes with an inverse of what is left of H for every column."""
    gram = gram + damping * np.mean(np.diagonal(gram)) * np.eye(len(gram))
    w, codes = w / step, np.zeros(w.shape, int)
    for q in range(w.shape[1]):
        inverse = np.linalg.inv(gram[q:, q:])
        codes[:, q] = np.rint(w[:, q])
        w[:, q:] -= np.outer(w[:, q] - codes[:, q], inverse[0]) / inverse[0, 0]
    return codes


def distortion(w, values, gram):
    off = w - values
    return np.sum(off @ gram * off)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0625, 0.5, 2.0]), st.floats(0.0, 0.95))
def test_with_bits_for_free_it_is_gptq(seed, step, correlation):
    w, gram = layer(12, 7, seed, correlation)
    codes, values = cerwu(w, gram, step, 0.0)
    np.testing.assert_array_equal(codes, by_gptq(w, gram, step))
    np.testing.assert_array_equal(values, (codes * step).astype(np.float32))


def test_with_bits_for_free_it_is_our_error_feedback():
    w, _ = layer(40, 24)
    x = np.random.default_rng(1).normal(size=(500, 24)) @ np.linalg.cholesky(layer(1, 24)[1]).T
    params = {"kernel": w.T.astype(np.float32)}
    stats = trace.statistics(lambda p, x: x @ p["kernel"], params, [x.astype(np.float32)], kinds=("gram",))
    grid = {"granularity": "tensor", "range": mz.ranges.fixed(-15.875, 15.875)}  # a step of 1/8
    ours = mz.quantize(8, rounding=mz.rounding.error_feedback(order=False), **grid)
    found = np.asarray(mz.decoded(params, ours, stats=stats)["kernel"]).T
    gram = np.asarray(stats["kernel"][0].inputs.gram, np.float64)
    _, values = cerwu(params["kernel"].T, gram, 0.125, 0.0)
    # Ties in float32 may fall otherwise than in float64, and what follows in a row with them.
    assert np.mean(found == values) > 0.98


@pytest.mark.parametrize("price", [0.01, 0.1, 0.5])
def test_of_independent_inputs_every_code_is_the_best_one(price):
    rng = np.random.default_rng(2)
    w, power = rng.normal(size=(200, 5)), np.exp(rng.normal(size=5))
    step, damping = 0.5, 1e-9
    codes, _ = cerwu(w, np.diag(power), step, price, damping, passes=1)
    # The table of its only pass: weights that the quadratic part of the rate has shrunk, rounded.
    gamma = 1 / (np.log(2) * np.var(w / step))
    shrunk = w / step * (power * step**2) / (power * step**2 + price * gamma)
    last = 2 * int(np.abs(np.rint(w / step)).max()) + 1
    grid = np.arange(-last, last + 1)
    counts = (np.rint(shrunk)[..., None] == grid).sum((0, 1)) + 1
    rate = np.log2(counts.sum() / counts)
    loss = power[:, None] * step**2 * (w[..., None] / step - grid) ** 2 / 2 + price * rate
    np.testing.assert_array_equal(codes, grid[np.argmin(loss, -1)])


def test_the_square_is_completed():
    # ½ (w − i) H (w − i) + λ γ/2 i² and ½ (w′ − i) H′ (w′ − i) differ by the same number for all i.
    w, h = layer(1, 3)
    price = 0.7
    regular = h + price * np.eye(3)
    moved = linalg.solve(regular, h @ w[0])
    differences = [
        (w[0] - i) @ h @ (w[0] - i) + price * (i @ i) - (moved - i) @ regular @ (moved - i)
        for i in map(np.array, itertools.product(range(-3, 4), repeat=3))
    ]
    np.testing.assert_allclose(differences, differences[0], rtol=1e-9)


@pytest.mark.parametrize(
    ("step", "share", "least"), [(1.0, 0.03, 0.02), (2.0, 0.06, 0.08), (4.0, 0.06, 0.15)]
)
def test_fewer_bits_at_equal_distortion_than_gptq(step, share, least):
    w, gram = layer(400, 64)
    price = share * step**2 * np.mean(np.diagonal(gram))
    codes, values = cerwu(w, gram, step, price)
    curve = np.array(
        [
            (np.log2(distortion(w, values, gram)), code_bits(codes) / w.size)
            for codes, values in (
                cerwu(w, gram, step * factor, 0.0) for factor in 2.0 ** np.arange(-1, 1.6, 0.25)
            )
        ]
    )
    error = np.log2(distortion(w, values, gram))
    assert curve[0, 0] < error < curve[-1, 0]
    assert np.interp(error, *curve.T) - code_bits(codes) / w.size > least


def test_bytes_fall_as_bits_get_dearer():
    w, gram = layer(100, 16)
    found = [code_by_cerwu({"a": w}, {"a": gram}, {"a": 1.0}, price) for price in (0.0, 0.1, 0.5, 2.0, 50.0)]
    assert sorted((f.bytes for f in found), reverse=True) == [f.bytes for f in found]
    assert not found[-1].values["a"].any()
    codes, values = cerwu(w, gram, 1.0, 0.1)
    assert found[1].bytes == -(-(code_bits(codes) + 16) // 8)
    np.testing.assert_array_equal(found[1].values["a"], values)


def test_the_authors_grid_reaches_the_largest_weight():
    w, gram = layer(50, 8)
    step = absmax_step(w, 16)
    codes, _ = cerwu(w, np.eye(8), step, 0.0)
    assert np.abs(codes).max() == 8
    assert cerwu(w, gram, step, 0.0)[0].dtype == np.int32


def test_inputs_that_are_never_there_disturb_nothing():
    w, gram = layer(20, 5)
    gram[3], gram[:, 3] = 0, 0
    codes, values = cerwu(w, gram, 0.5, 0.1)
    assert np.isfinite(values).all()
    assert not cerwu(np.zeros((2, 3)), np.zeros((3, 3)), 1.0, 0.1)[0].any()
    assert codes.shape == w.shape


def test_what_it_cannot_take_is_named():
    with pytest.raises(LeafError, match="outputs, inputs"):
        cerwu(np.ones((2, 3)), np.eye(2), 1.0, 0.0)
    with pytest.raises(NonFiniteError, match="NaN"):
        cerwu(np.full((2, 3), np.nan), np.eye(3), 1.0, 0.0)
    with pytest.raises(NonFiniteError, match="singular"):
        cerwu(np.ones((2, 3)), -np.eye(3), 1.0, 0.0)
