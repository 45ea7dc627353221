"""Numbers and flags that a user gives: of Python, or of NumPy, as loops over `np.arange` have them."""

from __future__ import annotations

from typing import Any

import numpy as np

from modelzip_jax.errors import TransformError

__all__ = ["as_flag", "as_positive", "as_whole"]


def as_whole(value: Any, what: str, least: int, most: int | None = None) -> int:
    """The value as Python's `int`, which recipes can hold.

    Args:
      what: the number's name. least, most: what it may be.

    Raises:
      TransformError: it is no whole number, or out of bounds.

    >>> as_whole(np.int64(4), "bits", 1, 8)
    4
    >>> as_whole(4.0, "bits", 1, 8)
    Traceback (most recent call last):
    modelzip_jax.errors.TransformError: bits must be an integer from 1 to 8, not 4.0
    """
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):
        span = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise TransformError(f"{what} must be an integer {span}, not {value!r:.100}")
    return int(value)


def as_positive(value: Any, what: str) -> float:
    """The value as Python's `float`.

    Raises:
      TransformError: it is no number, or none above 0, or infinite.

    >>> as_positive(np.float32(0.5), "step")
    0.5
    >>> as_positive(-1, "step")
    Traceback (most recent call last):
    modelzip_jax.errors.TransformError: step must be a positive number, not -1
    """
    number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not number or not 0 < value < float("inf"):
        raise TransformError(f"{what} must be a positive number, not {value!r:.100}")
    return float(value)


def as_flag(value: Any, what: str) -> bool:
    """The value, if it is True or False, of Python or of NumPy.

    Raises:
      TransformError: anything else: "no" is true in Python.

    >>> as_flag("no", "symmetric")
    Traceback (most recent call last):
    modelzip_jax.errors.TransformError: symmetric must be True or False, not 'no'
    """
    if not isinstance(value, bool | np.bool_):
        raise TransformError(f"{what} must be True or False, not {value!r:.100}")
    return bool(value)
