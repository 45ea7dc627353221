"""k-means, blocks and DKM at every scale of the weights, beside float64 at scale 1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import modelzip_jax as mz
from modelzip_jax.sharing import codebook as books
from modelzip_jax.sharing.bins import BINS, Binning
from modelzip_jax.sharing.grouping import group_neurons, share_initialization
from modelzip_jax.sharing.lloyd import assign, kmeans
from modelzip_jax.sharing.lookup import soft_read
from modelzip_jax.sharing.vectors import assign_blocks, vector_kmeans

RNG = np.random.default_rng(0)
EXPONENTS = st.integers(-100, 120)
METHODS = ["exact", "histogram"]


def lloyd64(x, centroids, iterations):
    """Lloyd's iteration in float64; where a cluster is empty its centroid stays."""
    x, c = np.asarray(x, np.float64), np.sort(np.asarray(centroids, np.float64))
    for _ in range(iterations):
        codes = np.searchsorted(0.5 * (c[1:] + c[:-1]), x)
        c = np.array([x[codes == j].mean() if np.any(codes == j) else c[j] for j in range(len(c))])
    return c


def error64(x, centroids):
    x, c = np.asarray(x, np.float64), np.sort(np.asarray(centroids, np.float64))
    return np.sum((x - c[np.searchsorted(0.5 * (c[1:] + c[:-1]), x)]) ** 2)


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=12, deadline=None)
@given(e=EXPONENTS, seed=st.integers(0, 99))
def test_lloyd_is_that_of_float64_at_scale_one(method, e, seed):
    x = np.random.default_rng(seed).normal(size=300).astype(np.float32)
    start = np.float32([-1.5, -0.5, 0.5, 1.5])
    found = kmeans(np.ldexp(x, e), 4, init=np.ldexp(start, e), iterations=5, method=method)
    bound = 2e-6 if method == "exact" else 1e-3
    np.testing.assert_allclose(np.ldexp(np.float64(found.centroids), -e), lloyd64(x, start, 5), atol=bound)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("init", ["companding", "density", "linear", "k-means++"])
def test_a_power_of_two_changes_no_bit(method, init):
    x = RNG.normal(size=300).astype(np.float32)
    at_one = kmeans(x, 16, init=init, method=method)
    codes = assign(x, at_one.centroids)
    for e in (-110, -73, -40, 70, 120):
        found = kmeans(np.ldexp(x, e), 16, init=init, method=method).centroids
        np.testing.assert_array_equal(found, np.ldexp(at_one.centroids, e))
        np.testing.assert_array_equal(assign(np.ldexp(x, e), found), codes)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("outlier", [1e6, 2e19, 1e25, -1e25])
def test_an_outlier_takes_one_centroid_and_nothing_from_the_others(method, outlier):
    x = RNG.normal(size=300).astype(np.float32)
    x[7] = outlier
    others = np.delete(x, 7)
    found = np.asarray(kmeans(x, 16, method=method).centroids)
    assert np.float32(outlier) in found
    assert error64(others, found) < 2.5 * error64(others, kmeans(others, 15, method=method).centroids)
    assert error64(others, found) < 0.02 * np.sum(others.astype(np.float64) ** 2)


def test_outliers_of_large_leaves_are_points_of_their_own():
    """Every eighth value would miss them, and bins without tails hold all of them together."""
    x = RNG.normal(size=1 << 20).astype(np.float32)
    x[[3, 1001, 50_001]] = [1e6, 1e25, -3e20]
    found = np.asarray(kmeans(x, 16).centroids)
    assert {np.float32(1e25), np.float32(-3e20)} <= set(found.tolist())
    assert np.isfinite(found).all()


def test_second_moments_over_many_octaves():
    """Adam's: the largest is a billion times the median, and counts for all of the error."""
    x = np.exp(5.0 * RNG.normal(size=100_000) - 40.0).astype(np.float32)
    histogram, exact = (error64(x, kmeans(x, 16, method=m).centroids) for m in ("histogram", "exact"))
    assert histogram < 1.2 * exact


@pytest.mark.parametrize("x", [np.zeros(40), np.full(40, 3e38), np.full(40, 1e-37), np.full(40, 1e-42),
                               np.append(np.zeros(39), 1e-40)])  # fmt: skip
@pytest.mark.parametrize("method", METHODS)
def test_what_is_all_alike_is_finite_and_kept(x, method):
    x = x.astype(np.float32)
    found = np.asarray(kmeans(x, 4, method=method).centroids)
    assert np.isfinite(found).all()
    assert error64(x, found) <= len(x) * 1.2e-38**2  # Below that XLA flushes to zero.


def test_importance_of_any_scale():
    x, w = RNG.normal(size=200).astype(np.float32), RNG.random(200).astype(np.float32)
    for method in METHODS:
        at_one = kmeans(x, 4, weights=w, method=method)
        for e in (-100, 90):
            found = kmeans(x, 4, weights=np.ldexp(w, e), method=method)
            np.testing.assert_array_equal(found.centroids, at_one.centroids)
            np.testing.assert_array_equal(found.distortion, np.ldexp(at_one.distortion, e))


def test_assignment_of_many_values_at_any_scale():
    x = RNG.normal(size=BINS + 9).astype(np.float32)
    c = np.sort(RNG.normal(size=40)).astype(np.float32)
    codes = assign(x, c)
    for e in (-100, 120):
        np.testing.assert_array_equal(assign(np.ldexp(x, e), np.ldexp(c, e)), codes)
    x[3], x[4] = 3e38, -3e38
    assert assign(x, c)[3:5].tolist() == [39, 0]


