"""What lets modelzip_jax be imported where only jax, flax, optax and numpy are: import this first.

jaxtyping is wanted in annotations only, which nothing evaluates; where it is missing, names stand in for its types.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from typing import Any


class _Anything:
    def __class_getitem__(cls, item: Any) -> type[_Anything]:
        return cls


def provide_jaxtyping() -> None:
    """Makes `from jaxtyping import Float` work, with types that mean nothing, if it is not installed."""
    if importlib.util.find_spec("jaxtyping") is None:
        stand_in = types.ModuleType("jaxtyping")
        stand_in.__getattr__ = lambda name: _Anything  # type: ignore[method-assign]
        sys.modules["jaxtyping"] = stand_in


provide_jaxtyping()
