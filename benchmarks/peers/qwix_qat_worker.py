"""Quantization-aware training by Qwix: a network fine-tuned with its kernels at few bits, from given weights.

Run by an interpreter that has Qwix, which may have another JAX than ours:

    $MODELZIP_QWIX_PYTHON benchmarks/peers/qwix_qat_worker.py in.npz '{"network": "lenet5", "steps": 858, ...}'

Called is what Qwix 0.1.8 has for it, quantized training of a Linen network with no quantized activations or gradients:

    qwix.quantize_model(network, qwix.QtProvider([qwix.QtRule(
        weight_qtype="int2", weight_calibration_method=...)]))

which rounds every kernel in the forward pass, to the codes -2 to 1 times a step for each output channel that its
calibration finds anew in each step, and hands gradients straight through (of kernels of dense layers, only within the
range, unless it is the absolute maximum).

The archive in.npz holds `param|PATH` float32, the weights to begin from; `train_inputs` uint8 (n, 28, 28, 1) and
`train_labels`, and likewise of validation and test; `order` int32 (steps, batch), the examples of each step; `sample`
float32 (m, 28, 28, 1), images that are standardised, and `logits` (m, 10), what our network makes of them.

Options: "network", "bits", "calibration" (`weight_calibration_method`), "peak" (of a cosine schedule to 0 without
warmup), "decay" (adamw's, of kernels alone), "smoothing" (of labels), "mean" and "std" (of images), "block" (steps in
one compiled call).

Before it trains, the worker checks itself: without a rule the network gives `logits`, and with the rule it gives what
the plain one gives for kernels that `qwix.quantize` rounds. Printed is a line of JSON: `validation` and
`test`, each with the "accuracy" of the quantized network, `version` (of Qwix), `jax`, `steps` and `seconds`.
"""

import importlib.metadata
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import qwix

TOLERANCE = 1e-4
CHUNK = 1000


class MLP(nn.Module):
    """LeNet-300-100."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.reshape(x.shape[0], -1)
        for width in (300, 100):
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(10)(x)


class LeNet5(nn.Module):
    """LeNet-5 in Caffe's variant."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for features in (20, 50):
            x = nn.max_pool(nn.Conv(features, (5, 5), padding="VALID")(x), (2, 2), strides=(2, 2))
        x = nn.relu(nn.Dense(500)(x.reshape(x.shape[0], -1)))
        return nn.Dense(10)(x)


NETWORKS = {"lenet_300_100": MLP, "lenet5": LeNet5}


def check(network: nn.Module, quantized: nn.Module, params: Any, arrays: Any, how: dict[str, Any]) -> None:
    """Stops where the networks are not the ones they should be."""
    plain = network.apply({"params": params}, arrays["sample"])
    off = float(jnp.max(jnp.abs(plain - arrays["logits"])))
    assert off <= TOLERANCE, f"without a rule, logits differ from ours by {off}"

    def rounded(w: jax.Array) -> jax.Array:
        if w.ndim < 2:
            return w
        found = qwix.dequantize(qwix.quantize(w, channelwise_axes=[w.ndim - 1], **how))
        assert np.max([len(np.unique(column)) for column in found.reshape(-1, found.shape[-1]).T]) <= 4
        return found

    expected = network.apply({"params": jax.tree.map(rounded, params)}, arrays["sample"])
    off = float(jnp.max(jnp.abs(quantized.apply({"params": params}, arrays["sample"]) - expected)))
    assert off <= TOLERANCE * float(jnp.max(jnp.abs(expected))), f"with the rule, logits are off by {off}"


def make_block(network: nn.Module, tx: optax.GradientTransformation, options: dict[str, Any]) -> Callable:
    """Steps in one compiled call, of the batches that `items` (steps, batch) index."""

    def step(state: Any, images: jax.Array, labels: jax.Array) -> Any:
        params, opt_state = state
        targets = optax.smooth_labels(jax.nn.one_hot(labels, 10), options["smoothing"])

        def loss(params: Any) -> jax.Array:
            logits = network.apply({"params": params}, standardised(images, options))
            return jnp.mean(optax.softmax_cross_entropy(logits, targets))

        updates, opt_state = tx.update(jax.grad(loss)(params), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    def block(state: Any, images: jax.Array, labels: jax.Array, items: jax.Array) -> Any:
        if len(items) == 1:  # XLA:CPU runs convolutions inside a loop seven times slower.
            return step(state, images[items[0]], labels[items[0]])
        return jax.lax.scan(lambda s, i: (step(s, images[i], labels[i]), None), state, items)[0]

    return jax.jit(block, donate_argnums=0)


def standardised(images: jax.Array, options: dict[str, Any]) -> jax.Array:
    """Images of mean 0 and deviation 1."""
    return (images.astype(jnp.float32) - jnp.asarray(options["mean"])) / jnp.asarray(options["std"])


def accuracy(predict: Callable, params: Any, images: np.ndarray, labels: np.ndarray) -> float:
    """The share of images that are told rightly."""
    chunks = range(0, len(labels), CHUNK)
    told = [np.asarray(predict(params, images[i : i + CHUNK])).argmax(-1) for i in chunks]
    return float(np.mean(np.concatenate(told) == labels))


def main(source: str, text: str) -> None:
    """Trains as the options say, and prints what came of it."""
    options = json.loads(text)
    with np.load(source, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    leaves = {
        tuple(name.removeprefix("param|").split("/")): jnp.asarray(array)
        for name, array in arrays.items()
        if name.startswith("param|")
    }
    params: dict[str, dict[str, jax.Array]] = {}
    for (module, name), leaf in leaves.items():
        params.setdefault(module, {})[name] = leaf
    how = {"qtype": f"int{options['bits']}", "calibration_method": options["calibration"]}
    rule = qwix.QtRule(weight_qtype=how["qtype"], weight_calibration_method=how["calibration_method"])
    network = NETWORKS[options["network"]]()
    quantized = qwix.quantize_model(network, qwix.QtProvider([rule]))
    check(network, quantized, params, arrays, how)
    order = arrays["order"]
    tx = optax.adamw(
        optax.cosine_decay_schedule(options["peak"], len(order)),
        weight_decay=options["decay"],
        mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
    )
    block, state = make_block(quantized, tx, options), (params, tx.init(params))
    images, labels = jnp.asarray(arrays["train_inputs"]), jnp.asarray(arrays["train_labels"])
    began = time.perf_counter()
    for i in range(0, len(order), options["block"]):
        state = block(state, images, labels, jnp.asarray(order[i : i + options["block"]]))
    params = jax.block_until_ready(state[0])
    predict = jax.jit(lambda p, x: quantized.apply({"params": p}, standardised(x, options)))
    found = {
        split: {"accuracy": accuracy(predict, params, arrays[f"{split}_inputs"], arrays[f"{split}_labels"])}
        for split in ("validation", "test")
    }
    versions = {name: importlib.metadata.version(name) for name in ("qwix", "jax")}
    found |= {"version": versions["qwix"], "jax": versions["jax"], "steps": len(order)}
    print(json.dumps({**found, "seconds": round(time.perf_counter() - began, 1)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
