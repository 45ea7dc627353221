"""Receptive fields equal those computed by hand from the published tables of each network."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from trace_models import MobileNet, ViT, normal, variables

import modelzip_jax as mz
from modelzip_jax import trace
from modelzip_jax.models import efficientnet, language_model, lenet, resnet, vgg


def sides(model, side, channels=3):
    """The height of each layer's field, in the order of the layers; fields are square."""
    x = jax.ShapeDtypeStruct((2, side, side, channels), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), x)
    found = trace.receptive_fields(model.apply, params, x)
    for field in found.values():
        assert field.size[1] == field.size[2]
        assert (field.size[0], field.size[3]) == (1, channels)
    return {name.removeprefix("params/").removesuffix("/kernel"): f.size[1] for name, f in found.items()}


def by_hand(layers):
    """r_l = r_{l-1} + (k_l - 1) j_{l-1}, j_l = j_{l-1} s_l, over (window, stride)."""
    size, jump, found = 1, 1, []
    for window, stride in layers:
        size += (window - 1) * jump
        jump *= stride
        found.append(size)
    return found


def test_lenet5():
    # 5×5, pooled by 2, 5×5; the dense layer after another pooling sees all 4×4 of what is left.
    assert sides(lenet.LeNet5(), 28, 1) == {"Conv_0": 5, "Conv_1": 14, "Dense_0": 28, "Dense_1": 28}


def test_vgg19():
    got = list(sides(vgg.vgg19(), 32).values())
    # Published for VGG-19, conv1_1 to conv5_4; the last pooling, of what is 2×2 here, gives 268.
    assert got == [3, 5, 10, 14, 24, 32, 40, 48, 68, 84, 100, 116, 156, 188, 220, 252, 268]
    layers = [step for n in (2, 2, 4, 4, 4) for step in [(3, 1)] * n + [(2, 2)]]
    assert [s for s, (window, _) in zip(by_hand(layers), layers, strict=True) if window == 3] == got[:-1]


def test_resnet20():
    got = list(sides(resnet.resnet20(), 32).values())
    strides = [1] + [1] * 6 + [2] + [1] * 5 + [2] + [1] * 5
    convolutions = by_hand([(3, s) for s in strides])
    assert got[:-1] == convolutions
    # The mean over 8×8 positions, 4 pixels apart.
    assert got[-1] == convolutions[-1] + 7 * 4 == 109


def test_efficientnet_lite0():
    got = sides(efficientnet.efficientnet_lite0(), 224)
    # Table 1 of Tan and Le: stem, then (kernel, stride, repeats) of each stage, and the 1×1 head.
    stages = [(3, 1, 1), (3, 2, 2), (5, 2, 2), (3, 2, 3), (5, 1, 3), (5, 2, 4), (3, 1, 1)]
    layers = [(3, 2)] + [(k, s if i == 0 else 1) for k, s, n in stages for i in range(n)]
    hand = by_hand(layers)
    assert [got["stem"], *(got[f"block_{i}/depthwise"] for i in range(16))] == hand
    for i in range(16):
        assert got[f"block_{i}/project"] == hand[i + 1]
        assert i == 0 or got[f"block_{i}/expand"] == hand[i]
    assert got["head"] == hand[-1]
    assert got["classifier"] == hand[-1] + 6 * 32


def seen_by_gradients(model, params, x, place):
    """How far from first to last the input matters to one element of the output, by its gradient."""
    gradient = jax.grad(lambda x: model(params, x)[place])(x)
    where = np.nonzero(np.asarray(gradient))
    return tuple(int(w.max() - w.min() + 1) for w in where)


def test_dilation_upsampling_and_valid_windows_as_gradients_see_them():
    def model(p, x):
        x = lax.conv_general_dilated(
            x, p["a"], (2,), "VALID", rhs_dilation=(3,), dimension_numbers=("NWC", "WIO", "NWC")
        )
        x = lax.reduce_window(x, 0.0, lax.add, (1, 3, 1), (1, 2, 1), "VALID")
        x = jnp.flip(jnp.swapaxes(x, 1, 2), 2)
        return lax.conv_general_dilated(
            x, p["b"], (1,), [(2, 2)], lhs_dilation=(2,), dimension_numbers=("NCW", "WIO", "NWC")
        )

    params = {"a": jnp.ones((3, 2, 4)), "b": jnp.ones((4, 4, 1))}
    x = jnp.ones((2, 61, 2))
    found = trace.receptive_fields(model, params, x)
    assert found["a"].size == (1, 7, 2)
    place = (0, 6, 0)
    assert found["b"].size == seen_by_gradients(model, params, x, place) == (1, 15, 2)


def test_reshapes_are_followed_to_the_axis_they_come_from():
    """Patches by reshape, as transformers for images make them."""

    def model(p, x):
        patches = x.reshape(1, 4, 8, 4, 8, 3).transpose(0, 1, 3, 2, 4, 5).reshape(1, 16, 192)
        return patches @ p["embed"]

    found = trace.receptive_fields(model, {"embed": jnp.ones((192, 8))}, jnp.ones((1, 32, 32, 3)))
    assert found["embed"].size == (1, 8, 8, 3)
    assert found["embed"].share == pytest.approx(1 / 16)