def test_bins_ascend_with_the_value_and_hold_their_middles():
    bins = Binning(jnp.float32(0.25), jnp.float32(0.5), jnp.int32(0))
    x = np.concatenate(
        [np.linspace(-2000, 2000, 9001), np.geomspace(1, 1e11, 999), -np.geomspace(1, 1e11, 999)]
    )
    place = np.asarray(bins(jnp.asarray(np.sort(x), jnp.float32)))
    assert np.all(np.diff(place) >= 0)
    assert place.min() >= 0
    assert place.max() < BINS
    inner = np.arange(BINS // 2 - 29_000, BINS // 2 + 29_000)
    np.testing.assert_array_equal(bins(bins.middle(jnp.asarray(inner)) + bins.centre), inner)


@settings(max_examples=12, deadline=None)
@given(e=EXPONENTS, w=st.sampled_from([None, -60, 90]))
def test_blocks_at_any_scale(e, w):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(60, 3)).astype(np.float32)
    weights = None if w is None else rng.random((60, 3)).astype(np.float32)
    at_one = vector_kmeans(x, 5, weights)
    scaled = None if w is None else np.ldexp(weights, w)
    found = vector_kmeans(np.ldexp(x, e), 5, scaled)
    np.testing.assert_array_equal(found, np.ldexp(at_one, e))
    codes = assign_blocks(np.ldexp(x, e), found, scaled)
    np.testing.assert_array_equal(codes, assign_blocks(x, at_one, weights))
    c, m = np.asarray(at_one, np.float64), np.ones((60, 3)) if weights is None else weights
    distance = np.sum(m[:, None] * (x[:, None] - c) ** 2, axis=-1)
    np.testing.assert_allclose(distance[np.arange(60), codes], distance.min(axis=1), rtol=1e-4, atol=1e-5)


def test_a_block_far_out_leaves_the_others_their_entries():
    x = RNG.normal(size=(100, 2)).astype(np.float32)
    x[9] = 1e25
    found = vector_kmeans(x, 16)
    codes = np.asarray(assign_blocks(x, found))
    assert np.isfinite(found).all()
    assert len(np.unique(np.delete(codes, 9))) > 8


@settings(max_examples=12, deadline=None)
@given(e=EXPONENTS, block=st.sampled_from([1, 2]))
def test_dkm_has_one_gradient_and_one_step_at_any_scale(e, block):
    rng = np.random.default_rng(2)
    w, c = (rng.normal(size=(n, block)).astype(np.float32) for n in (24, 4))
    codes = assign_blocks(w, c)
    g = rng.normal(size=w.shape).astype(np.float32)

    def gradient(w, c):
        t = books.softness(jnp.asarray(c), 0.3)
        return jax.grad(lambda w: jnp.sum(g * soft_read(w, c, codes, t)))(jnp.asarray(w))

    def stepped(w, c):
        book = books.of_entries(jnp.asarray(c if block > 1 else c[:, 0]), False)
        return books.current(None, books.step(book, [jnp.asarray(w)], [None], 0.3))

    np.testing.assert_allclose(gradient(np.ldexp(w, e), np.ldexp(c, e)), gradient(w, c), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(stepped(np.ldexp(w, e), np.ldexp(c, e)), np.ldexp(stepped(w, c), e))


def test_dkm_follows_latents_of_tiny_importance():
    book = books.of_entries(jnp.array([-1.0, 0.5, 2.0]), False)
    w = jnp.asarray(RNG.normal(size=50), jnp.float32)
    moved, tiny = (books.step(book, [w], [m], 0.1).base for m in (jnp.ones(50), jnp.full(50, 2.0**-70)))
    np.testing.assert_array_equal(moved, tiny)
    assert np.any(moved != book.base)


@pytest.mark.parametrize("e", [-120, -73, 70, 125])
def test_books_of_any_scale_are_exact(e):
    entries = jnp.asarray(np.ldexp(np.float32([0.3, -0.1, 1.7]), e))
    book = books.of_entries(entries, False)
    np.testing.assert_array_equal(books.current(None, book), entries)
    assert 0.25 < np.sqrt(np.mean(np.square(book.base))) < 4


@pytest.mark.parametrize("e", [-90, 100])
def test_neurons_are_grouped_alike_at_any_scale(e):
    kernel = RNG.normal(size=(9, 12)).astype(np.float32)
    inputs = jnp.asarray(RNG.normal(size=(30, 9)), jnp.float32)
    for features in (None, inputs):
        at_one = group_neurons(jnp.asarray(kernel), 4, features)
        np.testing.assert_array_equal(group_neurons(jnp.asarray(np.ldexp(kernel, e)), 4, features), at_one)
    key = jax.random.key(1)
    at_one = share_initialization(jnp.asarray(kernel), 4, inputs, key)
    found = share_initialization(jnp.asarray(np.ldexp(kernel, e)), 4, inputs, key)
    np.testing.assert_array_equal(found, np.ldexp(at_one, e))


@pytest.mark.parametrize("transform", [mz.cluster(16), mz.cluster(16, zero=True), mz.cluster(8, block=2)])
def test_a_compressed_leaf_has_its_relative_error_at_any_scale(transform):
    w = RNG.normal(size=300).astype(np.float32)
    at_one = np.asarray(mz.unpack(mz.compress({"w": w}, transform))["w"])
    for e in (-73, 70, 120):
        found = mz.unpack(mz.compress({"w": np.ldexp(w, e)}, transform))["w"]
        np.testing.assert_array_equal(found, np.ldexp(at_one, e))


def test_a_codebook_reaches_the_largest_floats():
    w = jnp.array([[3.4e38, -3e38], [1.0, 2.0]])
    np.testing.assert_allclose(
        mz.unpack(mz.compress({"w": w}, mz.cluster(3)))["w"], [[3.4e38, -3e38], [1.5, 1.5]]
    )
