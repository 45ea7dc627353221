"""Compression in turn: alive on every kind of network, and each layer with the inputs that the prefix gives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import modelzip_jax as mz
from modelzip_jax import trace
from modelzip_jax.errors import LeafError, TraceError, TransformError, TreeError

RNG = np.random.default_rng(0)
MIX = RNG.normal(size=(12, 12)) * np.exp(-np.arange(12) / 4)
FEEDBACK = mz.rounding.error_feedback()


def correlated(*shape):
    return jnp.asarray(RNG.normal(size=(*shape, 12)) @ MIX + 0.2, jnp.float32)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape) / np.sqrt(shape[-2]), jnp.float32)


def mlp():
    params = {f"l{i}": {"kernel": normal(12, 12), "bias": jnp.full(12, 0.1)} for i in range(4)}

    def model(p, x):
        for i in range(4):
            x = jnp.tanh(x @ p[f"l{i}"]["kernel"] + p[f"l{i}"]["bias"])
        return x

    return model, params, correlated(64), correlated(64)


def gru():
    model = nn.RNN(nn.GRUCell(12))
    x = correlated(24, 8)
    return model.apply, model.init(jax.random.key(0), x), x, correlated(24, 8)


def depthwise():
    params = {
        "deep": {"kernel": jnp.asarray(RNG.normal(size=(3, 3, 1, 12)), jnp.float32)},
        "point": {"kernel": normal(12, 8)},
    }

    def model(p, x):
        x = jax.lax.conv_general_dilated(
            x,
            p["deep"]["kernel"],
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=12,
        )
        return jax.nn.relu(x) @ p["point"]["kernel"]

    return model, params, *(jnp.cumsum(correlated(4, 5, 5), 1) for _ in range(2))


def scanned():
    params = {name: {"kernel": normal(3, 12, 12)} for name in ("query", "key", "value", "out")}

    @jax.checkpoint
    def block(h, p):
        q, k, v = (h @ p[name]["kernel"] for name in ("query", "key", "value"))
        return h + jax.nn.softmax(q @ k.mT / 4) @ v @ p["out"]["kernel"], None

    return lambda p, x: jax.lax.scan(block, x, p)[0], params, correlated(8, 6), correlated(8, 6)


def experts():
    params = {"first": {"kernel": normal(2, 12, 8)}, "second": {"kernel": normal(2, 8, 4)}}

    def model(p, x):
        one = lambda w, v, x: jnp.tanh(x @ w) @ v  # noqa: E731
        return jax.vmap(one)(p["first"]["kernel"], p["second"]["kernel"], x.reshape(2, -1, 12))

    return model, params, correlated(64), correlated(64)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(mlp, marks=pytest.mark.slow),
        gru,
        depthwise,
        scanned,
        pytest.param(experts, marks=pytest.mark.slow),
    ],
)
def test_calibration_is_alive(case):
    model, params, known, held_out = case()
    grid = {"granularity": "group", "group_size": 9, "axis": -1}
    t = mz.only("**/kernel", mz.quantize(3, rounding=FEEDBACK, **grid))
    run = jax.jit(model)
    want = run(params, held_out)
    packed = mz.compress(params, t, calibrate=(model, [known]))
    near = mz.decoded(params, mz.only("**/kernel", mz.quantize(3, **grid)))
    off = [float(jnp.sum((run(p, held_out) - want) ** 2)) for p in (mz.unpack(packed), near)]
    assert off[0] < 0.9 * off[1]
    assert jax.tree.structure(packed.params, is_leaf=mz.is_packed) == jax.tree.structure(params)


def test_each_layer_meets_what_the_compressed_prefix_gives():
    """As one would do it by hand: statistics of the next layer, of the network with those before it compressed."""
    model, params, x, _ = mlp()
    batches = [x[:24], x[24:48], x[48:]]  # of two shapes
    rounded = mz.quantize(2, axis=-1, rounding=FEEDBACK)
    t = mz.partition({"a": rounded, "b": mz.quantize(3, axis=-1, rounding=FEEDBACK), "c": mz.quantize(4, axis=-1)},
                     {"l2/kernel": "b", "l3/kernel": "c", "*/kernel": "a"})  # fmt: skip
    got = mz.unpack(mz.compress(params, t, calibrate=(jax.jit(model), batches)))
    want = mz.decoded(params, mz.only("l3/kernel", mz.quantize(4, axis=-1)))
    for name, bits in (("l0", 2), ("l1", 2), ("l2", 3)):
        stats = trace.statistics(model, want, batches, kinds=("gram",))
        one = mz.only(f"{name}/kernel", mz.quantize(bits, axis=-1, rounding=FEEDBACK))
        want = mz.decoded(want, one, stats=stats)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), got, want)


def test_the_drift_of_the_layers_before_is_corrected():
    model, params, x, held_out = mlp()
    t = mz.only("**/kernel", mz.quantize(2, axis=-1, rounding=FEEDBACK))
    in_turn = mz.unpack(mz.compress(params, t, calibrate=(model, [x])))
    at_once = mz.decoded(params, t, stats=trace.statistics(model, params, [x], kinds=("gram",)))
    run = jax.jit(model)
    off = [float(jnp.sum((run(p, held_out) - run(params, held_out)) ** 2)) for p in (in_turn, at_once)]
    assert off[0] <= off[1]


def test_tied_weights_and_layers_in_half_precision():
    def model(p, tokens):
        h = jax.tree.map(lambda w: w.astype(jnp.bfloat16), p)
        x = h["table"][tokens]
        return (x @ h["kernel"]) @ h["table"].T

    params, tokens = {"table": normal(9, 12), "kernel": normal(12, 12)}, jnp.arange(27).reshape(3, 9) % 9
    t = mz.quantize(4, rounding=FEEDBACK)
    got = mz.unpack(mz.compress(params, t, calibrate=(model, [tokens])))
    stats = trace.statistics(model, params, [tokens], kinds=("gram",))
    want = mz.decoded(params, mz.only("table", t), stats=stats)
    np.testing.assert_allclose(
        got["table"], want["table"], atol=1e-5
    )  # first met by the gather, with a float kernel


def test_wrong_calls():
    model, params, x, _ = mlp()
    t = mz.only("**/kernel", mz.quantize(2, rounding=FEEDBACK))
    for transform, calibrate, options, words in [
        (mz.quantize(4), (model, [x]), {}, "nothing in the transform needs statistics"),
        (t, (model, []), {}, "at least one batch"),
        (t, model, {}, r"calibrate= takes \(apply_fn, batches\)"),
        (t, (model, [x]), {"stats": params}, "stats=, of the model as it is, or calibrate="),
        (
            mz.chain(mz.only("**/kernel", mz.prune(sparsity=0.5, allocation="global")), t),
            (model, [x]),
            {},
            "at once",
        ),
    ]:
        with pytest.raises(TransformError, match=words):
            mz.compress(params, transform, calibrate=calibrate, **options)
    for batches, words in [
        ([x, x[:0]], "batch 1 holds no example"),
        ([x[:, :3]], r"batch 0, of shapes \(\(\d+, 3\),\)"),
        ([(x, np.zeros(len(x)))], "without labels"),
    ]:
        with pytest.raises(TraceError, match=words):
            mz.compress(params, t, calibrate=(model, batches))
    with pytest.raises(TransformError, match=r"not \(\[\(\d+, \d+\)\], a function\)$"):
        mz.compress(params, t, calibrate=([x], model))
    other = trace.statistics(lambda p, x: x @ p["l0"]["kernel"], {"l0": params["l0"]}, [x], kinds=("gram",))
    with pytest.raises(TreeError, match="as if of another network: they lack l1/bias, l1/kernel"):
        mz.compress(params, t, stats=other)
    with pytest.raises(LeafError, match=r"leaf 'l0/bias'.*0 products"):
        mz.compress(params, mz.quantize(2, rounding=FEEDBACK), calibrate=(model, [x]))
