"""Activations of few values that need no data: DoReFa's, binary and ternary ones."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from modelzip_jax.errors import TransformError
from modelzip_jax.quantization.activations.operand import (
    ActivationQuantizer,
    Coded,
    Own,
    check_width,
    unsigned,
)
from modelzip_jax.quantization.activations.steps_at_hand import check_per, sharing_axes
from modelzip_jax.recipe import recordable

__all__ = ["BinaryActivations", "BoundedActivations", "TernaryActivations", "binary", "dorefa", "ternary"]


@recordable
@dataclasses.dataclass(frozen=True)
class BoundedActivations(ActivationQuantizer):
    """See `dorefa`."""

    bits: int

    weights = None

    def coded(self, x: jax.Array, own: Own, axes: tuple[int, ...]) -> Coded:
        levels = (1 << self.bits) - 1
        codes, zero = unsigned(jnp.round(jnp.clip(x, 0.0, 1.0) * levels), None, self.bits)
        return Coded(codes, jnp.asarray(1.0 / levels, x.dtype), zero, (x >= 0.0) & (x <= 1.0))


@recordable
@dataclasses.dataclass(frozen=True)
class BinaryActivations(ActivationQuantizer):
    """See `binary`."""

    per: str | None

    weights = None

    def coded(self, x: jax.Array, own: Own, axes: tuple[int, ...]) -> Coded:
        step = jnp.ones((), x.dtype)
        if self.per is not None:
            step = jnp.mean(jnp.abs(x), axis=sharing_axes(self.per, x, axes), keepdims=True)
        return Coded(jnp.where(x >= 0.0, 1.0, -1.0).astype(x.dtype), step, None, step * (jnp.abs(x) <= 1.0))


@recordable
@dataclasses.dataclass(frozen=True)
class TernaryActivations(ActivationQuantizer):
    """See `ternary`."""

    threshold: float
    per: str

    weights = None

    def coded(self, x: jax.Array, own: Own, axes: tuple[int, ...]) -> Coded:
        shared, size = sharing_axes(self.per, x, axes), jnp.abs(x)
        beyond = size > self.threshold * jnp.mean(size, axis=shared, keepdims=True)
        count = jnp.sum(beyond, axis=shared, keepdims=True)
        total = jnp.sum(jnp.where(beyond, size, 0.0), axis=shared, keepdims=True)
        step = total / jnp.maximum(count, 1).astype(x.dtype)
        return Coded(jnp.where(beyond, jnp.sign(x), 0.0), step, None, step * (size <= 1.0))


def dorefa(bits: int) -> BoundedActivations:
    """DoReFa's activations: clipped to [0, 1], rounded to 2^bits even values, gradients straight-through inside.

        x̂ = round((2^bits - 1) clip(x, 0, 1)) / (2^bits - 1)                        (eq. 11, with eqs. 5 and 12)

    The model bounds its activations itself, to about [0, 1]: batch normalisation before, and no large gains.
    `mz.dorefa` quantizes the weights.

    Args:
      bits: 1 to 8.

    Raises:
      TransformError: another number of bits.

    Zhou et al. 2016, arXiv:1606.06160, section 2.5.

    >>> (3 * dorefa(2).rounded(jnp.array([[-1.0, 0.3, 0.6, 7.0]]), {}, (1,))).round()
    Array([[0., 1., 2., 3.]], dtype=float32)
    """
    return BoundedActivations(check_width(bits, 1))


def binary(*, per: str | None = "row") -> BinaryActivations:
    """Binary activations: the sign, times the mean magnitude of a row.

        x̂ = K sign(x), K = E|x| over what one output sums over (XNOR-Net, eq. 11, a row sharing K); sign(0) = 1
        ∂x̂/∂x = K where |x| ≤ 1, else 0, K being held (Hubara et al. 2016, eq. 4)

    Meant for inputs of both signs: after a ReLU all signs are one. Of a convolution an image shares K.

    Args:
      per: "row", or "tensor", one K for the batch; None: plain signs, as in binarized neural networks.

    Raises:
      TransformError: another `per`.

    Rastegari et al. 2016 (XNOR-Net), arXiv:1603.05279; Hubara et al. 2016, arXiv:1602.02830.

    >>> binary().rounded(jnp.array([[0.5, -1.5]]), {}, (1,))
    Array([[ 1., -1.]], dtype=float32)
    """
    return BinaryActivations(per if per is None else check_per(per))


def ternary(*, threshold: float = 0.7, per: str = "row") -> TernaryActivations:
    """Ternary activations: -K, 0 and K, by a threshold.

        x̂ = K sign(x) where |x| > threshold · E|x|, else 0; K the mean magnitude of those beyond
        ∂x̂/∂x = K where |x| ≤ 1, else 0, K being held

    Means are over a row, what one output sums over; of a convolution, over an image.

    Args:
      threshold: in units of the mean magnitude, at least 0. per: "row", or "tensor", one K for the batch.

    Raises:
      TransformError: a threshold below 0; another `per`.

    The threshold and the scale of ternary weight networks (Li et al. 2016, arXiv:1605.04711, eqs. 4 and 6).

    >>> ternary().rounded(jnp.array([[0.1, -1.5, 0.5, 1.0]]), {}, (1,))
    Array([[ 0.  , -1.25,  0.  ,  1.25]], dtype=float32)
    """
    if (
        isinstance(threshold, bool)
        or not isinstance(threshold, int | float)
        or not 0.0 <= threshold < float("inf")
    ):
        raise TransformError(f"a threshold is a number of at least 0, not {threshold!r}")
    return TernaryActivations(float(threshold), check_per(per))
