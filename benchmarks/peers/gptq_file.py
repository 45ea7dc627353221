"""A GPTQ file: 4 bits a weight in groups of 128 inputs, with our own error feedback as the GPTQ.

Frantar et al. 2022 (GPTQ), arXiv:2210.17323, in the layout that its users store: a group of 128 inputs of an output has
an fp16 step and a zero point of 4 bits, which is 4 + 20 / 128 = 4.156 bits a weight where groups are full.

What rounds is `mz.rounding.error_feedback`: damping 0.01, inputs of the largest mean square first ("act_order"), steps
and zero points chosen before ("static groups"). Choices: steps of least squared error, which is GPTQ's option "mse" and
better here than its default, least and largest weight; they are rounded to fp16 before codes are chosen. Not counted:
the order of inputs that some files store beside, which static groups do not need.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

import modelzip_jax as mz
from benchmarks.peers.coded import Coded, check_matrix, total_bytes
from modelzip_jax import trace
from modelzip_jax.quantization.ranges import Fit

__all__ = ["HalfSteps", "code_by_gptq", "gptq_bits"]


@mz.recordable
@dataclasses.dataclass(frozen=True)
class HalfSteps(mz.ranges.Range):
    """Another range's steps, as fp16 keeps them."""

    inner: mz.ranges.Range

    def choose(self, w: jax.Array, fit: Fit, importance: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        step, zero = self.inner.choose(w, fit, importance)
        least = jnp.finfo(jnp.float16).tiny
        return jnp.maximum(step, least).astype(jnp.float16).astype(step.dtype), zero


def gptq_bits(shape: tuple[int, int], bits: int = 4, group: int = 128) -> int:
    """Bits of a matrix (outputs, inputs): its codes, and an fp16 step and a zero point for each group of inputs.

    >>> gptq_bits((10, 256)) / 2560
    4.15625
    """
    outputs, inputs = shape
    return outputs * (bits * inputs + (16 + bits) * -(-inputs // group))


def code_by_gptq(
    weights: Mapping[str, np.ndarray],
    grams: Mapping[str, np.ndarray],
    bits: int = 4,
    group: int = 128,
    damping: float = 0.01,
) -> Coded:
    """Values of each layer, float32 (outputs, inputs), and bytes of them all, no header.

    Args:
      weights: (outputs, inputs) by name. grams: H = E[x xᵀ] of their inputs, or any multiple, (inputs, inputs).
      bits, group: of the grid. damping: as a share of the mean of H's diagonal.

    Raises:
      LeafError: shapes that do not fit, or H of zeros. NonFiniteError: of weights or H, or H too near to singular.
    """
    how = mz.quantize(
        bits, granularity="group", group_size=group, axis=-1, symmetric=False,
        range=HalfSteps(mz.ranges.least_squares()), rounding=mz.rounding.error_feedback(damping),
    )  # fmt: skip
    values = {}
    for name, w in weights.items():
        _, gram = check_matrix(name, w, grams[name])
        params = {name: jnp.asarray(w, jnp.float32).T}
        stats = trace.statistics(
            lambda p, x, name=name: x @ p[name], params, [_inputs_of(gram)], kinds=("gram",)
        )
        values[name] = np.asarray(mz.decoded(params, how, stats=stats)[name]).T
    total = sum(gptq_bits(w.shape, bits, group) for w in weights.values())
    return Coded(total_bytes(total), values)


def _inputs_of(gram: np.ndarray) -> np.ndarray:
    """Inputs whose mean of x xᵀ is H, as many as there are dimensions."""
    power, directions = np.linalg.eigh(gram)
    x = np.sqrt(len(gram) * np.maximum(power, 0))[:, None] * directions.T
    return x.astype(np.float32)
