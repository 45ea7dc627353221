"""What a transform holds of a weight while it trains."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax.concrete import host_view, placed

__all__ = ["latent", "latent_dtype", "on_device"]


def latent_dtype(dtype: Any) -> Any:
    """float32 for half-precision parameters, whose own dtype is too coarse to train in."""
    return jnp.float32 if jnp.dtype(dtype).itemsize < 4 else jnp.dtype(dtype)


def latent(x: Any) -> jax.Array:
    """The leaf as a latent: on the device, in `latent_dtype`; shares a NumPy array's memory on CPU."""
    dtype = latent_dtype(jnp.result_type(x))
    if getattr(x, "dtype", None) == dtype:
        return on_device(x)
    seen = host_view(x)
    return jnp.asarray(x, dtype) if seen is None else placed(seen.astype(dtype))


def on_device(x: Any) -> jax.Array:
    """The array on the default device. On CPU an aligned NumPy array's memory is shared, not copied."""
    return jax.device_put(x) if isinstance(x, np.ndarray) else jnp.asarray(x)
