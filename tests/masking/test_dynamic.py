"""Dynamic sparse training: exact counts, what is dropped and grown, and where grown weights start."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import modelzip_jax as mz
from modelzip_jax.masking.bitmask import unpack_mask

RNG = np.random.default_rng(0)
W = jnp.asarray(RNG.normal(size=(20, 15)), jnp.float32)
G = jnp.asarray(RNG.normal(size=(20, 15)), jnp.float32)


def masks_of(t, steps, grads=G, values=W):
    """The mask and the latents after each update, the optimizer doing nothing, other gradients at each step."""
    encoded = t.init({"w": values}, mz.Context())
    rolled = lambda step: {"w": jnp.roll(grads, step - 5, 0)}  # noqa: E731
    update = jax.jit(lambda e, step: t.update(e, mz.Context(step=step, grads=rolled(step))))
    found = []
    for step in range(steps + 1):
        encoded = update(encoded, jnp.int32(step)) if step else encoded
        mask = unpack_mask(encoded.state.masks["w"], values.shape)
        found.append((np.asarray(mask), np.asarray(encoded.latents["w"])))
    return found


def test_rigl_is_its_algorithm_in_numpy():
    """One exchange at step 5 of 10 against the paper's: ArgTopK(-|θ|), then of the others ArgTopK(|g|)."""
    t = mz.rigl(sparsity=0.8, every=5, end=10, fraction=0.5, allocation="uniform")
    history = masks_of(t, 5)
    (old, values), (new, after) = history[4], history[5]
    assert (history[0][0] == old).all()
    moved = round(0.25 * (1 + np.cos(np.pi / 2)) * 60)
    assert moved == 15
    kept = np.zeros(300, bool)
    active = np.where(old.reshape(-1), np.abs(values).reshape(-1), -np.inf)
    kept[np.argsort(-active, kind="stable")[: 60 - moved]] = True
    inactive = np.where(kept, -np.inf, np.abs(np.asarray(G)).reshape(-1))
    kept[np.argsort(-inactive, kind="stable")[:moved]] = True
    np.testing.assert_array_equal(new.reshape(-1), kept)
    np.testing.assert_array_equal(after[~new], 0.0)
    np.testing.assert_array_equal(after[new & ~old], 0.0)
    np.testing.assert_array_equal(after[new & old], values[new & old])


@pytest.mark.parametrize("make", [mz.rigl, mz.sparse_evolution])
@pytest.mark.parametrize("allocation", ["uniform", "erk", "global"])
def test_the_count_never_changes_and_exchanges_end(make, allocation):
    history = masks_of(make(sparsity=0.9, every=2, end=7, fraction=0.6, allocation=allocation), 12)
    assert {int(mask.sum()) for mask, _ in history} == {30}
    changes = [bool((a != b).any()) for (a, _), (b, _) in itertools.pairwise(history)]
    assert [step for step, changed in enumerate(changes, 1) if changed] == [2, 4, 6]


def test_random_growth_differs_from_step_to_step_and_by_seed():
    def last(seed):
        return masks_of(mz.sparse_evolution(sparsity=0.5, every=1, end=9, fraction=1.0, seed=seed), 2)

    first, second = last(0), last(1)
    assert (first[1][0] != second[1][0]).any()
    assert (first[1][0] != first[2][0]).any()
    np.testing.assert_array_equal(first[2][0], last(0)[2][0])


def test_channels_are_exchanged_whole():
    t = mz.rigl(sparsity=0.6, every=1, end=4, structure=mz.structures.channel(), allocation="uniform")
    for mask, _ in masks_of(t, 3):
        columns = mask.all(0)
        np.testing.assert_array_equal(mask.any(0), columns)
        assert columns.sum() == 6


# The drawn chains of tests/test_drawn_chains.py have them, too.
@pytest.mark.slow
@pytest.mark.parametrize("make", [mz.rigl, mz.sparse_evolution])
def test_laws(make):
    mz.testing.check_laws(make(sparsity=0.5, every=1, end=3), {"kernel": W[:6, :5]})
    mz.testing.check_laws(
        mz.chain(make(sparsity=0.5, every=1, end=3), mz.quantize(bits=4)), {"kernel": W[:6, :5]}
    )


