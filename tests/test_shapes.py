"""Shapes and dtypes that signatures state, held against calls."""

import inspect
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Float, jaxtyped

import modelzip_jax as mz
from modelzip_jax.coding import escapes, histograms
from modelzip_jax.masking.counting import order_keys
from modelzip_jax.sharing import lookup, sums, vectors
from modelzip_jax.sharing.lloyd import midpoints
from modelzip_jax.wavelets import block_cosines, filters

RNG = np.random.default_rng(0)
HAAR = mz.wavelets.Basis("wavelet", "haar", 2, (0,))


def floats(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def fits(value, hint):
    """Whether a value is what an annotation says, with the axes that were met before."""
    parts = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        return len(value) == len(parts) and all(map(fits, value, parts))
    if parts:
        return any(fits(value, part) for part in parts)
    return isinstance(value, hint)


def misfits(function, *args):
    """Names of the arguments, and "return", that are not what the signature says."""
    unwrapped = inspect.unwrap(function)
    hints = typing.get_type_hints(unwrapped)
    bound = inspect.signature(unwrapped).bind(*args).arguments
    found = function(*args)
    checked = [
        (name, value) for name, value in [*bound.items(), ("return", found)] if is_checked(hints[name])
    ]
    assert checked
    with jaxtyped("context"):
        return [name for name, value in checked if not fits(value, hints[name])]


def is_checked(hint):
    return "jaxtyping" in getattr(hint, "__module__", "") or any(map(is_checked, typing.get_args(hint)))


def calls():
    counts = histograms.count(np.arange(256, dtype=np.uint8))
    rows, book, codes = floats(7, 3), floats(4, 3), jnp.arange(7) % 4
    yield mz.wavelets.dwt, floats(5, 6), "db2", 2, (0, 1)
    yield mz.wavelets.idwt, floats(5, 6).astype(jnp.bfloat16), "haar", 1
    yield mz.wavelets.dct, floats(5, 6), 4
    yield mz.wavelets.idct, floats(5, 6), 4
    yield block_cosines.dct_matrix, 4
    yield filters.lowpass, "db3"
    yield filters.highpass, "db3"
    yield mz.wavelets.input_coefficients, floats(2, 5, 8), HAAR, 1
    yield mz.wavelets.coefficient_dot, floats(2, 5, 8), floats(4, 3), HAAR
    yield midpoints, jnp.arange(4.0)
    yield mz.sharing.assign, floats(5, 6), jnp.arange(4.0)
    yield sums.matmul, floats(2, 3), floats(3, 4)
    yield sums.segment_sums, codes, rows, 4
    yield lookup.attention, rows, book, jnp.float32(1.0)
    yield lookup.soft_means, rows, jnp.full((7, 4), 0.25), book
    yield lookup.soft_means, rows, jnp.full((7, 4), 0.25), book, jnp.ones((7, 3))
    yield lookup.twins, book
    yield vectors.to_blocks, floats(5, 6), 4, 0
    yield vectors.assign_blocks, rows, book
    yield mz.sharing.vector_kmeans, rows, 4
    yield order_keys, floats(5, 6)
    yield histograms.count, np.zeros((5, 6), np.uint8)
    yield histograms.normalize_counts, counts
    yield histograms.code_length, counts, histograms.fit_frequencies(counts)
    yield histograms.entropy, counts
    yield histograms.fit_frequencies, counts
    yield escapes.extract, np.array([3, 1, 3, 9], np.uint8), np.array([1, 9], np.uint8)


@pytest.mark.parametrize("call", list(calls()), ids=lambda call: call[0].__name__)
def test_signatures_say_what_goes_in_and_comes_out(call):
    assert misfits(*call) == []


def test_what_does_not_fit_is_found():
    def transposed(x: Float[jax.Array, "rows columns"]) -> Float[jax.Array, "rows columns"]:
        return x.T

    assert misfits(transposed, floats(2, 2)) == []
    assert misfits(transposed, floats(2, 3)) == ["return"]
    assert misfits(transposed, floats(2)) == ["x", "return"]
    assert misfits(transposed, jnp.ones((2, 2), int)) == ["x", "return"]


def test_centroids_and_their_error():
    found = mz.sharing.kmeans(floats(50), 4)
    hints = typing.get_type_hints(mz.sharing.KMeans)
    with jaxtyped("context"):
        assert all(fits(value, hints[name]) for name, value in found._asdict().items())
