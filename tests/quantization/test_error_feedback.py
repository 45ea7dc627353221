"""Error feedback against a float64 loop in NumPy that inverts what is left of H for every input."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import modelzip_jax as mz
from modelzip_jax import trace
from modelzip_jax.errors import LeafError, TransformError

RNG = np.random.default_rng(0)
MIX = RNG.normal(size=(10, 10)) * np.exp(-np.arange(10) / 4)
FEW = {"uniform": 3, "quantile": 3, "nvfp4": None}
MORE = {
    "mx": None,
    "nf4": 4,
    "weighted_entropy": 3,
    "halving": 3,
    "power_of_two": 3,
    "binary": None,
    "ternary": None,
    "fp8": None,
}
GRIDS = FEW | MORE


def correlated(rows, n=10):
    return jnp.asarray(RNG.normal(size=(rows, 10)) @ MIX[:, :n] + 0.3, jnp.float32)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def grams(model, params, *x, **options):
    return trace.statistics(model, params, list(x), kinds=("gram",), **options)


def dense(params, x):
    return x @ params["kernel"]


def reference(leaf, w, step, zero, gram, damping=0.01, order=True, kept=None):
    """GPTQ of one matrix `(inputs, outputs)`, an inverse for each input."""
    w, gram = np.array(w, np.float64), np.asarray(gram, np.float64)
    kept = np.ones(w.shape, bool) if kept is None else np.asarray(kept)
    w = np.where(kept, w, 0.0)
    count = len(w)
    place = np.argsort(-np.diag(gram), kind="stable") if order else np.arange(count)
    h = (gram + damping * np.mean(np.diag(gram)) * np.eye(count))[np.ix_(place, place)]
    w, out = w[place], np.zeros(w.shape)
    for c in range(count):
        inverse = np.linalg.inv(h[c:, c:])
        s, z = step[place[c]], zero[place[c]]
        near = leaf.values(leaf.codes(jnp.asarray(w[c], jnp.float32), s, z), s, z)
        out[c] = np.where(kept[place[c]], near, 0.0)
        w[c:] -= np.outer(inverse[:, 0] / inverse[0, 0], w[c] - out[c])
    back = np.empty_like(out)
    back[place] = out
    return back


def spread(t, params, name="kernel", **given):
    """The grid of a leaf before it is rounded: its quantizer, steps and zero points."""
    plain = mz.quantize(t.bits, **{k: getattr(t, k) for k in ("granularity", "axis", "symmetric", "grid", "layers")},
                        **({"group_size": t.group_size} if t.granularity == "group" else {}))  # fmt: skip
    s = plain.init({name: params[name]}, mz.Context(**given)).state[name]
    leaf = plain.leaf_of(s, s.step, s.zero)
    return leaf, *mz.rounding.Problem(name, params[name], leaf).steps()


def agree(got, want, most=0.02):
    """Equal but for ties: a weight near the middle of two values may go to the other in float32."""
    differ = ~np.isclose(got, want, rtol=1e-4, atol=1e-5)
    assert differ.mean() <= most


@pytest.mark.parametrize(
    ("grid", "order"),
    [*((grid, grid != "nvfp4") for grid in FEW),
     *(pytest.param(grid, True, marks=pytest.mark.slow) for grid in (*MORE, "nvfp4"))],
)  # fmt: skip
def test_as_the_paper_words_it_on_every_kind_of_grid(grid, order):
    kind, bits = getattr(mz.grids, grid)(), GRIDS[grid]
    params, x = {"kernel": normal(10, 8)}, correlated(32)
    stats = grams(dense, params, x)
    t = mz.quantize(bits, grid=kind, granularity="group", group_size=4,
                    rounding=mz.rounding.error_feedback(order=order, block=4))  # fmt: skip
    got = mz.decoded(params, t, stats=stats)["kernel"]
    leaf, step, zero = spread(t, params)
    want = reference(leaf, params["kernel"], step, zero, stats["kernel"][0].inputs.gram, order=order)
    agree(np.asarray(got), want)
    near = mz.decoded(params, mz.quantize(bits, grid=kind, granularity="group", group_size=4))["kernel"]
    off = [float(jnp.sum((x @ (w - params["kernel"])) ** 2)) for w in (got, near)]
    assert off[0] < 0.9 * off[1]


@pytest.mark.parametrize(
    "options",
    [{"granularity": "group", "group_size": 3, "axis": 0, "symmetric": False},
     pytest.param({"granularity": "tensor"}, marks=pytest.mark.slow)],
)  # fmt: skip
def test_any_granularity_and_axis(options):
    params = {"kernel": normal(10, 8)}
    stats = grams(dense, params, correlated(32))
    t = mz.quantize(3, rounding=mz.rounding.error_feedback(block=6), **options)
    leaf, step, zero = spread(t, params)
    want = reference(leaf, params["kernel"], step, zero, stats["kernel"][0].inputs.gram)
    agree(np.asarray(mz.decoded(params, t, stats=stats)["kernel"]), want)


def test_inputs_that_have_nothing_in_common_are_rounded_to_nearest():
    params, x = {"kernel": normal(10, 8)}, jnp.eye(10) * jnp.arange(1.0, 11.0)[:, None]
    stats = grams(dense, params, x)
    got = mz.decoded(params, mz.quantize(3, rounding=mz.rounding.error_feedback()), stats=stats)
    np.testing.assert_array_equal(got["kernel"], mz.decoded(params, mz.quantize(3))["kernel"])


def test_under_a_mask_errors_end_in_weights_that_are_kept():
    params = {"kernel": normal(10, 8)}
    stats = grams(dense, params, correlated(32))
    kept = np.abs(params["kernel"]) >= np.median(np.abs(params["kernel"]))
    t = mz.chain(mz.prune(sparsity=0.5), mz.quantize(3, rounding=mz.rounding.error_feedback()))
    encoded = t.init(params, mz.Context(stats=stats))
    got = t.decode(encoded)["kernel"]
    np.testing.assert_array_equal(np.asarray(got)[~kept], 0.0)
    np.testing.assert_array_equal(encoded.latents["kernel"][~kept], params["kernel"][~kept])
    leaf, step, zero = spread(t.parts[1], params)
    want = reference(leaf, params["kernel"], step, zero, stats["kernel"][0].inputs.gram, kept=kept)
    agree(np.asarray(got), want)


def depthwise_case():
    model = nn.Conv(6, (3, 3), feature_group_count=3, use_bias=False)
    x = jnp.cumsum(normal(3, 6, 6, 3), axis=1)
    return model.apply, model.init(jax.random.key(0), x), x, "params/kernel", (9, 6)


def scan_case():
    def model(p, x):
        return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, p["w"])[0]

    return model, {"w": normal(3, 10, 10)}, correlated(32), "w", (3, 10, 10)


def expert_case():
    def model(p, x):
        return jax.vmap(lambda w, x: x @ w)(p["w"], x.reshape(2, -1, 10))

    return model, {"w": normal(2, 10, 4)}, correlated(48), "w", (2, 10, 4)


@pytest.mark.parametrize(
    "case", [depthwise_case, expert_case, pytest.param(scan_case, marks=pytest.mark.slow)]
)
def test_each_matrix_by_its_own_inputs(case):
    model, params, x, name, shape = case()
    stats = grams(model, params, x)
    t = mz.quantize(3, granularity="tensor", rounding=mz.rounding.error_feedback())
    got = np.asarray(dict(mz.tree.named_leaves(mz.decoded(params, t, stats=stats)))[name])
    w = dict(mz.tree.named_leaves(params))[name]
    measured = dict(mz.tree.named_leaves(stats, lambda s: isinstance(s, trace.Measured)))[name]
    gram = np.asarray(measured[0].inputs.gram)
    leaf, step, zero = spread(t, {"kernel": w})
    each = lambda x: np.asarray(x).reshape(shape)  # noqa: E731
    parts = [each(x) for x in (w, step, zero)]
    if gram.ndim == 2:
        want = reference(leaf, *parts, gram)
    elif len(shape) == 3:
        want = np.stack([reference(leaf, *(x[k] for x in parts), g) for k, g in enumerate(gram)])
    else:  # groups of outputs
        columns = np.split(np.arange(shape[1]), len(gram))
        want = np.concatenate(
            [reference(leaf, *(x[:, c] for x in parts), g) for c, g in zip(columns, gram, strict=True)], 1
        )
    agree(got, want.reshape(w.shape))


def test_tied_weights_have_the_inputs_of_both_uses():
    def model(p, x):
        return jnp.tanh(x @ p["kernel"]) @ p["kernel"]

    params = {"kernel": normal(10, 10)}
    stats = grams(model, params, correlated(32))
    gram = np.mean([m.inputs.gram for m in stats["kernel"]], axis=0)
    t = mz.quantize(3, rounding=mz.rounding.error_feedback())
    leaf, step, zero = spread(t, params)
    want = reference(leaf, params["kernel"], step, zero, gram)
    agree(np.asarray(mz.decoded(params, t, stats=stats)["kernel"]), want)
    both_ways = grams(lambda p, x: x @ p["kernel"] @ p["kernel"].T, params, correlated(32))
    with pytest.raises(LeafError, match=r"'kernel' sum over different axes, \(0,\) and \(1,\)"):
        mz.decoded(params, t, stats=both_ways)


def test_a_depthwise_channel_that_has_died_is_no_lack_of_data():
    model = nn.Conv(6, (3, 3), feature_group_count=3, use_bias=False)
    x = jnp.cumsum(normal(8, 6, 6, 3), axis=2).at[..., 1].set(0.0)
    params = model.init(jax.random.key(0), x)["params"]
    stats = grams(lambda p, x: model.apply({"params": p}, x), params, x)
    t = mz.quantize(3, rounding=mz.rounding.error_feedback())
    found = mz.decoded(params, t, stats=stats)["kernel"]
    nearest = mz.decoded(params, mz.quantize(3))["kernel"]
    np.testing.assert_array_equal(found[..., 2:4], nearest[..., 2:4])
    assert np.any(np.asarray(found) != np.asarray(nearest))
    with pytest.raises(LeafError, match="statistics of leaf 'kernel' are all zero: no input"):
        mz.decoded(params, t, stats=jax.tree.map(jnp.zeros_like, stats))


def test_what_it_refuses():
    params, x = {"kernel": normal(10, 8), "bias": jnp.ones(8)}, correlated(16)
    model = lambda p, x: x @ p["kernel"] + p["bias"]  # noqa: E731
    stats, t = grams(model, params, x), mz.quantize(3, rounding=mz.rounding.error_feedback())
    with pytest.raises(LeafError, match=r"inputs of leaf 'bias'.*mz.only.*mz.partition"):
        mz.decoded(params, t, stats=stats)
    with pytest.raises(TransformError, match="needs stats: pass stats= or calibrate="):
        mz.compress(params, mz.only("kernel", t))
    with pytest.raises(LeafError, match="statistics of leaf 'kernel' are all zero"):
        mz.decoded(params, mz.only("kernel", t), stats=jax.tree.map(jnp.zeros_like, stats))
    with pytest.raises(mz.errors.NonFiniteError, match="leaf 'kernel' has NaN"):
        mz.decoded(params, mz.only("kernel", t), stats=jax.tree.map(lambda g: g * jnp.nan, stats))
    for wrong in ({"damping": 0.0}, {"block": 0}, {"damping": True}):
        with pytest.raises(TransformError, match=r"error_feedback\(\)"):
            mz.rounding.error_feedback(**wrong)


def test_laws_and_training_that_begins_within_jit():
    model = nn.Dense(4)
    x = correlated(32, 6)
    params = model.init(jax.random.key(0), x)["params"]
    stats = grams(lambda p, x: model.apply({"params": p}, x), params, x)
    t = mz.only("kernel", mz.quantize(3, rounding=mz.rounding.error_feedback()))
    mz.testing.check_laws(t, params, given={"stats": stats})
    want = mz.decoded(params, t, stats=stats)["kernel"]
    tx = mz.wrap(optax.sgd(0.1), t, given={"stats": stats})
    state = jax.jit(tx.init)(params)
    np.testing.assert_allclose(mz.params(state, params)["kernel"], want, rtol=1e-6)


def test_one_program_for_all_leaves_of_a_shape():
    params = {k: {"kernel": normal(10, 10)} for k in "abc"}
    model = lambda p, x: functools.reduce(lambda h, k: jnp.tanh(h @ p[k]["kernel"]), "abc", x)  # noqa: E731
    stats = grams(model, params, correlated(16))
    from modelzip_jax.quantization.rounding.feedback_steps import fed_back

    before = fed_back._cache_size()
    mz.decoded(params, mz.quantize(5, axis=-1, rounding=mz.rounding.error_feedback(block=9)), stats=stats)
    assert fed_back._cache_size() == before + 1
