"""What a compressed model says of itself beside its weights: plain data that a file carries along."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgpack

from modelzip_jax.errors import FormatError

__all__ = ["NOTHING", "Metadata"]


class Metadata(Mapping[str, Any]):
    """A read-only map from strings to plain data, hashable so that it may ride in a pytree's structure.

    Args:
      items: None, booleans, integers of 64 bits, floats, strings, bytes, and lists and maps (with string keys)
        of them.

    Raises:
      FormatError: anything else, which a file could not hold.

    >>> Metadata({"author": "me"})["author"], dict(Metadata({}))
    ('me', {})
    """

    __slots__ = ("_items", "_stored")

    def __init__(self, items: Mapping[str, Any] | None = None):
        found = _checked("metadata", dict(items or {}))
        try:
            self._stored: bytes = msgpack.packb(found)
        except (TypeError, ValueError, OverflowError) as error:
            raise FormatError(f"the metadata cannot be stored: {error}") from error
        self._items: dict[str, Any] = found

    def __getitem__(self, key: str) -> Any:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and self._items == dict(other)

    def __hash__(self) -> int:
        return hash(frozenset(self._items))

    def __repr__(self) -> str:
        return f"Metadata({self._items!r})"


def _checked(where: str, value: Any, depth: int = 0) -> Any:
    """Plain data as lists and dicts of its own, so that nobody changes them later."""
    if depth > 64:
        raise FormatError("the metadata are nested more than 64 levels deep")
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    if isinstance(value, list | tuple):
        return [_checked(where, item, depth + 1) for item in value]
    if isinstance(value, Mapping):
        wrong = [key for key in value if not isinstance(key, str)]
        if wrong:
            raise FormatError(f"{where} has the key {wrong[0]!r}; metadata are named by strings")
        return {key: _checked(f"{where}[{key!r}]", item, depth + 1) for key, item in value.items()}
    raise FormatError(
        f"{where} is a {type(value).__name__}, which a file cannot hold; metadata are None, booleans, numbers, "
        "strings, bytes, and lists and maps of them"
    )


NOTHING = Metadata()
