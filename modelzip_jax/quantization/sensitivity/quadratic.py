"""Sensitivities that are quadratic forms of a leaf's change: of its weights, of the loss, of its layer's outputs."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import numpy as np

from modelzip_jax import tree as trees
from modelzip_jax.errors import LeafError
from modelzip_jax.given_values import as_flag
from modelzip_jax.quantization.sensitivity.sensitivities import LeafCost, Sensitivity
from modelzip_jax.tree import PyTree

__all__ = [
    "LayerSensitivity", "LossSensitivity", "WeightSensitivity", "layer_error", "loss_increase", "squared_error",
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class WeightSensitivity(Sensitivity):
    """See `squared_error`."""

    def prepare(self, params: PyTree) -> LeafCost:
        return lambda name, w, changed: float(np.sum(np.square(_change(w, changed)), dtype=np.float64))


def squared_error() -> WeightSensitivity:
    """The sum of squared errors of a leaf's weights: needs no data, and takes all layers for equally sensitive.

    >>> squared_error().prepare({})("w", np.float32([1.0, 2.0]), np.float32([1.0, 0.0]))
    4.0
    """
    return WeightSensitivity()


@dataclasses.dataclass(frozen=True, eq=False)
class LossSensitivity(Sensitivity):
    """See `loss_increase`."""

    information: PyTree

    def prepare(self, params: PyTree) -> LeafCost:
        found = _by_name(self.information, params, "the information of loss_increase()")

        def measure(name: str, w: np.ndarray, changed: np.ndarray) -> float:
            information, change = found[name], _change(w, changed)
            diagonal, factors = (getattr(information, field, None) for field in ("diagonal", "factors"))
            factors = [f for f in factors or () if f.inputs is not None]
            if factors and (diagonal is None or all(_fits(name, f, change) for f in factors)):
                return sum(_kronecker(name, f, change) for f in factors)
            if diagonal is None or np.shape(diagonal) != change.shape:
                raise LeafError(
                    f"leaf {name!r} of shape {change.shape} has no Fisher information of its shape; pass "
                    "trace.fisher_information(apply_fn, params, batches) of all leaves that are to be compressed"
                )
            weighted = np.asarray(diagonal, np.float32) * np.square(change)
            return 0.5 * float(np.sum(weighted, dtype=np.float64))

        return measure


def _fits(name: str, factors: Any, change: np.ndarray) -> bool:
    """Whether the factors are of the leaf's matrices: those of depthwise convolutions have all channels in one."""
    outputs = np.shape(factors.outputs)
    try:
        matrices = _matrices(name, factors.use, change, np.asarray(factors.inputs, np.float32))
    except LeafError:
        return False
    return (math.prod(outputs[:-2]), outputs[-1]) == matrices.shape[:2]


def _kronecker(name: str, factors: Any, change: np.ndarray) -> float:
    inputs, outputs = (np.asarray(x, np.float32) for x in (factors.inputs, factors.outputs))
    matrices = _matrices(name, factors.use, change, inputs)
    outputs = outputs.reshape(-1, *outputs.shape[-2:])
    if outputs.shape[:2] != matrices.shape[:2]:
        raise LeafError(
            f"the Kronecker factor of the outputs of leaf {name!r} has the shape {outputs.shape}, its weights as "
            f"matrices {matrices.shape}; use kinds=('diagonal',) for it"
        )
    products = matrices @ inputs.reshape(-1, *inputs.shape[-2:]) @ matrices.swapaxes(1, 2)
    return 0.5 * float(np.sum(outputs * products, dtype=np.float64))


def loss_increase(information: PyTree) -> LossSensitivity:
    """The second-order increase of the loss, ½ Σ F (w − ŵ)², by the Fisher information; nats an example.

    At a minimum the Fisher information of a likelihood is about the Hessian, whose trace HAWQ-V2 weighs squared errors
    by (Dong et al. 2020, arXiv:1911.03852, eq. 6); here each weight has its own. Where the information has Kronecker
    factors of a leaf, ½ Σ tr(G ΔW A ΔWᵀ) over its products instead, which knows that inputs are correlated. Factors of
    grouped convolutions are of no such matrices: gather kinds=("diagonal", "kronecker"), and those take the diagonal.

    Args:
      information: `trace.fisher_information(apply_fn, params, batches)`, a tree like the params.

    Raises (when it is used):
      TreeError: the information is none of these params. LeafError: it lacks a leaf, or has other shapes.

    >>> from modelzip_jax import trace
    >>> w = np.ones((1, 1), np.float32)
    >>> information = trace.fisher_information(
    ...     lambda p, x: x @ p["w"], {"w": w}, [np.float32([[2.0]])], likelihood="gaussian", labels="sampled"
    ... )
    >>> measure = loss_increase(information).prepare({"w": w})
    >>> float(information["w"].diagonal[0, 0] / 2) == measure("w", w, 0 * w)
    True
    """
    return LossSensitivity(information)


