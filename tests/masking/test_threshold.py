import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modelzip_jax import errors
from modelzip_jax.masking.counting import count_kept, order_keys
from modelzip_jax.masking.threshold import keep_largest, keep_largest_each

RNG = np.random.default_rng(0)
SIZE = 20_000  # more than four samples, so that the bracket is in use


def data(kind, size=SIZE):
    x = RNG.standard_t(1.2, size) if kind == "heavy" else RNG.normal(size=size)
    made = {
        "heavy": x,
        "normal": x,
        "uniform": RNG.random(size),
        "equal": np.full(size, 3.0),
        "zeros": np.zeros(size),
        "mostly zeros": np.where(RNG.random(size) < 0.9, 0.0, x),
        "ties": RNG.integers(0, 5, size),
        "signed zeros": np.where(RNG.random(size) < 0.5, -0.0, 0.0),
        "denormals": x * 1e-42,
        "infinite": np.where(RNG.random(size) < 0.1, np.inf, x),
        "sorted": np.sort(x),
        "tiny and huge": x * 10.0 ** RNG.integers(-30, 30, size),
        "neighbours": np.nextafter(np.float32(1), np.float32(2)) + np.zeros(size),
    }
    return made[kind].astype(np.float32)


KINDS = [
    "heavy", "normal", "uniform", "equal", "zeros", "mostly zeros", "ties", "signed zeros", "denormals",
    "infinite", "sorted", "tiny and huge", "neighbours",
]  # fmt: skip


def best(scores, keep):
    """The `keep` largest, equal ones in C order: a stable sort."""
    flat = np.where(scores == 0, 0.0, scores).reshape(-1)
    mask = np.zeros(flat.size, bool)
    mask[np.argsort(-flat, kind="stable")[:keep]] = True
    return mask.reshape(scores.shape)


_keep_largest = jax.jit(keep_largest, static_argnums=2)


def masks_of(arrays, keep, score=jnp.abs):
    masks, _, passes = _keep_largest([jnp.asarray(a) for a in arrays], jnp.int32(keep), score)
    return [np.asarray(m) for m in masks], int(passes)


