"""Every grid: its table, its arithmetic, its codes on the host and under jit, its gradients and its memory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import modelzip_jax as mz
from modelzip_jax.errors import TransformError
from modelzip_jax.quantization.granularity import Granularity
from modelzip_jax.quantization.grids.grid import table
from modelzip_jax.quantization.grids.nearest_level import nearest_on_host
from modelzip_jax.quantization.level_codes import fake_levels

RNG = np.random.default_rng(0)
FIXED = {
    "nf4": (mz.grids.nf4(), 4),
    "normal floats": (mz.grids.nf4(), 6),
    "fp8": (mz.grids.fp8(), 8),
    "fp8 e5m2": (mz.grids.fp8("e5m2"), 8),
    "mxfp4": (mz.grids.mx(), 4),
    "mxfp6 e2m3": (mz.grids.mx("e2m3"), 6),
    "mxfp6 e3m2": (mz.grids.mx("e3m2"), 6),
    "mxfp8": (mz.grids.mx("e4m3"), 8),
    "mxint8": (mz.grids.mx("int8"), 8),
    "nvfp4": (mz.grids.nvfp4(), 4),
    "shift": (mz.grids.power_of_two(), 4),
    "shift, 5 bits": (mz.grids.power_of_two(), 5),
    "two shifts": (mz.grids.power_of_two(2), 5),
    "two shifts, 8 bits": (mz.grids.power_of_two(2), 8),
    "halving": (mz.grids.halving(), 8),
    "ternary": (mz.grids.ternary(), 2),
}
FITTED = {"quantile": mz.grids.quantile(), "weighted": mz.grids.weighted_entropy()}


def values(levels):
    """Levels, what is halfway between them and its neighbours, beyond both ends, zeros, and much else."""
    middle = ((levels[1:].astype(np.float64) + levels[:-1]) / 2).astype(np.float32)
    spread = RNG.normal(size=3000) * np.abs(levels).max()
    near = [np.nextafter(middle, np.float32(side)) for side in (-np.inf, np.inf)]
    odd = [0.0, -0.0, 3e38, -3e38, 1e-38]
    return np.concatenate([levels, middle, *near, spread, spread * 1e-3, odd]).astype(np.float32)


@pytest.mark.parametrize("name", FIXED)
def test_arithmetic_lookup_and_search_agree_with_the_table(name):
    grid, bits = FIXED[name]
    held = table(grid, bits)
    u = values(held.levels)
    distance = np.abs(u[:, None].astype(np.float64) - held.levels)
    best = distance.min(axis=1)
    codes = np.asarray(grid.nearest(jnp.asarray(u), bits))
    chosen = distance[np.arange(len(u)), codes]
    np.testing.assert_array_equal(chosen, best)
    projected = np.asarray(grid.project(jnp.asarray(u), bits))
    assert projected.tobytes() == np.asarray(grid.value(jnp.asarray(codes), bits)).tobytes()
    np.testing.assert_array_equal(nearest_on_host(u, held), codes)


def test_large_leaves_are_looked_up_in_blocks(monkeypatch):
    from modelzip_jax.quantization.grids import nearest_level

    monkeypatch.setattr(nearest_level, "_BLOCK", 64)
    for name in ("fp8", "nf4", "shift, 5 bits"):
        held = table(*FIXED[name])
        u = values(held.levels)
        np.testing.assert_array_equal(
            nearest_on_host(u, held), np.searchsorted(held.thresholds, u, side="right")
        )


@pytest.mark.parametrize("name", ["fp8", "fp8 e5m2"])
def test_fp8_is_the_conversion(name):
    grid, bits = FIXED[name]
    dtype = jnp.float8_e4m3fn if name == "fp8" else jnp.float8_e5m2
    u = values(table(grid, bits).levels)
    inside = np.abs(u) <= float(jnp.finfo(dtype).max)
    got = np.asarray(grid.project(jnp.asarray(u), bits))[inside]
    np.testing.assert_array_equal(got, u[inside].astype(dtype).astype(np.float32))


def test_nf4_is_the_published_table():
    published = [-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0, 0.0795803,
                 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0]  # fmt: skip
    np.testing.assert_allclose(mz.grids.nf4().levels(4), published, atol=2e-7)


def test_published_tables_of_powers():
    """Additive powers of two at 3 bits: {0, 2^0, 2^-2, 2^-4} and {0, 2^-1}: Li et al. have the like at more bits."""
    np.testing.assert_allclose(mz.grids.power_of_two(2).levels(3)[3:], np.array([0, 0.5, 1.0, 1.5]) / 1.5)
    assert mz.grids.power_of_two(2).levels(4).size == 15


@pytest.mark.parametrize(("element", "largest"), [("e2m1", 6.0), ("e3m2", 28.0), ("e4m3", 448.0)])
def test_microscaling_takes_the_power_of_two_of_the_specification(element, largest):
    w = RNG.normal(size=(64, 3)).astype(np.float32)
    packed = mz.compress({"w": w}, mz.quantize(grid=mz.grids.mx(element), axis=-1)).params["w"]
    top = np.abs(w.reshape(2, 32, 3)).max(axis=1)
    exponent = np.floor(np.log2(top)) - np.floor(np.log2(largest))
    np.testing.assert_array_equal(packed.scale.astype(np.float32), 2.0**exponent)
    assert packed.scale.dtype == jnp.float8_e8m0fnu


def test_memory_is_bits_levels_and_scales():
    w = RNG.normal(size=(64, 32)).astype(np.float32)
    for grid, bits, side in (
        (mz.grids.nf4(), 4, 4 * 32 + 4 * 16),
        (mz.grids.ternary(), 2, 4 * 32 + 4 * 3),
        (mz.grids.mx(), 4, 2 * 32 + 4 * 15),
        (mz.grids.nvfp4(), 4, 4 * 32 + 4 + 4 * 15),
        (mz.grids.fp8(), 8, 4 * 32 + 4 * 253),
    ):
        packed = mz.compress({"w": w}, mz.quantize(grid=grid, bits=bits, axis=-1)).params["w"]
        assert packed.nbytes == w.size * bits // 8 + side


def test_gradients_are_those_of_lsq():
    groups, (grid, bits) = Granularity("channel", -1, 1), FIXED["nf4"]
    w = jnp.asarray(RNG.normal(size=(20, 3)) * 0.7, jnp.float32)
    s, g = jnp.asarray([[0.5, 1.0, 2.0]]), jnp.asarray(RNG.normal(size=(20, 3)), jnp.float32)
    _, pull = jax.vjp(lambda w, s: fake_levels(w, s, None, None, grid, bits, groups), w, s)
    dw, ds = pull(g)
    u, levels = np.asarray(w, np.float64) / np.asarray(s), table(grid, bits).levels.astype(np.float64)
    v = levels[np.abs(u[..., None] - levels).argmin(-1)]
    inside = np.abs(u) <= 1
    np.testing.assert_allclose(dw, np.where(inside, g, 0))
    expected = (g * np.where(inside, v - u, v)).sum(0, keepdims=True) / np.sqrt(20 * 8)
    np.testing.assert_allclose(ds, expected, rtol=1e-5)


@pytest.mark.parametrize("name", FITTED)
def test_levels_follow_the_weights(name):
    w = {"w": RNG.normal(size=(400, 2)).astype(np.float32) ** 3}
    levels = np.asarray(mz.compress(w, mz.quantize(3, grid=FITTED[name], axis=-1)).params["w"].levels)
    assert np.all(np.diff(levels) >= 0)
    assert np.abs(levels).max() <= 1
    if name == "quantile":
        u = np.sort((w["w"] / np.abs(w["w"]).max(0)).ravel())
        places = (np.arange(8) + 0.5) / 8
        np.testing.assert_allclose(np.searchsorted(u, levels) / u.size, places, atol=0.02)


def test_weighted_entropy_is_no_less_than_of_other_boundaries():
    w = RNG.normal(size=(3000, 1)).astype(np.float32)
    levels = np.asarray(
        mz.compress({"w": w}, mz.quantize(2, grid=mz.grids.weighted_entropy())).params["w"].levels
    )
    u, scale = (w / np.abs(w).max()).ravel(), np.abs(w).max()

    def entropy(edges):
        cuts = np.digitize(u, edges)
        parts = [(np.mean(cuts == k), np.sum(u[cuts == k] ** 2)) for k in range(4)]
        return -sum(mass * np.log(share) for share, mass in parts if share)

    even, quantiles = np.linspace(-1, 1, 5)[1:-1], np.quantile(u, [0.25, 0.5, 0.75])
    # The levels are centroids; where they meet is near where the intervals do.
    ours = entropy((levels[1:] + levels[:-1]) / 2)
    assert ours > max(entropy(even), entropy(quantiles))
    assert scale > 0


def test_importance_moves_levels():
    w = RNG.normal(size=(500, 1)).astype(np.float32)
    for grid in FITTED.values():
        t = mz.quantize(2, grid=grid)
        plain = mz.compress({"w": w}, t).params["w"].levels
        told = (
            mz.compress({"w": w}, t, importance={"w": (w > 0).astype(np.float32) + 1e-3}).params["w"].levels
        )
        assert np.mean(np.asarray(told)) > np.mean(np.asarray(plain))


@pytest.mark.parametrize(
    "grid", [mz.grids.nf4(), mz.grids.nvfp4(), mz.grids.mx(), mz.grids.quantile()], ids=repr
)
def test_a_layer_that_starts_at_zero_trains(grid):
    tx = mz.wrap(optax.sgd(0.5), mz.quantize(4, grid=grid))
    params = {"w": jnp.zeros((4, 3))}
    state, aim = tx.init(params), jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32)

    @jax.jit
    def step(params, state):
        grads = jax.tree.map(lambda w: w - aim, params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(20):
        params, state = step(params, state)
    assert np.mean((np.asarray(params["w"]) - aim) ** 2) < 0.2 * np.mean(np.asarray(aim) ** 2)


def test_a_grid_of_ones_own():
    @dataclasses.dataclass(frozen=True)
    class Fibonacci(mz.grids.Grid):
        def levels(self, bits):
            numbers = [1.0, 2.0]
            while len(numbers) < 2 ** (bits - 1) - 1:
                numbers.append(numbers[-1] + numbers[-2])
            return np.array([-x for x in numbers[::-1]] + [0.0] + numbers)

    w = {"w": RNG.normal(size=(30, 4)).astype(np.float32)}
    packed = mz.compress(w, mz.quantize(4, grid=Fibonacci()))
    np.testing.assert_array_equal(mz.unpack(packed)["w"], mz.decoded(w, packed.transform)["w"])


@dataclasses.dataclass(frozen=True)
class Wrong(mz.grids.Grid):
    values: tuple

    def levels(self, bits):
        return np.array(self.values)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: mz.quantize(4, grid=mz.grids.nf4), "call it, nf4()"),
        (lambda: mz.quantize(4, grid="nf4"), "mz.grids.nf4(...), not 'nf4'"),
        (lambda: mz.quantize(4, grid=4), "such as mz.grids.binary"),
        (lambda: mz.quantize(5, grid=mz.grids.fp8()), "codes of 8 bits, not 5"),
        (lambda: mz.quantize(4, grid=mz.grids.nf4(), symmetric=False), "uniform grid"),
        (lambda: mz.quantize(grid=mz.grids.mx(), learned=True), "cannot be learned"),
        (lambda: mz.quantize(grid=mz.grids.nvfp4(), offset=True), "floating scales"),
        (lambda: mz.quantize(1, grid=mz.grids.power_of_two()), "2 bits"),
        (lambda: mz.quantize(8, grid=mz.grids.power_of_two()), "6 bits"),
        (lambda: mz.grids.power_of_two(3), "1 or 2 terms"),
        (lambda: mz.grids.fp8("e2m1"), "e4m3"),
        (lambda: mz.grids.mx("e5m3"), "e2m3"),
        (lambda: mz.quantize(2, grid=Wrong((1.0, 0.0))), "ascend"),
        (lambda: mz.quantize(2, grid=Wrong((0.0, np.nan))), "finite"),
        (lambda: mz.quantize(2, grid=Wrong(tuple(range(5)))), "2 to 4"),
        (lambda: mz.quantize(2, grid=mz.grids.Grid()), "defines no levels"),
    ],
)
def test_wrong_grids(call, words):
    with pytest.raises(TransformError, match=words.replace("(", r"\(").replace(")", r"\)")):
        call()
