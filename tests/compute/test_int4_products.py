"""Products with weights of four bits: every way is the product with the decoded matrix."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import modelzip_jax as mz
from modelzip_jax.compute.int4_products import WAYS
from modelzip_jax.errors import TransformError

RNG = np.random.default_rng(0)
CASES = {
    "channels": ((100, 128), {}),
    "tensor": ((64, 5), {"granularity": "tensor"}),
    "groups": ((128, 128), {"granularity": "group", "group_size": 32}),
    "ragged groups": ((150, 128), {"granularity": "group", "group_size": 64}),
    "odd groups": ((17, 3), {"granularity": "group", "group_size": 5}),
    "one group": ((20, 7), {"granularity": "group", "group_size": 64}),
    "offsets": ((96, 128), {"symmetric": False, "granularity": "group", "group_size": 32}),
    "offsets of channels": ((33, 5), {"symmetric": False}),
    "two bits": ((40, 6), {"bits": 2}),
}


def matrix(name):
    shape, options = CASES[name]
    w = RNG.normal(size=shape).astype(np.float32) + 0.3
    return mz.compress(w, mz.quantize(**{"bits": 4, "axis": -1, **options})).params


@functools.partial(jax.jit, static_argnums=2)
def multiplied(x, held, way):
    return [mz.packed_matmul(x.astype(dtype), held, way) for dtype in (jnp.float32, jnp.bfloat16)]


@pytest.mark.parametrize("name", CASES)
def test_every_way(name):
    packed = matrix(name)
    k, n = packed.shape
    x = RNG.normal(size=(2, 3, k)).astype(np.float32)
    whole = np.asarray(mz.unpack(packed), np.float64)
    wanted = x.astype(np.float64) @ whole
    size = np.abs(x).sum(-1).max() * np.abs(whole).max()
    for native in (False, True):
        held = mz.int4_matrix(packed, native)
        np.testing.assert_allclose(mz.unpack(held), whole, rtol=0, atol=1e-6 * size)
        for way in (None, *WAYS):
            refused = (way == "after" and held.scale.shape[0] > 1) or (
                way == "kernel" and (native or n % 128 or held.rows % 32)
            )
            if refused:
                with pytest.raises(TransformError):
                    mz.packed_matmul(x, held, way)
                continue
            for y, dtype, close in zip(
                multiplied(x, held, way), (jnp.float32, jnp.bfloat16), (1e-6, 2e-2), strict=True
            ):
                assert y.dtype == dtype
                np.testing.assert_allclose(
                    np.asarray(y, np.float64), wanted, rtol=0, atol=close * size, err_msg=f"{native} {way}"
                )


def test_symmetric_codes_keep_their_bits_and_four_of_them_a_weight():
    packed = matrix("groups")
    held = mz.int4_matrix(packed)
    np.testing.assert_array_equal(held.unpack(), packed.unpack())
    assert held.codes.nbytes == packed.codes.nbytes == 128 * 128 // 2
    assert jax.jit(lambda h: h.unpack())(held).tolist() == packed.unpack().tolist()


# jax 0.12 means to drop it; its successor has no products in its portable part.
@pytest.mark.filterwarnings("ignore:The Pallas Triton backend:DeprecationWarning")
@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_the_kernel_is_lowered_for_accelerators(platform):
    for name in ("channels", "offsets"):
        traced = jax.jit(lambda x, h: mz.packed_matmul(x, h, "kernel")).trace(
            jnp.ones((20, CASES[name][0][0]), jnp.bfloat16), mz.int4_matrix(matrix(name))
        )
        try:
            text = traced.lower(lowering_platforms=(platform,)).as_text()
        except RuntimeError as error:  # Since jax 0.12 Triton's lowering asks the GPU what it is.
            if "No supported GPU devices found" not in str(error):
                raise
            pytest.skip(str(error))
        assert ("tpu_custom_call" if platform == "tpu" else "triton") in text


def test_other_packed_matrices_are_unpacked():
    packed = mz.compress(RNG.normal(size=(8, 4)).astype(np.float32), mz.quantize(6)).params
    x = jnp.ones((2, 8))
    np.testing.assert_allclose(mz.packed_matmul(x, packed), x @ packed.unpack(), rtol=1e-6)


def test_what_does_not_fit_is_refused():
    packed = matrix("channels")
    held = mz.int4_matrix(packed)
    for x, w, way in (
        (jnp.ones((2, 7)), held, None),
        (jnp.ones((2, 100)), jnp.ones((100, 128)), None),
        (jnp.ones((2, 100)), held, "befor"),
        (jnp.ones((2, 100)), packed, "after"),
    ):
        with pytest.raises(TransformError):
            mz.packed_matmul(x, w, way)
    for w in (held, packed):  # the result would be cut off to integers
        with pytest.raises(TransformError, match=r"takes floats.*uint8\[2, 100\]"):
            mz.packed_matmul(jnp.ones((2, 100), jnp.uint8), w)
    w = RNG.normal(size=(8, 4)).astype(np.float32)
    for recipe in (mz.quantize(5, axis=-1), mz.quantize(4, axis=0), mz.identity()):
        with pytest.raises(TransformError, match=r"axis=-1|at most 4 bits"):
            mz.int4_matrix(mz.compress(w, recipe).params)
    model = mz.compress({"w": w}, mz.quantize(4, axis=-1))
    for call in (lambda: mz.int4_matrix(model), lambda: mz.packed_matmul(jnp.ones((2, 8)), model)):
        with pytest.raises(TransformError, match=r"pass a leaf, packed\.params\[\.\.\.\]"):
            call()
    with pytest.raises(TransformError, match="before jit"):
        jax.jit(mz.int4_matrix)(packed)


def test_numbers_of_numpy_become_jaxs(recwarn):
    packed, x = matrix("tensor"), RNG.normal(size=(2, 64))
    for held in (packed, mz.int4_matrix(packed)):
        y = mz.packed_matmul(x, held)
        assert y.dtype == jnp.float32
        np.testing.assert_allclose(y, x @ np.asarray(packed.unpack(), np.float64), rtol=1e-4, atol=1e-4)
    assert not recwarn.list