def test_attention_and_unknown_primitives_see_everything():
    x = normal(2, 8, 8, 3)
    params = variables(ViT(), x)
    found = trace.receptive_fields(ViT().apply, params, x)
    share = {name.removeprefix("params/").removesuffix("/kernel"): f.share for name, f in found.items()}
    assert share["Conv_0"] == 0.25
    assert share["MultiHeadDotProductAttention_0/out"] == share["Dense_0"] == share["Dense_2"] == 1.0
    blurred = trace.receptive_fields(lambda p, x: jnp.fft.fft(x).real @ p, jnp.ones((4, 2)), jnp.ones((3, 4)))
    assert next(iter(blurred.values())).share == 1.0


def test_scans_and_tokens():
    tokens = jnp.zeros((2, 6), jnp.int32)
    for scan in (True, False):
        model = language_model.LanguageModel(50, 2, 2, 8, scan=scan, max_length=6)
        params = variables(model, tokens)
        found = trace.receptive_fields(model.apply, params, tokens)
        query = next(f for name, f in found.items() if name.endswith("query/kernel"))
        assert query.size == ((1, 6) if scan else (1, 1))  # Of a scan's layers the last one counts.
    kernels = jnp.ones((3, 5, 2, 2))

    def deep(p, x):
        layer = lambda x, k: (lax.conv(x, k.T[..., None], (1, 1), "SAME"), None)  # noqa: E731
        return lax.scan(layer, x, p)[0]

    found = trace.receptive_fields(deep, kernels, jnp.ones((1, 2, 16, 1)))
    assert next(iter(found.values())).share == 1.0


def test_grouped_convolutions():
    x = normal(1, 16, 16, 3)
    found = trace.receptive_fields(MobileNet().apply, variables(MobileNet(), x), x)
    assert [f.size[1] for f in found.values()] == [3, 5, 5, 7, 7 + 2 * 7]
    one = nn.Conv(3, (3,), feature_group_count=3)
    x = normal(1, 16, 3)
    assert next(iter(trace.receptive_fields(one.apply, variables(one, x), x).values())).size == (1, 3, 1)


def test_layers_that_see_little_lose_more():
    x = jnp.ones((2, 28, 28, 1))
    model = lenet.LeNet5()
    params = variables(model, x)["params"]
    found = trace.receptive_fields(lambda p, x: model.apply({"params": p}, x), params, x)
    allocation = mz.allocation.by_receptive_field(found, power=0.5)
    thin = mz.decoded(params, mz.only("**/kernel", mz.prune(sparsity=0.8, allocation=allocation)))
    kept = {name: float((thin[name]["kernel"] != 0).mean()) for name in thin}
    assert kept["Conv_0"] / kept["Dense_0"] == pytest.approx((25 / 784) ** 0.5, rel=0.05)
    assert kept["Conv_1"] / kept["Dense_0"] == pytest.approx((196 / 784) ** 0.5, rel=0.01)
    total = sum(int((leaf["kernel"] != 0).sum()) for leaf in thin.values())
    assert total == pytest.approx(0.2 * 430500, abs=4)
    even = mz.decoded(params, mz.only("**/kernel", mz.prune(sparsity=0.8)))
    flat = mz.allocation.by_receptive_field(found, power=0.0)
    same = mz.decoded(params, mz.only("**/kernel", mz.prune(sparsity=0.8, allocation=flat)))
    assert all(
        abs(int((a != 0).sum() - (b != 0).sum())) <= 1
        for a, b in zip(*map(jax.tree.leaves, (even, same)), strict=True)
    )


def test_laws_of_the_allocation():
    params = {"a": {"kernel": normal(6, 4)}, "b": {"kernel": normal(6, 4)}}
    found = {
        "a/kernel": trace.ReceptiveField((1, 2), (1, 8)),
        "b/kernel": trace.ReceptiveField((1, 8), (1, 8)),
    }
    rising = mz.schedules.cubic(0.6, begin=0, end=2)
    by_field = mz.allocation.by_receptive_field(found, power=0.5)
    pruned = mz.prune(sparsity=rising, every=1, allocation=by_field)
    mz.testing.check_laws(mz.chain(pruned, mz.quantize(4, axis=-1)), params, steps=2)


def test_refusals():
    with pytest.raises(mz.errors.TraceError, match="are of an input"):
        trace.receptive_fields(lambda p: p @ p, jnp.ones((2, 2)))
    found = trace.receptive_fields(lambda p, x: x @ p["w"], {"w": jnp.ones((2, 2))}, jnp.ones((1, 2)))
    with pytest.raises(mz.errors.TransformError, match="power of at least 0"):
        mz.allocation.by_receptive_field(found, power=-1.0)
    with pytest.raises(mz.errors.TransformError, match="none of the pruned leaves v"):
        mz.decoded(
            {"v": jnp.ones(4)}, mz.prune(sparsity=0.5, allocation=mz.allocation.by_receptive_field(found))
        )
    with pytest.raises(mz.errors.TransformError, match="was given no fields"):
        mz.allocation.by_receptive_field({})
