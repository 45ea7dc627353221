"""k-means of weights, one-dimensional: Lloyd's iteration on a histogram or on sorted values."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, UInt8

from modelzip_jax.errors import TransformError
from modelzip_jax.sharing.bins import BINS
from modelzip_jax.sharing.centroids import INITS, initial
from modelzip_jax.sharing.density import Density, Points, binning, filled, histogram, sort
from modelzip_jax.sharing.prefix import between
from modelzip_jax.sharing.relocation import relocate
from modelzip_jax.sharing.scaling import TOP, exponent, largest, scaled
from modelzip_jax.tree import PyTree

__all__ = ["KMeans", "assign", "kmeans"]

_METHODS = ("auto", "histogram", "exact")
_FEW = 32


class KMeans(NamedTuple):
    """Centroids in ascending order, and the squared error that they leave.

    The error is the sum of (weighted) squared distances to the nearest centroid; by a histogram it leaves
    out what the values of one bin differ by. Beyond what a float holds it is inf, or 0; the centroids are the same
    at every scale of the values.

    >>> found = kmeans(jnp.array([0.0, 1.0, 9.0]), k=2)
    >>> found.centroids, found.distortion
    (Array([0.5, 9. ], dtype=float32), Array(0.5, dtype=float32))
    """

    centroids: Float[jax.Array, " k"]
    distortion: Float[jax.Array, ""]


def kmeans(
    x: PyTree,
    k: int,
    *,
    weights: PyTree = None,
    init: str | jax.Array = "companding",
    iterations: int = 300,
    method: str = "auto",
    zero: bool = False,
    key: jax.Array | None = None,
) -> KMeans:
    """Centroids that minimise the squared error of weights, by Lloyd's iteration.

    Prefix sums over sorted points make an iteration take O(k log n). The points are the values
    themselves or 65,536 bins of a companded histogram, made in one pass over the weights. A centroid that
    no weight is nearest to moves next to the centroid that leaves the largest error.

    Args:
      x: floating-point array, or a tree of arrays that share the centroids. Not empty.
      k: number of centroids, at least 1.
      weights: importance of each value, not negative, of the structure and shapes of `x`: the diagonal of
        the Fisher information, or a 0/1 mask. None: 1.
      init: "companding" (quantiles of the cube root of the density, near the optimum for large k),
        "density" (quantiles of the density), "linear" (even over the range; Han et al. find it best for
        fine-tuning, as it keeps large weights), "k-means++", or an array `(k,)` of centroids.
      iterations: most iterations; it ends before if no centroid moves.
      method: "histogram", "exact" (sorts), or "auto": exact for up to 65,536 values.
      zero: keep one centroid at exactly 0.
      key: of "k-means++"; `jax.random.key(0)` if None.

    Returns:
      A `KMeans`, of the dtype of `x`, float32 if that is of half precision.

    Raises:
      TransformError: an unknown method or init, k below 1, nothing to cluster.

    Lloyd 1982, doi:10.1109/TIT.1982.1056489; initial centroids as in Han et al. 2016, arXiv:1510.00149.

    >>> kmeans(jnp.array([-1.0, 0.0, 0.1, 0.2, 5.0]), 3).centroids.round(3)
    Array([-1. ,  0.1,  5. ], dtype=float32)
    """
    arrays = [jnp.asarray(leaf) for leaf in jax.tree.leaves(x)]
    size = sum(leaf.size for leaf in arrays)
    if not size or k < 1:
        raise TransformError(f"kmeans() of {size} values and {k} centroids; both must be at least 1")
    if method not in _METHODS or not (init in INITS if isinstance(init, str) else jnp.shape(init) == (k,)):
        raise TransformError(
            f"kmeans() has the methods {_METHODS} and the inits {INITS} or {k} centroids, not {method!r}, {init!r}"
        )
    if weights is None:
        weights = [None] * len(arrays)
    masses = jax.tree.leaves(weights, is_leaf=lambda w: w is None)
    exact = method == "exact" or (method == "auto" and size <= BINS)
    key = jax.random.key(0) if key is None else key
    dtype = jnp.promote_types(jnp.result_type(*arrays), jnp.float32)
    # What is chosen has no gradient; loops of any number of steps could not be differentiated.
    values, masses = jax.lax.stop_gradient(([leaf.astype(dtype) for leaf in arrays], masses))
    kept = [(x, w) for x, w in zip(values, masses, strict=True) if x.size]
    values, masses = [x for x, _ in kept], [w for _, w in kept]
    if exact:
        values, masses = ([x] for x in filled(values, masses))
    points, centre, exponents = _points(values, masses, exact)
    start = None if isinstance(init, str) else jax.lax.stop_gradient(jnp.asarray(init, dtype))
    name = init if isinstance(init, str) else ""
    return _fit(*points, centre, exponents, key, start, jnp.int32(iterations), k, name, zero, exact)


@functools.partial(jax.jit, static_argnums=2)
def _points(
    arrays: list[jax.Array], weights: list[jax.Array | None], exact: bool
) -> tuple[Points, jax.Array, tuple[jax.Array, jax.Array]]:
    """The points less the centre, the centre, and the exponents of the units of values and of masses.

    All that is compiled anew for each shape of more than 65,536 values.
    """
    size = largest(arrays)
    length = exponent(size) - TOP
    importance, weights = normalised(arrays, weights)
    bins = binning(arrays, weights, length)
    points = sort(arrays, weights, bins) if exact else histogram(arrays, weights, bins, scaled(size, -length))
    return points, bins.centre, (length, importance)


def normalised(
    arrays: list[jax.Array], weights: list[jax.Array | None]
) -> tuple[jax.Array, list[jax.Array | None]]:
    """Weights in a unit in which the largest is near 1, so that sums of products neither overflow nor vanish.

    Returns:
      The exponent of the unit, and the weights, of the dtype of the arrays: all None, or none.
    """
    if all(w is None for w in weights):
        return jnp.int32(0), weights
    pairs = zip(arrays, weights, strict=True)
    given = [jnp.ones_like(x) if w is None else w.astype(x.dtype).reshape(x.shape) for x, w in pairs]
    e = exponent(largest(given))
    return e, [scaled(w, -e) for w in given]


@functools.partial(jax.jit, static_argnums=(8, 9, 10, 11))
def _fit(
    points: jax.Array, mass: jax.Array, first: jax.Array, centre: jax.Array,
    exponents: tuple[jax.Array, jax.Array], key: jax.Array, given: jax.Array | None, iterations: jax.Array,
    k: int, init: str, zero: bool, exact: bool,
) -> KMeans:  # fmt: skip
    density = Density.of(points, mass, first, exact)
    length, importance = exponents
    if given is None:
        start = initial(density, k, init, key)
    else:  # Far beyond the values only the order counts.
        start = jnp.clip(scaled(given, -length), -(2.0**100), 2.0**100) - centre
    start = jnp.sort(start)
    pin = -centre if zero else None
    if pin is not None:
        start = jnp.sort(start.at[jnp.argmin(jnp.abs(start - pin))].set(pin))
    centroids = lloyd_iterations(density, start, iterations, pin)
    error = jnp.sum(_errors(density, _edges(density, centroids), centroids))
    return KMeans(scaled(centroids + centre, length), scaled(error, 2 * length + importance))


def lloyd_iterations(
    density: Density, centroids: jax.Array, iterations: jax.Array, pin: jax.Array | None = None
) -> jax.Array:
    """Lloyd's iteration from ascending centroids `(k,)`, of points less their centre.

    pin: a scalar; a centroid that is exactly there stays.
    """

    bounds = density.range()

    def moved(state: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        step, centroids, _ = state
        new = _step(density, centroids, bounds, pin)
        return step + 1, new, jnp.any(new != centroids)

    def going(state: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        return (state[0] < iterations) & state[2]

    return jax.lax.while_loop(going, moved, (jnp.int32(0), centroids, jnp.bool_(True)))[1]


def _edges(density: Density, centroids: jax.Array) -> jax.Array:
    """Indices of the points where each centroid's interval begins, and of the end: `(k + 1,)`."""
    inner = jnp.searchsorted(density.points, midpoints(centroids), side="right").astype(jnp.int32)
    return jnp.pad(jnp.append(inner, density.points.size), (1, 0))


