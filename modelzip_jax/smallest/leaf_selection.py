"""Which leaves a search leaves alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from modelzip_jax import tree as trees
from modelzip_jax.errors import TransformError
from modelzip_jax.patterns import matches, require_matches
from modelzip_jax.tree import PyTree

__all__ = ["kept_names", "path_patterns"]


def path_patterns(given: str | Sequence[str], option: str) -> tuple[str, ...]:
    """One path pattern or several as a tuple.

    Raises:
      TransformError: something else.

    >>> path_patterns("head/**", "keep")
    ('head/**',)
    """
    several = isinstance(given, Iterable) and not isinstance(given, str)
    patterns: tuple[Any, ...] = tuple(given) if several else (given,)
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise TransformError(f"{option}= takes path patterns such as 'head/**', not {given!r:.100}")
    return patterns


def kept_names(params: PyTree, only: Sequence[str], min_ndim: int, keep: Sequence[str]) -> tuple[str, ...]:
    """The names of leaves that match none of `only`, if there are any, or one of `keep`, or have fewer axes.

    Raises:
      PatternError: a pattern matches nothing.

    >>> kept_names({"bias": np.zeros(2), "head": np.eye(2), "kernel": np.eye(2)}, (), 2, ("head",))
    ('bias', 'head')
    """
    leaves = trees.named_leaves(params)
    require_matches((*keep, *only), [name for name, _ in leaves])

    def kept(name: str, leaf: Any) -> bool:
        wanted = not only or any(matches(pattern, name) for pattern in only)
        return not wanted or np.ndim(leaf) < min_ndim or any(matches(pattern, name) for pattern in keep)

    return tuple(name for name, leaf in leaves if kept(name, leaf))
