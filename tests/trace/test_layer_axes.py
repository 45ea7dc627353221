"""Which axes of a leaf count layers, and that transforms take the answer as it is."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax.sharding import PartitionSpec as P
from trace_models import normal

import modelzip_jax as mz
from modelzip_jax.models.language_model import LanguageModel
from modelzip_jax.trace import layer_axes, statistics, uses


class Block(nn.Module):
    """With a residual, as a scan's body."""

    @nn.compact
    def __call__(self, x, _):
        return x + nn.Dense(x.shape[-1])(nn.relu(nn.Dense(6)(nn.LayerNorm()(x)))), None


def scanned(cls, length, **kwargs):
    return nn.scan(cls, variable_axes={"params": 0}, split_rngs={"params": True}, length=length, **kwargs)


def stacked(cls, size):
    """Experts, each with inputs of its own."""
    return nn.vmap(
        cls, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=0, out_axes=0, axis_size=size
    )


def of(model, *inputs):
    params = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
    return layer_axes(lambda p, *x: model.apply({"params": p}, *x), params, *inputs)


@pytest.mark.parametrize("remat", [False, True])
def test_a_scan_of_linen_with_remat(remat):
    model = LanguageModel(vocab_size=11, num_layers=2, num_heads=2, embed_dim=8, max_length=6, remat=remat)
    found = of(model, jnp.zeros((1, 6), int))
    assert {axes for name, axes in found.items() if name.startswith("blocks/")} == {(0,)}
    assert {axes for name, axes in found.items() if not name.startswith("blocks/")} == {()}
    assert any(name.endswith("bias") for name in found if name.startswith("blocks/"))
    assert any(name.endswith("positions") or "position" in name for name in found)


def test_an_unrolled_model_has_none():
    model = LanguageModel(vocab_size=11, num_layers=2, num_heads=2, embed_dim=8, max_length=6, scan=False)
    assert set(of(model, jnp.zeros((1, 6), int)).values()) == {()}


