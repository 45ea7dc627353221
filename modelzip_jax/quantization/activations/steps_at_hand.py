"""Steps from the activations at hand: dynamic quantization, and dynamic range quantization."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from modelzip_jax.errors import TransformError
from modelzip_jax.given_values import as_flag
from modelzip_jax.naming import nearest_name
from modelzip_jax.quantization.activations.operand import (
    ActivationQuantizer,
    Coded,
    Own,
    check_width,
    counted,
    divided,
    unsigned,
)
from modelzip_jax.quantization.granularity import max_abs
from modelzip_jax.quantization.steps import covering_step
from modelzip_jax.recipe import recordable

__all__ = ["DynamicRange", "DynamicSteps", "check_per", "dynamic", "dynamic_range", "sharing_axes"]


@recordable
@dataclasses.dataclass(frozen=True)
class DynamicSteps(ActivationQuantizer):
    """See `dynamic`."""

    bits: int
    per: str
    symmetric: bool

    def coded(self, x: jax.Array, own: Own, axes: tuple[int, ...]) -> Coded:
        shared = sharing_axes(self.per, x, axes)
        if self.symmetric:
            high = (1 << (self.bits - 1)) - 1
            size = jnp.max(jnp.abs(x), axis=shared, keepdims=True, initial=0.0)
            step = jnp.where(size > 0, jnp.maximum(size / high, jnp.finfo(x.dtype).tiny), 1.0).astype(x.dtype)
            return Coded(jnp.clip(jnp.round(divided(x, step)), -high, high), step)
        top, bottom = (
            max_abs(edge, axis=shared).reshape([1 if a in shared else n for a, n in enumerate(x.shape)])
            for edge in (jnp.maximum(x, 0.0), jnp.minimum(x, 0.0))
        )
        step, zero = covering_step(top, bottom, self.bits, False)
        codes, _ = counted(x, step, zero, 0, (1 << self.bits) - 1)
        codes, zero = unsigned(codes, zero, self.bits)  # type: ignore[assignment]
        return Coded(codes, step, zero)


@recordable
@dataclasses.dataclass(frozen=True)
class DynamicRange(DynamicSteps):
    """See `dynamic_range`."""

    weights = "stored"


def check_per(per: str) -> str:
    """Raises `TransformError` unless steps are for each row, or for the batch."""
    if per not in ("row", "tensor"):
        raise TransformError(f"per is {per!r}; {nearest_name(str(per), ('row', 'tensor'))}")
    return per


def sharing_axes(per: str, x: jax.Array, axes: tuple[int, ...]) -> tuple[int, ...]:
    """The axes along which activations share a step."""
    return axes if per == "row" else tuple(range(x.ndim))


def dynamic(bits: int = 8, *, per: str = "row", symmetric: bool = True) -> DynamicSteps:
    """Dynamic quantization: steps cover the activations at hand, nothing is clipped, nothing calibrated.

    Args:
      bits: 2 to 8.
      per: "row": a step for each row of the product, a token or an image of a convolution; "tensor": one for all.
      symmetric: codes ± (2^(bits-1) - 1). Otherwise from each row's minimum to its maximum, 0 included, with an integer
        zero point: a bit more after a ReLU. The product then subtracts the zero point times the sums of the weights.

    Raises:
      TransformError: another number of bits, another `per`; a flag that is none.

    Yao et al. 2022 (ZeroQuant), arXiv:2206.01861, section 3.2.

    >>> how = dynamic(4)
    >>> found = how.coded(jnp.array([[7.0, -2.2], [3.5, 0.6]]), {}, (1,))
    >>> found.codes.tolist(), found.step.tolist()
    ([[7.0, -2.0], [7.0, 1.0]], [[1.0], [0.5]])
    """
    return DynamicSteps(check_width(bits, 2), check_per(per), as_flag(symmetric, "symmetric"))


def dynamic_range(bits: int = 8, *, per: str = "row", symmetric: bool = True) -> DynamicRange:
    """Dynamic range quantization: weights as they are stored, activations rounded at run time, integer products.

    The weights are those that `mz.quantize(8)` has packed: their own codes and steps go into the products, nothing
    is rounded a second time. Products with weights that are not stored so stay float.

    Args:
      bits, per, symmetric: of activations, as in `dynamic`.

    Raises:
      TransformError: as `dynamic` does; at the first call, weights are packed with zero points or in groups.

    Krishnamoorthi 2018, arXiv:1806.08342; "dynamic range quantization" of TensorFlow Lite.

    >>> import modelzip_jax as mz
    >>> packed = mz.compress({"w": jnp.array([[1.0, 0.5], [-1.0, 0.25]])}, mz.quantize(8))
    >>> model = mz.rewrites.quantize_activations(lambda p, x: x @ p["w"], dynamic_range())
    >>> model(packed.params, jnp.array([[2.0, 1.0]]))
    Array([[0.992126 , 1.2539525]], dtype=float32)
    """
    return DynamicRange(check_width(bits, 2), check_per(per), as_flag(symmetric, "symmetric"))
