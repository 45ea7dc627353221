"""What is computed on the host equals what is computed under jit, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modelzip_jax.quantization import steps, uniform_codes
from modelzip_jax.quantization.blank_groups import is_blank
from modelzip_jax.quantization.granularity import Granularity
from modelzip_jax.quantization.host_codes import (
    blank_on_host,
    codes_on_host,
    spread_on_host,
    steps_on_host,
    values_on_host,
)

RNG = np.random.default_rng(0)

# Elsewhere values are not read on the host.
pytestmark = pytest.mark.skipif(jax.default_backend() != "cpu", reason="the host computes for CPUs only")
SHAPES = [(), (1,), (37,), (0,), (0, 3), (3, 0), (5, 1), (1, 6), (130, 9), (3, 3, 4, 7), (2, 300, 3)]


def data(kind, shape):
    x = RNG.normal(size=shape)
    made = {
        "normal": x,
        "zeros": np.zeros(shape),
        "half codes": np.round(8 * x) / 16,
        "heavy": RNG.standard_t(1.1, shape),
        "far apart": x * 10.0 ** RNG.integers(-37, 37, shape),
        "subnormal": x * 1e-38 * RNG.choice([1, 1e-3, 100], shape),
        "huge": np.clip(x * 1e38, -3.4e38, 3.4e38),
        "positive": np.abs(x),
    }
    return np.asarray(made[kind], np.float32)


choose_step = jax.jit(steps.choose_step, static_argnums=(1, 2, 3))
KINDS = ["normal", "zeros", "half codes", "heavy", "far apart", "subnormal", "huge", "positive"]


def same(a, b):
    a, b = np.asarray(a), np.asarray(b)
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("granularity", ["tensor", "channel", "group"])
@pytest.mark.parametrize("kind", KINDS)
def test_steps_codes_and_values(granularity, kind):
    for shape in [SHAPES[i] for i in RNG.choice(len(SHAPES), 4, replace=False)]:
        groups = Granularity(
            granularity, int(RNG.integers(-len(shape), len(shape))) if len(shape) > 1 else -1, 16
        )
        w = data(kind, shape)
        bits, symmetric = int(RNG.integers(2, 9)), bool(RNG.integers(2))
        low, high = steps.code_range(bits, symmetric)
        step, zero = choose_step(w, bits, symmetric, groups)
        found = steps_on_host(w, low, high, steps.reciprocal(high, w.dtype), groups)
        same(found[0], step)
        same(found[1], zero)
        same(spread_on_host(found[0], shape, groups), groups.expand(step, shape))
        same(blank_on_host(w, groups), jax.jit(is_blank, static_argnums=1)(w, groups))
        # Half of the time with codes that are clipped.
        for s in [step if RNG.integers(2) else jnp.where(step > 1e-30, step * np.float32(0.3), step)]:
            codes = jax.jit(uniform_codes.stored_codes, static_argnums=(3, 4, 5))(
                w, s, zero, low, high, groups
            )
            same(codes_on_host(w, np.asarray(s), np.asarray(zero), low, high, groups), codes)
            values = jax.jit(
                lambda q, s, z, groups=groups, low=low, w=w, bits=bits: uniform_codes.dequantize(
                    q.reshape(w.shape).astype(s.dtype) + low, s, z, groups, bits
                )
            )(codes, s, zero)
            for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
                read = map(np.asarray, (codes, s, zero))
                with np.errstate(over="ignore"):
                    host = values_on_host(*read, low, w.shape, groups, np.dtype(dtype))
                same(host, values.astype(dtype))


@pytest.mark.parametrize("bits", range(2, 9))
def test_every_width_rounds_alike(bits):
    w = RNG.normal(size=(400, 25)).astype(np.float32)
    for symmetric in (True, False):
        for groups in (
            Granularity("tensor", -1, 128),
            Granularity("channel", 0, 128),
            Granularity("group", -1, 32),
        ):
            low, high = steps.code_range(bits, symmetric)
            step, zero = choose_step(w, bits, symmetric, groups)
            same(steps.choose_step(jnp.asarray(w), bits, symmetric, groups)[0], step)
            codes = jax.jit(uniform_codes.stored_codes, static_argnums=(3, 4, 5))(
                w, step, zero, low, high, groups
            )
            same(uniform_codes.stored_codes(jnp.asarray(w), step, zero, low, high, groups), codes)


def test_large_leaves_are_taken_in_pieces(monkeypatch):
    from modelzip_jax.quantization import host_codes

    monkeypatch.setattr(host_codes, "_PIECE", 50)
    for shape in [(7, 33, 5), (1, 4, 300), (300, 2), (1000,)]:
        for granularity in ("tensor", "channel", "group"):
            w, groups = data("normal", shape), Granularity(granularity, 1 if len(shape) > 1 else -1, 16)
            step, zero = steps.choose_step(jnp.asarray(w), 4, False, groups)
            codes = jax.jit(uniform_codes.stored_codes, static_argnums=(3, 4, 5))(
                w, step, zero, 0, 15, groups
            )
            same(codes_on_host(w, np.asarray(step), np.asarray(zero), 0, 15, groups), codes)


def test_nothing_is_compiled_for_a_shape():
    groups = Granularity("channel", -1, 128)
    before = uniform_codes._stored_codes._cache_size(), steps._initial_step._cache_size()
    for n in range(3, 9):
        w = jnp.asarray(np.ones((n, 2), np.float32))
        step, zero = steps.choose_step(w, 4, True, groups)
        uniform_codes.stored_codes(w, step, zero, -8, 7, groups)
    assert before == (uniform_codes._stored_codes._cache_size(), steps._initial_step._cache_size())
