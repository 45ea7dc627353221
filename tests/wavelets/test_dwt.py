import jax
import jax.numpy as jnp
import numpy as np
import pytest
import pywt
from jax.test_util import check_grads

from modelzip_jax.errors import LeafError, TransformError
from modelzip_jax.wavelets.banks import split
from modelzip_jax.wavelets.bases import Basis
from modelzip_jax.wavelets.block_cosines import dct, idct
from modelzip_jax.wavelets.filters import FILTERS, LIFTING
from modelzip_jax.wavelets.multilevel import dwt, idwt

RNG = np.random.default_rng(0)
ORTHONORMAL = [name for name in FILTERS if name not in LIFTING]

jit = jax.jit


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def close(found, expected):
    """To 1e-6 of the largest number: float32 has 24 bits."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * max(1.0, float(np.max(np.abs(expected)))))


def closed(transform, inverse, x):
    """`(coefficients, round trip)` in one program."""

    def both(x):
        y = transform(x)
        return y, inverse(y)

    return jit(both)(x)


@pytest.mark.parametrize("name", ORTHONORMAL)
@pytest.mark.parametrize("length", [10])
def test_one_level_equals_pywavelets(name, length):
    x = normal(3, length)
    low, high = jit(lambda x: split(x, name, 1))(x)
    expected = pywt.dwt(x.astype(np.float64), name, "periodization")
    close(low, expected[0])
    close(high, expected[1])


@pytest.mark.filterwarnings("ignore:Level value")
@pytest.mark.parametrize("name", ["haar", "db10", "sym4"])
def test_levels_in_two_dimensions_equal_pywavelets(name):
    x = normal(32, 48)
    y, back = closed(lambda x: dwt(x, name, 3, (0, 1)), lambda y: idwt(y, name, 3, (0, 1)), x)
    expected, _ = pywt.coeffs_to_array(pywt.wavedec2(x.astype(np.float64), name, "periodization", level=3))
    close(y, expected)
    close(back, x)


@pytest.mark.parametrize("name", ["haar", "db3"])
def test_packets_equal_pywavelets_in_order_of_frequency(name):
    x = normal(48)
    tree = pywt.WaveletPacket(x.astype(np.float64), name, "periodization", maxlevel=3)
    expected = np.concatenate([node.data for node in tree.get_level(3, "freq")])
    close(dwt(x, name, 3, packets=True), expected)


@pytest.mark.parametrize("name", LIFTING)
def test_lifting_equals_pywavelets_inside(name):
    x = normal(64)
    low, high = split(x, name, 0)
    expected = pywt.dwt(x.astype(np.float64), name, "periodization")
    close(low[6:-6], expected[0][6:-6])
    close(high[6:-6], expected[1][6:-6])


QUICK = [1, 2, 3, 5, 7, 12, 33]
LENGTHS = [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in range(1, 71)]


@pytest.mark.parametrize("name", ["haar", "db4", "bior4.4"])
@pytest.mark.parametrize("length", LENGTHS)
def test_round_trip_and_energy_at_every_length(length, name):
    x = normal(length)
    y, back = closed(lambda x: dwt(x, name, 3), lambda y: idwt(y, name, 3), x)
    assert y.shape == x.shape
    close(back, x)
    if name not in LIFTING:
        np.testing.assert_allclose(np.sum(y**2), np.sum(x**2), rtol=1e-5)


@pytest.mark.parametrize("name", FILTERS)
def test_round_trip_of_every_filter(name):
    x = normal(5, 6)
    _, back = closed(lambda x: dwt(x, name, 1, (0, 1)), lambda y: idwt(y, name, 1, (0, 1)), x)
    close(back, x)


def test_smooth_rows_have_small_details():
    """Of a cubic, filters of four vanishing moments see nothing away from the ends."""
    x = jnp.linspace(-1, 1, 64) ** 3
    for name in ("db4", "sym4", "bior4.4"):
        assert np.max(np.abs(dwt(x, name)[36:-4])) < 1e-5


@pytest.mark.parametrize("block", [1, 3, 8, 100])
def test_dct(block):
    x = normal(3, 20)
    y, back = closed(lambda x: dct(x, block), lambda y: idct(y, block), x)
    close(back, x)
    np.testing.assert_allclose(np.sum(y**2), np.sum(x**2), rtol=1e-5)
    whole = jax.scipy.fft.dct(x[:, : min(block, 20)], norm="ortho")
    at = Basis("dct", "", block, (1,)).bands(x.shape)
    found = np.stack([y[:, band.start[1]] for band in at], 1)
    close(found, whole)


BASES = [
    Basis("wavelet", "haar", 9, (0, -1)),
    Basis("wavelet", "db2", 2, (0,)),
    Basis("packets", "sym4", 2, (-1,)),
    Basis("packets", "haar", 3, (0, -1)),
    Basis("dct", "", 4, (0, -1)),
]


@pytest.mark.parametrize("basis", BASES, ids=str)
@pytest.mark.parametrize("shape", [(7, 5), (1, 9), (16, 12), (3, 2, 4)])
def test_bands_cover_every_coefficient_once(basis, shape):
    covered = np.zeros(shape, int)
    frequencies = []
    for band in basis.bands(shape):
        covered[band.slices] += 1
        frequencies.append(band.frequency)
    assert (covered == 1).all()
    assert frequencies == sorted(frequencies)
    for keep in range(1, max(frequencies) + 2):
        corner = basis.corner(shape, keep)
        inside = [b for b in basis.bands(shape) if all(s < c for s, c in zip(b.start, corner, strict=True))]
        assert all(band.frequency < keep for band in inside)


def test_bands_are_where_frequencies_are():
    t = np.arange(64)
    basis = Basis("packets", "db10", 3, (0,))
    for k in (1, 4, 6):
        y = basis.analysis(np.cos(np.pi * t * (k + 0.5) / 8).astype(np.float32))
        energy = [float(np.sum(y[band.slices] ** 2)) for band in basis.bands((64,))]
        assert int(np.argmax(energy)) == k


@pytest.mark.parametrize("name", ["haar", "db2", "bior2.2"])
def test_gradients(name):
    x = normal(2, 11)
    check_grads(lambda x: dwt(x, name, 2, (0, 1)), (x,), 1, eps=1.0, atol=2e-2, rtol=2e-2)
    check_grads(lambda y: idwt(y, name, 2, (0, 1)), (x,), 1, eps=1.0, atol=2e-2, rtol=2e-2)


def test_gradient_of_an_orthonormal_transform_is_its_inverse():
    x, g = normal(24), normal(24)
    _, pull = jax.vjp(lambda x: dwt(x, "db3", 2), x)
    np.testing.assert_allclose(pull(g)[0], idwt(g, "db3", 2), atol=1e-6)


def test_vmap():
    x = normal(3, 12)
    mapped = jax.vmap(lambda row: dwt(row, "db2", 2))(x)
    np.testing.assert_allclose(mapped, dwt(x, "db2", 2), atol=1e-6)


def test_errors():
    x = normal(4, 4)
    with pytest.raises(TransformError, match="did you mean 'haar'"):
        dwt(x, "harr")
    with pytest.raises(TransformError, match="levels must be 0 or more"):
        dwt(x, levels=-1)
    with pytest.raises(LeafError, match="2 axes"):
        dwt(x, axes=2)
    with pytest.raises(LeafError, match="twice"):
        dwt(x, axes=(1, -1))
    with pytest.raises(LeafError, match="int32"):
        dwt(jnp.arange(4))
    with pytest.raises(TransformError, match="block"):
        dct(x, 0)
    with pytest.raises(TransformError, match="levels must be"):
        Basis("wavelet", "haar", -1, (0,))
    with pytest.raises(TransformError, match="a basis is one of"):
        Basis("fourier", "", 1, (0,))
