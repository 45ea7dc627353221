"""Spreads by what an error costs: from the Fisher information, and from the inputs of a layer."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax.errors import LeafError, TransformError
from modelzip_jax.factoring import damped, inverse_factor
from modelzip_jax.given_values import as_positive
from modelzip_jax.quantization.spreads.spread import RelativeSteps, Spread, over_all_but
from modelzip_jax.recipe import recordable
from modelzip_jax.trace.measures.layer_matrices import Layout, products
from modelzip_jax.transform import Context

__all__ = ["ByImportance", "WaterFilling", "by_importance", "water_filling"]

_LEAST = 1e-12
"""Of the mean of a leaf's curvatures, below which none is taken."""


@recordable
@dataclasses.dataclass(frozen=True)
class ByImportance(Spread):
    """See `by_importance`."""

    soften: float

    needs = ("importance",)

    def __call__(self, name: str, w: jax.Array, layers: tuple[int, ...], context: Context) -> RelativeSteps:
        importance = _importance(name, context)
        if not w.size:
            return RelativeSteps(jnp.ones((1,) * w.ndim, w.dtype))
        return _by_importance(importance.astype(jnp.float32), self.soften, layers)


@functools.partial(jax.jit, static_argnums=(2,))
def _by_importance(importance: jax.Array, soften: float, layers: tuple[int, ...]) -> RelativeSteps:
    """Of two axes and more a factor for each index of the first and of the last axis that counts no layers."""
    rest = [axis for axis in range(importance.ndim) if axis not in layers]
    whole = jnp.mean(importance, axis=tuple(rest), keepdims=True)
    if len(rest) < 2:
        return RelativeSteps(_inverse_root(whole))
    sides = []
    for axis in (rest[0], rest[-1]):
        mean = jnp.mean(importance, axis=over_all_but(importance, (*layers, axis)), keepdims=True)
        sides.append((1.0 - soften) * mean + soften * whole)
    return RelativeSteps(_inverse_root(sides[0]), _inverse_root(sides[1] / jnp.maximum(whole, _tiny(whole))))


@recordable
@dataclasses.dataclass(frozen=True)
class WaterFilling(Spread):
    """See `water_filling`."""

    damping: float
    soften: float

    needs = ("importance", "stats")

    def __call__(self, name: str, w: jax.Array, layers: tuple[int, ...], context: Context) -> RelativeSteps:
        if not w.size:
            return RelativeSteps(jnp.ones((1,) * w.ndim, w.dtype))
        found = products(name, w.shape, context.stats, "water_filling()")
        importance = _importance(name, context).astype(jnp.float32)
        return _water_filled(importance, found.gram, found.layout, self.damping, self.soften)


@functools.partial(jax.jit, static_argnums=(2,))
def _water_filled(
    importance: jax.Array, gram: jax.Array, layout: Layout, damping: float, soften: float
) -> RelativeSteps:
    power = jnp.trace(gram, axis1=1, axis2=2)[:, None]
    outputs = jnp.sum(layout.stack(importance), axis=2) / jnp.maximum(power, _tiny(power))
    outputs = (1.0 - soften) * outputs + soften * jnp.mean(outputs, axis=1, keepdims=True)
    columns = jax.lax.map(lambda h: _deviations(h, damping), gram.astype(jnp.float32))
    middle = jnp.exp(jnp.mean(jnp.log(columns), axis=1, keepdims=True))
    shape = importance.shape
    return RelativeSteps(
        layout.of_outputs(_inverse_root(outputs) * middle, shape), layout.of_inputs(columns / middle, shape)
    )


def _deviations(gram: jax.Array, damping: float) -> jax.Array:
    """1 / L_jj of each input, those of the largest mean square being rounded first: see `error_feedback`."""
    place = jnp.argsort(-jnp.diagonal(gram))
    factor = inverse_factor(damped(gram, damping)[place][:, place])
    return jnp.zeros(len(gram), gram.dtype).at[place].set(jnp.diagonal(factor))


def _inverse_root(curvature: jax.Array) -> jax.Array:
    """1 / √F; where nothing depends on a weight, as of a millionth of the leaf's mean."""
    mean = jnp.mean(curvature)
    floor = jnp.where(mean > 0, mean * _LEAST, 1.0)
    return jax.lax.rsqrt(jnp.maximum(curvature, floor))


def _tiny(x: jax.Array) -> float:
    return float(jnp.finfo(x.dtype).tiny)


def _importance(name: str, context: Context) -> jax.Array:
    importance = context.importance
    if importance is None:
        raise TransformError(
            "steps by curvature need the Fisher information: pass importance= to mz.compress, the diagonals of "
            "mz.trace.fisher_information"
        )
    if not isinstance(importance, jax.core.Tracer):
        with jax.ensure_compile_time_eval():  # Within somebody's jit, what it closes over is still known.
            largest = float(jnp.max(importance, initial=0.0))
        if not largest > 0 and np.size(importance):
            raise LeafError(
                f"the importance of leaf {name!r} is zero everywhere: the outputs do not depend on it; "
                "leave it out with mz.only or mz.partition, or give other inputs"
            )
    return jnp.asarray(importance)


def by_importance(*, soften: float = 0.5) -> ByImportance:
    """Steps in inverse proportion to the root of the Fisher information: each costs the same where it rounds.

    A leaf of two axes and more has a factor for each index of its first and of its last axis, from the mean over the
    others: a table of embeddings one a row, by how often the row is read and how much hangs on it. Others have one.

    Args:
      soften: the share of the leaf's mean that each row's and column's takes instead of its own, 0 to 1, so that rows
        that no input of the calibration reads have a step, too.

    Needs `importance=` of `mz.compress`.

    >>> import modelzip_jax as mz
    >>> w, fisher = {"w": jnp.full((2, 1), 0.5)}, {"w": jnp.array([[4.0], [1.0]])}
    >>> t = mz.entropy_constrained(0.1, spread=by_importance(soften=0.0))
    >>> mz.compress(w, t, importance=fisher).params["w"].rows.ravel()
    Array([0.0500488, 0.100098], dtype=bfloat16)
    """
    return ByImportance(_as_share(soften))


def water_filling(*, damping: float = 0.01, soften: float = 0.5) -> WaterFilling:
    """A step for each output and each input of a layer, such that every rounding costs the same in the loss.

    With H = E[x xᵀ] + λI = LLᵀ of a layer's inputs, in the order in which `mz.rounding.error_feedback` takes them, an
    error e in the weight from input j to output i costs ½ g_i L_jj² e² once those after it have made up for what they
    can. So its step is in proportion to 1 / (L_jj √g_i). g_i, the curvature of the loss in output i, is the sum of the
    Fisher information of its weights over the trace of E[x xᵀ].

    Args:
      damping: λ, as of `error_feedback`. soften: the share of the leaf's mean that each g_i takes, 0 to 1.

    Needs `importance=` and `calibrate=` or `stats=` of `mz.compress`; for kernels of products, as `error_feedback`.

    Columns: WaterSIC, arXiv:2603.04956; reverse water-filling: Cover & Thomas 2006, section 10.3.3.

    >>> water_filling().damping
    0.01
    """
    return WaterFilling(as_positive(damping, "damping"), _as_share(soften))


def _as_share(soften: float) -> float:
    if isinstance(soften, bool) or not isinstance(soften, int | float) or not 0.0 <= soften <= 1.0:
        raise TransformError(f"soften must be a share from 0 to 1, not {soften!r:.100}")
    return float(soften)
