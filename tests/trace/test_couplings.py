"""Removing a group computes what zeroing it computes: checked by doing both."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from trace_models import normal, variables

from modelzip_jax import tree
from modelzip_jax.models import language_model, nnx_resnet, resnet, vgg
from modelzip_jax.models.bert import SentenceEncoder, SentenceEncoderConfig
from modelzip_jax.trace import couplings
from modelzip_jax.trace.coupling.labels import Labels, Reason


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def removed(params, found, seed=0, share=0.5):
    """The parameters with a random half of each group zeroed, and without it."""
    rng = np.random.default_rng(seed)
    zeroed = {n: np.array(x) for n, x in tree.named_leaves(params)}
    gone = {}
    for group in found.groups:
        units = rng.choice(group.units, max(int(group.units * share), 1), replace=False)
        for m in group.members:
            gone.setdefault((m.leaf, m.axis), set()).update(m.removed(units).tolist())
    for (leaf, axis), indices in gone.items():
        np.moveaxis(zeroed[leaf], axis, 0)[sorted(indices)] = 0
    small = dict(zeroed)
    for (leaf, axis), indices in gone.items():
        small[leaf] = np.delete(small[leaf], sorted(indices), axis)
    structure, names = jax.tree.structure(params), [n for n, _ in tree.named_leaves(params)]
    return tuple(structure.unflatten([jnp.asarray(x[n]) for n in names]) for x in (zeroed, small))


def interchanged(params, found, seed=0):
    """The parameters with the units of each kind of each group in a random order."""
    rng = np.random.default_rng(seed)
    leaves = {n: np.array(x) for n, x in tree.named_leaves(params)}
    for group in found.groups:
        order = np.arange(group.units)
        for kind in np.unique(group.kinds):
            units = np.flatnonzero(group.kinds == kind)
            order[units] = rng.permutation(units)
        for m in group.members:
            x = np.moveaxis(leaves[m.leaf], m.axis, 0)
            x[m.indices] = x[m.indices[order]]
    return jax.tree.structure(params).unflatten(
        [jnp.asarray(leaves[n]) for n, _ in tree.named_leaves(params)]
    )


def check(model, params, *inputs, groups, seed=0):
    """Zeroing and removing agree, interchanging changes nothing, and the groups have these numbers of units."""
    found = couplings(model, params, *inputs)
    assert sorted(g.units for g in found.groups) == sorted(groups)
    zeroed, small = removed(params, found, seed)
    run = jax.jit(model)
    np.testing.assert_allclose(run(small, *inputs), run(zeroed, *inputs), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        run(interchanged(params, found), *inputs), run(params, *inputs), rtol=1e-4, atol=1e-5
    )
    assert sum(x.size for x in jax.tree.leaves(small)) < sum(x.size for x in jax.tree.leaves(params))
    return found


def conv(x, w, groups=1, stride=1):
    return lax.conv_general_dilated(
        x, w, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    )


def norm(x, p):
    return (x - p["mean"]) * lax.rsqrt(p["var"] + 1e-3) * p["scale"] + p["bias"]


def norm_params(n, seed):
    return {
        "mean": normal(n, seed=seed), "var": jnp.abs(normal(n, seed=seed + 1)), "scale": normal(n, seed=seed + 2),
        "bias": normal(n, seed=seed + 3),
    }  # fmt: skip


def test_residuals_batch_norm_and_flattening():
    p = {
        "a": normal(3, 3, 2, 8), "na": norm_params(8, 2), "b": normal(3, 3, 8, 6, seed=3), "nb": norm_params(6, 7),
        "c": normal(1, 1, 6, 8, seed=4), "d": normal(4 * 4 * 8, 10, seed=5), "bias": normal(10), "e": normal(10, 3),
    }  # fmt: skip

    def model(p, x):
        x = jax.nn.relu(norm(conv(x, p["a"]), p["na"]))
        y = jax.nn.relu(norm(conv(x, p["b"]), p["nb"]))
        x = x + conv(y, p["c"])
        x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        return jax.nn.sigmoid(x.reshape(x.shape[0], -1) @ p["d"] + p["bias"]) @ p["e"]

    found = check(model, p, normal(2, 8, 8, 2), groups=[8, 6, 10])
    group = next(g for g in found.groups if "a" in g.leaves)
    flat = next(m for m in group.members if m.leaf == "d")
    np.testing.assert_array_equal(flat.indices[3], np.arange(16) * 8 + 3)
    assert set(group.leaves) == {"a", "b", "c", "d", "na/mean", "na/var", "na/scale", "na/bias"}


def test_depthwise_and_grouped_convolution():
    p = {
        "a": normal(1, 1, 3, 8),
        "d": normal(3, 3, 1, 16, seed=2),
        "b": normal(1, 1, 16, 4, seed=3),
        "c": normal(4, 2),
    }

    def depthwise(p, x):
        x = jax.nn.relu(conv(x, p["a"]))
        x = jax.nn.relu(conv(x, p["d"], groups=x.shape[-1]))
        return jax.nn.relu(conv(x, p["b"])).mean((1, 2)) @ p["c"]

    found = check(depthwise, p, normal(2, 4, 4, 3), groups=[8, 2, 4])
    shapes = [m.indices.shape for g in found.groups for m in g.members if m.leaf == "d"]
    assert sorted(shapes) == [(2, 8), (8, 2)]
    p = {"a": normal(1, 1, 3, 8), "g": normal(3, 3, 4, 6, seed=2), "b": normal(1, 1, 6, 4, seed=3)}

    def grouped(p, x):
        x = jax.nn.relu(conv(x, p["a"]))
        x = jax.nn.relu(conv(x, p["g"], groups=x.shape[-1] // p["g"].shape[2]))
        return conv(x, p["b"])

    check(grouped, p, normal(2, 4, 4, 3), groups=[2, 4, 3])


def test_concatenation_and_slices():
    p = {
        "a": normal(4, 6),
        "b": normal(4, 4, seed=2),
        "n": normal(10),
        "c": normal(10, 6, seed=3),
        "d": normal(3, 2),
    }

    def model(p, x):
        h = jnp.concatenate([jax.nn.relu(x @ p["a"]), x @ p["b"]], -1) * p["n"]
        gate, value = jnp.split(h @ p["c"], 2, -1)
        return (jax.nn.sigmoid(gate) * value) @ p["d"]

    found = check(model, p, normal(5, 4), groups=[6, 4, 3])
    second = next(g for g in found.groups if "b" in g.leaves)
    members = {(m.leaf, m.axis): m.indices for m in second.members}
    np.testing.assert_array_equal(members["c", 0], 6 + np.arange(4)[:, None])


def attention(p, x, heads):
    q, k, v = (x @ p[n] for n in "qkv")
    q, k = (t.reshape(*x.shape[:-1], heads(p), 4) for t in (q, k))
    v = v.reshape(*x.shape[:-1], heads(p), -1)
    weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) / 2)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(*x.shape[:-1], -1) @ p["o"]


def test_attention_removes_heads_and_values():
    p = {n: normal(6, 12, seed=i) for i, n in enumerate("qkv")} | {"o": normal(12, 6, seed=4)}
    model = functools.partial(attention, heads=lambda p: p["q"].shape[1] // 4)
    found = check(model, p, normal(2, 5, 6), groups=[3, 4])
    assert {g.units: len(g.members) for g in found.groups} == {3: 4, 4: 2}
    frozen = {(f.leaf, f.axis) for f in found.frozen}
    assert frozen == {("q", 0), ("k", 0), ("v", 0), ("o", 1)}


def test_fused_qkv_by_slices_and_by_reshape():
    p = {"qkv": normal(6, 36), "o": normal(12, 6, seed=4)}

    def sliced(p, x):
        h = x @ p["qkv"]
        n = h.shape[-1] - p["o"].shape[0]
        parts = {"q": h[..., : n // 2], "k": h[..., n // 2 : n], "v": h[..., n:]}
        q, k = (parts[name].reshape(*x.shape[:-1], -1, 4) for name in "qk")
        v = parts["v"].reshape(*x.shape[:-1], q.shape[-2], -1)
        weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k))
        return jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(*x.shape[:-1], -1) @ p["o"]

    found = check(sliced, p, normal(2, 5, 6), groups=[3, 4])
    heads = next(g for g in found.groups if g.units == 3)
    np.testing.assert_array_equal(heads.members[-1].indices[0], [*range(4), *range(12, 16), *range(24, 28)])

    def reshaped(p, x):
        h = (x @ p["qkv"]).reshape(*x.shape[:-1], 3, -1, 4)
        q, k, v = (h[..., i, :, :] for i in range(3))
        weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k))
        return jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(*x.shape[:-1], -1) @ p["o"]

    check(reshaped, p, normal(2, 5, 6), groups=[3])


def test_grouped_queries_lose_keys_with_all_of_their_queries():
    p = {"q": normal(6, 16), "k": normal(6, 8, seed=2), "v": normal(6, 8, seed=3), "o": normal(16, 6, seed=4)}

    def model(p, x):
        k = (x @ p["k"]).reshape(*x.shape[:-1], -1, 4)
        v = (x @ p["v"]).reshape(*k.shape[:-1], -1)
        q = (x @ p["q"]).reshape(*x.shape[:-1], -1, 4)
        k, v = (jnp.repeat(t, q.shape[-2] // t.shape[-2], axis=-2) for t in (k, v))
        weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k))
        return jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(*x.shape[:-1], -1) @ p["o"]

    found = check(model, p, normal(2, 5, 6), groups=[2, 2, 4])
    assert {"".join(sorted(g.leaves)) for g in found.groups} == {"koqv", "oq", "ov"}


def layer_norm(x, scale):
    x = x - x.mean(-1, keepdims=True)
    return x * lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6) * scale


def test_a_scanned_decoder_with_remat_and_gated_mlp():
    p = {
        "embed": normal(11, 6), "up": normal(2, 6, 8), "gate": normal(2, 6, 8, seed=2), "down": normal(2, 8, 6, seed=3),
        "scale": normal(2, 6, seed=4),
    }  # fmt: skip

    def layer(x, w):
        h = layer_norm(x, w["scale"])
        return x + (jax.nn.silu(h @ w["gate"]) * (h @ w["up"])) @ w["down"], None

    def model(p, ids):
        layers = {k: p[k] for k in ("up", "gate", "down", "scale")}
        return lax.scan(jax.checkpoint(layer), p["embed"][ids], layers)[0] @ p["embed"].T

    found = check(model, p, jnp.array([[1, 2, 3]]), groups=[8])
    why = {(f.leaf, f.axis): {r.why for r in f.reasons} for f in found.frozen}
    assert "scanned over" in why["up", 0]
    assert "mixed by a reduction" in why["embed", 1]
    assert why["embed", 0] >= {"indexed", "an axis of an output"}


def test_recurrent_state_and_loops():
    p = {"i": normal(3, 6), "h": normal(6, 6, seed=2), "b": normal(6, seed=3), "o": normal(6, 2, seed=4)}

    def recurrent(p, x):
        def step(h, x):
            return jnp.tanh(x @ p["i"] + h @ p["h"] + p["b"]), None

        h = lax.scan(step, jnp.zeros((x.shape[1], p["b"].size)), x)[0]
        h = lax.while_loop(lambda c: c[1] < 2, lambda c: (c[0] * 0.5, c[1] + 1), (h, 0))[0]
        return lax.cond(x.sum() > 0, lambda h: h, lambda h: -h, h) @ p["o"]

    check(recurrent, p, normal(4, 2, 3), groups=[6])


def test_group_norm_and_squeeze_excitation():
    p = {
        "a": normal(1, 1, 3, 8),
        "s": normal(8),
        "r": normal(8, 4, seed=2),
        "e": normal(4, 8, seed=3),
        "b": normal(8, 2),
    }

    def model(p, x):
        x = conv(x, p["a"])
        n = x.reshape(*x.shape[:3], -1, 2)
        mean = n.mean((1, 2, 4), keepdims=True)
        x = (n - mean).reshape(x.shape) * p["s"]
        gate = jax.nn.sigmoid(jax.nn.relu(x.mean((1, 2)) @ p["r"]) @ p["e"])
        return (x * gate[:, None, None]).mean((1, 2)) @ p["b"]

    check(model, p, normal(2, 4, 4, 3), groups=[4, 4])


def test_low_rank_and_weight_norm():
    p = {
        "w": normal(3, 6),
        "a": normal(3, 4, seed=2),
        "b": normal(4, 6, seed=3),
        "v": normal(6, 5, seed=4),
        "o": normal(5, 2),
    }

    def model(p, x):
        h = jax.nn.relu(x @ (p["w"] + p["a"] @ p["b"]))
        return jax.nn.relu(h @ (p["v"] / jnp.linalg.norm(p["v"], axis=0))) @ p["o"]

    found = couplings(model, p, normal(5, 3))
    assert sorted(g.units for g in found.groups) == [4, 5]
    zeroed, small = removed(p, without(found, "v"))
    np.testing.assert_allclose(model(small, normal(5, 3)), model(zeroed, normal(5, 3)), rtol=1e-5, atol=1e-5)


def without(found, leaf):
    """Only groups that leave a leaf alone: a weight of norm zero is 0/0 where it is zeroed."""
    return type(found)(tuple(g for g in found.groups if leaf not in g.leaves), found.frozen, found.uncovered)


def test_a_sum_needs_weights_that_are_zero_where_their_leaves_are():
    """sigmoid(0) is not 0: what sums it with ones, or with exp(0), would lose it."""
    p = {"a": normal(3, 4), "b": normal(4, 2, seed=2), "c": normal(4, seed=3)}

    def model(weight):
        return lambda p, x: jax.nn.sigmoid(x @ p["a"]) @ weight(p)

    kept = (lambda p: jnp.ones((4, 2)), lambda p: jnp.exp(p["b"]), lambda p: p["b"] + 1.0)
    for weight in (*kept, lambda p: jnp.broadcast_to(p["c"][:1, None], (4, 2))):
        assert not couplings(model(weight), p, normal(5, 3)).groups
    lost = (
        lambda p: jnp.tanh(p["b"]).astype(jnp.bfloat16).astype(jnp.float32) * 2,
        lambda p: p["b"] * p["c"][:, None],
        lambda p: p["b"] - p["c"][:, None],
        lambda p: (p["b"].T.reshape(1, 2, -1).squeeze(0)).T,
        lambda p: p["c"][:, None] * jnp.ones((1, 2)),
    )
    for weight in lost:
        found = couplings(model(weight), p, normal(5, 3))
        assert [g.units for g in found.groups] == [4]
        zeroed, small = removed(p, found)
        np.testing.assert_allclose(
            model(weight)(small, normal(5, 3)), model(weight)(zeroed, normal(5, 3)), rtol=1e-5, atol=1e-5
        )


def test_padding_of_channels_is_kept():
    p = {"a": normal(3, 4), "b": normal(3, 8, seed=2), "c": normal(8, 2, seed=3)}

    def model(p, x):
        return (jnp.pad(x @ p["a"], ((0, 0), (2, 2))) + x @ p["b"]) @ p["c"]

    found = check(model, p, normal(5, 3), groups=[4])
    assert next(f for f in found.frozen if (f.leaf, f.axis) == ("b", 1)).elements == 4


def test_what_has_no_rule_freezes_and_is_listed():
    p = {"a": normal(3, 4), "b": normal(3, 2, seed=2), "unused": normal(3)}
    found = couplings(lambda p, x: jnp.fft.rfft(x @ p["a"]).real @ p["b"], p, normal(5, 3))
    assert not found.groups
    assert [r.primitive for r in found.uncovered] == ["fft"]
    why = {(f.leaf, f.axis): f.reasons[0].why for f in found.frozen}
    assert why["a", 1] == why["b", 0] == "no rule for this primitive"
    assert why["unused", 0] == "not used"


def test_channels_that_are_shuffled_into_their_residual_only_go_together():
    p = {"a": normal(3, 12), "b": normal(12, 2)}

    def model(p, x):
        h = x @ p["a"]
        return (h + h.reshape(-1, 3, 4).swapaxes(1, 2).reshape(-1, 12)) @ p["b"]

    found = couplings(model, p, normal(5, 3))
    assert not found.groups
    why = {(f.leaf, f.axis): f.reasons[0].why for f in found.frozen}
    assert why["a", 1] == why["b", 0] == "could only go as a whole"


def test_units_that_are_met_differently_are_of_different_kinds():
    p = {"a": normal(3, 6), "b": normal(6, 2, seed=2)}

    def halves(p, x):
        h = x @ p["a"]
        return jnp.concatenate([jax.nn.relu(h[:, :3]), jnp.tanh(h[:, 3:])], -1) @ p["b"]

    found = check(halves, p, normal(5, 3), groups=[6])
    np.testing.assert_array_equal(found.groups[0].kinds, [0, 0, 0, 1, 1, 1])
    wide = {"a": normal(3, 4), "b": normal(8, 2, seed=2)}

    def woven(p, x):  # f0 f1 g0 g1 g2 g3 f2 f3: rows come in another order for half of the units.
        f, g = jax.nn.relu(x @ p["a"]), jnp.tanh(x @ p["a"])
        return jnp.concatenate([f[:, :2], g, f[:, 2:]], -1) @ p["b"]

    found = check(woven, wide, normal(5, 3), groups=[4])
    np.testing.assert_array_equal(found.groups[0].kinds, [0, 0, 1, 1])

    def mirrored(p, x):
        h = x @ p["a"]
        return jnp.concatenate([jax.nn.relu(h), jnp.tanh(h[:, ::-1])], -1) @ p["b"]

    found = check(mirrored, wide, normal(5, 3), groups=[4])
    np.testing.assert_array_equal(found.groups[0].kinds, np.arange(4))


@pytest.mark.parametrize("axis", [0, 1])
def test_reductions_freeze(axis):
    p = {"a": normal(3, 4), "b": normal(4, 2, seed=2)}
    for mix in (
        jax.nn.softmax,
        jnp.sort,
        jnp.cumsum,
        lambda x, axis: x / jnp.linalg.norm(x, axis=axis, keepdims=True),
    ):
        found = couplings(lambda p, x, mix=mix: mix(x @ p["a"], axis=axis) @ p["b"], p, normal(4, 3))
        assert len(found.groups) == (axis == 0)


def test_half_of_a_model_is_the_model_of_half_the_width():
    """Flax checks every shape of the smaller model."""
    images, tokens = normal(2, 32, 32, 3), jnp.arange(16).reshape(2, 8)
    vgg_of = functools.partial(vgg.VGG, (1, 1, 1, 1, 1))
    decoder = functools.partial(language_model.LanguageModel, 50, 2, 2, 8, max_length=8, remat=True)
    for large, half, x, only in (
        (vgg_of(width=0.125), vgg_of(width=0.0625), images, ""),
        (decoder(mlp_ratio=4), decoder(mlp_ratio=2), tokens, "mlp_in"),
    ):
        params = variables(large, x)
        found = couplings(large.apply, params, x)
        groups = tuple(g for g in found.groups if only in g.name)
        zeroed, small = removed(params, type(found)(groups, found.frozen, found.uncovered))
        want, got = jax.jit(large.apply)(zeroed, x), jax.jit(half.apply)(small, x)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


TOKENS = shape(2, 8, dtype=jnp.int32)


def test_whole_models():
    def of(model, *inputs):
        return couplings(model.apply, jax.eval_shape(model.init, jax.random.key(0), *inputs), *inputs)

    found = of(resnet.resnet20(), shape(1, 32, 32, 3))
    assert sorted(g.units for g in found.groups) == [16] * 4 + [32] * 3 + [64] * 3
    stream = max(found.groups, key=lambda g: len(g.members))
    assert "params/Dense_0/kernel" in stream.leaves
    assert not found.uncovered
    found = of(vgg.vgg19(), shape(1, 32, 32, 3))
    assert sorted(g.units for g in found.groups) == [64] * 2 + [128] * 2 + [256] * 4 + [512] * 8
    found = of(SentenceEncoder(SentenceEncoderConfig(50, 8, 2, 2, 16, 16)), TOKENS, TOKENS)
    assert sorted(g.units for g in found.groups) == [2, 2, 4, 4, 16, 16]
    found = of(language_model.LanguageModel(num_layers=3, remat=True), TOKENS)
    assert sorted(g.units for g in found.groups) == [4, 32, 512]


def test_nnx():
    graph, state = nnx.split(
        nnx.eval_shape(lambda: nnx_resnet.CifarResNet((16, 16, 3), blocks=1, rngs=nnx.Rngs(0)))
    )
    found = couplings(lambda s, x: nnx.merge(graph, s)(x), state, shape(1, 16, 16, 3))
    assert sorted(g.units for g in found.groups) == [16, 16, 32, 64]


def test_labels_split_twice_in_ways_that_do_not_fit_are_frozen():
    labels, why = Labels(), Reason("", "", "")
    axis = labels.fresh(12)
    labels.split(axis, (3, 4), why)
    labels.split(axis, (2, 2, 3), why)
    solution = labels.solve()
    assert solution.frozen[solution.of[axis[:, 0]]].all()


def test_labels_split_alike_are_one_split():
    labels, why = Labels(), Reason("", "", "")
    axis = labels.fresh(12)
    first, second = (labels.split(axis, (3, 4), why) for _ in range(2))
    solution = labels.solve()
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(solution.of[a], solution.of[b])
    assert len(solution.combined) == 12
