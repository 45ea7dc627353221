"""Clustering as a transform: laws, unique values, masks, gradients, DKM, blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import modelzip_jax as mz
from modelzip_jax.evaluation import report
from modelzip_jax.masking.masked import Masked

RNG = np.random.default_rng(2)


def normal(*shape, dtype=np.float32):
    return RNG.normal(size=shape).astype(dtype)


TREE = {"a": {"kernel": normal(12, 10), "bias": normal(3)}, "b": {"kernel": normal(12, 10)}}
LAWS = {
    "refreshed": mz.cluster(4, every=2, granularity="model"),
    "lloyd": mz.cluster(4, every=1, learned=False, zero=True),
    "dkm": mz.cluster(4, temperature=0.1),
    "blocks": mz.cluster(6, block=4, axis=0, every=1),
    "masked": mz.chain(mz.prune(sparsity=0.5), mz.cluster(4, every=1)),
}


# The drawn chains of tests/test_drawn_chains.py have clusters, too.
@pytest.mark.slow
@pytest.mark.parametrize("name", LAWS)
def test_laws(name):
    tree = {"kernel": normal(6, 4), "half": jnp.asarray(normal(7), jnp.bfloat16)}
    mz.testing.check_laws(LAWS[name], tree, steps=2)


def trained(transform, params, steps=4, rate=0.05):
    """A model trained with random gradients."""
    tx = mz.wrap(optax.sgd(rate), transform, offsets_tx=optax.sgd(rate))
    params, state = mz.start(tx, params)

    @jax.jit
    def step(params, state, key):
        grads = jax.tree.map(lambda w: jax.random.normal(key, w.shape), params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for index in range(steps):
        params, state = step(params, state, jax.random.key(index))
    return mz.params(state, params), mz.pack(state, params)


@pytest.mark.parametrize(
    "transform",
    [
        mz.only("**/kernel", mz.cluster(4)),
        mz.only("**/kernel", mz.chain(mz.prune(sparsity=0.7), mz.cluster(4, every=2))),
        mz.only("**/kernel", mz.cluster(4, temperature=0.05)),
    ],
    ids=["fixed", "masked", "dkm"],
)
def test_no_more_than_k_values_in_the_file_and_after_training(transform, tmp_path):
    params, packed = trained(transform, jax.tree.map(jnp.asarray, TREE))
    mz.save(tmp_path / "m.mz", packed)
    loaded = mz.unpack(mz.load(tmp_path / "m.mz"))
    for layer in "ab":
        assert len(np.unique(loaded[layer]["kernel"])) <= 4
        np.testing.assert_array_equal(loaded[layer]["kernel"], params[layer]["kernel"])
    assert np.any(loaded["a"]["kernel"] != mz.decoded(TREE, transform)["a"]["kernel"])


def test_indices_take_their_bits_and_the_rate_is_what_is_stored():
    packed = mz.compress({"w": normal(64, 64)}, mz.cluster(13))
    assert packed.nbytes == 64 * 64 * 4 // 8 + 13 * 4
    t, w = mz.cluster(13), normal(64, 64)
    bits = float(mz.rate(t, t.init({"w": w}, mz.Context())))
    assert 0.9 * np.log2(13) * w.size < bits <= np.log2(13) * w.size + 32 * 13


def test_behind_a_mask_the_codebook_is_fitted_to_what_is_kept():
    w = normal(60, 50)
    packed = mz.compress({"w": w}, mz.chain(mz.prune(sparsity=0.9), mz.cluster(4)))
    stored = packed.params["w"]
    assert isinstance(stored, Masked)
    assert stored.inner.codes.count == 300
    codebook = np.asarray(stored.inner.codebook)
    assert codebook[0] == 0.0
    assert np.abs(codebook[1:]).min() > 1.5
    values = np.asarray(mz.unpack(packed)["w"])
    assert np.count_nonzero(values) == 300
    assert len(np.unique(values)) == 4


def test_zero_stays_when_asked_for_and_is_resumed():
    transform = mz.cluster(4, zero=True)
    _, packed = trained(transform, {"w": jnp.asarray(normal(20, 10))})
    assert float(packed.params["w"].codebook[0]) == 0.0
    _, encoded = mz.resume(packed)
    assert encoded.state.books["w"].zero.value is True


def test_a_model_has_one_codebook_and_groups_have_theirs():
    packed = mz.compress(TREE, mz.cluster(4, granularity="model"))
    books = [np.asarray(p.codebook) for p in jax.tree.leaves(packed.params, is_leaf=mz.packed.is_packed)]
    assert all(np.array_equal(book, books[0]) for book in books)
    groups = mz.partition(
        {"x": mz.cluster(4, granularity="model"), "y": mz.cluster(4)}, {"a/*": "x", "b/*": "y"}
    )
    packed = mz.compress(TREE, groups).params
    np.testing.assert_array_equal(packed["a"]["kernel"].codebook, packed["a"]["bias"].codebook)
    assert not np.array_equal(packed["a"]["kernel"].codebook, packed["b"]["kernel"].codebook)


def test_importance_moves_centroids():
    w = np.float32([-1.0, 0.0, 1.0, 2.0, 3.0, 9.0])
    important = {"w": np.float32([0, 0, 0, 0, 100, 0]) + 1e-3}
    packed = mz.compress({"w": w}, mz.cluster(2), importance=important)
    assert np.min(np.abs(np.asarray(packed.params["w"].codebook) - 3.0)) < 1e-2
    assert packed.params["w"].codebook[0] != mz.compress({"w": w}, mz.cluster(2)).params["w"].codebook[0]


def test_an_entry_gets_the_sum_of_its_weights_gradients():
    t = mz.cluster(2)
    encoded = t.init({"w": jnp.array([1.0, 1.5, -2.0, -3.0, 1.0])}, mz.Context())

    def weighted(offsets):
        return jnp.sum(t.decode(encoded._replace(offsets=offsets))["w"] * jnp.arange(5.0))

    grads = jax.grad(weighted)(encoded.offsets)
    # Offsets are in units of the scale.
    np.testing.assert_allclose(grads["w"], np.array([5.0, 5.0]) * encoded.state.books["w"].scale)


def test_latents_move_only_where_assignments_are_refreshed():
    def slope(t):
        encoded = t.init({"w": jnp.array([1.0, 1.5, -2.0, -3.0])}, mz.Context())
        return jax.grad(lambda z: jnp.sum(t.decode(encoded._replace(latents=z))["w"]))(encoded.latents)["w"]

    assert slope(mz.cluster(2)).shape == ()  # Fixed indices leave nothing of the latents.
    assert not np.any(slope(mz.cluster(2)))
    np.testing.assert_array_equal(slope(mz.cluster(2, every=3)), 1.0)


def test_a_refresh_assigns_anew_and_keeps_the_entries_places():
    t = mz.cluster(2, every=2)
    encoded = t.init({"w": jnp.array([1.0, 1.5, -2.0, -3.0])}, mz.Context())
    encoded = encoded._replace(latents={"w": encoded.latents["w"].at[0].set(-2.0)})
    early = t.update(encoded, mz.Context(step=jnp.int32(1)))
    assert early.state.codes["w"].tolist() == [1, 1, 0, 0]
    due = t.update(encoded, mz.Context(step=jnp.int32(2)))
    assert due.state.codes["w"].tolist() == [0, 1, 0, 0]
    # An entry that training took past another one keeps its index.
    crossed = encoded._replace(offsets={"w": encoded.offsets["w"].at[0].set(8.0)})
    assert t.update(crossed, mz.Context(step=jnp.int32(2))).state.codes["w"].tolist() == [1, 1, 1, 1]


def test_without_learning_entries_become_means():
    t = mz.cluster(2, every=1, learned=False)
    encoded = t.init({"w": jnp.array([1.0, 2.0, -2.0, -4.0])}, mz.Context())
    moved = encoded._replace(latents={"w": encoded.latents["w"] + 0.5})
    after = t.update(moved, mz.Context(step=jnp.int32(1)))
    np.testing.assert_allclose(t.decode(after)["w"], [2.0, 2.0, -2.5, -2.5])


def test_dkm_has_the_gradient_of_its_layer():
    """By finite differences of softmax(-|w - c| / t) C with one update of C, in NumPy."""
    t, w = mz.cluster(4, temperature=0.5), normal(24).astype(np.float64)
    encoded = t.init({"w": jnp.asarray(w, jnp.float32)}, mz.Context())
    book = np.asarray(t.decode(encoded)["w"])
    c = np.asarray(encoded.state.books["w"].base * encoded.state.books["w"].scale, np.float64)
    assert np.min(np.abs(w[:, None] - c)) > 1e-4, "where a weight is an entry, there is a kink"
    weights = np.arange(24.0)

    def layer(w):
        a = np.exp(-np.abs(w[:, None] - c) / (0.5 * np.sqrt(np.mean(c**2))))
        a /= a.sum(axis=1, keepdims=True)
        return weights @ (a @ ((a.T @ w) / a.sum(axis=0)))

    step = 1e-5 * np.eye(24)
    slope = [(layer(w + d) - layer(w - d)) / 2e-5 for d in step]
    found = jax.grad(lambda z: jnp.sum(t.decode(encoded._replace(latents=z))["w"] * weights))(encoded.latents)
    np.testing.assert_allclose(found["w"], slope, rtol=2e-3, atol=1e-3)
    assert set(book.tolist()) <= set(np.float32(c).tolist())


def test_blocks_are_vectors_of_the_codebook():
    w = normal(30, 7)
    packed = mz.compress({"w": w}, mz.cluster(8, block=3, axis=0)).params["w"]
    blocks = np.asarray(packed.unpack()).T.reshape(-1, 3)
    assert {tuple(b) for b in blocks} <= {tuple(b) for b in np.asarray(packed.codebook)}
    assert packed.codes.bits == 3
    assert packed.codes.count == 70


def test_a_damaged_codebook_is_refused():
    packed = mz.compress({"w": normal(30, 7)}, mz.cluster(13)).params["w"]
    with pytest.raises(ValueError, match="codebook"):
        type(packed)(packed.codes, packed.codebook[:3], False, packed.shape, packed.dtype).check()
    beyond = mz.packed.Bits.pack(np.full(210, 15), 4)
    with pytest.raises(ValueError, match="beyond"):
        type(packed)(beyond, packed.codebook, False, packed.shape, packed.dtype).check()


@pytest.mark.parametrize(
    ("options", "form"),
    [({"k": 13}, "13 values"), ({"k": 16, "block": 4}, "16 vectors of 4")],
)
def test_the_report_knows_it(options, form):
    packed = mz.compress({"w": normal(30, 8)}, mz.cluster(**options)).params["w"]
    assert report.describe(packed) == form


@pytest.mark.parametrize(
    "options",
    [{"k": 1}, {"k": 257}, {"k": 2.5}, {"block": 0}, {"every": -1}, {"granularity": "row"}, {"init": "x"},
     {"temperature": 0.0}, {"block": 2, "zero": True}],
)  # fmt: skip
def test_wrong_arguments(options):
    with pytest.raises(mz.errors.TransformError):
        mz.cluster(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"every": 1},
        pytest.param({"temperature": 0.1}, marks=pytest.mark.slow),
        pytest.param({"block": 2, "temperature": 0.1}, marks=pytest.mark.slow),
        {"every": 0},
    ],
)
def test_empty_leaves_and_scalars(options):
    params = {
        "empty": jnp.zeros((0, 3)),
        "flat": jnp.zeros((3, 0)),
        "scalar": jnp.float32(2.0),
        "w": jnp.ones(5),
    }
    mz.testing.check_laws(mz.cluster(4, **options), params, steps=2)
