import jax
import jax.numpy as jnp
import numpy as np
import pytest

import modelzip_jax as mz
from modelzip_jax.masking.bitmask import count_bits, pack_mask, unpack_mask

RNG = np.random.default_rng(0)
TREE = {
    "a": jnp.asarray(RNG.normal(size=(12, 10)), jnp.float32),
    "b": jnp.asarray(3 * RNG.normal(size=(40,)), jnp.float32),
    "c": jnp.asarray(RNG.normal(size=(3, 3, 5)), jnp.bfloat16),
}
SIZES = {"a": 120, "b": 40, "c": 45}


def zeros(tree):
    return {name: int(np.sum(np.asarray(x, np.float32) == 0)) for name, x in tree.items()}


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.77, 0.999])
def test_uniform_counts_are_exact(sparsity):
    got = mz.decoded(TREE, mz.prune(sparsity=sparsity))
    # One weight stays at least.
    assert zeros(got) == {
        name: min(int(np.floor(sparsity * n + 0.5)), max(n - 1, 0)) for name, n in SIZES.items()
    }
    for name, x in TREE.items():
        flat, cut = (
            np.abs(np.asarray(x, np.float32)).reshape(-1),
            np.asarray(got[name], np.float32).reshape(-1),
        )
        if 0 < zeros(got)[name] < flat.size:
            assert flat[cut == 0].max() <= flat[cut != 0].min()
        np.testing.assert_array_equal(cut[cut != 0], np.asarray(x, np.float32).reshape(-1)[cut != 0])
        assert got[name].dtype == x.dtype


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.9])
def test_a_global_count_is_exact(sparsity):
    got = mz.decoded(TREE, mz.prune(sparsity=sparsity, allocation="global"))
    assert sum(zeros(got).values()) == int(np.floor(sparsity * 205 + 0.5))
    if sparsity == 0.5:
        assert zeros(got)["b"] < 15  # three times as large as the others


def test_schedule_values():
    cubic = mz.schedules.cubic(0.9, begin=10, end=20, initial=0.1)
    exact = {0: 0.1, 10: 0.1, 15: 0.9 - 0.8 * 0.125, 20: 0.9, 99: 0.9}
    for step, value in exact.items():
        assert float(cubic(step)) == pytest.approx(value, abs=1e-6)
        assert float(jax.jit(cubic)(jnp.int32(step))) == pytest.approx(value, abs=1e-6)
    assert float(mz.schedules.polynomial(0.5, 3, 3)(4)) == 0.5
    with pytest.raises(mz.errors.TransformError, match=r"final sparsity must be in \[0, 1\), not 1.0"):
        mz.schedules.cubic(1.0, 0, 1)
    with pytest.raises(mz.errors.TransformError, match="ends at step 1, before it begins at step 2"):
        mz.schedules.cubic(0.5, 2, 1)


def run(t, steps, values=None):
    """Sparsity and churn after each step, with the values as they are."""
    encoded = t.init({"w": TREE["a"]} if values is None else values, mz.Context())
    update = jax.jit(lambda e, step: t.update(e, mz.Context(step=step)))
    history = [t.metrics(encoded)]
    for step in range(1, steps + 1):
        encoded = update(encoded, jnp.int32(step))
        history.append(t.metrics(encoded))
    return [float(h["sparsity"]) for h in history], [float(h["mask_churn"]) for h in history]


def test_masks_are_refreshed_on_the_beat_and_at_the_end():
    t = mz.prune(sparsity=mz.schedules.polynomial(0.6, begin=2, end=9, power=1), every=3)
    sparsity, churn = run(t, 12)
    changes = [step for step in range(1, 13) if sparsity[step] != sparsity[step - 1]]
    assert changes == [5, 8, 9]
    assert sparsity[-1] == pytest.approx(0.6, abs=1e-6)
    assert churn[4] == 0
    assert churn[5] == pytest.approx(sparsity[5])
    assert churn[6] == churn[5]  # of the last refresh


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("make", [mz.schedules.cubic, mz.schedules.polynomial], ids=["cubic", "polynomial"])
def test_a_schedule_that_begins_where_it_ends_prunes_at_that_step(make, every):
    sparsity, _ = run(mz.prune(sparsity=make(0.75, begin=5, end=5), every=every), 9)
    assert sparsity[:5] == [0.0] * 5
    np.testing.assert_allclose(sparsity[5:], 0.75, atol=0.02)


def test_a_number_chooses_once_unless_asked():
    assert run(mz.prune(sparsity=0.5), 3)[0] == [0.5] * 4
    assert mz.prune(sparsity=0.5).every == 0
    assert mz.prune(sparsity=lambda step: 0.5).every == 100


def test_any_function_is_a_schedule():
    sparsity, _ = run(mz.prune(sparsity=lambda step: 0.1 * jnp.float32(step), every=2), 5)
    np.testing.assert_allclose(sparsity, [0, 0, 0.2, 0.2, 0.4, 0.4], atol=1e-6)