@dataclasses.dataclass(frozen=True, eq=False)
class LayerSensitivity(Sensitivity):
    """See `layer_error`."""

    stats: PyTree
    relative: bool

    def prepare(self, params: PyTree) -> LeafCost:
        found = _by_name(self.stats, params, "the stats of layer_error()")
        whole: dict[str, float] = {}

        def power(name: str, w: np.ndarray) -> float:
            seen = [s for s in found[name] if s.inputs is not None and s.inputs.gram is not None]
            if len(seen) < len(found[name]) or (not seen and not self.relative):
                raise LeafError(
                    f"stats have {len(found[name])} products of leaf {name!r}, {len(seen)} with a Gram matrix; pass "
                    "trace.statistics(apply_fn, params, batches, kinds=('gram',)), and leaf patterns of kernels only "
                    "where errors are not relative"
                )
            if not seen:
                return float(np.sum(np.square(w), dtype=np.float64))
            return sum(_output_power(name, s.use, w, np.asarray(s.inputs.gram, np.float32)) for s in seen)

        def measure(name: str, w: np.ndarray, changed: np.ndarray) -> float:
            error = power(name, _change(w, changed))
            if not self.relative or not error:
                return error
            if name not in whole:
                whole[name] = power(name, np.asarray(w).astype(np.float32))
            return error / whole[name] if whole[name] else math.inf

        return measure


def _output_power(name: str, use: Any, w: np.ndarray, gram: np.ndarray) -> float:
    matrices = _matrices(name, use, w, gram)
    products = matrices @ gram.reshape(-1, *gram.shape[-2:])
    return float(np.sum(products * matrices, dtype=np.float64))


def layer_error(stats: PyTree, *, relative: bool = True) -> LayerSensitivity:
    """The squared error of a layer's outputs, Σ Δw H Δwᵀ over its outputs with H = E[x xᵀ] of its inputs.

    What GPTQ and SparseGPT make small in each layer; the sum over layers is a heuristic, as it knows nothing of how
    later layers answer.

    Args:
      stats: `trace.statistics(apply_fn, params, batches, kinds=("gram",))`, a tree like the params.
      relative: errors are shares of the outputs' own power Σ w H wᵀ, so that layers of different scales compare. A leaf
        that takes part in no product, such as an embedding, has H = I then: its rows are the outputs.

    Raises (when it is used):
      TreeError: the stats are none of these params. LeafError: a leaf's products have no Gram matrix, or a derived
        weight's.

    >>> from modelzip_jax import trace
    >>> params = {"w": np.float32([[1.0], [2.0]])}
    >>> stats = trace.statistics(lambda p, x: x @ p["w"], params, [np.float32([[3.0, 1.0]])], kinds=("gram",))
    >>> layer_error(stats, relative=False).prepare(params)("w", params["w"], np.float32([[1.0], [0.0]]))
    4.0
    """
    return LayerSensitivity(stats, as_flag(relative, "relative"))


def _change(w: np.ndarray, changed: np.ndarray) -> np.ndarray:
    return np.asarray(w).astype(np.float32) - np.asarray(changed).astype(np.float32)


def _by_name(tree: PyTree, params: PyTree, what: str) -> dict[str, Any]:
    """What a tree like the params has for each leaf."""
    params = trees.plain(params)
    parts = jax.tree.structure(params).flatten_up_to(trees.aligned(tree, params, what))
    return {name: part for (name, _), part in zip(trees.named_leaves(params), parts, strict=True)}


def _matrices(name: str, use: Any, w: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    """A leaf as the matrices that a product multiplies: `(layers and groups, outputs, inputs)`.

    inputs: `(..., n, n)` of that product. A grouped convolution's outputs come group by group.
    """
    contracted = tuple(sorted(use.contracted))
    order = (*use.layers, *use.batch, *use.output, *contracted)
    count = math.prod(w.shape[a] for a in contracted)
    kept = math.prod(inputs.shape[:-2])
    plain = not use.derived and use.view.complete and sorted(order) == list(range(w.ndim))
    if not plain or inputs.shape[-2:] != (count, count) or w.size % max(kept * count, 1):
        raise LeafError(
            f"leaf {name!r} of shape {w.shape} is no kernel of a dense product or a convolution with inputs of "
            f"{inputs.shape}: it is used by {use.primitive} with inputs {use.contracted}, outputs {use.output}"
            f"{', and derived' if use.derived else ''}"
        )
    return np.transpose(w, order).reshape(kept, -1, count)
