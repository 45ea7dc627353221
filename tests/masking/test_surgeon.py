import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import modelzip_jax as mz
from modelzip_jax import trace
from modelzip_jax.errors import LeafError, NonFiniteError, PatternError, TransformError
from modelzip_jax.masking.brain_surgeon import surgeon

RNG = np.random.default_rng(0)
MIX = RNG.normal(size=(24, 24)) * np.exp(-np.arange(24) / 6)


def correlated(rows, n):
    return jnp.asarray(RNG.normal(size=(rows, 24)) @ MIX[:, :n], jnp.float32)


def dense_case(n=24, outputs=5):
    params = {"kernel": jnp.asarray(RNG.normal(size=(n, outputs)), jnp.float32)}
    model = lambda p, x: x @ p["kernel"]  # noqa: E731
    return model, params, correlated(64, n)


def grams(model, params, x):
    return trace.statistics(model, params, [x], kinds=("gram",))


def reference(w, gram, damping, block, quota=None, groups=None):
    """SparseGPT as its paper words it: inverses of what is left, one at a time, in float64; w is (outputs, inputs).

    quota: weights that go in each block. groups: (inputs, kept) of each n:m group, in order.
    """
    w, count = np.array(w, np.float64), len(gram)
    h = np.asarray(gram, np.float64) + damping * np.mean(np.diag(gram)) * np.eye(count)
    inverses = [np.linalg.inv(h[c:, c:]) for c in range(count)]
    diagonal = np.array([i[0, 0] for i in inverses])
    kept = np.ones(w.shape, bool)
    starts = {g[0]: (g, k) for g, k in groups} if groups else {}
    for c in range(count):
        if quota is not None and c % block == 0:
            span = slice(c, min(c + block, count))
            scores = w[:, span] ** 2 / diagonal[span]
            flat = np.ones(scores.size, bool)
            flat[np.argsort(scores.reshape(-1), kind="stable")[: quota[c // block]]] = False
            kept[:, span] = flat.reshape(scores.shape)
        if c in starts:
            columns, keep = starts[c]
            scores = w[:, columns] ** 2 / diagonal[columns]
            order = np.argsort(-scores, axis=1, kind="stable")
            kept[:, columns] = False
            for row in range(len(w)):
                kept[row, np.asarray(columns)[order[row, :keep]]] = True
        error = np.where(kept[:, c], 0.0, w[:, c]) / inverses[c][0, 0]
        w[:, c:] -= np.outer(error, inverses[c][0])
    return np.where(kept, w, 0.0), kept


def quotas(gone, count, block, layers=1):
    ends = [*range(block, count, block), count]
    done = [k * count + e for k in range(layers) for e in ends]
    return np.diff([gone * d // (layers * count) for d in done], prepend=0).reshape(layers, -1)


@pytest.mark.parametrize(("sparsity", "block"), [(0.5, 7), (0.8, 128), (0.0, 8)])
def test_single_weights_as_the_paper_words_it(sparsity, block):
    model, params, x = dense_case()
    stats = grams(model, params, x)
    got = surgeon(params, stats, sparsity=sparsity, block=block)
    gone = int(np.floor(sparsity * 120 + 0.5))
    gram = np.asarray(stats["kernel"][0].inputs.gram)
    want, kept = reference(
        np.asarray(params["kernel"]).T, gram, 0.01, block, quotas(gone, 24, min(block, 24))[0]
    )
    np.testing.assert_array_equal(got.scores["kernel"], kept.T)
    np.testing.assert_allclose(got.params["kernel"], want.T, atol=2e-4)
    assert np.sum(np.asarray(got.scores["kernel"]) == 0) == gone


@pytest.mark.parametrize("block", [6, 128])
def test_n_of_m_as_the_paper_words_it(block):
    model, params, x = dense_case(n=22)
    stats = grams(model, params, x)
    structure = mz.structures.n_of_m(2, 4)
    got = surgeon(params, stats, structure=structure, block=block)
    gram = np.asarray(stats["kernel"][0].inputs.gram)
    groups = [(list(range(i, min(i + 4, 22))), 2 if i < 20 else 1) for i in range(0, 22, 4)]
    want, kept = reference(np.asarray(params["kernel"]).T, gram, 0.01, block, groups=groups)
    np.testing.assert_array_equal(got.scores["kernel"], kept.T)
    np.testing.assert_allclose(got.params["kernel"], want.T, atol=2e-4)
    t = mz.prune(mz.scores.given(), structure=structure)
    np.testing.assert_array_equal(
        mz.decoded(got.params, t, scores=got.scores)["kernel"], got.params["kernel"]
    )


def test_one_weight_goes_as_optimal_brain_surgeon_takes_it():
    model, params, x = dense_case(n=8, outputs=1)
    params = {"kernel": params["kernel"].at[0, 0].set(0.01)}
    stats = grams(model, params, x)
    got = surgeon(params, stats, sparsity=1 / 8, damping=1e-3)
    gram = np.asarray(stats["kernel"][0].inputs.gram, np.float64)
    inverse = np.linalg.inv(gram + 1e-3 * np.mean(np.diag(gram)) * np.eye(8))
    w = np.asarray(params["kernel"], np.float64).ravel()
    want = w - w[0] / inverse[0, 0] * inverse[0]  # Hassibi & Stork 1993, eq. 5, of weight q = 0
    np.testing.assert_array_equal(got.scores["kernel"].ravel(), [0, *[1] * 7])
    np.testing.assert_allclose(got.params["kernel"].ravel(), want, atol=1e-5)
    # No other weights do better: the closed form is the minimum of the damped error with that one at zero.
    h = np.linalg.inv(inverse)
    change = w - want
    assert change @ h @ change == pytest.approx(w[0] ** 2 / inverse[0, 0], rel=1e-4)


def test_a_convolution_through_its_patches():
    model = nn.Conv(4, (2, 2))
    x = jnp.asarray(RNG.normal(size=(3, 6, 6, 3)), jnp.float32)
    params = model.init(jax.random.key(0), x)
    stats = trace.statistics(model.apply, params, [x], kinds=("gram",))
    w = np.asarray(params["params"]["kernel"])
    got = surgeon(params, stats, sparsity=0.5, block=5)
    gram = np.asarray(stats["params"]["kernel"][0].inputs.gram)
    want, kept = reference(w.reshape(12, 4).T, gram, 0.01, 5, quotas(24, 12, 5)[0])
    np.testing.assert_array_equal(got.scores["params"]["kernel"], kept.T.reshape(w.shape))
    np.testing.assert_allclose(got.params["params"]["kernel"], want.T.reshape(w.shape), atol=1e-4)
    np.testing.assert_array_equal(got.params["params"]["bias"], params["params"]["bias"])
    np.testing.assert_array_equal(got.scores["params"]["bias"], 1)
    # 2:4 along three input features: one short group at each place of the window, which keeps ceil(6 / 4).
    got = surgeon(params, stats, structure=mz.structures.n_of_m(2, 4), block=5)
    groups = [([i, i + 1, i + 2], 2) for i in range(0, 12, 3)]
    want, kept = reference(w.reshape(12, 4).T, gram, 0.01, 5, groups=groups)
    np.testing.assert_array_equal(got.scores["params"]["kernel"], kept.T.reshape(w.shape))
    np.testing.assert_allclose(got.params["params"]["kernel"], want.T.reshape(w.shape), atol=1e-4)


def test_layers_stacked_for_a_scan_are_pruned_one_by_one():
    params = {"kernel": jnp.asarray(RNG.normal(size=(3, 8, 8)), jnp.float32)}

    def model(p, x):
        return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, p["kernel"])[0]

    stats = grams(model, params, correlated(32, 8))
    got = surgeon(params, stats, sparsity=0.3, block=4)
    quota = quotas(int(np.floor(0.3 * 192 + 0.5)), 8, 4, layers=3)
    for k in range(3):
        gram = np.asarray(stats["kernel"][0].inputs.gram[k])
        want, kept = reference(np.asarray(params["kernel"][k]).T, gram, 0.01, 4, quota[k])
        np.testing.assert_array_equal(got.scores["kernel"][k], kept.T)
        np.testing.assert_allclose(got.params["kernel"][k], want.T, atol=3e-4)
    assert np.sum(np.asarray(got.scores["kernel"]) == 0) == 58


def test_half_precision_and_dead_inputs():
    model, params, _ = dense_case(n=6)
    x = jnp.asarray(RNG.normal(size=(64, 6)), jnp.float32).at[:, 2].set(0.0)
    params = {"kernel": jnp.ones_like(params["kernel"], jnp.bfloat16)}
    got = surgeon(params, grams(model, params, x), sparsity=1 / 6, damping=1e-4)
    assert got.params["kernel"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(got.scores["kernel"][2], 0)  # they cost nothing


def test_the_allocation_is_that_of_prune():
    params = {n: {"kernel": jnp.asarray(RNG.normal(size=(24, 10)), jnp.float32)} for n in "ab"}
    stats = grams(lambda p, x: x @ p["a"]["kernel"] + x @ p["b"]["kernel"], params, correlated(64, 24))
    own = mz.allocation.layers({"a/kernel": 0.25})
    got = surgeon(params, stats, sparsity=0.8, allocation=own)
    gone = [int(jnp.sum(got.scores[n]["kernel"] == 0)) for n in "ab"]
    assert gone == [60, 192]
    t = mz.prune(mz.scores.given(), sparsity=0.8, allocation=own)
    packed = mz.unpack(mz.compress(got.params, t, scores=got.scores))
    jax.tree.map(np.testing.assert_array_equal, packed, got.params)
    with pytest.raises(TransformError, match="one threshold over all"):
        surgeon(params, stats, sparsity=0.8, allocation="global")


def test_what_it_refuses():
    model, params, x = dense_case()
    stats = grams(model, params, x)
    for options, message in [
        ({"sparsity": 1.0}, r"in \[0, 1\)"),
        ({}, "needs a sparsity"),
        ({"sparsity": 0.5, "structure": mz.structures.n_of_m(2, 4)}, "leave it out"),
        ({"sparsity": 0.5, "structure": mz.structures.channel()}, "single weights or n of m"),
        ({"sparsity": 0.5, "damping": 0.0}, "must be positive"),
        ({"sparsity": 0.5, "block": 0}, "must be positive"),
    ]:
        with pytest.raises(TransformError, match=message):
            surgeon(params, stats, **options)
    with pytest.raises(PatternError, match="matches no leaf"):
        surgeon(params, stats, sparsity=0.5, only="nothing")
    with pytest.raises(LeafError, match="leaf 'kernel', whose last input axis is 0"):
        surgeon(params, stats, structure=mz.structures.n_of_m(2, 4, axis=-1))
    with pytest.raises(NonFiniteError, match="'kernel'"):
        surgeon({"kernel": params["kernel"].at[0, 0].set(jnp.nan)}, stats, sparsity=0.5)
    other = trace.statistics(model, params, [x])
    with pytest.raises(LeafError, match="the Gram matrix of the inputs of leaf 'kernel'"):
        surgeon(params, other, sparsity=0.5)
    with pytest.raises(NonFiniteError, match="inputs of leaf 'kernel' has NaN"):
        surgeon(params, jax.tree.map(lambda g: g * jnp.nan, stats), sparsity=0.5)


def test_other_uses_are_refused_by_name():
    x = jnp.asarray(RNG.normal(size=(2, 5, 5, 4)), jnp.float32)
    conv = nn.Conv(4, (3, 3), feature_group_count=2)
    params = conv.init(jax.random.key(0), x)
    stats = trace.statistics(conv.apply, params, [x], kinds=("gram",))
    with pytest.raises(LeafError, match=r"'params/kernel' of shape \(3, 3, 2, 4\) is no kernel"):
        surgeon(params, stats, sparsity=0.5)
    tied = {"table": {"kernel": jnp.ones((3, 3))}}
    stats = grams(lambda p, x: x @ p["table"]["kernel"] @ p["table"]["kernel"], tied, jnp.ones((2, 3)))
    with pytest.raises(LeafError, match="it has 2 products"):
        surgeon(tied, stats, sparsity=0.5)
    lora = {"kernel": jnp.ones((3, 3)), "other": jnp.ones((3, 3))}
    stats = grams(lambda p, x: x @ (p["kernel"] + p["other"]), lora, jnp.ones((2, 3)))
    with pytest.raises(LeafError, match=r"'kernel' .* and derived"):
        surgeon(lora, stats, sparsity=0.5)


@pytest.mark.slow
def test_a_real_network_loses_less_than_by_magnitude_or_wanda():
    from sklearn.datasets import load_digits
    from sklearn.neural_network import MLPClassifier

    x, y = load_digits(return_X_y=True)
    x = (x / 16.0).astype(np.float32)
    fit = MLPClassifier((32,), max_iter=25, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it has not converged
        fit.fit(x[:1000], y[:1000])
    params = {
        f"layer{i}": {"kernel": jnp.asarray(w, jnp.float32), "bias": jnp.asarray(b, jnp.float32)}
        for i, (w, b) in enumerate(zip(fit.coefs_, fit.intercepts_, strict=True))
    }

    def model(p, x):
        h = jax.nn.relu(x @ p["layer0"]["kernel"] + p["layer0"]["bias"])
        return h @ p["layer1"]["kernel"] + p["layer1"]["bias"]

    stats = trace.statistics(model, params, [jnp.asarray(x[:1000])], kinds=("gram", "second_moment"))
    dense = model(params, x[1000:])

    def error(score, weights, **extra):
        t = mz.only("**/kernel", mz.prune(score, sparsity=0.6))
        return float(jnp.mean((model(mz.decoded(weights, t, **extra), x[1000:]) - dense) ** 2))

    found = surgeon(params, stats, sparsity=0.6)
    ours = error(mz.scores.given(), found.params, scores=found.scores)
    wanda = error(mz.scores.wanda(), params, stats=stats)
    magnitude = error(mz.scores.magnitude(), params)
    print(
        f"mean squared change of the logits: surgeon {ours:.3g}, wanda {wanda:.3g}, magnitude {magnitude:.3g}"
    )
    assert ours < 0.5 * wanda
    assert ours < 0.5 * magnitude
