"""What a tired person calls wrong is answered in words that say what to do."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import modelzip_jax as mz
from modelzip_jax.errors import ModelzipError

K = {"kernel": jax.random.normal(jax.random.key(0), (8, 6)), "bias": jnp.ones(6)}
ADAM = optax.adam(1e-3)
ZIP = mz.only("**/kernel", mz.quantize(4))
TX = mz.wrap(ADAM, ZIP)
PARAMS, STATE = mz.start(TX, K)
PACKED = mz.pack(STATE, PARAMS)
SCANNED = {"blocks": {"kernel": jnp.ones((3, 8, 8))}}
GRADS = {"kernel": K["kernel"].T, "bias": K["bias"]}


def donated():
    x = jnp.ones((4, 4))
    x.delete()
    return {"kernel": x}


class NoDataclass(mz.scores.Score):
    pass


MORE = {**K, "more": jnp.ones((4, 4))}
PRUNED = mz.wrap(ADAM, mz.only("**/kernel", mz.prune(sparsity=0.5)))


@dataclasses.dataclass(frozen=True)
class Sums(mz.scores.Score):
    def __call__(self, weights, context=None, memory=()):
        return jax.tree.map(jnp.sum, weights)


@dataclasses.dataclass(frozen=True)
class Forgetful(mz.scores.Score):
    def __call__(self, weights, context=None, memory=()):
        pass


def nnx_module():
    from flax import nnx

    return nnx.Linear(8, 6, rngs=nnx.Rngs(0))


def equinox_module():
    import equinox

    return equinox.nn.MLP(8, 6, 8, 1, key=jax.random.key(0))


@pytest.fixture(scope="module", autouse=True)
def packed_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "packed.mz"
    mz.save(path, PACKED)
    FILE.append(path)


FILE: list = []

HUGE = {"w": np.full((8, 8), 3e38, np.float32)}


def saved(params):
    return mz.save(FILE[0].with_name("more.mz"), mz.compress(params, mz.only("kernel", mz.quantize(4))))


CALLS = {
    "another byte order": (lambda: mz.compress({"w": np.ones((4, 4), ">f4")}, mz.quantize(4)), "'w' has the byte"),
    "a random key": (lambda: saved({**K, "dropout": jax.random.key(0)}), "'dropout' is a random key"),
    "a leaf of strings": (lambda: saved({**K, "vocabulary": np.array(["a"])}), "'vocabulary'"),
    "sums beyond the largest float": (
        lambda: mz.compress(HUGE, mz.chain(mz.cosines(8, axes=(0, 1)), mz.quantize(8))), "'w' has .* infinite",
    ),
    "sums beyond the largest float in a loop": (
        lambda: mz.start(mz.wrap(ADAM, mz.wavelet("haar", 1)), HUGE), "'w' has .* infinite",
    ),
    "a misspelt layer": (
        lambda: mz.decoded(K, mz.prune(sparsity=0.5, allocation=mz.allocation.layers({"zz": 0.9}))), "'zz'",
    ),
    "a state of another recipe": (lambda: PRUNED.update(K, STATE, PARAMS), "begun by another transform"),
    "a state of other bits": (
        lambda: mz.wrap(ADAM, mz.only("**/kernel", mz.quantize(8))).update(K, STATE, PARAMS),
        "begun by another transform",
    ),
    "resuming with other bits": (
        lambda: mz.start(mz.wrap(ADAM, mz.only("**/kernel", mz.quantize(8)), resume=PACKED), K),
        "would store leaf 'kernel'",
    ),
    "resuming with another recipe": (
        lambda: mz.start(mz.wrap(ADAM, mz.only("**/kernel", mz.cluster(4)), resume=PACKED), K), "was not made by",
    ),
    "params of another shape": (
        lambda: mz.params(STATE, {**K, "kernel": jnp.ones((8, 5))}), r"shape \(8, 5\).*\(8, 6\)",
    ),
    "params of another dtype": (
        lambda: mz.params(STATE, {**K, "kernel": jnp.ones((8, 6), jnp.bfloat16)}), "dtype bfloat16",
    ),
    "params of more leaves": (lambda: mz.pack(STATE, MORE), "they have more too many"),
    "gradients of more leaves": (lambda: TX.update(MORE, STATE, PARAMS), "they have more too many"),
    "params that are an NNX module": (lambda: mz.params(STATE, nnx_module()), r"nnx\.state\(model"),
    "params that are an equinox module": (lambda: mz.pack(STATE, equinox_module()), r"eqx\.filter\(model"),
    "like that is an NNX module": (lambda: mz.load(FILE[0], like=nnx_module()), r"nnx\.state\(model"),
    "like one name deeper": (lambda: mz.load(FILE[0], like={"params": K}), r"pass like\['params'\]"),
    "like of more leaves": (lambda: mz.load(FILE[0], like=MORE), "they have more too many"),
    "pack within jit": (lambda: jax.jit(lambda s: mz.unpack(mz.pack(s, PARAMS)))(STATE), "outside of jit"),
    "pack of NaN that is not encoded": (
        lambda: mz.pack(STATE, {**PARAMS, "bias": jnp.full(6, jnp.nan)}), "'bias' is NaN",
    ),
    "unpack of params": (lambda: mz.unpack(PARAMS), r"not an array float32\[6\]"),
    "a channel by name": (lambda: mz.structures.channel("out"), "axis"),
    "scores of another shape": (lambda: mz.compress(K, mz.prune(Sums(), sparsity=0.5)), "Sums gives scores"),
    "no scores": (lambda: mz.compress(K, mz.prune(Forgetful(), sparsity=0.5)), "Forgetful gives no scores"),
    "lookahead around": (
        lambda: mz.start(optax.lookahead(TX, 5, 0.5), optax.LookaheadParams.init_synced(K)), "with_average",
    ),
    "lookahead inside": (
        lambda: mz.start(
            mz.wrap(optax.lookahead(ADAM, 5, 0.5), ZIP), optax.LookaheadParams.init_synced(K)
        ), "with_average",
    ),
    "flatten around": (lambda: mz.start(optax.flatten(TX), K), "flatten"),
    "keys of several types": (lambda: mz.compress({0: jnp.ones((2, 2)), "a": jnp.ones(2)}, ZIP), "keys"),
    "only, turned round": (lambda: mz.only(mz.quantize(4), "**/kernel"), "first"),
    "only, a function": (lambda: mz.only(lambda path: True, mz.quantize(4)), "path pattern"),
    "min_ndim of text": (lambda: mz.only("**", mz.quantize(4), min_ndim="2"), "number of axes"),
    "partition of a tree": (lambda: mz.partition({"x": ZIP}, {"a": {"kernel": "x"}}), "path pattern → label"),
    "partition of a function": (lambda: mz.partition({"x": ZIP}, lambda p: p), "path pattern → label"),
    "start, turned round": (lambda: mz.start(K, TX), r"mz\.start\(tx, params\)"),
    "start, a function": (lambda: mz.start(lambda: TX, K), r"mz\.start\(tx, params\)"),
    "a transform in optax.chain": (lambda: mz.start(optax.chain(mz.quantize(4), ADAM), K), "mz.wrap"),
    "update, turned round": (lambda: TX.update(STATE, K, PARAMS), "in this order"),
    "update with another state": (lambda: TX.update(K, ADAM.init(PARAMS), PARAMS), "in this order"),
    "save, turned round": (lambda: mz.save(PACKED, "x.mz"), "path and a packed model"),
    "save of params": (lambda: mz.save("x.mz", PARAMS), "path and a packed model"),
    "metadata of text": (lambda: mz.save("x.mz", PACKED, metadata="v1"), "dict"),
    "load of a model": (lambda: mz.load(PACKED), "path"),
    "inspect of params": (lambda: mz.inspect(PARAMS), "path"),
    "rewind of params": (lambda: mz.rewind(PARAMS, STATE, sparsity=0.5), "params, opt_state"),
    "offsets_tx of True": (lambda: mz.wrap(ADAM, ZIP, offsets_tx=True), "optax optimizer"),
    "wrap in wrap": (lambda: mz.start(mz.wrap(TX, mz.quantize(8)), K), "inside mz.wrap"),
    "fit of a transform": (lambda: mz.fit(K, ZIP, bytes=500), "function from a level"),
    "laws of a factory": (lambda: mz.testing.check_laws(mz.quantize, K), "call it"),
    "laws, turned round": (lambda: mz.testing.check_laws(K, ZIP), "takes a transform"),
    "allocation of a dict": (lambda: mz.prune(sparsity=0.5, allocation={"**": 0.5}), r"mz\.allocation"),
    "layers of a float": (lambda: mz.prune(sparsity=0.5, layers=0.0), "axes"),
    "layers that match nothing": (
        lambda: mz.decoded(SCANNED, mz.prune(sparsity=0.5, layers={"params/blocks/kernel": 0})), "blocks/kernel",
    ),
    "quantize, layers that match nothing": (
        lambda: mz.decoded(SCANNED, mz.quantize(4, layers={"block/**": 0})), "blocks/kernel",
    ),
    "cluster, layers that match nothing": (
        lambda: mz.decoded(SCANNED, mz.cluster(4, layers={"block/**": 0})), "blocks/kernel",
    ),
    "group_size without groups": (lambda: mz.quantize(4, group_size=32), "granularity='group'"),
    "a schedule of None": (lambda: mz.prune(sparsity=lambda step: None), "share in"),
    "a schedule in percent": (
        lambda: mz.prune(sparsity=lambda s: jnp.where(s < 5, 0.0, 50.0)), "share in",
    ),
    "a schedule of NaN": (lambda: mz.prune(sparsity=lambda s: jnp.where(s < 500, 0.0, jnp.nan)), "share in"),
    "a schedule in shares of training": (lambda: mz.schedules.cubic(0.8, begin=0.1, end=0.5), "whole number"),
    "a schedule in text": (lambda: mz.schedules.cubic(0.8, begin="0", end=5), "whole number"),
    "grads of another shape": (
        lambda: mz.compress(K, mz.prune(mz.scores.gradient_magnitude(), sparsity=0.5), grads=GRADS), "shape",
    ),
    "a name nearly right": (
        lambda: mz.compress(K, mz.prune(mz.scores.saliency(), sparsity=0.5), gradients=K), "'grads'",
    ),
    "a name that nothing reads": (
        lambda: mz.compress(K, ZIP, statistics=K), "'statistics', which nothing reads.*stats",
    ),
    "importance of NaN": (
        lambda: mz.compress(K, ZIP, importance=jax.tree.map(lambda x: x * jnp.nan, K)), "NaN.*'kernel'",
    ),
    "importance below zero": (
        lambda: mz.compress(K, ZIP, importance=jax.tree.map(lambda x: -jnp.abs(x), K)), "negative values at",
    ),
    "compress under jit": (lambda: jax.jit(lambda p: mz.compress(p, ZIP))(K), "outside of jit"),
    "compress of a packed model": (lambda: mz.compress(PACKED, ZIP), "packed already"),
    "donated weights": (lambda: mz.compress(donated(), ZIP), "donated"),
    "NaN at the start": (lambda: mz.start(TX, {**K, "kernel": K["kernel"] * jnp.nan}), "NaN"),
    "pack of other shapes": (
        lambda: mz.pack(STATE, {"kernel": jnp.ones((9, 9)), "bias": jnp.ones(9)}), "shape",
    ),
    "recordable, no dataclass": (lambda: mz.recordable(NoDataclass), "dataclass"),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_a_wrong_call(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call, words = CALLS[name]
    with pytest.raises(ModelzipError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "recipe",
    [mz.quantize(2), mz.quantize(4, symmetric=False), mz.quantize(4, granularity="tensor"), mz.cluster(4)],
    ids=str,
)
def test_another_recipe_is_refused_where_it_changes_weights(recipe):
    with pytest.raises(ModelzipError, match=r"recipe|not made by"):
        mz.start(mz.wrap(ADAM, mz.only("**/kernel", recipe), resume=PACKED), PARAMS)
    with pytest.raises(ModelzipError, match=r"recipe|not made by"):
        mz.resume(PACKED, mz.only("**/kernel", recipe))


def test_another_recipe_is_taken_where_it_changes_nothing():
    learned = mz.only("**/kernel", mz.quantize(4, learned=True))
    params, _ = mz.start(mz.wrap(ADAM, learned, resume=PACKED), mz.unpack(PACKED))
    np.testing.assert_array_equal(params["kernel"], mz.unpack(PACKED)["kernel"])


def test_laws_catch_a_synthesis_that_is_no_inverse():
    @mz.recordable
    @dataclasses.dataclass(frozen=True)
    class Doubled(mz.Linear):
        def analysis(self, w, leaf):
            return w * 2.0

        def synthesis(self, z, leaf):
            return z

    with pytest.raises(AssertionError, match="does not invert"):
        mz.testing.check_laws(mz.chain(Doubled(), mz.quantize(8)), K)


def test_inspect_counts_each_tensor_by_its_own_bits():
    a, b = (jax.random.normal(jax.random.key(i), (128, 128)) for i in (0, 1))
    recipe = mz.partition({"lo": mz.quantize(2), "hi": mz.quantize(8)}, {"a": "lo", "b": "hi"})
    together = [row.file_bytes for row in mz.inspect(mz.compress({"a": a, "b": b}, recipe)).tensors]
    alone = [
        mz.inspect(mz.compress({"w": x}, mz.quantize(bits))).tensors[0].file_bytes
        for x, bits in ((a, 2), (b, 8))
    ]
    np.testing.assert_allclose(together, alone, rtol=0.01)
