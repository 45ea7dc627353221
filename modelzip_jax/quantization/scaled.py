"""The stored form of a leaf whose step sizes are products: of one for each row, and one for each column."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax.packed import Elementwise, packed_kind, static
from modelzip_jax.quantization.integers import Integers
from modelzip_jax.quantization.trellis.codes import TrellisCodes

__all__ = ["ScaledCodes", "computed_in"]


def computed_in(dtype: Any) -> Any:
    """The dtype that values of a leaf are computed in: float64 for float64, else float32."""
    return np.float64 if jnp.dtype(dtype) == np.float64 else np.float32


@packed_kind("scaled")
class ScaledCodes(Elementwise):
    """`(q rows) columns`, each product rounded, in float32 (float64 of leaves of that).

    codes: the integers q, C order, plain or along a trellis. rows, columns: positive step sizes, bfloat16 or wider, of
    the leaf's number of axes, each of its length or 1; columns None for 1 everywhere. dtype: of the unpacked values.
    """

    element_field = "codes"
    since = 5

    codes: Integers | TrellisCodes
    rows: jax.Array
    columns: jax.Array | None
    shape: tuple[int, ...] = static()
    dtype: str = static()

    def elements(self) -> jax.Array:
        return self.codes.unpack()

    def with_elements(self, elements: jax.Array) -> ScaledCodes:
        return dataclasses.replace(self, codes=Integers.pack(elements))

    def check(self) -> None:
        super().check()
        for steps in (self.rows,) if self.columns is None else (self.rows, self.columns):
            fits = (
                len(steps.shape) == len(self.shape)
                and all(n in (1, own) for n, own in zip(steps.shape, self.shape, strict=True))
                and jnp.issubdtype(steps.dtype, jnp.floating)
            )
            if not fits:
                raise ValueError(f"step sizes {steps.dtype}{list(steps.shape)} for a leaf of {self.shape}")
        if not isinstance(self.codes, Integers | TrellisCodes):
            raise ValueError(f"step sizes of {type(self.codes).__name__}")

    def assemble(self, elements: jax.Array) -> jax.Array:
        dtype = computed_in(self.dtype)
        values = elements.reshape(self.shape).astype(dtype) * jnp.asarray(self.rows).astype(dtype)
        if self.columns is not None:
            values = values * jnp.asarray(self.columns).astype(dtype)
        return values.astype(self.dtype)

    def assemble_host(self, elements: np.ndarray) -> np.ndarray:
        dtype = computed_in(self.dtype)
        values = elements.reshape(self.shape).astype(dtype)
        values *= np.asarray(self.rows).astype(dtype)
        if self.columns is not None:
            values *= np.asarray(self.columns).astype(dtype)
        return values.astype(jnp.dtype(self.dtype))
