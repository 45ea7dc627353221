"""Whether what a recipe says of a class is of the types that its fields are declared with."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Callable
from typing import Any

__all__ = ["has_type", "misfits"]


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def misfits(cls: type, fields: dict[str, Any], open_to: Callable[[Any], bool]) -> list[str]:
    """Names of the fields whose values are not of their declared type.

    open_to: which objects may stand for one of any class.

    >>> import modelzip_jax as mz
    >>> misfits(type(mz.chain()), {"parts": "abc"}, lambda x: False)
    ['parts']
    """
    hints = _hints(cls)
    return [name for name, value in fields.items() if not has_type(value, hints[name], open_to)]


def has_type(value: Any, hint: Any, open_to: Callable[[Any], bool] = lambda x: False) -> bool:
    """Whether a value is of a type: numbers, strings, None, classes, unions and tuples of these.

    A whole number is a float, too. Of what is called, nothing can be said, but that it is no strategy.

    >>> has_type((1, 2), tuple[int, ...]), has_type(1, float), has_type(True, int), has_type("a", int | None)
    (True, True, False, False)
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or open_to(value):
        return True
    if origin in (typing.Union, types.UnionType):
        return any(has_type(value, one, open_to) for one in arguments)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if arguments[1:] == (...,):
            return all(has_type(item, arguments[0], open_to) for item in value)
        return len(value) == len(arguments) and all(
            has_type(item, one, open_to) for item, one in zip(value, arguments, strict=True)
        )
    if hint in (int, float):
        return not isinstance(value, bool) and isinstance(value, int if hint is int else int | float)
    if hint in (bool, str, type(None)):
        return isinstance(value, hint)
    if not isinstance(hint, type) or origin is not None:
        return callable(value) and not dataclasses.is_dataclass(value)
    return isinstance(value, hint)