def _step(
    density: Density, centroids: jax.Array, bounds: tuple[jax.Array, jax.Array], pin: jax.Array | None
) -> jax.Array:
    """Means of the points nearest to each centroid, in ascending order."""
    edges = _edges(density, centroids)
    mass = between(density.masses, edges)
    means = between(density.firsts, edges) / jnp.where(mass > 0, mass, 1.0)
    means = jnp.where(mass > 0, means, centroids)
    fixed = jnp.zeros(centroids.shape, bool) if pin is None else centroids == pin
    means = jnp.where(fixed, centroids, means)
    return jnp.sort(relocate(means, mass, _errors(density, edges, means), fixed, bounds))


def _errors(density: Density, edges: jax.Array, centroids: jax.Array) -> jax.Array:
    """The squared error that each centroid leaves: Σ m (x - c)², `(k,)`."""
    mass, first, second = (between(p, edges) for p in (density.masses, density.firsts, density.seconds))
    return jnp.maximum(second - centroids * (2.0 * first - mass * centroids), 0.0)


def midpoints(centroids: Float[jax.Array, " k"]) -> Float[jax.Array, " k-1"]:
    """Where one centroid's values end and the next one's begin: `(k - 1,)`, halfway."""
    return 0.5 * centroids[:-1] + 0.5 * centroids[1:]