@pytest.mark.parametrize("kind", KINDS)
def test_exactly_the_largest(kind):
    x = data(kind).reshape(200, 100)
    scores = np.abs(x)
    for keep in (0, 1, 37, SIZE // 10, SIZE // 2, SIZE - 1, SIZE):
        (mask,), passes = masks_of([x], keep)
        assert mask.sum() == keep
        np.testing.assert_array_equal(mask, best(scores, keep))
        assert passes <= 100


def test_groups_searched_together_are_as_if_each_were_alone():
    """Of all kinds and sizes at once, so that their searches end at different passes."""
    groups, keeps = [], []
    for index, kind in enumerate(KINDS):
        x = data(kind)
        groups.append(
            [x[: 30 * index].reshape(index, 30), np.zeros((0, 3), np.float32), x[600:].reshape(97, 200)]
        )
        keeps.append([0, 1, 700, SIZE // 2, 30 * index + 97 * 200][index % 5])
    arrays = jax.tree.map(jnp.asarray, groups)
    for near in (jnp.zeros(len(groups), jnp.uint32), jnp.arange(len(groups), dtype=jnp.uint32) * 0x20000000):
        together = jax.jit(keep_largest_each, static_argnums=2)(arrays, jnp.array(keeps), jnp.abs, near)
        alone = [m for group, keep in zip(groups, keeps, strict=True) for m in masks_of(group, keep)[0]]
        jax.tree.map(np.testing.assert_array_equal, together.masks, alone)


@pytest.mark.parametrize("sizes", [(1,) * 12, (2, 1, 4, 1, 3, 1), (12,)])
def test_arrays_of_one_shape_are_as_if_each_were_alone(sizes):
    """Their groups of one array, of several, and of both; shapes by turns, one beyond what is laid together."""
    shapes = [(130, 160), (20, 30), (20, 30), (160, 130)] * 2 + [(), (20, 30), (1100, 1000), (130, 160)]
    kinds = ["ties", "normal", "zeros", "mostly zeros", "equal", "heavy"] * 2
    arrays = [data(k, math.prod(s)).reshape(s) for k, s in zip(kinds, shapes, strict=True)]
    ends = np.cumsum(sizes)
    groups = [arrays[end - size : end] for end, size in zip(ends, sizes, strict=True)]
    keeps = [sum(x.size for x in group) * (n + 1) // 13 for n, group in enumerate(groups)]
    found = jax.jit(keep_largest_each, static_argnums=2)(groups, jnp.array(keeps), jnp.abs).masks
    for group, end, keep in zip(groups, ends, keeps, strict=True):
        masks = found[end - len(group) : end]
        assert [m.shape for m in masks] == [x.shape for x in group]
        scores = np.concatenate([np.abs(x).reshape(-1) for x in group])
        np.testing.assert_array_equal(np.concatenate([m.reshape(-1) for m in masks]), best(scores, keep))


@pytest.mark.parametrize("kind", ["normal", "ties", "zeros", "infinite"])
def test_one_threshold_over_many_arrays(kind):
    shapes = [(), (7,), (0, 3), (30, 40), (2, 3, 5, 7), (16_500,), (1, 1)]
    flat = data(kind, sum(int(np.prod(s)) for s in shapes))
    parts = np.split(flat, np.cumsum([int(np.prod(s)) for s in shapes])[:-1])
    arrays = [part.reshape(s) for part, s in zip(parts, shapes, strict=True)]
    for keep in (0, 1, 5_000, flat.size - 1, flat.size):
        masks, _ = masks_of(arrays, keep)
        assert [m.shape for m in masks] == shapes
        expected = best(np.abs(flat), keep)
        np.testing.assert_array_equal(np.concatenate([m.reshape(-1) for m in masks]), expected)


def test_scores_may_be_negative():
    x = data("normal")
    (mask,), _ = masks_of([x], 1_234, score=jnp.positive)
    np.testing.assert_array_equal(mask, best(x, 1_234))


def test_no_arrays_and_empty_arrays():
    assert masks_of([], 0)[0] == []
    (mask,), _ = masks_of([np.zeros((0, 3), "f4")], 0)
    assert mask.shape == (0, 3)


def test_half_precision_scores():
    x = RNG.normal(size=(40, 50)).astype(jnp.bfloat16)
    (mask,), _ = masks_of([x], 777)
    np.testing.assert_array_equal(mask, best(np.abs(x.astype(np.float32)), 777))


def test_too_many_weights_are_refused():
    big = jax.ShapeDtypeStruct((1 << 30,), jnp.float32)
    with pytest.raises(errors.TransformError, match=r"2\*\*31 weights"):
        jax.eval_shape(lambda a, b: keep_largest([a, b], jnp.int32(1)), big, big)


def test_order_keys_order_floats():
    x = np.float32([-np.inf, -3e38, -1, -1e-30, 0, 1e-30, 1, 3e38, np.inf, np.nan])
    keys = np.asarray(order_keys(jnp.asarray(x)))
    assert np.all(np.diff(keys.astype(np.int64)) > 0)
    assert keys.dtype == np.uint32
    assert order_keys(jnp.float32(-0.0)) == order_keys(jnp.float32(0.0))


def kept(size, sparsity):
    """Exact: the sparsity to seven decimals, half a weight towards pruning."""
    share = Fraction(round(Fraction(float(np.float32(sparsity))) * 10**7), 10**7)
    exact = share * size
    return at_least_one(size - int(exact + Fraction(1, 2)), size)


def at_least_one(count, size):
    return max(count, min(size, 1))


@pytest.mark.parametrize("size", [0, 1, 2, 3, 7, 100, 10_000_001, 50_000_000, 123_456_789, 2**31 - 1])
def test_counts_are_exact(size):
    wanted = np.float32(
        [0, 1e-7, 0.1, 0.25, 0.3, 1 / 3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999, 0.9999999]
    )
    found = jax.vmap(lambda s: count_kept(size, s))(jnp.asarray(wanted))
    assert found.dtype == jnp.int32
    for sparsity, count in zip(wanted, np.asarray(found), strict=True):
        # float32 products of the sparsity by 10^7 round in the last decimal; within one of it is meant.
        rounded = Fraction(round(float(np.float32(sparsity) * np.float32(1e7))), 10**7)
        options = {kept(size, sparsity)} | {at_least_one(size - int(rounded * size + Fraction(1, 2)), size)}
        assert int(count) in options, sparsity


def test_round_shares_of_large_tensors():
    for tenths in range(10):
        assert int(count_kept(50_000_000, jnp.float32(tenths / 10))) == 5_000_000 * (10 - tenths)
    assert int(count_kept(2**31 - 1, 0.5)) == 2**30 - 1


def test_every_sparsity_in_one_program():
    x = jnp.asarray(data("ties", 3_000).reshape(30, 100))
    traces = []

    @jax.jit
    @jax.vmap
    def choose(sparsity):
        traces.append(1)
        return keep_largest([x], count_kept(x.size, sparsity), jnp.abs)[0][0]

    for grid in (np.linspace(0, 0.99, 12), np.linspace(0.1, 0.5, 12)):
        masks = np.asarray(choose(jnp.float32(grid)))
        for sparsity, mask in zip(np.float32(grid), masks, strict=True):
            np.testing.assert_array_equal(mask, best(np.abs(np.asarray(x)), kept(x.size, sparsity)))
    assert len(traces) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_threshold_to_start_from_changes_no_mask(kind):
    """From its own threshold, from that of other data, and from the ends of the range."""
    x = data(kind).reshape(200, 100)
    search = jax.jit(lambda x, keep, near: keep_largest([x], keep, jnp.abs, near))
    for keep in (0, 1, 3_000, SIZE - 1, SIZE):
        cold = search(x, jnp.int32(keep), jnp.uint32(0))
        for near in (
            cold.threshold,
            search(x + 0.01, jnp.int32(keep), jnp.uint32(0)).threshold,
            1,
            0xFFFFFFFE,
        ):
            warm = search(x, jnp.int32(keep), jnp.uint32(near))
            np.testing.assert_array_equal(warm.masks[0], best(np.abs(x), keep))
            assert int(warm.passes) <= 70


def test_a_refresh_starts_where_the_last_one_ended():
    """A tenth of a percent further, and a hundredth of a standard deviation of change in the weights."""
    x = RNG.normal(size=400_000).astype(np.float32)
    search = jax.jit(lambda x, keep, near: keep_largest([x], keep, jnp.abs, near))
    cold = search(x, jnp.int32(80_000), jnp.uint32(0))
    warm = search(
        x + np.float32(1e-2) * RNG.normal(size=x.size).astype("f4"), jnp.int32(79_920), cold.threshold
    )
    again = search(x, jnp.int32(80_000), cold.threshold)
    assert int(again.passes) == 1
    assert int(warm.passes) <= 6
    assert int(cold.passes) <= 8