def test_a_scan_of_nnx():
    class Layer(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(4, 4, rngs=rngs)

        def __call__(self, x):
            return nnx.relu(self.dense(x))

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.split_rngs(splits=3)(nnx.vmap(Layer))(rngs)
            self.head = nnx.Linear(4, 2, rngs=rngs)

        def __call__(self, x):
            x = nnx.scan(lambda x, layer: layer(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(
                x, self.layers
            )
            return self.head(x)

    graph, state = nnx.split(Net(nnx.Rngs(0)))
    found = layer_axes(lambda s, x: nnx.merge(graph, s)(x), state, jnp.ones((2, 4)))
    assert found == {
        "head/bias": (), "head/kernel": (), "layers/dense/bias": (0,), "layers/dense/kernel": (0,),
    }  # fmt: skip


def test_nested_scans_and_experts_within_a_scan():
    class Group(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            x, _ = scanned(Block, 3)(name="inner")(x, None)
            return x + stacked(nn.Dense, 2)(x.shape[-1], name="experts")(x), None

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return scanned(nn.remat(Group), 5)(name="outer")(x, None)[0]

    found = of(Net(), jnp.ones((2, 7, 4)))
    assert {axes for name, axes in found.items() if "/inner/" in name} == {(0, 1)}
    assert found["outer/experts/kernel"] == (0, 1)
    assert found["outer/experts/bias"] == (0,)  # That its second axis counts experts shows nowhere.


def test_a_scan_along_another_axis_than_the_first():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            class Body(nn.Module):
                @nn.compact
                def __call__(self, x, _):
                    return nn.Dense(4)(x), None

            return nn.scan(Body, variable_axes={"params": 1}, split_rngs={"params": True}, length=3)()(
                x, None
            )[0]

    assert set(of(Net(), jnp.ones((2, 4))).values()) == {(1,)}


W = jnp.ones((3, 4, 4))


def one(model, w=W, x=None):
    return layer_axes(model, {"w": w}, jnp.ones((2, 4)) if x is None else x)["w"]


LOOPS = {
    "scan": (lambda p, x: lax.scan(lambda x, w: (x @ w, None), x, p["w"])[0], (0,)),
    "scan backwards": (lambda p, x: lax.scan(lambda x, w: (x @ w.T, None), x, p["w"], reverse=True)[0], (0,)),
    "scan of both halves": (
        lambda p, x: lax.scan(lambda x, w: (x @ w, None), x, jnp.concatenate([p["w"], p["w"]]))[0], (0,),
    ),
    "scan, cast": (lambda p, x: lax.scan(lambda x, w: (x @ w, None), x, p["w"].astype("bfloat16"))[0], (0,)),
    "scan twice": (
        lambda p, x: [lax.scan(lambda x, w: (x @ w, None), y, p["w"])[0] for y in (x, -x)], (0,),
    ),
    "fori_loop": (lambda p, x: lax.fori_loop(0, 3, lambda i, x: x @ p["w"][i], x), (0,)),
    "while_loop": (
        lambda p, x: lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] @ p["w"][c[0]]), (0, x)), (0,),
    ),
    "Python": (lambda p, x: functools.reduce(lambda x, i: x @ p["w"][i], range(3), x), (0,)),
    "fused projections": (lambda p, x: [x @ p["w"][i] for i in (2, 0, 1)], (0,)),
    "one of them only": (lambda p, x: x @ p["w"][1], ()),
    "first apart, rest scanned": (
        lambda p, x: lax.scan(lambda x, w: (x @ w, None), x @ p["w"][0], p["w"][1:])[0], (),
    ),
    "experts": (lambda p, x: jax.vmap(jnp.matmul)(jnp.stack([x] * 3) * 2.0, p["w"]), (0,)),
    "experts of one input": (lambda p, x: jax.vmap(jnp.matmul, (None, 0))(x, p["w"]), ()),
    "sorted tokens": (lambda p, x: lax.ragged_dot(x, p["w"], jnp.array([1, 0, 1])), (0,)),
    "picked by data": (lambda p, x: x @ p["w"][jnp.argmax(x[0])], ()),
    "scanned, and penalised": (
        lambda p, x: lax.scan(lambda x, w: (x @ w, None), x, p["w"])[0].sum() + (x[0, 0] * p["w"] ** 2).sum(), (),
    ),
    "scanned, and returned": (lambda p, x: (lax.scan(lambda x, w: (x @ w, None), x, p["w"])[0], p), (0,)),
    "scanned, normalised": (
        lambda p, x: lax.scan(lambda x, w: (x @ (w / jnp.linalg.norm(w)), None), x, p["w"])[0], (0,),
    ),
    "summed up": (lambda p, x: x @ p["w"].sum(0), ()),
    "unused": (lambda p, x: x, ()),
    "blocks of rows": (
        lambda p, x: lax.fori_loop(0, 2, lambda i, y: y + x[0, 0] * lax.dynamic_slice_in_dim(p["w"], i, 2).sum(), 0.0),
        (),
    ),
    "positions": (lambda p, x: x @ p["w"][jnp.arange(2)], ()),
}  # fmt: skip


@pytest.mark.parametrize("name", LOOPS)
def test_plain_loops_and_products(name):
    model, expected = LOOPS[name]
    assert one(model) == expected


def test_axes_that_a_reshape_has_made():
    def scan(change):
        return lambda p, x: lax.scan(lambda x, w: (x @ w, None), x, change(p["w"]))[0]

    pairs, tall, cube = jnp.ones((6, 4, 4)), jnp.ones((12, 4)), jnp.ones((2, 3, 4, 4))
    assert one(scan(lambda w: w.reshape(6, 4, 4)), cube) == (0, 1)
    assert (
        one(scan(lambda w: w.reshape(3, 4, 4)), tall) == ()
    )  # An axis of layers and inputs is no axis of layers.
    assert one(scan(lambda w: w.transpose(1, 2, 0)), jnp.ones((4, 3, 4))) == (1,)

    def experts(p, x):
        body = lambda x, w: (jax.vmap(jnp.matmul)(x, w), None)  # noqa: E731
        return lax.scan(body, jnp.stack([x, x]), p["w"].reshape(3, 2, 4, 4))[0]

    assert one(experts, pairs) == (0,)
    assert one(scan(lambda w: w), jnp.ones((1, 4, 4))) == (0,)
    assert one(lambda p, x: x @ p["w"][0], jnp.ones((1, 4, 4))) == ()


def convolution(groups, kernel, x):
    return lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    )


