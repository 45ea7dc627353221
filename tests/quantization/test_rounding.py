"""Rounding and its gradients against float64 formulas in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import modelzip_jax as mz
from modelzip_jax.quantization.granularity import Granularity
from modelzip_jax.quantization.steps import choose_step, code_range
from modelzip_jax.quantization.uniform_codes import codes, fake_quantize

fake_quantize_jit = jax.jit(fake_quantize, static_argnums=(3, 4, 5))
RNG = np.random.default_rng(0)
LEAF = RNG.normal(size=(6, 5, 4)).astype("f4")
GRIDS = [
    Granularity("tensor", -1, 1),
    *(Granularity("channel", axis, 1) for axis in (-1, 0, 1, -3)),
    *(Granularity("group", axis, size) for axis, size in [(-1, 7), (0, 20), (1, 100), (2, 1)]),
]


def spread(steps, shape, grid):
    """Each weight's step, by looking it up: the definition of a grid."""
    if grid.kind == "tensor" or len(shape) < 2:
        fan, channels = np.arange(int(np.prod(shape))).reshape(shape), np.zeros(shape, int)
    else:
        axis = grid.axis % len(shape)
        channels = np.broadcast_to(np.indices(shape)[axis], shape)
        rest = [n for a, n in enumerate(shape) if a != axis]
        fan = np.expand_dims(np.arange(int(np.prod(rest))).reshape(rest), axis) + np.zeros(shape, int)
    groups = fan // grid.group_size if grid.kind == "group" else np.zeros(shape, int)
    return np.asarray(steps, np.float64)[groups, channels]


def reference(w, step, zero, low, high, grid):
    s, z = spread(step, w.shape, grid), spread(zero, w.shape, grid)
    v = w.astype(np.float64) / s + z
    return np.clip(np.round(v), low, high), v, s, z


