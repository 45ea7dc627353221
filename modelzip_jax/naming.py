"""Unknown names, answered with the nearest known one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from modelzip_jax.errors import ConfigError

__all__ = ["nearest_name", "require_known"]


def nearest_name(name: str, known: Iterable[str]) -> str:
    """Half a sentence for an error message: the nearest known name, or all of them.

    >>> nearest_name("lerning_rate", ["learning_rate", "steps"])
    "did you mean 'learning_rate'?"
    >>> nearest_name("x", ["learning_rate", "steps"])
    'known are learning_rate, steps'
    """
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"


def require_known(field: str, name: str, known: Iterable[str]) -> str:
    """`name` if it is known.

    Raises:
      ConfigError: it is not; the message names the field and the nearest known name.
    """
    known = list(known)
    if name not in known:
        raise ConfigError(f"{field} is {name!r}; {nearest_name(name, known)}")
    return name