def trained(tx, steps, params=None, seed=1):
    params, state = mz.start(tx, {"w": W} if params is None else params)

    @jax.jit
    def step(params, state, key):
        grads = jax.tree.map(lambda p: jax.random.normal(key, p.shape), params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    history = []
    for key in jax.random.split(jax.random.key(seed), steps):
        params, state = step(params, state, key)
        history.append((params, state))
    return history


@pytest.mark.parametrize(
    "inner",
    [
        optax.adamw(1e-2),
        optax.sgd(1e-2, momentum=0.9),
        optax.chain(optax.clip_by_global_norm(1.0), optax.lamb(1e-2)),
    ],
)
def test_moments_of_pruned_weights_are_zero_and_come_back_so(inner):
    tx = mz.wrap(inner, mz.only("w", mz.rigl(sparsity=0.7, every=3, end=100, fraction=0.8)))
    for params, state in trained(tx, 8, {"w": W, "bias": jnp.ones(3)}):
        mask = np.asarray(params["w"]) != 0
        moments = [
            x for path, x in jax.tree.leaves_with_path(state.inner)
            if any(getattr(k, "name", "") in ("mu", "nu", "trace") for k in path) and x.shape == W.shape
        ]  # fmt: skip
        assert moments
        for m in moments:
            assert (np.asarray(m)[~mask] == 0).all()
            assert (np.asarray(m)[mask] != 0).mean() > 0.95
        np.testing.assert_array_equal(np.asarray(state.latents["w"])[~mask], 0.0)


def test_moments_of_partitioned_and_factored_optimizers():
    parts = optax.partition({"a": optax.adam(1e-2), "b": optax.adafactor(1e-2)}, {"w": "a", "v": "b"})
    tx = mz.wrap(parts, mz.prune(sparsity=0.5, every=1))
    _, state = trained(tx, 2, {"w": W, "v": W})[-1]
    (adam,) = (s for s in jax.tree.leaves(state.inner, is_leaf=_is_adam) if _is_adam(s))
    mask = np.asarray(unpack_mask(state.state.masks["w"], W.shape))
    np.testing.assert_array_equal(np.asarray(adam.mu["w"])[~mask], 0.0)


def test_moments_under_fixed_masks_are_zero_without_clearing():
    tx = mz.wrap(optax.adam(1e-2), mz.only("w", mz.chain(mz.prune(sparsity=0.5), mz.quantize(bits=4))))
    params = {"w": W, "bias": jnp.ones(3)}
    for now, state in trained(tx, 3, params):
        mask = np.asarray(unpack_mask(state.state[1][0][0].masks["w"], W.shape))
        np.testing.assert_array_equal(np.asarray(state.inner[0].mu["w"])[~mask], 0.0)
        assert (np.asarray(now["w"])[~mask] == 0).all()


def _is_adam(x):
    return isinstance(x, optax.ScaleByAdamState)


def test_dense_phases_start_pruned_weights_from_zero():
    schedule = mz.schedules.alternating(0.5, begin=2, end=9, sparse=2, dense=3)
    history = masks_of(mz.prune(sparsity=schedule, remember=False), 10)
    assert [int(mask.sum()) for mask, _ in history] == [300, 300, 150, 150, 300, 300, 300, 150, 150, 150, 150]
    pruned = ~history[2][0]
    np.testing.assert_array_equal(history[4][1][pruned], 0.0)
    np.testing.assert_array_equal(history[4][1][~pruned], np.asarray(W)[~pruned])
    remembered = masks_of(mz.prune(sparsity=schedule), 4)
    np.testing.assert_array_equal(remembered[4][1], W)


def test_dense_sparse_dense_ends_dense():
    history = masks_of(mz.prune(sparsity=mz.schedules.dense_sparse_dense(0.3, 1, 3), remember=False), 4)
    assert [int(mask.sum()) for mask, _ in history] == [300, 210, 210, 300, 300]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mz.rigl(sparsity=1.0, end=9), r"sparsity must be in \[0, 1\), not 1.0$"),
        (lambda: mz.rigl(sparsity=0.5, end=0), "end must be an integer of at least 1, not 0"),
        (lambda: mz.rigl(sparsity=0.5, end=9, fraction=0.0), r"fraction must be in \(0, 1\]"),
        (lambda: mz.rigl(sparsity=0.5, end=9, structure=mz.structures.n_of_m(2, 4)), "nothing to regrow"),
        (lambda: mz.rigl(sparsity=0.5, end=9, allocation="ekr"), "did you mean 'erk'"),
        (lambda: mz.rigl(sparsity=0.5, end=9, allocation=mz.allocation.at_most(params=9)), "a budget fixes"),
        (lambda: mz.schedules.alternating(0.5, 0, 9, 0, 1), "phases take a step or more"),
        (lambda: mz.schedules.dense_sparse_dense(0.5, 4, 4), "before it begins"),
        (lambda: mz.schedules.dense_sparse_dense(1.5, 4, 5), r"sparsity must be in \[0, 1\)"),
    ],
)
def test_bad_values_are_named(make, message):
    with pytest.raises(mz.errors.TransformError, match=message):
        make()


def test_a_vmap_trains_a_family_of_sparsities_in_one_trace():
    traces = []

    def final(sparsity):
        traces.append(None)
        tx = mz.wrap(
            optax.adam(1e-2), mz.prune(sparsity=lambda step: sparsity * jnp.minimum(step / 4.0, 1.0), every=1)
        )
        params, state = mz.start(tx, {"w": W})

        def step(carry, key):
            params, state = carry
            updates, state = tx.update({"w": jax.random.normal(key, W.shape)}, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, state), jax.random.split(jax.random.key(0), 6))[0][0]["w"]

    sparsities = jnp.array([0.1, 0.5, 0.9])
    family = jax.jit(jax.vmap(final))(sparsities)
    assert len(traces) == 1
    assert [int((w == 0).sum()) for w in family] == [30, 150, 270]


def test_random_scores_may_be_renewed_at_each_refresh():
    def masks(renewed):
        return [
            mask for mask, _ in masks_of(mz.prune(mz.scores.random(0, renewed), sparsity=0.5, every=1), 2)
        ]

    fixed, renewed = masks(False), masks(True)
    np.testing.assert_array_equal(fixed[1], fixed[2])
    assert (renewed[1] != renewed[2]).any()
