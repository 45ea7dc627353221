"""Codebooks: entries that start equal, layers by vmap, debugging flags, gradients, sums in one order."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import modelzip_jax as mz
from modelzip_jax.sharing import codebook as books
from modelzip_jax.sharing import sums as module
from modelzip_jax.sharing.lookup import look_up, soft_read, twins
from modelzip_jax.sharing.parting import parted
from modelzip_jax.sharing.vectors import vector_kmeans

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def losses(zipper, start, steps=300):
    """Of a linear regression; the target's weights are the start's and about 0.2 more."""
    keys = jax.random.split(jax.random.key(5), 2)
    x, more = jax.random.normal(keys[0], (256, 8)), 0.2 * jax.random.normal(keys[1], (8, 3))
    tx = mz.wrap(optax.adam(1e-2), zipper)
    params, state = mz.start(tx, {"w": start})
    traces = []

    @jax.jit
    def step(params, state):
        traces.append(1)
        loss, g = jax.value_and_grad(lambda p: jnp.mean((x @ (p["w"] - start - more)) ** 2))(params)
        updates, state = tx.update(g, state, params)
        return optax.apply_updates(params, updates), state, loss

    found = []
    for _ in range(steps):
        params, state, loss = step(params, state)
        found.append(float(loss))
    assert len(traces) == 1
    return found[0], min(found[-20:]), np.asarray(params["w"])


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize(
    "zipper",
    [
        mz.cluster(16, temperature=0.05),
        mz.cluster(16, temperature=0.05, zero=True),
        mz.cluster(8, temperature=0.05, block=2),
        mz.cluster(16, every=5, learned=False),
        mz.cluster(8, every=5, learned=False, block=2),
        mz.cluster(16, every=5),
        mz.cluster(8, every=5, block=2),
        mz.cluster(16, every=5, granularity="model"),
    ],
    ids=[
        "dkm",
        "dkm-zero",
        "dkm-blocks",
        "lloyd",
        "lloyd-blocks",
        "learned",
        "learned-blocks",
        "learned-model",
    ],
)
def test_a_leaf_whose_weights_start_equal_trains(zipper, value):
    first, last, w = losses(zipper, jnp.full((8, 3), value, jnp.float32))
    assert last < first / (3 if zipper == mz.cluster(8, every=5, block=2) else 4)
    assert len(np.unique(w)) > 4


def test_two_values_at_the_start_become_more():
    """As the biases of an LSTM: of 16 entries, 14 are equal to another one."""
    start = jnp.zeros((8, 3)).at[:4].set(1.0)
    first, last, w = losses(mz.cluster(16, temperature=0.05), start)
    assert last < first / 4
    assert len(np.unique(w)) > 8


def test_without_refreshes_weights_that_start_equal_move_together():
    """Their indices are kept, which nothing tells apart; the one value that they have is trained."""
    _, _, w = losses(mz.cluster(16), jnp.zeros((8, 3)), steps=30)
    assert len(np.unique(w)) == 1
    assert w[0, 0] != 0.0


@pytest.mark.parametrize("zero", [False, True])
def test_equal_entries_of_a_learned_book_part_and_its_offsets_stay(zero):
    book = books.of_entries(jnp.zeros(6), zero)
    offset = jnp.full(6, 0.25)
    w = normal(50)
    found = jax.jit(lambda b, o, w: books.respread(b, o, [w], [None]))(book, offset, w)
    entries = np.asarray(books.current(offset, found))
    assert len(np.unique(entries)) == 6
    assert w.min() <= entries.min() < -0.5
    assert w.max() >= entries.max() > 0.5
    assert not zero or entries[0] == 0.0
    again = books.respread(found, offset, [w], [None])
    np.testing.assert_array_equal(again.base, found.base)


def test_entries_that_differ_stay_when_others_part():
    entries = jnp.array([[3.0], [-1.0], [-1.0], [7.0]])
    rows = jnp.array([[-1.5], [-0.5], [3.0], [3.0]])
    found = np.asarray(parted(rows, entries, jnp.ones((4, 1))))[:, 0]
    assert found[[0, 1, 3]].tolist() == [3.0, -1.0, 7.0]
    assert found[2] in (-1.5, -0.5)


def test_where_nothing_differs_nothing_parts():
    book = books.of_entries(jnp.full(4, 0.3), False)
    for temperature in (None, 0.05):
        found = books.step(book, [jnp.full(9, 0.3)], [None], temperature)
        np.testing.assert_allclose(books.current(None, found), 0.3, rtol=1e-6)


def test_while_entries_are_equal_the_gradient_goes_straight_through():
    assert twins(jnp.array([[0.0], [2.0], [0.0]])).tolist() == [False, False, True]
    w, g = jnp.array([[0.1], [2.1], [-0.1], [2.2]]), jnp.array([[3.0], [5.0], [7.0], [1.0]])
    codes = jnp.array([0, 1, 2, 1], jnp.uint8)

    def gradient(book):
        return jax.grad(lambda w: jnp.sum(g * soft_read(w, book, codes, jnp.float32(0.1))))(w)

    np.testing.assert_array_equal(gradient(jnp.array([[0.0], [2.0], [0.0]])), g)
    found = gradient(jnp.array([[0.5], [2.0], [0.0]]))
    np.testing.assert_allclose(found[[1, 3], 0], 3.0, atol=0.3)  # What shares an entry moves together.


@pytest.mark.parametrize("init", ["companding", "density", "linear", "k-means++"])
@pytest.mark.parametrize("zero", [False, True])
def test_a_book_a_layer_by_vmap(init, zero):
    layers = normal(3, 40)

    def fit(w):
        entries = books.fit_codebook([w], [None], 5, zero, init, None)
        return entries, books.nearest_entry(w, entries)

    found, codes = jax.vmap(fit)(layers)
    for i, w in enumerate(layers):
        np.testing.assert_array_max_ulp(np.asarray(found[i]), np.asarray(fit(w)[0]), 1)
        np.testing.assert_array_equal(codes[i], fit(w)[1])


@pytest.mark.slow
def test_histograms_by_vmap():
    layers = normal(2, 70_000)
    fit = lambda w: books.fit_codebook([w], [None], 8, False, "companding", None)  # noqa: E731
    found, codes = jax.vmap(fit)(layers), jax.vmap(lambda w: books.nearest_entry(w, fit(w)))(layers)
    for i, w in enumerate(layers):
        np.testing.assert_array_max_ulp(np.asarray(found[i]), np.asarray(fit(w)), 1)
        np.testing.assert_array_equal(codes[i], books.nearest_entry(w, fit(w)))


@pytest.mark.parametrize("temperature", [None, 0.1])
@pytest.mark.parametrize("block", [1, 2])
def test_steps_of_layers_by_vmap(temperature, block):
    layers = normal(3, 40, block) if block > 1 else normal(3, 40)

    def after(w):
        book = books.of_entries(books.fit_codebook([w], [None], 5, False, "linear", None), False)
        book = books.step(book, [w + 0.1], [jnp.ones_like(w)], temperature)
        book = books.respread(book, jnp.zeros_like(book.base), [w], [None])
        return books.current(None, book), books.nearest_entry(w, books.current(None, book))

    found = jax.vmap(after)(layers)
    for i, w in enumerate(layers):
        entries, codes = after(w)
        np.testing.assert_allclose(found[0][i], entries, rtol=1e-6, atol=1e-7)
        np.testing.assert_array_equal(found[1][i], codes)


@pytest.mark.parametrize("flag", [jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise")])
@pytest.mark.parametrize(
    "zipper",
    [mz.cluster(4), mz.cluster(4, init="k-means++"), mz.cluster(4, init="density", every=1),
     mz.cluster(4, init="linear", zero=True, every=1, learned=False), mz.cluster(4, temperature=0.05),
     mz.cluster(4, block=2, temperature=0.05), mz.cluster(4, block=2, every=1, learned=False),
     mz.share_neurons(2)],
    ids=range(8),
)  # fmt: skip
def test_debugging_flags(flag, zipper):
    jax.clear_caches()
    with flag:
        p = {"w": jnp.arange(1.0, 33.0).reshape(8, 4)}
        tx = mz.wrap(optax.sgd(0.1), zipper, offsets_tx=optax.sgd(0.1))
        params, state = mz.start(tx, p)
        jax.jit(tx.update)(p, state, params)


@pytest.mark.parametrize("temperature", [None, 0.1])
@pytest.mark.parametrize("block", [1, 2])
def test_choices_have_no_gradient(temperature, block):
    """A derivative through steps of training would meet loops that have none."""

    def after(w):
        rows = w.reshape(-1, block) if block > 1 else w
        entries = books.fit_codebook([rows], [None], 4, False, "companding", None)
        book = books.step(books.of_entries(entries, False), [rows], [None], temperature)
        entries = books.current(None, book)
        codes = books.nearest_entry(rows, entries)
        t = books.softness(entries, 0.1)
        back = soft_read(rows.reshape(-1, block), entries.reshape(4, block), codes, t)
        return jnp.sum(back * look_up(rows, entries, codes, True).reshape(back.shape)), codes

    def two(w):
        g = jax.grad(after, has_aux=True)(w)[0]
        return after(w - 0.1 * g)[0]

    found = jax.jit(jax.grad(two))(normal(40))
    assert np.isfinite(found).all()
    assert np.any(found)


@pytest.mark.parametrize("count", [16, 5000])
def test_sums_in_one_order_are_those_of_a_scatter(count):
    index, values = jnp.asarray(RNG.integers(0, count, 9000)), normal(9000, 2)
    scattered = module.segment_sums(index, values, count)
    ordered = (module._compared if count <= 256 else module._sorted)(index, values, count)
    np.testing.assert_allclose(ordered, scattered, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("count", "dtype"), [(3, "u1"), (16, "u1"), (200, "u1"), (256, "u1"), (5000, "u2")])
@pytest.mark.parametrize("behind", [(), (2,)])
@pytest.mark.parametrize("by", ["_compared", "_in_lanes"])
def test_sums_of_other_devices_are_those_of_a_scatter(count, dtype, behind, by):
    shape = (50, 180)
    index = jnp.asarray(RNG.integers(0, count, shape).astype(dtype))
    for values in (normal(*shape, *behind), jnp.ones((*shape, *behind), jnp.int32)):
        expected = module.summed_at(index, values, count)
        found = getattr(module, by)(index, values, count)
        assert (found.shape, found.dtype) == (expected.shape, values.dtype)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)
    empty = getattr(module, by)(index[:0], jnp.zeros((0, *shape[1:], *behind)), count)
    np.testing.assert_array_equal(empty, jnp.zeros((count, *behind)))


def test_products_of_blocks_and_attention_are_in_full_precision():
    x = normal(40, 2)
    book = books.of_entries(x[:4], False)
    codes = jnp.zeros(40, jnp.uint8)
    for f in (
        lambda x: vector_kmeans(x, 4),
        lambda x: books.step(book, [x], [None], 0.1).base,
        lambda x: books.nearest_entry(x, x[:4]),
        jax.grad(lambda x: jnp.sum(soft_read(x, book.base, codes, jnp.float32(1.0)))),
    ):
        text = str(jax.make_jaxpr(f)(x))
        assert "dot_general" in text
        assert text.count("dot_general[") == text.count("precision=(Precision.HIGHEST, Precision.HIGHEST)")
