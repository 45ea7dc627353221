import jax
import jax.numpy as jnp
import numpy as np
import pytest

import modelzip_jax as mz
from modelzip_jax.masking.masked import Masked
from modelzip_jax.packed import Dense, PackedArray

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(), (5,), (3, 4), (0, 2), (2, 3, 4)])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_only_what_the_mask_keeps_is_stored(shape, share):
    x = jnp.asarray(RNG.normal(size=shape), jnp.float32)
    mask = RNG.random(shape) < share
    packed = Masked.of(mask, Dense(x, shape), "float32")
    expected = np.where(mask, x, 0)
    np.testing.assert_array_equal(packed.unpack(), expected)
    np.testing.assert_array_equal(jax.jit(lambda p: p.unpack())(packed), expected)
    np.testing.assert_array_equal(packed.positions(), mask)
    np.testing.assert_array_equal(packed.expanded().unpack(), expected)
    assert packed.kept == mask.sum()
    assert packed.nbytes == 4 * mask.sum() + 4 * -(-mask.size // 32)


def test_codes_of_pruned_weights_are_left_out():
    t = mz.chain(mz.prune(sparsity=0.75), mz.quantize(4, granularity="tensor"))
    packed = mz.compress({"w": RNG.normal(size=(32, 32)).astype("f4")}, t)
    kept = 256
    assert packed.nbytes == 1024 // 8 + kept * 4 // 8 + 4
    assert packed.params["w"].inner.codes.count == kept


def test_zeros_survive_a_grid_without_zero():
    """One bit knows ± s / 2 only; the mask still gives exact zeros."""
    t = mz.chain(mz.prune(sparsity=0.5), mz.quantize(1))
    packed = mz.compress({"w": RNG.normal(size=(8, 8)).astype("f4")}, t)
    assert int(jnp.sum(mz.unpack(packed)["w"] == 0)) == 32


def test_an_inner_kind_that_is_not_elementwise_is_kept_whole():
    class Constant(PackedArray):
        shape = (2, 3)

        def unpack(self):
            return jnp.ones((2, 3))

    mask = np.array([[True, False, True], [False, False, True]])
    packed = Masked.of(mask, Constant(), "float32")
    np.testing.assert_array_equal(packed.unpack(), mask)
    assert packed.expanded() is packed.inner
