"""One task as all methods meet it: the layers that have inputs, what calibrates, and how a file is judged."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

import modelzip_jax as mz
from benchmarks import harness
from benchmarks.rates.goals import Plan
from benchmarks.tasks import Task
from benchmarks.tasks.task import Batch
from modelzip_jax import trace
from modelzip_jax.errors import LeafError
from modelzip_jax.trace.jaxpr.model_inputs import batch_inputs
from modelzip_jax.trace.measures.layer_matrices import Layout, products
from modelzip_jax.trace.usage.use import Use
from modelzip_jax.tree import PyTree

__all__ = ["Case"]

_WIDEST = 4096
"""Inputs of a layer beyond which peers, which take cubes of that in float64, would need hours."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A task and its plan; what is costly is made when it is first asked for."""

    task: Task
    plan: Plan

    @functools.cached_property
    def leaves(self) -> dict[str, np.ndarray]:
        """All parameters by name."""
        return {name: np.asarray(leaf) for name, leaf in mz.tree.named_leaves(self.task.params)}

    @functools.cached_property
    def batches(self) -> list[Batch]:
        """The examples that calibrate."""
        return self.task.calibration(self.plan.calibration)

    @functools.cached_property
    def _kernels(self) -> dict[str, Use]:
        """Of each leaf that is used in products alone, and not, as tied weights are, as an embedding, the first one."""
        found: dict[str, list[Use]] = {}
        for use in trace.uses(self.task.apply, self.task.params, *batch_inputs(self.batches[0], 0)):
            found.setdefault(use.leaf, []).append(use)
        return {
            name: uses[0]
            for name, uses in found.items()
            if all(u.kind in ("dot", "conv") and not u.derived and u.view.complete for u in uses)
        }

    def _inputs(self, name: str) -> int:
        return math.prod(self.leaves[name].shape[axis] for axis in self._kernels[name].contracted)

    @functools.cached_property
    def _products(self) -> dict[str, tuple[Layout, np.ndarray]]:
        """Layers of one matrix that are no wider than peers can take, and the Gram matrices of their inputs.

        Depthwise kernels, which are a matrix of one output for each channel, are none of them.
        """
        narrow = [name for name in self._kernels if self._inputs(name) <= _WIDEST]
        stats = trace.statistics(
            self.task.apply, self.task.params, self.batches, kinds=("gram",), only=narrow
        )
        found = {}
        for name, measured in mz.tree.named_leaves(stats, lambda x: isinstance(x, trace.Measured)):
            if name not in narrow:
                continue
            try:
                known = products(name, self.leaves[name].shape, measured, "the benchmark")
            except LeafError:
                continue
            if known.layout.sizes[0] == 1:
                found[name] = known.layout, np.asarray(known.gram[0], np.float64)
        return found

    @property
    def grams(self) -> dict[str, np.ndarray]:
        """E[x xᵀ] of the inputs of each layer, in the float network, (inputs, inputs)."""
        return {name: gram for name, (_, gram) in self._products.items()}

    @functools.cached_property
    def matrices(self) -> dict[str, np.ndarray]:
        """The weights of these layers, float32 (outputs, inputs)."""
        return {name: self.matrix(name, self.leaves[name]) for name in self._products}

    def matrix(self, name: str, leaf: np.ndarray) -> np.ndarray:
        """What has the shape of such a layer's leaf, as (outputs, inputs)."""
        return np.asarray(self._products[name][0].stack(jnp.asarray(leaf))[0])

    def from_matrices(self, matrices: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The leaves that these are of."""
        return {
            name: np.asarray(self._products[name][0].leaf(jnp.asarray(w)[None], self.leaves[name].shape))
            for name, w in matrices.items()
        }

    def _turned(self, name: str) -> tuple[int, ...]:
        """The order of a leaf's axes in which outputs come first, as PyTorch has it, then inputs, then a window."""
        axes = tuple(range(self.leaves[name].ndim))
        use = self._kernels.get(name)
        if use is None:
            return axes
        inputs = tuple(sorted(use.contracted))
        if use.kind == "conv":
            inputs = (inputs[-1], *inputs[:-1])
        return (*(a for a in axes if a not in inputs), *inputs)

    @functools.cached_property
    def outputs_first(self) -> dict[str, np.ndarray]:
        """All parameters as PyTorch lays them out: kernels of dense layers (outputs, inputs)."""
        found = {}
        for name, leaf in self.leaves.items():
            turned = np.ascontiguousarray(leaf.transpose(self._turned(name)), np.float32)
            if name in self._kernels and self._kernels[name].kind == "dot":
                turned = turned.reshape(-1, self._inputs(name))
            found[name] = turned
        return found

    def from_outputs_first(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The leaves that these are of."""
        found = {}
        for name, array in arrays.items():
            order = self._turned(name)
            shape = [self.leaves[name].shape[a] for a in order]
            found[name] = array.reshape(shape).transpose(np.argsort(order))
        return found

    def params(self, leaves: Mapping[str, Any]) -> PyTree:
        """The network with these leaves in place of its own."""
        return mz.tree.map_named(
            lambda name, x: np.asarray(leaves.get(name, x), np.float32), self.task.params
        )

    @functools.cache  # noqa: B019
    def _reference(self, part: str) -> dict[str, np.ndarray]:
        return self.task.scores(self.task.params, part)

    def __hash__(self) -> int:
        return id(self)

    def float_quality(self, part: str) -> dict[str, float]:
        """The float network's mean of each measure."""
        return {measure: float(np.mean(x)) for measure, x in self._reference(part).items()}

    def drops(self, params: PyTree, part: str) -> dict[str, list[float | None]]:
        """By measure, how much lower the mean is than the float network's, and the standard error of that.

        None where outputs are no numbers.
        """
        reference, found = self._reference(part), self.task.scores(params, part)
        lost = {measure: reference[measure] - found[measure] for measure in found}
        return {
            m: [float(np.mean(x)), harness.standard_error(x)] if np.isfinite(x).all() else [None, None]
            for m, x in lost.items()
        }