def test_weights_come_back_at_a_refresh():
    t = mz.prune(sparsity=0.5, every=1)
    values = {"w": jnp.float32([1, 2, 3, 4])}
    encoded = t.init(values, mz.Context())
    np.testing.assert_array_equal(t.decode(encoded)["w"], [0, 0, 3, 4])
    moved = encoded._replace(latents={"w": jnp.float32([9, 2, 3, 4])})
    encoded = t.update(moved, mz.Context(step=jnp.int32(1)))
    np.testing.assert_array_equal(t.decode(encoded)["w"], [9, 0, 0, 4])
    assert float(t.metrics(encoded)["mask_churn"]) == 0.5


def test_the_gradient_of_decode_is_the_mask():
    t = mz.prune(sparsity=0.5)
    encoded = t.init({"w": TREE["a"]}, mz.Context())
    grad = jax.grad(lambda z: jnp.sum(3 * t.decode(encoded._replace(latents=z))["w"]))(encoded.latents)["w"]
    np.testing.assert_array_equal(grad, np.where(np.asarray(t.decode(encoded)["w"]) != 0, 3, 0))


def test_every_sparsity_by_vmap_without_retrace():
    traces = []

    def masked(sparsity):
        traces.append(1)
        t = mz.prune(sparsity=lambda step: sparsity)
        return t.decode(t.init({"w": TREE["a"]}, mz.Context()))["w"]

    many = jax.jit(jax.vmap(masked))
    for grid in (np.linspace(0, 0.95, 8), np.linspace(0.3, 0.5, 8)):
        count = np.sum(np.asarray(many(jnp.float32(grid))) == 0, axis=(1, 2))
        np.testing.assert_array_equal(count, np.floor(grid * 120 + 0.5))
    assert len(traces) == 1


def test_a_new_score_is_a_few_lines():
    class Smallest(mz.scores.Score):
        def __call__(self, weights, context, memory):
            return jax.tree.map(lambda x: -jnp.abs(x), weights)

    got = mz.decoded({"w": jnp.float32([1, -4, 3, 2])}, mz.prune(Smallest(), sparsity=0.5))
    np.testing.assert_array_equal(got["w"], [1, 0, 0, 2])


def test_scores_see_the_gradients():
    class Saliency(mz.scores.Score):
        def __call__(self, weights, context, memory):
            grads = weights if context.grads is None else context.grads
            return jax.tree.map(lambda x, g: jnp.abs(x * g), weights, grads)

    t = mz.chain(mz.only("w", mz.prune(Saliency(), sparsity=0.5, every=1)), mz.identity())
    tree = {"w": jnp.float32([1, 2, 3, 4]), "b": jnp.ones(2)}
    grads = {"w": jnp.float32([9, 1, 1, 1]), "b": jnp.ones(2)}
    encoded = t.update(t.init(tree, mz.Context()), mz.Context(step=jnp.int32(1), grads=grads))
    np.testing.assert_array_equal(t.decode(encoded)["w"], [1, 0, 0, 4])


@pytest.mark.parametrize("shape", [(), (1,), (7,), (8,), (3, 9), (0,), (0, 3), (3, 0), (2, 3, 16)])
def test_bit_masks(shape):
    mask = RNG.random(shape) < 0.5
    bits = pack_mask(jnp.asarray(mask))
    assert bits.dtype == jnp.uint8
    assert bits.shape == ((*shape[:-1], -(-shape[-1] // 8)) if shape else (1,))
    np.testing.assert_array_equal(unpack_mask(bits, shape), mask)
    assert int(count_bits(bits)) == mask.sum()


def test_rate_is_the_entropy_of_the_mask_and_the_kept_bits():
    t = mz.prune(sparsity=0.5)
    encoded = t.init({"w": jnp.arange(1.0, 65.0)}, mz.Context())
    assert float(mz.rate(t, encoded)) == pytest.approx(32 * 32 + 64)
    dense = mz.prune(sparsity=0.0)
    encoded = dense.init({"w": jnp.arange(1.0, 65.0)}, mz.Context())
    assert float(mz.rate(dense, encoded)) == pytest.approx(32 * 64)


def test_half_precision_is_stored_in_half_precision():
    """Smaller means smaller: the float32 latents of bfloat16 weights are not what is stored."""
    packed = mz.compress({"w": jnp.asarray(RNG.normal(size=64), jnp.bfloat16)}, mz.prune(sparsity=0.25))
    assert packed.nbytes == 2 * 48 + 8
    assert packed.nbytes < packed.dense_bytes


@pytest.mark.parametrize("bad", [-0.1, 1.0, 1.5, float("nan")])
def test_sparsities_outside_are_refused(bad):
    with pytest.raises(mz.errors.TransformError, match=r"sparsity must be in \[0, 1\)"):
        mz.prune(sparsity=bad)


def test_refusals():
    with pytest.raises(mz.errors.TransformError, match="allocation is 'local'; did you mean 'global'"):
        mz.prune(sparsity=0.5, allocation="local")
    with pytest.raises(mz.errors.TransformError, match="every must be an integer of at least 0, not -1"):
        mz.prune(sparsity=0.5, every=-1)
    with pytest.raises(mz.errors.LeafError, match="prune cannot encode leaf 'n' of dtype int32"):
        mz.compress({"n": jnp.arange(3)}, mz.prune(sparsity=0.5))
    with pytest.raises(mz.errors.NonFiniteError, match="leaf 'w' has 1"):
        mz.compress({"w": jnp.float32([1, jnp.nan])}, mz.prune(sparsity=0.5))
