"""Packed arrays on a device and layer by layer: the same bits, nothing uploaded, one layer decoded at a time."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import modelzip_jax as mz
from modelzip_jax.errors import FormatError, LeafError, PatternError, TransformError
from modelzip_jax.packed import Bits
from modelzip_jax.sharing.clustered import Clustered, LayerClustered, LayerVectors, VectorClustered

RNG = np.random.default_rng(0)


def stack(*shape):
    return RNG.normal(size=shape).astype(np.float32)


GROUPS = {"granularity": "group", "group_size": 4}
RECIPES = {
    "tensor": mz.quantize(4, granularity="tensor"),
    "channels shared by layers": mz.quantize(3, axis=-1),
    "channels of layers": mz.quantize(4, axis=-1, layers=0),
    "layers as channels": mz.quantize(4, axis=0),
    "groups": mz.quantize(2, axis=-1, **GROUPS),
    "groups of layers, ragged": mz.quantize(4, axis=-1, layers=0, granularity="group", group_size=7),
    "offsets": mz.quantize(4, axis=-1, symmetric=False, layers=0),
    "nf4": mz.quantize(4, grid=mz.grids.nf4(), axis=-1, layers=0),
    "pruned": mz.prune(sparsity=0.6),
    "pruned, quantized": mz.chain(mz.prune(sparsity=0.6), mz.quantize(4, axis=-1, layers=0)),
    "pruned, nf4": mz.chain(mz.prune(sparsity=0.6), mz.quantize(4, grid=mz.grids.nf4(), axis=-1)),
    "identity": mz.identity(),
}


# Put together by hand: k-means takes seconds to compile.
CODES = Bits.pack(RNG.integers(0, 5, 96), 3)
BLOCKS = Bits.pack(RNG.integers(0, 5, 48), 3)
BY_HAND = {
    "cluster": Clustered(CODES, stack(5), False, (3, 8, 4), "float32"),
    "cluster, of layers": LayerClustered(CODES, stack(3, 5), False, (0,), (3, 8, 4), "float32"),
    "vectors of layers": LayerVectors(BLOCKS, stack(3, 5, 2), 0, (0,), (3, 8, 4), "float32"),
    "vectors": VectorClustered(BLOCKS, stack(5, 2), -1, (3, 8, 4), "float32"),
}  # fmt: skip


def packed_as(name):
    if name in BY_HAND:
        return BY_HAND[name]
    dtype = jnp.bfloat16 if name in ("channels of layers", "identity") else jnp.float32
    return mz.compress(jnp.asarray(stack(3, 8, 4), dtype), RECIPES[name]).params


@pytest.mark.parametrize("name", [*RECIPES, *list(BY_HAND)[:3]])
def test_a_layer_is_that_of_the_whole_leaf(name):
    packed = packed_as(name)
    values, found = mz.unpack(packed), mz.layered(packed)
    np.testing.assert_array_equal(mz.unpack(found), values)
    layer = jax.tree.map(lambda x: x[1], found.each)
    assert layer.shape == (8, 4)
    np.testing.assert_array_equal(mz.unpack(layer), values[1])


def test_axes_other_than_the_first_and_leaves_of_two_axes():
    whole = stack(4, 3, 8)
    for recipe in (mz.quantize(4, axis=-1), mz.quantize(4, axis=(0, 1)), mz.prune(sparsity=0.5)):
        packed = mz.compress(whole, recipe).params
        found = mz.layered(packed, 1)
        np.testing.assert_array_equal(mz.unpack(found), mz.unpack(packed))
        assert found.each.shape == (4, 8)
    for recipe in (mz.quantize(4, axis=-1), mz.quantize(4, layers=0), mz.quantize(4, axis=-1, **GROUPS)):
        bias = mz.compress(stack(3, 6), recipe).params
        np.testing.assert_array_equal(mz.unpack(mz.layered(bias)), mz.unpack(bias))


def test_codes_of_a_layer_take_exactly_their_bits():
    for bits in (2, 3, 4):
        packed = mz.compress(stack(4, 64, 32), mz.quantize(bits, axis=-1, layers=0)).params
        found = mz.layered(packed)
        assert found.each.codes.nbytes == packed.codes.nbytes == 4 * 64 * 32 * bits // 8
        assert found.nbytes == packed.nbytes


def test_what_has_no_layers_is_refused():
    across = mz.compress({"a": stack(3, 5, 4)}, mz.quantize(4, axis=-1, **GROUPS))
    with pytest.raises(TransformError, match=r"'a'.*cross the layers.*layers=0"):
        mz.layered(across)
    with pytest.raises(TransformError, match=r"'a'.*VectorClustered"):
        mz.layered({"a": BY_HAND["vectors"]})
    with pytest.raises(TransformError, match="has no layers"):
        mz.layered(mz.compress({"a": stack(4, 8, 8)}, mz.chain(mz.wavelet("haar"), mz.quantize(4))))
    with pytest.raises(TransformError, match="takes a packed model"):
        mz.layered({"a": stack(3, 4)})
    with pytest.raises(TransformError, match="one axis"):
        mz.layered(across, (0, 1))
    with pytest.raises(PatternError):
        mz.layered(across, {"b": 0})
    with pytest.raises(LeafError, match="no axes"):
        mz.layered(across, 3)
    with pytest.raises(LeafError, match="no layers"):
        mz.layered(mz.compress(np.zeros((0, 4), np.float32), mz.identity()))
    with pytest.raises(TransformError, match="before jit"):
        jax.jit(mz.layered)(across.params)


def test_files_hold_what_it_was_made_of(tmp_path):
    packed = mz.layered(mz.compress({"a": stack(3, 8, 4)}, mz.quantize(4)))
    with pytest.raises(FormatError, match=r"Layered.*save what it was made of"):
        mz.save(tmp_path / "model.mz", packed)


def test_nothing_is_uploaded_once_it_is_on_the_device():
    weights = {"w": stack(8, 4), "b": np.ones(4, np.float32)}
    packed = mz.compress(
        weights, mz.only("w", mz.chain(mz.prune(sparsity=0.5), mz.quantize(4))), variables=weights
    )
    held = mz.to_device(packed)
    assert all(isinstance(x, jax.Array) and x.committed for x in jax.tree.leaves(held))
    assert held.nbytes == packed.nbytes
    assert held.transform == packed.transform
    unpack = jax.jit(lambda p: jax.tree.map(jnp.asarray, mz.unpack(p)))
    unpack(held)
    with jax.transfer_guard("disallow"):
        found = unpack(held)
    np.testing.assert_array_equal(found["w"], mz.unpack(packed)["w"])
    device = jax.devices()[0]
    assert mz.to_device(packed.params["w"], device).mask.words.devices() == {device}


def test_what_cannot_be_put_there_is_refused():
    with pytest.raises(TransformError, match="'w' is a ndarray"):
        mz.to_device({"w": stack(2, 2)})
    with pytest.raises(LeafError, match="int64"):
        mz.to_device({"n": mz.Dense(np.arange(3, dtype=np.int64), (3,))})
    mesh = jax.make_mesh((1,), ("x",))
    packed = mz.compress(stack(4, 4), mz.quantize(4))
    with pytest.raises(TransformError, match="replicate"):
        mz.to_device(packed, Splitting(mesh))
    with pytest.raises(TransformError, match=r"jax\.Device.*not 'cpu'"):
        mz.to_device(packed, "cpu")
    held = mz.to_device(packed, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    assert held.params.step.committed


class Splitting(jax.sharding.NamedSharding):
    """As on two devices, of which the tests have one."""

    is_fully_replicated = False

    def __init__(self, mesh):
        super().__init__(mesh, jax.sharding.PartitionSpec("x"))


def model(params, x):
    x = x @ params["embed"]

    def layer(x, p):
        return jnp.tanh(x @ p["w"].astype(x.dtype) + p["b"]) @ params["shared"], x.sum()

    return jax.lax.scan(jax.checkpoint(layer), x, params["blocks"])


def parameters(layers=12, width=32):
    return {
        "embed": stack(4, width),
        "shared": stack(width, width) / width,
        "blocks": {"w": stack(layers, width, width), "b": stack(layers, width)},
    }


def memory(f, *arguments):
    found = jax.jit(f).lower(*arguments).compile().memory_analysis()
    return found.argument_size_in_bytes + found.temp_size_in_bytes


@pytest.mark.parametrize("recipe", [mz.quantize(4, axis=-1), mz.quantize(4, axis=-1, grid=mz.grids.nf4())])
def test_a_scan_holds_one_decoded_layer(recipe):
    params, x = parameters(width=64), jnp.ones((2, 4))
    packed = mz.compress(params, mz.only(("blocks/w", "shared"), recipe))
    held = mz.to_device(mz.layered(packed, {"blocks/*": 0}))
    inside = mz.rewrites.decode_inside(model)
    for a, b in zip(jax.jit(inside)(held, x), model(mz.unpack(packed), x), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert memory(inside, held, x) <= 0.4 * memory(model, params, x)
    assert memory(lambda p, x: model(mz.unpack(p), x), held, x) > memory(model, params, x)


def test_what_a_loop_needs_at_each_step_is_decoded_there():
    def loop(params, x):
        step = lambda x: jnp.tanh(x @ params["w"].T)  # noqa: E731
        x = jax.lax.cond(x.sum() > 0, lambda x: step(x), lambda x: x, x)
        return jax.lax.while_loop(
            lambda x: x.sum() > 1e3, step, jax.lax.fori_loop(0, 3, lambda i, x: step(x), x)
        )

    packed = mz.compress({"w": stack(48, 48)}, mz.quantize(4, axis=-1))
    x, inside = jnp.ones((2, 48)), jax.jit(mz.rewrites.decode_inside(loop))
    np.testing.assert_allclose(inside(packed, x), loop(mz.unpack(packed), x), rtol=1e-5, atol=1e-6)
    text = inside.lower(mz.to_device(packed), x).compile().as_text()
    loops = re.findall(r"= (\(.*\)) while\(", text)
    assert loops
    assert not any("f32[48,48]" in carried for carried in loops)


def test_a_scan_over_a_leaf_that_is_not_layered_is_refused():
    packed = mz.compress(parameters(2, 8), mz.only("blocks/w", mz.quantize(4)))
    with pytest.raises(mz.errors.TraceError, match=r"\(2, 8, 8\).*mz.layered"):
        mz.rewrites.decode_inside(model)(packed, jnp.ones((2, 4)))
