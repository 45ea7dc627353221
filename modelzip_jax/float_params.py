"""What changes or measures weights takes them as floats."""

from __future__ import annotations

from modelzip_jax import tree as trees
from modelzip_jax.errors import LeafError
from modelzip_jax.packed import is_packed
from modelzip_jax.packing import Packed
from modelzip_jax.tree import PyTree

__all__ = ["check_float_params"]


def check_float_params(params: PyTree, what: str, hint: str = "") -> None:
    """Raises `LeafError` for a packed model or packed leaves, which nothing can be multiplied into.

    >>> import numpy as np, modelzip_jax as mz
    >>> check_float_params(mz.compress({"w": np.eye(2, dtype="f4")}, mz.quantize(4)), "equalize()")
    Traceback (most recent call last):
    modelzip_jax.errors.LeafError: equalize() takes params of floats, and 'w' is packed; pass mz.unpack(packed), or ...
    """
    held = params.params if isinstance(params, Packed) else params
    for name, leaf in trees.named_leaves(held, is_packed):
        if is_packed(leaf):
            raise LeafError(
                f"{what} takes params of floats, and {name!r} is packed; pass mz.unpack(packed), or better the params "
                f"as they were before{hint}"
            )