@jax.jit
def assign(x: Float[jax.Array, "*shape"], centroids: Float[jax.Array, " k"]) -> UInt8[jax.Array, "*shape"]:
    """The nearest centroid of each value; halfway, the lower one. Integers have no gradient.

    Args:
      x: floating-point array.
      centroids: `(k,)` in ascending order, k at most 256.

    Returns:
      Codes, uint8 of the shape of `x`.

    >>> assign(jnp.array([0.0, 0.4, 2.0]), jnp.array([0.0, 1.0]))
    Array([0, 0, 1], dtype=uint8)
    """
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    x, centroids = jax.lax.stop_gradient((x.astype(dtype), centroids.astype(dtype)))
    middle = midpoints(centroids)
    if x.size <= BINS or centroids.size <= _FEW:
        method = "compare_all" if centroids.size <= _FEW else "scan"
        return jnp.searchsorted(middle, x, method=method).astype(jnp.uint8)
    return _assign_by_table(x, middle)


def _assign_by_table(x: jax.Array, middle: jax.Array) -> jax.Array:
    """Codes begin at what the value's bin says and count the midpoints that are left within it.

    Binary search reads a table eight times a value; this reads one once and, as a rule, compares twice.
    """
    # What is far beyond the midpoints needs no bins of its own.
    bins = binning([x], [None], exponent(largest([middle])))
    places = bins.coarse(middle)
    # One bin less: rounding may put a value one bin beyond a midpoint that is above it.
    begin = jnp.searchsorted(places, jnp.arange(BINS) - 1).astype(jnp.int32)
    most = jnp.max(jnp.searchsorted(places, jnp.arange(BINS), side="right") - begin)
    padded = jnp.append(middle, jnp.inf)
    advance = lambda _, c: c + (x > padded[c])  # noqa: E731
    codes = advance(
        0, advance(0, begin[bins.coarse(x)])
    )  # Unrolled: one pass for what nearly always suffices.
    return jax.lax.fori_loop(2, most, advance, codes).astype(jnp.uint8)
