"""Byte planes: every bit pattern of every dtype comes back."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelzip_jax.coding import planes, streams
from modelzip_jax.errors import FormatError, LeafError

DTYPES = [
    np.dtype(name)
    for name in (
        *("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"),
        *("float16", "float32", "float64", "complex64", "complex128", ">f4", ">i2"),
        *(ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.int4),
    )
]


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(DTYPES), st.binary(min_size=16, max_size=400))
def test_every_bit_pattern_comes_back(dtype, data):
    size = len(data) // dtype.itemsize
    raw = np.frombuffer(data, np.uint8, size * dtype.itemsize)
    if dtype.kind == "b":
        raw = raw & 1
    array = raw.view(dtype).reshape(1, size)
    parts = planes.split_planes(array)
    assert all(part.dtype == np.uint8 and part.ndim == 1 for part in parts)
    found = planes.join_planes(parts, dtype, array.shape)
    assert found.shape == array.shape
    assert found.dtype.isnative
    assert found.astype(dtype).tobytes() == array.tobytes()


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float64, np.int32])
def test_long_strided_and_empty_arrays(dtype):
    array = np.random.default_rng(0).normal(size=(300, 1001)).astype(dtype)[:, ::2]
    found = planes.join_planes(planes.split_planes(array), dtype, array.shape)
    assert found.tobytes() == array.tobytes()
    for shape in ((), (0,), (3, 0)):
        empty = np.zeros(shape, dtype)
        assert planes.join_planes(planes.split_planes(empty), dtype, shape).shape == shape


def test_special_values_keep_their_bits():
    bits = np.array([0x7FC00001, 0xFFC12345, 0x80000000, 0x7F800001, 1, 0xFF800000], np.uint32)
    found = planes.join_planes(planes.split_planes(bits.view(np.float32)), np.float32, (6,))
    np.testing.assert_array_equal(found.view(np.uint32), bits)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_the_top_plane_is_the_exponent(dtype):
    values = np.array([1.0, -1.0, 1.5, -1.75, 2.0, -0.25], dtype)
    assert planes.split_planes(values)[0].tolist() == [127, 127, 127, 127, 128, 125]


def test_only_the_exponent_plane_of_weights_is_worth_coding():
    weights = np.random.default_rng(0).normal(0, 0.05, 100_000).astype(np.float32)
    worth = [streams.plan(plane).coding != streams.RAW for plane in planes.split_planes(weights)]
    assert worth == [True, False, False, False]
    # So short that the table costs more than it saves.
    assert streams.plan(np.array([1, 9, 200], np.uint8)).coding == streams.RAW


def test_what_does_not_fit_is_refused():
    parts = planes.split_planes(np.zeros(4, np.float32))
    with pytest.raises(FormatError, match="4 planes of 5 bytes"):
        planes.join_planes(parts, np.float32, (5,))
    with pytest.raises(FormatError, match="2 planes"):
        planes.join_planes(parts, np.float16, (4,))
    for array in (np.array(["a"]), np.array([None]), np.zeros(2, "i4,f4")):
        with pytest.raises(LeafError, match="byte planes"):
            planes.split_planes(array)
