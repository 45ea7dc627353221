"""k-means beside scikit-learn, on histograms and on sorted values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.cluster import KMeans

import modelzip_jax as mz
from modelzip_jax.sharing import lloyd as module
from modelzip_jax.sharing.lloyd import assign, kmeans

RNG = np.random.default_rng(0)
DATA = {
    "normal": RNG.normal(size=60_000),
    "heavy": RNG.standard_t(3, size=60_000),
    "gains": 1.0 + 0.01 * RNG.normal(size=60_000),
    "sparse": np.where(RNG.random(60_000) < 0.9, 0.0, RNG.normal(size=60_000)),
}


def squared_error(x, centroids, weights=1.0):
    """By brute force, in float64."""
    x, c = np.asarray(x, np.float64), np.sort(np.asarray(centroids, np.float64))
    nearest = c[np.searchsorted(0.5 * (c[1:] + c[:-1]), x)]
    return np.sum(weights * (x - nearest) ** 2)


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("k", [4, pytest.param(64, marks=pytest.mark.slow)])
def test_no_worse_than_scikit_learn_after_the_same_iterations(name, k):
    x = DATA[name].astype(np.float32)
    start = np.linspace(x.min(), x.max(), k, dtype=np.float32)
    theirs = KMeans(k, init=start[:, None], n_init=1, max_iter=5, tol=0).fit(x[:, None])
    for method in ("histogram", "exact"):
        ours = kmeans(x, k, init=start, iterations=theirs.n_iter_, method=method)
        error = squared_error(x, ours.centroids)
        # Where empty clusters move to differs.
        assert error <= 1.01 * squared_error(x, theirs.cluster_centers_[:, 0])
        np.testing.assert_allclose(ours.distortion, error, rtol=2e-3)


@pytest.mark.parametrize("init", ["density", "k-means++"])
def test_every_init_gives_ascending_finite_centroids(init):
    x = DATA["heavy"].astype(np.float32)
    first = kmeans(x, 4, init=init, iterations=0)
    last = kmeans(x, 4, init=init)
    for found in (first.centroids, last.centroids):
        assert np.all(np.diff(found) >= 0)
        assert x.min() <= found[0]
        assert found[-1] <= x.max()
    assert last.distortion < first.distortion


def test_exact_centroids_are_means_of_what_is_nearest():
    x = DATA["normal"].astype(np.float32)[:3000]
    centroids = np.asarray(kmeans(x, 4, method="exact").centroids)
    codes = np.abs(x[:, None] - centroids).argmin(axis=1)
    means = [x[codes == j].mean() for j in range(4)]
    np.testing.assert_allclose(centroids, means, atol=1e-6)


def test_few_distinct_values_are_found_exactly_enough():
    values = np.float32([-0.75, -0.1, 0.0, 0.2, 3.0])
    x = RNG.choice(values, size=100_000)
    for method in ("histogram", "exact"):
        found = np.asarray(kmeans(x, 5, method=method).centroids)
        np.testing.assert_allclose(found, values, rtol=1e-5)
        assert found[2] == 0.0


def test_more_centroids_than_values_stay_finite():
    found = kmeans(np.float32([2.0, 2.0, -1.0]), 8)
    assert np.all(np.isfinite(found.centroids))
    assert float(found.distortion) == 0.0


def test_an_empty_cluster_moves_to_the_largest_error():
    x = np.concatenate([RNG.normal(size=1000), 50 + RNG.normal(size=1000)]).astype(np.float32)
    start = np.float32([0.0, 49.0, 1000.0])
    found = np.asarray(kmeans(x, 3, init=start).centroids)
    assert found[-1] < 60
    assert squared_error(x, found) < squared_error(x, [0.0, 50.0])


def test_weights_count_as_repetitions():
    x = DATA["normal"].astype(np.float32)[:500]
    times = RNG.integers(0, 4, size=500)
    start = np.float32([-2, -1, 1, 2])
    repeated = kmeans(np.repeat(x, times), 4, init=start).centroids
    for method in ("histogram", "exact"):
        weighted = kmeans(x, 4, weights=times.astype(np.float32), init=start, method=method).centroids
        np.testing.assert_allclose(weighted, repeated, rtol=2e-3, atol=2e-4)


def test_masked_values_have_no_influence():
    x = DATA["heavy"].astype(np.float32)[:2000]
    mask = np.abs(x) > 0.7
    start = np.linspace(-5, 5, 4, dtype=np.float32)
    alone = kmeans(x[mask], 4, init=start, method="exact").centroids
    masked = kmeans(x, 4, init=start, weights=mask, method="exact").centroids
    np.testing.assert_allclose(alone, masked, rtol=1e-4)


@pytest.mark.parametrize("method", ["histogram", "exact"])
def test_zero_stays_a_centroid(method):
    x = DATA["gains"].astype(np.float32)[:3000]
    found = np.asarray(kmeans(x, 4, zero=True, method=method).centroids)
    assert np.count_nonzero(found == 0.0) == 1
    np.testing.assert_allclose(found[1:], kmeans(x, 3, method=method).centroids, rtol=1e-3)


def test_a_tree_shares_its_centroids():
    x = DATA["normal"].astype(np.float32)[:4000]
    alone = kmeans(x, 4).centroids
    tree = {"a": jnp.asarray(x[:1000]).reshape(10, 100), "b": [x[1000:]], "empty": np.zeros((0, 3), "f4")}
    for method in ("histogram", "exact"):
        together = kmeans(tree, 4, method=method).centroids
        np.testing.assert_allclose(together, alone, rtol=2e-3)


def test_a_small_cluster_among_many_weights_keeps_its_mean():
    """Prefix sums in single floats would lose it: ten weights behind four million."""
    x = np.concatenate([1.0 + 0.01 * RNG.random(1 << 22), np.full(10, 3.3)]).astype(np.float32)
    found = kmeans(x, 2, init=np.float32([1.0, 3.0]), method="histogram").centroids
    np.testing.assert_allclose(found[1], 3.3, rtol=1e-6)


@pytest.mark.parametrize("k", [16, pytest.param(200, marks=pytest.mark.slow)])
def test_assignment_by_table_is_binary_search(k):
    x = DATA["heavy"].astype(np.float32)
    centroids = np.sort(np.append(x[: k - 2], [x[0], np.nextafter(x[0], np.float32(9))]))
    middle = module.midpoints(jnp.asarray(centroids))
    values = jnp.append(jnp.asarray(x), middle)
    codes = module._assign_by_table(values, middle)
    np.testing.assert_array_equal(codes, np.searchsorted(middle, values))
    np.testing.assert_array_equal(codes, assign(values, centroids))


def test_half_precision_and_jit():
    x = jnp.asarray(DATA["normal"][:1000], jnp.bfloat16)
    eager = kmeans(x, 4)
    assert eager.centroids.dtype == jnp.float32
    np.testing.assert_array_equal(jax.jit(lambda x: kmeans(x, 4).centroids)(x), eager.centroids)


@pytest.mark.parametrize(
    ("x", "k", "options"),
    [([], 2, {}), ([1.0], 0, {}), ([1.0], 2, {"init": "best"}), ([1.0], 2, {"method": "fast"}),
     ([1.0], 2, {"init": np.zeros(3)})],
)  # fmt: skip
def test_wrong_arguments(x, k, options):
    with pytest.raises(mz.errors.TransformError, match=r"kmeans\(\)"):
        kmeans(np.float32(x), k, **options)
