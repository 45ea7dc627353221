"""Masks chosen on the host equal those of the jitted search, ties and all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import modelzip_jax as mz
from modelzip_jax.masking import host_threshold, pruning
from modelzip_jax.masking.allocation import allocator
from modelzip_jax.masking.bitmask import pack_mask, unpack_mask
from modelzip_jax.masking.counting import count_kept
from modelzip_jax.masking.host_threshold import choose_on_host, count_kept_exactly

RNG = np.random.default_rng(0)

# Elsewhere values are not read on the host.
pytestmark = pytest.mark.skipif(jax.default_backend() != "cpu", reason="the host computes for CPUs only")
SHAPES = [(), (7,), (0, 3), (30, 40), (2, 3, 5, 7), (1, 1), (4_100,)]
SPARSITIES = [0.0, 1e-4, 0.1, 0.5, 0.9, 0.999999, 1.0]


def _jitted(arrays, sparsity, score, near):
    return allocator._largest([arrays], sparsity[None], score, near)[0]


def data(kind, size):
    x = RNG.normal(size=size)
    made = {
        "normal": x,
        "ties": RNG.integers(-3, 4, size),
        "zeros": np.zeros(size),
        "mostly zeros": np.where(RNG.random(size) < 0.9, -0.0, x),
        "equal": np.full(size, -2.0),
        "denormals": x * 1e-42,
        "infinite": np.where(RNG.random(size) < 0.2, -np.inf, x),
        "far apart": x * 10.0 ** RNG.integers(-30, 30, size),
    }
    return made[kind].astype(np.float32)


KINDS = ["normal", "ties", "zeros", "mostly zeros", "equal", "denormals", "infinite", "far apart"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("kind", KINDS)
def test_global_and_per_leaf_masks_equal_the_jitted_ones(kind, dtype):
    if kind == "far apart" and dtype == "float16":
        pytest.skip("float16 does not reach so far")
    sizes = [int(np.prod(s)) for s in SHAPES]
    parts = np.split(data(kind, sum(sizes)), np.cumsum(sizes)[:-1])
    arrays = [jnp.asarray(p.reshape(s)).astype(dtype) for p, s in zip(parts, SHAPES, strict=True)]
    near = jnp.zeros(1, jnp.uint32)
    for score in (jnp.abs, jnp.square, pruning._same):
        for sparsity in SPARSITIES:
            for group in [arrays, arrays[3:4]] if score is jnp.abs else [arrays]:
                expected, _ = _jitted(group, jnp.float32(sparsity), score, near)
                found, threshold = choose_on_host(group, jnp.float32(sparsity), score)
                assert [m.shape for m in found] == [m.shape for m in expected]
                for a, b in zip(found, expected, strict=True):
                    np.testing.assert_array_equal(a, b)
                # It is one to start the next search from: that finds the same masks.
                again, _ = _jitted(group, jnp.float32(sparsity), score, threshold)
                jax.tree.map(np.testing.assert_array_equal, list(again), list(found))


def test_counts_are_those_of_the_jitted_search():
    sizes = [0, 1, 3, 9_999_999, 10_000_000, 50_000_000, (1 << 31) - 1]
    for size in sizes + RNG.integers(1, 1 << 31, 100).tolist():
        for sparsity in [*SPARSITIES, float(RNG.random())]:
            assert count_kept_exactly(size, sparsity) == int(count_kept(size, jnp.float32(sparsity)))


def test_blocks_of_every_size(monkeypatch):
    monkeypatch.setattr(host_threshold, "_BLOCKS", (8, 32, 128))
    for size in (1, 8, 9, 127, 128, 129, 700):
        x = jnp.asarray(data("ties", size))
        expected, _ = _jitted([x], jnp.float32(0.6), jnp.abs, jnp.zeros(1, jnp.uint32))
        np.testing.assert_array_equal(choose_on_host([x], 0.6, jnp.abs)[0][0], expected[0])


def test_tracers_are_left_to_the_jitted_search():
    def masks(x):
        assert choose_on_host([x], 0.5, jnp.abs) is None
        assert choose_on_host([np.ones(4)], x[0], jnp.abs) is None
        return x

    jax.jit(masks)(jnp.ones(4))


@pytest.mark.parametrize("allocation", ["uniform", "global", "erk"])
def test_init_is_the_same_under_jit(allocation):
    params = {"a": data("ties", 600).reshape(20, 30), "b": data("normal", 77), "c": np.ones((0, 2), "f4")}
    transform = mz.prune(sparsity=0.37, allocation=allocation)
    masks = lambda p: transform.init(p, mz.Context()).state.masks  # noqa: E731
    jax.tree.map(np.testing.assert_array_equal, masks(params), jax.jit(masks)(params))


def test_masks_as_bits():
    for shape in [(), (1,), (8,), (9,), (0,), (3, 0), (5, 17), (2, 3, 4)]:
        mask = jnp.asarray(RNG.random(shape) < 0.5)
        bits = pack_mask(mask)
        np.testing.assert_array_equal(bits, jax.jit(pack_mask)(mask))
        assert bits.dtype == jnp.uint8
        back = unpack_mask(bits, shape)
        assert (back.dtype, back.shape) == (jnp.bool_, shape)
        np.testing.assert_array_equal(back, mask)


def test_a_search_compiles_a_program_a_block_size():
    def score(x):
        return jnp.abs(x)

    before = host_threshold._block_keys._cache_size()
    for n in range(2, 30):
        choose_on_host([jnp.asarray(np.ones((n, 5), np.float32))], 0.5, score)
    assert host_threshold._block_keys._cache_size() == before + 1
