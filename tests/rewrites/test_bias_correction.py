"""Means of outputs are those of the float network again, measured or expected behind batch normalisation."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import modelzip_jax as mz
from modelzip_jax import trace, tree
from modelzip_jax.errors import LeafError, PatternError, TraceError, TransformError, TreeError
from modelzip_jax.rewrites.normal_inputs import clipped_normal_mean


class Convolutions(nn.Module):
    @nn.compact
    def __call__(self, x):
        norm = functools.partial(nn.BatchNorm, use_running_average=True)
        x = nn.relu(norm()(nn.Conv(16, (3, 3), use_bias=False)(x)))
        x = jnp.minimum(nn.relu(norm()(nn.Conv(12, (3, 3), feature_group_count=4, use_bias=False)(x))), 6.0)
        return nn.Dense(3)(x.mean((1, 2)))


class Layers(nn.Module):
    """A scan of layers, the biases of which are stacked, behind heads of attention."""

    @nn.compact
    def __call__(self, x):
        def block(layer, x, _):
            return x + layer(nn.gelu(x)), None

        dense = nn.Dense(6, name="layers")
        scan = nn.scan(block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        x = nn.DenseGeneral((2, 3), name="heads")(x)
        return scan(dense, x.reshape(*x.shape[:-2], 6), None)[0]


def variables_of(model, x, seed=0):
    rng = np.random.default_rng(seed)

    def drawn(name, s):
        if name.endswith(("scale", "var")):
            return jnp.asarray(rng.uniform(0.5, 1.5, s.shape), s.dtype)
        return jnp.asarray(rng.normal(size=s.shape) * (0.5 if s.ndim > 1 else 0.3), s.dtype)

    return tree.map_named(drawn, jax.eval_shape(model.init, jax.random.key(0), x))


def coarse(variables, bits=3):
    return mz.unpack(mz.compress(variables, mz.only("**/kernel", mz.quantize(bits, granularity="tensor"))))


@functools.cache
def normal_network():
    """Convolutions whose running statistics are those of its inputs."""
    model, rng = Convolutions(), np.random.default_rng(1)
    batches = [jnp.asarray(rng.normal(size=(64, 6, 6, 3)), jnp.float32) for _ in range(2)]
    variables = variables_of(model, batches[0])
    x = jnp.concatenate(batches)
    for name in ("Conv_0", "Conv_1"):  # In order: the second's inputs depend on the first's statistics.
        stats = trace.statistics(
            model.apply, variables, [x], ("mean", "second_moment"), ("outputs",), f"params/{name}/kernel"
        )
        seen = stats["params"][name]["kernel"][0].outputs
        new = {"mean": seen.mean, "var": seen.second_moment - seen.mean**2}
        variables["batch_stats"][name.replace("Conv", "BatchNorm")] = new
    return model, variables, batches


def output_means(model, variables, batches):
    stats = trace.statistics(model.apply, variables, batches, ("mean",), ("outputs",))
    return {n: np.asarray(m[0].outputs.mean) for n, m in tree.named_leaves(stats, is_leaf=lambda x: isinstance(x, trace.Measured)) if m}  # fmt: skip  # noqa: E501


def test_means_are_right_again_with_running_means_and_biases():
    model, variables, batches = normal_network()
    quantized = coarse(variables)
    corrected = mz.rewrites.correct_bias(model.apply, variables, quantized, batches)
    assert set(corrected.corrections) == {
        "batch_stats/BatchNorm_0/mean", "batch_stats/BatchNorm_1/mean", "params/Dense_0/bias"
    }  # fmt: skip
    assert not corrected.left

    def off(p):
        apply = jax.jit(model.apply)
        return np.abs(np.mean([apply(p, x) - apply(variables, x) for x in batches], axis=(0, 1))).max()

    assert off(corrected.params) < 5e-5 < 1e-2 < off(quantized)
    # What is subtracted moves the other way: the layer's mean less the running mean is as it was.
    before, after = (output_means(model, p, batches) for p in (variables, corrected.params))
    for i in range(2):
        conv, mean = f"params/Conv_{i}/kernel", corrected.corrections[f"batch_stats/BatchNorm_{i}/mean"]
        np.testing.assert_allclose(after[conv] - before[conv], mean, atol=5e-5)


def test_layers_of_a_scan_and_heads_are_corrected_in_order():
    model, rng = Layers(), np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(32, 4, 5)) + 0.5, jnp.float32)
    variables = variables_of(model, x)
    variables["params"]["layers"]["bias"] = jnp.zeros((3, 6))
    quantized = mz.compress(variables, mz.only("**/kernel", mz.quantize(3)))  # Packed params do, too.
    corrected = mz.rewrites.correct_bias(model.apply, variables, quantized, [x])
    assert {n: x.shape for n, x in corrected.corrections.items()} == {
        "params/heads/bias": (2, 3), "params/layers/bias": (3, 6)
    }  # fmt: skip
    after, before = (model.apply(p, x).mean((0, 1)) for p in (corrected.params, variables))
    np.testing.assert_allclose(after, before, atol=5e-5)


def test_without_data_it_is_close_to_what_data_say():
    model, variables, batches = normal_network()
    quantized = coarse(variables)
    second = "params/Conv_1/kernel"
    # Only that layer is quantized, so that its inputs are those the statistics are of.
    alone = tree.map_named(
        lambda n, x: dict(tree.named_leaves(quantized))[n] if n == second else x, variables
    )
    shape = jax.ShapeDtypeStruct(batches[0].shape, jnp.float32)
    expected = mz.rewrites.correct_bias(model.apply, variables, alone, [shape], method="batch_norm")
    measured = mz.rewrites.correct_bias(model.apply, variables, alone, batches)
    (name,) = expected.corrections
    assert name == "batch_stats/BatchNorm_1/mean"
    a, b = expected.corrections[name], measured.corrections[name]
    assert np.linalg.norm(a - b) < 0.1 * np.linalg.norm(b)
    whole = mz.rewrites.correct_bias(model.apply, variables, quantized, [shape], method="batch_norm")
    assert set(whole.left) == {"params/Conv_0/kernel"}  # Its inputs are the network's.
    assert set(whole.corrections) == {name, "params/Dense_0/bias"}
    np.testing.assert_allclose(whole.corrections[name], a, rtol=1e-5)
    with pytest.raises(TransformError, match=r"Conv_0/kernel.*batch normalisation"):
        mz.rewrites.correct_bias(
            model.apply, variables, quantized, [shape], method="batch_norm", only="**/Conv_0/kernel"
        )


@pytest.mark.parametrize(("low", "high"), [(0.0, np.inf), (0.0, 6.0), (-1.0, 0.5)])
def test_clipped_normal_means(low, high):
    mean, std = np.array([-2.0, 0.0, 1.5, 5.0]), np.array([0.5, 2.0, 1.0, 3.0])
    x = np.random.default_rng(0).normal(size=(400_000, 4)) * std + mean
    found = clipped_normal_mean(mean, std, low, high)
    np.testing.assert_allclose(found, np.clip(x, low, high).mean(axis=0), atol=0.015)


def test_wrong_inputs_are_named():
    params = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2)), "bias": jnp.zeros(4)}
    model = lambda p, x: jax.nn.relu(x @ p["a"] + p["bias"]) @ p["b"]  # noqa: E731
    x, half = jnp.ones((2, 3)), jax.tree.map(lambda w: w * 0.5, params)
    correct = functools.partial(mz.rewrites.correct_bias, model, params)
    assert set(correct(half, [x]).left) == {"b"}
    with pytest.raises(TransformError, match="'b': no bias of its own"):
        correct(half, [x], only="b")
    with pytest.raises(TransformError, match="no kernel that matches is quantized"):
        correct(params, [x])
    with pytest.raises(TransformError, match="batch_norm"):
        correct(half, [x], method="batchnorm")
    with pytest.raises(TraceError, match="empty"):
        correct(half, [])
    with pytest.raises(TraceError, match="batch 1 holds no example"):
        correct(half, [x, x[:0]])
    with pytest.raises(TraceError, match=r"batch 1, of shapes \(\(2, 2\),\)"):
        correct(half, [x, x[:, :2]])
    with pytest.raises(TraceError, match=r"an iterable of inputs.*not None"):
        correct(half, None, method="batch_norm")
    with pytest.raises(LeafError, match=r"packed.*correct_bias\(apply_fn, params, quantized_params"):
        mz.rewrites.correct_bias(model, mz.compress(params, mz.quantize(2)), params, [x])
    with pytest.raises(TreeError, match="bias"):
        correct({"a": params["a"], "b": params["b"]}, [x])
    with pytest.raises(PatternError):
        correct(half, [x], only="c")
    # A bias that two products share corrects neither; a result that is read twice, neither.
    shared = lambda p, x: jax.nn.relu(x @ p["a"] + p["bias"]) + jnp.tanh((x + 1) @ p["a"] + p["bias"])  # noqa: E731
    with pytest.raises(TransformError, match="'a': no bias"):
        mz.rewrites.correct_bias(shared, params, half, [x])
    twice = lambda p, x: (lambda y: (y + p["bias"]) * jnp.tanh(y))(x @ p["a"])  # noqa: E731
    with pytest.raises(TransformError, match="'a': no bias"):
        mz.rewrites.correct_bias(twice, params, half, [x])