@pytest.mark.parametrize(("groups", "vmapped", "axes"), [
    (1, True, (0,)), (2, True, (0,)), (4, True, (0,)), (1, False, ()), (2, False, ()), (4, False, ()),
])  # fmt: skip
def test_convolutions_of_experts_and_of_groups(groups, vmapped, axes):
    """A depthwise kernel's channels are no layers, alone or in experts."""
    f = functools.partial(convolution, groups)
    front = (3,) if vmapped else ()
    model = lambda p, x: (jax.vmap(f) if vmapped else f)(p["w"], x)  # noqa: E731
    assert one(model, jnp.ones((*front, 2, 2, 4 // groups, 4)), jnp.ones((*front, 2, 8, 8, 4))) == axes


def test_statistics_of_vmapped_convolutions():
    """What the view of a vmapped kernel now shows is right: the moments that each expert meets."""
    w, x = normal(3, 1, 1, 4, 5), normal(3, 2, 6, 6, 4)
    model = lambda p, x: jax.vmap(functools.partial(convolution, 1))(p["w"], x)  # noqa: E731
    (use,) = uses(model, {"w": w}, x)
    assert (use.contracted, use.derived) == ((3,), False)
    (found,) = statistics(model, {"w": w}, [x])["w"]
    np.testing.assert_allclose(
        np.reshape(found.inputs.second_moment, (3, 4)), np.mean(np.square(x), (1, 2, 3)), rtol=1e-5
    )


def test_tied_leaves_have_none():
    params = {"embedding": jnp.ones((4, 4)), "stack": W}

    def model(p, tokens):
        x = p["embedding"][tokens]
        x = lax.scan(lambda x, w: (x @ w, None), x, p["stack"])[0]
        return jax.vmap(jnp.matmul)(x, jnp.stack([p["embedding"].T] * 2)) @ p["stack"].reshape(4, 12)

    assert layer_axes(model, params, jnp.zeros((2, 3), int)) == {"embedding": (), "stack": ()}


@pytest.mark.parametrize(("shards", "axes"), [(1, (0,)), (2, ()), (4, (0,))])
def test_a_shard_of_one_layer_is_one_and_of_several_is_not(shards, axes):
    mesh = jax.sharding.AbstractMesh((shards,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))

    def body(w, x):
        return lax.psum(lax.scan(lambda x, w: (x @ w, None), x, w)[0], "d")

    sharded = jax.shard_map(body, mesh=mesh, in_specs=(P("d"), P()), out_specs=P(), check_vma=False)
    assert one(lambda p, x: sharded(p["w"], x), jnp.ones((4, 4, 4))) == axes


def test_transforms_take_the_answer_as_it_is():
    rng = np.random.default_rng(0)
    params = {
        "stack": rng.normal(size=(3, 8, 8)) * np.geomspace(0.01, 1, 3)[:, None, None],
        "head": rng.normal(size=(8, 4)),
    }
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)

    def model(p, x):
        return lax.scan(lambda x, w: (x @ w, None), x, p["stack"])[0] @ p["head"]

    layers = layer_axes(model, params, jnp.ones((2, 8)))
    kept = jax.tree.map(
        lambda w: np.asarray(w != 0), mz.decoded(params, mz.prune(sparsity=0.75, layers=layers))
    )
    assert kept["stack"].sum((1, 2)).tolist() == [16, 16, 16]
    assert kept["head"].sum() == 8
    packed = mz.compress(params, mz.cluster(4, layers=layers)).params
    assert packed["stack"].codebook.shape == (3, 4)
    assert packed["head"].codebook.shape == (4,)
    grown = mz.decoded(params, mz.sparse_evolution(sparsity=0.75, end=10, layers=layers))
    assert np.count_nonzero(grown["stack"], axis=(1, 2)).std() == 0