def totals(x, grid, shape):
    """The sum over each group."""
    index = spread(np.arange(np.prod(shape)).reshape(shape), x.shape, grid).astype(int)
    out = np.zeros(int(np.prod(shape)))
    np.add.at(out, index.reshape(-1), x.reshape(-1))
    return out.reshape(shape)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_grids_are_as_defined(grid):
    shape = grid.steps_shape(LEAF.shape)
    steps = np.arange(1.0, 1 + np.prod(shape)).reshape(shape)
    expanded = np.broadcast_to(grid.expand(jnp.asarray(steps), LEAF.shape), LEAF.shape)
    np.testing.assert_array_equal(expanded, spread(steps, LEAF.shape, grid))
    np.testing.assert_allclose(
        grid.reduce(jnp.sum, jnp.asarray(LEAF)), totals(LEAF, grid, shape), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", range(1, 9))
def test_values_for_every_width(bits, symmetric):
    for grid in (GRIDS[1], GRIDS[5]):
        low, high = code_range(bits, symmetric)
        step, zero = choose_step(jnp.asarray(LEAF), bits, symmetric, grid)
        got = np.asarray(fake_quantize_jit(jnp.asarray(LEAF), step, zero, low, high, grid))
        q, v, s, z = reference(LEAF, step, zero, low, high, grid)
        tie = np.abs(v - np.floor(v) - 0.5) < 1e-4
        np.testing.assert_allclose(got[~tie], ((q - z) * s)[~tie], rtol=1e-6)
        assert np.all(np.abs(got - LEAF)[(v > low) & (v < high)] <= 0.5001 * s[(v > low) & (v < high)])
        found = np.asarray(codes(jnp.asarray(LEAF), step, zero, low, high, grid))
        assert found.min() >= low
        assert found.max() <= high
        if bits > 1 or not symmetric:  # the range "max" clips nothing, but for half a step of zero's rounding
            assert np.all((v > low - 0.51) & (v < high + 0.51))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize(("bits", "symmetric"), [(2, True), (4, False)])
def test_gradients_are_lsq(grid, bits, symmetric):
    """Esser et al. 2020, eqs. 1-5, and for the zero point Bhalgat et al. 2020, clipped weights included."""
    low, high = code_range(bits, symmetric)
    step, zero = choose_step(jnp.asarray(LEAF), bits, symmetric, grid)
    step = step * 0.6  # so that many weights are clipped
    g = RNG.normal(size=LEAF.shape).astype("f4")

    def loss(w, s, z):
        return jnp.sum(g * fake_quantize(w, s, z, low, high, grid))

    dw, ds, dz = jax.jit(jax.grad(loss, (0, 1, 2)))(jnp.asarray(LEAF), step, zero)
    q, v, s, z = reference(LEAF, step, zero, low, high, grid)
    inside = (v >= low) & (v <= high)
    assert grid.kind == "group" or 0.02 < 1 - inside.mean() < 0.98
    np.testing.assert_array_equal(dw, np.where(inside, g, 0))
    count = totals(np.ones(LEAF.shape), grid, step.shape)
    scale = 1 / np.sqrt(count * max(high, 1))
    wanted = scale * totals(g * np.where(inside, q - v, q - z), grid, step.shape)
    np.testing.assert_allclose(ds, wanted, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(
        dz, scale * totals(np.where(inside, 0, -g * s), grid, step.shape), rtol=1e-3, atol=1e-4
    )


def by_range(w, bits, symmetric, grid, method):
    """Steps and zero points, as `mz.quantize` chooses them."""
    return mz.quantize(bits, symmetric=symmetric, range=method).chosen("w", w, grid, None)[:2]


@pytest.mark.parametrize("granularity", ["tensor", "channel", "group"])
@pytest.mark.parametrize(("bits", "symmetric"), [(1, True), (2, False), (4, True)])
def test_the_searched_range_is_not_worse(granularity, symmetric, bits):
    heavy = jnp.asarray(RNG.standard_t(2, size=(64, 8)), jnp.float32)
    grid = Granularity(granularity, -1, 24)
    errors = []
    for method in ("max", "mse"):
        step, zero = by_range(heavy, bits, symmetric, grid, method)
        off = fake_quantize_jit(heavy, step, zero, *code_range(bits, symmetric), grid) - heavy
        errors.append(np.asarray(grid.reduce(jnp.sum, off**2)))
    assert np.all(errors[1] <= errors[0] * (1 + 1e-5))
    if bits == 4 and granularity == "tensor":
        assert errors[1].sum() < 0.9 * errors[0].sum()


@pytest.mark.parametrize(
    ("bits", "symmetric", "granularity", "method"),
    [(1, True, "channel", "max"), (2, False, "group", "mse"), (8, True, "tensor", "mse")],
)
@pytest.mark.parametrize(
    "leaf",
    [
        np.zeros((0, 3)), np.zeros((3, 0)), np.zeros(0), np.float32(0.7), np.zeros(5), np.full((4, 4), -2.5),
        np.full(3, 1e-42), np.array([3e38, -3e38, 1.0]), np.array([[3.4e38], [1e-38]]), -np.ones((2, 2)),
        np.array([1e-38, 3e38]),
    ],
    ids=lambda x: f"{np.shape(x)}{x.flat[:1] if np.size(x) else ''}",
)  # fmt: skip
def test_odd_leaves(leaf, bits, symmetric, granularity, method):
    w, grid = jnp.asarray(leaf, jnp.float32), Granularity(granularity, -1, 2)
    if not symmetric and not float(np.ptp(leaf) if np.size(leaf) else 0.0) < float(np.finfo(np.float32).max):
        with pytest.raises(mz.errors.NonFiniteError, match="a range that is no float32"):
            by_range(w, bits, symmetric, grid, method)
        return
    step, zero = by_range(w, bits, symmetric, grid, method)
    assert step.shape == zero.shape == grid.steps_shape(w.shape)
    assert np.all(np.isfinite(step))
    assert np.all(np.asarray(step) > 0)
    got = np.asarray(fake_quantize_jit(w, step, zero, *code_range(bits, symmetric), grid))
    assert got.shape == w.shape
    assert np.all(np.isfinite(got))


def test_a_code_of_zero_has_one_sign():
    """-0.3 rounds to -0.0, which the packed code cannot tell from 0.0."""
    grid = Granularity("tensor", -1, 1)
    one, none = jnp.ones((1, 1)), jnp.zeros((1, 1))
    for f in (fake_quantize, fake_quantize_jit):
        assert not np.any(np.signbit(f(jnp.float32([-0.3, 0.3]), one, none, -2, 1, grid)))
