"""Every score against a direct float64 computation."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import modelzip_jax as mz
from modelzip_jax import trace
from modelzip_jax.errors import LeafError, TransformError
from modelzip_jax.masking import scores

RNG = np.random.default_rng(0)
W = {"a": RNG.normal(size=(6, 5)), "b": RNG.normal(size=(7,))}
G = {"a": RNG.normal(size=(6, 5)), "b": RNG.normal(size=(7,))}
VALUES, GRADS = (jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree) for tree in (W, G))


def close(got, expected, rtol=1e-5):
    for name in expected:
        np.testing.assert_allclose(got[name], expected[name], rtol=rtol, atol=1e-6)


@pytest.mark.parametrize(
    ("score", "formula"),
    [
        (scores.magnitude(), lambda w, g: np.abs(w)),
        (scores.magnitude(2), lambda w, g: w**2),
        (scores.gradient_magnitude(), lambda w, g: np.abs(g)),
        (scores.saliency(), lambda w, g: np.abs(w * g)),
        (scores.taylor(), lambda w, g: (w * g) ** 2),
        (
            scores.outlier(),
            lambda w, g: -np.abs(w.reshape(-1, 1) - w.reshape(1, -1)).mean(1).reshape(w.shape),
        ),
    ],
)
def test_formulas(score, formula):
    close(score(VALUES, mz.Context(grads=GRADS)), {name: formula(W[name], G[name]) for name in W})


def test_outlier_is_exact_on_many_equal_and_large_weights():
    w = np.concatenate([np.full(500, 3.0), RNG.normal(size=1500), [1e4]])
    got = scores.outlier()(jnp.asarray(w, jnp.float32))
    expected = -np.abs(w[:, None] - w[None]).mean(1)
    np.testing.assert_allclose(got, expected, rtol=1e-4)
    assert int(jnp.argmin(got)) == 2000


@pytest.mark.parametrize(("score", "start"), [(scores.movement(), 0.0), (scores.fisher(0.8), 0.0)])
def test_watched_scores_over_several_steps(score, start):
    memory, total = score.start(VALUES), jax.tree.map(np.zeros_like, W)
    for _ in range(4):
        g = {name: RNG.normal(size=x.shape) for name, x in W.items()}
        memory = score.observe(memory, VALUES, mz.Context(grads=jax.tree.map(jnp.float32, g)))
        for name in W:
            if isinstance(score, scores.Movement):
                total[name] = total[name] - W[name] * g[name]
            else:
                total[name] = 0.8 * total[name] + 0.2 * g[name] ** 2
    expected = total if isinstance(score, scores.Movement) else {n: 0.5 * total[n] * W[n] ** 2 for n in W}
    close(score(VALUES, memory=memory), expected, rtol=1e-4)


def test_random_depends_on_name_and_seed_alone():
    first = scores.random(3)(VALUES)
    np.testing.assert_array_equal(first["b"], scores.random(3)({"b": VALUES["b"]})["b"])
    assert np.any(first["b"] != scores.random(4)(VALUES)["b"])


def test_movement_prunes_what_moves_to_zero_in_training():
    """Both weights start at 1; the loss draws one to 0 and the other to 3."""
    target = jnp.array([0.0, 3.0])
    t = mz.prune(scores.movement(), sparsity=mz.schedules.polynomial(0.5, 10, 11), every=1)
    tx = mz.wrap(optax.sgd(0.05), t)
    params, state = mz.start(tx, {"w": jnp.ones(2)})

    @jax.jit
    def step(params, state):
        updates, state = tx.update({"w": params["w"] - target}, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(15):
        params, state = step(params, state)
    assert params["w"][0] == 0.0
    assert params["w"][1] > 1.0


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), use_bias=False)(x))
        return nn.Dense(3, use_bias=False)(x.mean((1, 2)))


@functools.cache
def measured():
    model, x = Net(), jax.random.normal(jax.random.key(0), (5, 6, 6, 2))
    params = model.init(jax.random.key(1), x)["params"]

    def apply(params, x):
        return model.apply({"params": params}, x)

    stats = trace.statistics(
        apply, params, [x], kinds=("mean_abs", "zeros", "second_moment"), places=("inputs", "activations")
    )
    return model, params, x, stats


def test_wanda():
    _, params, x, stats = measured()
    got = scores.wanda()(params, mz.Context(stats=stats))
    conv = np.float64(params["Conv_0"]["kernel"])
    norms = np.sqrt((np.float64(x) ** 2).mean((0, 1, 2)))
    np.testing.assert_allclose(got["Conv_0"]["kernel"], np.abs(conv) * norms[None, None, :, None], rtol=1e-5)
    hidden = np.maximum(nn.Conv(4, (3, 3), use_bias=False).apply({"params": params["Conv_0"]}, x), 0).mean(
        (1, 2)
    )
    dense = np.float64(params["Dense_0"]["kernel"])
    np.testing.assert_allclose(
        got["Dense_0"]["kernel"], np.abs(dense) * np.sqrt((hidden**2).mean(0))[:, None], rtol=1e-4
    )


@pytest.mark.parametrize("kind", ["mean_abs", "zeros"])
def test_activation_sparsity(kind):
    _, params, x, stats = measured()
    hidden = np.maximum(nn.Conv(4, (3, 3), use_bias=False).apply({"params": params["Conv_0"]}, x), 0)
    expected = hidden.mean((0, 1, 2)) if kind == "mean_abs" else (hidden > 0).mean((0, 1, 2))
    got = scores.neuron_activity(kind)(params, mz.Context(stats=stats))["Conv_0"]["kernel"]
    np.testing.assert_allclose(got, np.broadcast_to(expected, got.shape), rtol=1e-5)


def test_statistics_prune_through_compress():
    _, params, _, stats = measured()
    t = mz.only("**/kernel", mz.prune(scores.wanda(), sparsity=0.5))
    decoded = mz.unpack(mz.compress(params, t, stats=stats))
    wanted = scores.wanda()(params, mz.Context(stats=stats))["Conv_0"]["kernel"]
    kept = np.asarray(decoded["Conv_0"]["kernel"]) != 0
    assert kept.mean() == 0.5
    assert np.asarray(wanted)[kept].min() >= np.asarray(wanted)[~kept].max()


def loss(params):
    return jnp.sum(jnp.sin(params["a"]) @ params["b"][:5] + params["a"][:, 0] ** 3) ** 2


def test_zero_cost_scores():
    values = {"a": VALUES["a"], "b": VALUES["b"]}
    g = jax.grad(loss)(values)
    close(scores.snip(loss, values), jax.tree.map(lambda w, g: np.abs(w * g), values, g))
    # Hg by central differences of the gradient along g, in float64.
    with jax.enable_x64(True):
        w64 = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), W)
        g64, h = jax.grad(loss)(w64), 1e-6
        up = jax.grad(loss)(jax.tree.map(lambda w, d: w + h * d, w64, g64))
        down = jax.grad(loss)(jax.tree.map(lambda w, d: w - h * d, w64, g64))
        expected = jax.tree.map(lambda w, u, d: np.asarray(w * (u - d) / (2 * h)), w64, up, down)
    got = scores.grasp(loss, values)
    for name in W:
        np.testing.assert_allclose(
            got[name], expected[name], rtol=2e-3, atol=1e-3 * np.abs(expected[name]).max()
        )


def test_synflow_saves_the_layer_that_magnitude_kills():
    rng = np.random.default_rng(1)
    params = {"a": jnp.asarray(rng.normal(size=(30, 30)), jnp.float32),
              "b": jnp.asarray(0.01 * rng.normal(size=(30, 30)), jnp.float32),
              "c": jnp.asarray(rng.normal(size=(30, 5)), jnp.float32)}  # fmt: skip

    def apply(p, x):
        return jax.nn.relu(x @ p["a"]) @ p["b"] @ p["c"]

    def flow(p):
        return scores.synflow(apply, p, jnp.zeros((1, 30)))

    plain = mz.decoded(params, mz.prune(sparsity=0.97, allocation="global"))
    assert not np.any(plain["b"])
    found = scores.iterate(flow, params, 0.97)
    kept = mz.decoded(params, mz.prune(scores.given(), sparsity=0.97, allocation="global"), scores=found)
    assert all(np.any(x) for x in jax.tree.leaves(kept))
    assert sum(int(np.sum(np.asarray(x) != 0)) for x in kept.values()) == round(0.03 * 1950)
    # What is left conducts: some path leads from an input to an output.
    assert float(jnp.abs(apply(jax.tree.map(jnp.abs, kept), jnp.ones((1, 30)))).sum()) > 0


def test_wrap_takes_what_a_score_needs():
    t = mz.only("a", mz.prune(scores.saliency(), sparsity=0.5))
    params, _ = mz.start(mz.wrap(optax.sgd(0.1), t, given={"grads": GRADS}), VALUES)
    wanted = np.abs(W["a"] * G["a"])
    kept = np.asarray(params["a"]) != 0
    assert wanted[kept].min() >= wanted[~kept].max()


def test_a_file_resumes_without_what_a_score_needs():
    t = mz.only("a", mz.prune(scores.saliency(), sparsity=0.5))
    packed = mz.compress(VALUES, t, grads=GRADS)
    params, _ = mz.start(mz.wrap(optax.sgd(0.1), packed), mz.unpack(packed))
    np.testing.assert_array_equal(params["a"], mz.unpack(packed)["a"])


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize(
    "score", [scores.fisher(0.5), scores.taylor(), scores.gradient_magnitude(), scores.movement()],
    ids=["fisher", "taylor", "gradient", "movement"],
)  # fmt: skip
def test_half_precision_gradients_choose_as_wide_ones(score, dtype):
    """Squares of 1e-5 are zero in float16, so that all scores would be alike."""
    w = jnp.asarray(RNG.normal(size=64), jnp.float32)
    grads = jnp.asarray(1e-5 * RNG.normal(size=64), dtype)
    tx = mz.wrap(optax.sgd(0.0), mz.prune(score, sparsity=mz.schedules.cubic(0.5, begin=0, end=1), every=1))
    found = []
    for g in (grads, grads.astype(jnp.float32)):
        params, state = mz.start(tx, {"w": w})
        _, state = tx.update({"w": g}, state, params)
        found.append(np.asarray(mz.params(state, params)["w"]))
        given = mz.compress({"w": w}, mz.prune(score, sparsity=0.5), grads={"w": g})
        found.append(np.asarray(mz.unpack(given)["w"]))
    np.testing.assert_array_equal(found[0], found[2])
    np.testing.assert_array_equal(found[1], found[3])


def test_missing_needs_are_named():
    with pytest.raises(TransformError, match="Saliency needs grads"):
        mz.compress(VALUES, mz.prune(scores.saliency(), sparsity=0.5))
    _, params, x, _ = measured()
    inputs = trace.statistics(lambda p, x: Net().apply({"params": p}, x), params, [x])
    with pytest.raises(LeafError, match=r"expected one.*zeros"):
        mz.compress(params, mz.prune(scores.neuron_activity("zeros"), sparsity=0.5), stats=inputs)
    # From sparsity 0 training supplies the gradients.
    schedule = mz.schedules.cubic(0.5, 2, 4)
    begin = mz.wrap(optax.sgd(0.1), mz.prune(scores.saliency(), sparsity=schedule)).init
    begin(VALUES)
    jax.jit(begin)(VALUES)


@pytest.mark.parametrize("build", [lambda: scores.magnitude(3), lambda: scores.fisher(1.0),
                                   lambda: scores.iterate(lambda p: p, {}, 1.0)])  # fmt: skip
def test_bad_options(build):
    with pytest.raises(TransformError):
        build()


@pytest.mark.parametrize("name", ["scores", "stats"])
def test_trees_for_scores_are_those_of_all_params_at_every_step(name):
    """Of leaves that are not pruned, too: what they hold there is not looked at."""
    params = {"a": {"kernel": VALUES["a"], "bias": jnp.zeros(5)}}
    if name == "stats":
        score, tree = (
            scores.wanda(),
            trace.statistics(lambda p, x: x @ p["a"]["kernel"], params, [jnp.ones((3, 6))]),
        )
    else:
        score, tree = scores.given(), {"a": {"kernel": jnp.abs(VALUES["a"]), "bias": "none"}}
    t = mz.only("**/kernel", mz.prune(score, sparsity=lambda step: 0.5, every=1))
    tx = mz.wrap(optax.sgd(0.1), t, given={name: tree})
    now, state = mz.start(tx, params)
    updates, state = tx.update(jax.tree.map(jnp.zeros_like, now), state, now, **{name: tree})
    assert int((optax.apply_updates(now, updates)["a"]["kernel"] == 0).sum()) == 15


def test_a_refresh_reads_what_wrap_was_given():
    weights, scores = {"w": jnp.array([1.0, 2.0, 3.0, 4.0])}, {"w": jnp.array([4.0, 3.0, 2.0, 1.0])}
    recipe = mz.prune(mz.scores.given(), sparsity=mz.schedules.cubic(0.5, begin=0, end=2), every=1)
    grads = jax.tree.map(jnp.zeros_like, weights)

    def after(given, **extra):
        tx = mz.wrap(optax.sgd(0.1), recipe, given=given)
        params, state = mz.start(tx, weights)
        for _ in range(2):
            updates, state = tx.update(grads, state, params, **extra)
            params = optax.apply_updates(params, updates)
        return params["w"].tolist()

    assert after({"scores": scores}) == [1.0, 2.0, 0.0, 0.0]
    assert after({"scores": scores}, scores=weights) == [0.0, 0.0, 3.0, 4.0]
    with pytest.raises(TransformError, match=r"Given needs scores to choose masks anew.*given="):
        after(None)
