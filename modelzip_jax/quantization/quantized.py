"""The stored form of a quantized leaf: integer codes of exactly b bits, and their step sizes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax.packed import Bits, Elementwise, packed_kind, static
from modelzip_jax.quantization.granularity import Granularity, check_stored_groups
from modelzip_jax.quantization.host_codes import values_on_host
from modelzip_jax.quantization.uniform_codes import dequantize

__all__ = ["Quantized"]


@packed_kind("quantized")
class Quantized(Elementwise):
    """`(q - z) s` with q = low + code.

    codes: `bits` bits each, C order. step: `(groups, channels)`, the dtype of the latents. zero: the
    same shape, the code of 0.0; None where it is 0 everywhere. dtype: of the unpacked values.
    """

    element_field = "codes"

    codes: Bits
    step: jax.Array
    zero: jax.Array | None
    low: int = static()
    shape: tuple[int, ...] = static()
    dtype: str = static()
    granularity: str = static()
    axis: int | tuple[int, ...] = static()
    group_size: int = static()

    @property
    def groups(self) -> Granularity:
        """Which weights share a step size."""
        return Granularity(self.granularity, self.axis, self.group_size)

    def elements(self) -> jax.Array:
        return self.codes.unpack()

    def with_elements(self, elements: jax.Array) -> Quantized:
        codes = Bits.pack(elements, self.codes.bits)
        return Quantized(
            codes, self.step, self.zero, self.low, self.shape, self.dtype,
            self.granularity, self.axis, self.group_size,
        )  # fmt: skip

    def check(self) -> None:
        super().check()
        check_stored_groups(self.groups, self.shape, self.step, self.zero)

    def assemble(self, elements: jax.Array) -> jax.Array:
        q = elements.reshape(self.shape).astype(self.step.dtype) + self.low
        zero = jnp.zeros_like(self.step) if self.zero is None else self.zero
        return dequantize(q, self.step, zero, self.groups, self.codes.bits).astype(self.dtype)

    def assemble_host(self, elements: np.ndarray) -> np.ndarray | None:
        step = np.asarray(self.step)
        # XLA rounds half precision in its own way.
        if step.dtype not in (np.float32, np.float64) or len(self.groups.axes(self.shape)) > 1:
            return None
        zero = None if self.zero is None else np.asarray(self.zero)
        dtype = np.dtype(jnp.dtype(self.dtype))
        return values_on_host(elements, step, zero, self.low, self.shape, self.groups, dtype)
