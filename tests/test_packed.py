import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modelzip_jax import errors
from modelzip_jax.packed import Bits, Dense, PackedArray, packed_kind


@pytest.mark.parametrize("bits", range(1, 9))
def test_bits_of_every_width_and_size(bits):
    rng = np.random.default_rng(bits)
    for size in range(101):
        codes = rng.integers(0, 1 << bits, size, dtype=np.uint8)
        packed = Bits.pack(codes, bits)
        assert packed.nbytes == 4 * bits * -(-size // 32)
        assert packed.shape == (size,)
        assert packed.size == size
        np.testing.assert_array_equal(packed.unpack_host(), codes)
        if size in (0, 1, 7, 31, 32, 33, 64, 100):
            np.testing.assert_array_equal(packed.unpack(), codes)
            assert packed.unpack().dtype == packed.unpack_host().dtype == np.uint8


def test_bits_beyond_the_width_are_dropped():
    np.testing.assert_array_equal(Bits.pack(np.uint8([255, 4]), 2).unpack(), [3, 0])


def test_unpack_under_jit_and_vmap():
    codes = np.arange(16, dtype=np.uint8)
    packed = Bits.pack(codes, 4)
    np.testing.assert_array_equal(jax.jit(lambda p: p.unpack())(packed), codes)
    two = jax.tree.map(lambda *x: jnp.stack(x), packed, Bits.pack(codes[::-1], 4))
    np.testing.assert_array_equal(jax.vmap(lambda p: p.unpack())(two), [codes, codes[::-1]])


def test_structure_is_static():
    packed = Bits.pack(np.zeros(3, np.uint8), 1)
    assert len(jax.tree.leaves(packed)) == 1
    assert jax.tree.structure(packed) == jax.tree.structure(Bits.pack(np.ones(3, np.uint8), 1))
    assert jax.tree.structure(packed) != jax.tree.structure(Bits.pack(np.ones(4, np.uint8), 1))


def test_dense_keeps_64_bit_numpy():
    packed = Dense(np.arange(3) + 2**40, (3,))
    assert packed.unpack().dtype == np.int64
    assert packed.nbytes == 24
    np.testing.assert_array_equal(packed.with_elements(packed.elements()).unpack(), packed.array)


def test_a_tag_belongs_to_one_class():
    with pytest.raises(errors.TransformError, match="'dense' is registered already"):

        @packed_kind("dense")
        class Other(PackedArray):
            pass


def test_a_kind_without_unpack_says_so():
    @packed_kind("test-without-unpack")
    class Hollow(PackedArray):
        array: jax.Array

    with pytest.raises(TypeError, match=r"Hollow defines no unpack\(\)"):
        Hollow(jnp.ones(1)).unpack()
