"""DoReFa's weights: tanh, normalised by its largest magnitude, rounded to even values from -1 to 1."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax import tree as trees
from modelzip_jax.errors import TransformError
from modelzip_jax.host_unpacking import unpacked
from modelzip_jax.latents import latent
from modelzip_jax.leaf_checks import check_floating
from modelzip_jax.packed import Bits, Dense, is_packed
from modelzip_jax.quantization.grids.grid import check_bits
from modelzip_jax.quantization.quantized import Quantized
from modelzip_jax.recipe import recordable
from modelzip_jax.stacking import LayerAxes, as_layers, check_layers, stacked_axes
from modelzip_jax.transform import Context, Encoded, Rate, Transform
from modelzip_jax.tree import PyTree, Static

__all__ = ["DoReFa", "TanhState", "dorefa"]

_RESUMED = float(np.tanh(1.0))
"""The largest |tanh| of latents made of stored weights, whose own is not stored: these reach from -1 to 1."""


class TanhState(NamedTuple):
    """layers: axes of a leaf that count layers (static). dtype: before encoding (static)."""

    layers: Static
    dtype: Static


@recordable
@dataclasses.dataclass(frozen=True)
class DoReFa(Transform):
    """See `dorefa`."""

    bits: int
    layers: LayerAxes = dataclasses.field(default=(), kw_only=True)

    terminal: ClassVar[bool] = True

    @property
    def _levels(self) -> int:
        return (1 << self.bits) - 1

    def init(self, weights: PyTree, context: Context) -> Encoded:
        check_floating(weights, "dorefa")
        check_layers(self.layers, weights)
        return Encoded(jax.tree.map(latent, weights), (), trees.map_named(self._state, weights))

    def _state(self, name: str, w: Any) -> TanhState:
        return TanhState(
            Static(stacked_axes(self.layers, name, jnp.shape(w))), Static(str(jnp.result_type(w)))
        )

    def _codes(self, w: jax.Array, s: TanhState) -> jax.Array:
        """round((2^bits - 1) (tanh w / (2 max |tanh w|) + 1/2)), floats; gradients straight through the rounding."""
        curved = jnp.tanh(w)
        axes = tuple(a for a in range(w.ndim) if a not in s.layers.value)
        largest = jnp.max(jnp.abs(curved), axis=axes, keepdims=True, initial=0.0)
        # Of a leaf of zeros, whose largest is none, the gradient would be none either.
        u = self._levels * (curved / jnp.where(largest > 0, 2.0 * largest, 1.0) + 0.5)
        return jax.lax.stop_gradient(jnp.round(u)) + (u - jax.lax.stop_gradient(u))

    def _scale(self, dtype: Any) -> tuple[jax.Array, jax.Array]:
        return jnp.full((1, 1), 2.0 / self._levels, dtype), jnp.full((1, 1), self._levels / 2.0, dtype)

    def decode(self, encoded: Encoded) -> PyTree:
        def values(w: jax.Array, s: TanhState) -> jax.Array:
            step, zero = self._scale(w.dtype)
            return ((self._codes(w, s) - zero[0, 0]) * step[0, 0]).astype(s.dtype.value)

        return jax.tree.map(values, encoded.latents, encoded.state)

    def pack(self, encoded: Encoded, inner: PyTree) -> PyTree:
        def stored(w: jax.Array, s: TanhState) -> Quantized:
            codes = Bits.pack(np.asarray(self._codes(w, s)).astype(np.uint8).reshape(-1), self.bits)
            return Quantized(
                codes, *self._scale(w.dtype), 0, tuple(w.shape), s.dtype.value, "tensor", -1, 128
            )

        return jax.tree.map(stored, encoded.latents, encoded.state)

    def resume(self, packed: PyTree) -> tuple[PyTree, PyTree, PyTree]:
        def latents(name: str, p: Quantized) -> Dense:
            values = latent(unpacked(p))
            axes = tuple(a for a in range(values.ndim) if a not in stacked_axes(self.layers, name, p.shape))
            # Only a layer of zeros does not reach 1.
            full = jnp.max(jnp.abs(values), axis=axes, keepdims=True, initial=0.0) > 1.0 - 0.5 / self._levels
            return Dense(jnp.where(full, jnp.arctanh(_RESUMED * values), 0.0).astype(values.dtype), p.shape)

        def over(function: Any) -> PyTree:
            named = jax.tree_util.tree_map_with_path(
                lambda path, p: function(trees.leaf_name(path), p), packed, is_leaf=is_packed
            )
            return named

        def state(name: str, p: Quantized) -> TanhState:
            return TanhState(Static(stacked_axes(self.layers, name, p.shape)), Static(p.dtype))

        return (), over(state), over(latents)

    def rate(self, encoded: Encoded, inner: PyTree) -> PyTree:
        return jax.tree.map(
            lambda w: Rate(jnp.full(w.shape, self.bits, jnp.float32), jnp.float32(64.0)), encoded.latents
        )


def dorefa(bits: int, *, layers: int | tuple[int, ...] | Mapping[str, Any] | None = None) -> DoReFa:
    """DoReFa's weights: 2^bits even values from -1 to 1, of weights bent by tanh.

        ŵ = 2 round((2^bits - 1) (tanh w / (2 max |tanh w|) + 1/2)) / (2^bits - 1) - 1                       (eq. 9)

    with the largest over a layer, gradients straight through the rounding and by the chain rule through the rest. A
    layer's weights reach from -1 to 1 whatever they were, and 0 is not among their values: for networks that are
    trained so, with batch normalisation behind each layer; a trained one is quantized by `mz.quantize`. What is stored
    are the codes: resumed latents have the same codes, and no more of what they were.

    Args:
      bits: 2 to 8. One bit is ± the mean magnitude (eq. 7): `mz.quantize(grid=mz.grids.binary())`.
      layers: axes that count layers, as in `mz.quantize`.

    Raises:
      TransformError: another number of bits.
      LeafError (at `init`): a selected leaf is not floating-point.

    Zhou et al. 2016, arXiv:1606.06160, section 2.3. `mz.activations.dorefa` quantizes the activations.

    >>> import modelzip_jax as mz
    >>> mz.decoded({"w": jnp.array([0.2, -0.1, 0.03])}, dorefa(2))["w"].round(3)
    Array([ 1.   , -0.333,  0.333], dtype=float32)
    """
    if check_bits(bits) == 1 or bits is None:
        raise TransformError(
            f"dorefa() takes 2 to 8 bits, not {bits!r}; one bit is mz.quantize(grid=mz.grids.binary())"
        )
    return DoReFa(check_bits(bits), layers=as_layers(layers))
