"""AWQ: weights that meet large activations are quantized on a finer grid, by scales searched for each group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from modelzip_jax import tree as trees
from modelzip_jax.combinator import check_transform, reads
from modelzip_jax.errors import NonFiniteError, TraceError, TransformError
from modelzip_jax.float_params import check_float_params
from modelzip_jax.packing import decoded
from modelzip_jax.rewrites.channel_readings import (
    PartlyDescribed,
    Reading,
    channel_axes,
    described,
    input_values,
    layer_of,
    statistics_of,
)
from modelzip_jax.rewrites.channel_scaling import (
    Rescaled,
    block_factor,
    factors,
    finished,
    finite_leaves,
    kernels,
)
from modelzip_jax.trace.symmetry.scalable_channels import ScaleBlock, ScaleMember, scale_groups
from modelzip_jax.transform import Transform
from modelzip_jax.tree import PyTree

__all__ = ["activation_aware"]


def activation_aware(
    apply_fn: Callable[..., Any],
    params: PyTree,
    stats: PyTree,
    transform: Transform,
    *inputs: Any,
    points: int = 20,
    only: str | Sequence[str] | None = None,
) -> Rescaled:
    """The same network, input channels scaled by s = E|X|^α so that quantizing loses least of the output.

    For each group of channels α is the best of `points` values in [0, 1): the one whose quantized kernels have the
    least error of their outputs, the sum over the kernels of tr(ΔW H ΔWᵀ), ΔW = Q(W s)/s - W and H = E[x xᵀ].
    α = 0 changes nothing and is among them, so that the sum never rises. Scales are divided by the root of their
    largest times their smallest. 1/s is folded into what makes the channels, as `smooth` does it.

    Args:
      apply_fn, params, *inputs: as for `trace.couplings`; shapes suffice for inputs.
      stats: `trace.statistics(apply_fn, params, batches, kinds=("gram", "mean_abs"))`.
      transform: what the params will be compressed by, such as `mz.only("**/kernel", mz.quantize(4,
        granularity="group", group_size=64))`. It decodes the whole tree once for each point.
      points: of the grid.
      only: path patterns of the kernels; None: all that can be.

    Returns:
      `Rescaled`; `exponents` has the α of each group.

    Raises:
      TransformError: no kernel can be scaled, or not what `only` names; `points` below 1; a transform that needs
        statistics itself.
      TraceError: the statistics lack a kernel, its mean |x| or its Gram matrix.
      LeafError, PatternError, NonFiniteError: as `smooth`.

    Lin et al. 2023, AWQ, arXiv:2306.00978, eq. 4 and 5.

    >>> import jax.numpy as jnp, modelzip_jax as mz
    >>> from modelzip_jax import trace
    >>> params = {"scale": jnp.array([8.0, 1.0]), "kernel": jnp.array([[0.3, 0.7], [1.0, -0.9]])}
    >>> model = lambda p, x: jnp.tanh(x) * p["scale"] @ p["kernel"]
    >>> x = jnp.ones((1, 2))
    >>> stats = trace.statistics(model, params, [x], kinds=("gram", "mean_abs"))
    >>> found = activation_aware(model, params, stats, mz.only("kernel", mz.quantize(3)), x)
    >>> found.exponents["scale"] > 0
    True
    """
    if points < 1:
        raise TransformError(f"points must be at least 1, not {points!r}")
    check_transform(transform, "activation_aware()")
    check_float_params(params, "activation_aware()")
    if any(reads(transform, trees.outlines(trees.plain(params)), "stats")):
        raise TransformError(
            "activation_aware() tries the transform on scaled weights, whose inputs no statistics describe: give it "
            "one that rounds to nearest, and compress what it returns by the other, with calibrate=(apply_fn, batches)"
        )
    scales = scale_groups(apply_fn, params, *inputs)
    chosen = kernels(scales, only)
    shapes = dict(zip(scales.program.names, scales.program.shapes, strict=True))
    matrices: dict[ScaleBlock, _Gram] = {}

    def read(member: ScaleMember) -> None:
        shape = shapes[member.block.leaf]
        input_values(stats, member, "mean_abs", shape)
        if member.block not in matrices:
            matrices[member.block] = _Gram(stats, member.block, shape)

    found, unread = described(scales, chosen, stats, read)
    weights = finite_leaves(params, {m.block.leaf for r in found for m in r.members})
    means = [_means(stats, reading, weights) for reading in found]
    errors = np.zeros((points, len(found)))
    for i, alpha in enumerate(np.arange(points) / points):
        scaled = [
            (r.group, _scale(x, alpha) ** r.members[0].power) for r, x in zip(found, means, strict=True)
        ]
        losses = _losses(params, scaled, weights, matrices, transform)
        for j, reading in enumerate(found):
            errors[i, j] = sum(float(losses[m.block][layer_of(m)]) for m in reading.members)
    best = np.argmin(errors, axis=0) if found else np.zeros(0, int)
    done, exponents = [], {}
    for j, (reading, x) in enumerate(zip(found, means, strict=True)):
        alpha = best[j] / points
        done.append((reading.group, _scale(x, alpha) ** reading.members[0].power))
        exponents[reading.group.name] = float(alpha)
    return finished(params, scales, done, set(weights), chosen, only, "in", exponents, unread)


def _means(stats: PyTree, reading: Reading, weights: dict[str, np.ndarray]) -> np.ndarray:
    """E|x| of each unit; channels that are always zero count as the smallest of the others."""
    found = [
        input_values(stats, m, "mean_abs", weights[m.block.leaf].shape).mean(axis=1) for m in reading.members
    ]
    x: np.ndarray = np.mean(found, axis=0)
    live = x[x > 0]
    return np.maximum(x, live.min() if live.size else 1.0)


def _scale(x: np.ndarray, alpha: float) -> np.ndarray:
    scale: np.ndarray = x**alpha
    return scale / np.sqrt(scale.max() * scale.min())


class _Gram:
    """E[x xᵀ] of a kernel's inputs, `(layers, experts..., n, n)`, and the kernel as `(..., n, outputs)`."""

    def __init__(self, stats: PyTree, block: ScaleBlock, shape: tuple[int, ...]) -> None:
        (self.each, *others) = statistics_of(stats, block.leaf)
        use, channels = self.each.use, self.each.inputs
        if others:
            raise PartlyDescribed(f"it takes part in {1 + len(others)} products, whose errors differ")
        if channels is None or channels.gram is None:
            raise TraceError(
                f"stats of {block.leaf!r} have no 'gram': trace.statistics(kinds=('gram', 'mean_abs'))"
            )
        self.gram = np.asarray(channels.gram, np.float64)
        if not np.isfinite(self.gram).all():
            raise NonFiniteError(f"statistics of the inputs of {block.leaf!r} hold NaN or infinity")
        self.layers = len(use.view.layers)
        self.lead = channel_axes(use, block)[: self.layers + len(use.batch)]
        read = [a for a in use.contracted if a not in self.lead]
        rest = [a for a in range(len(shape)) if a not in self.lead and a not in read]
        self.order = [*self.lead, *read, *rest]
        size = int(np.prod([shape[a] for a in read]))
        if self.gram.shape != (*(shape[a] for a in self.lead), size, size):
            raise PartlyDescribed(
                f"the Gram matrix of {block.leaf!r} has the shape {self.gram.shape}, not {size}²"
            )
        self.flat = (*(shape[a] for a in self.lead), size, -1)

    def loss(self, difference: np.ndarray) -> np.ndarray:
        """tr(ΔW H ΔWᵀ) of each layer."""
        d = difference.transpose(self.order).reshape(self.flat)
        each = (d * (self.gram @ d)).sum(axis=(-2, -1))
        found: np.ndarray = each.reshape(*each.shape[: self.layers], -1).sum(axis=-1)
        return found


def _losses(
    params: PyTree,
    scaled: list[Any],
    weights: dict[str, np.ndarray],
    matrices: dict[ScaleBlock, _Gram],
    transform: Transform,
) -> dict[ScaleBlock, np.ndarray]:
    blocks = {block: values for block, values in factors(scaled).items() if block in matrices}
    factor = {b.leaf: block_factor(b, values, weights[b.leaf].ndim) for b, values in blocks.items()}

    def change(name: str, x: Any) -> Any:
        return jnp.asarray(weights[name] * factor[name], jnp.result_type(x)) if name in factor else x

    # The whole tree, so that the transform finds all leaves that its patterns name.
    quantized = dict(trees.named_leaves(decoded(trees.map_named(change, params), transform)))
    return {
        block: matrices[block].loss(
            np.asarray(quantized[block.leaf], np.float64) / factor[block.leaf] - weights[block.leaf]
        )
        for block in blocks
    }
