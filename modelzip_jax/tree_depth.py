"""How deep a tree may be: what walks it, ours and JAX's, does so by recursion."""

from __future__ import annotations

from typing import Any

from modelzip_jax.errors import TreeError

__all__ = ["MAX_TREE_DEPTH", "check_depth"]

MAX_TREE_DEPTH = 254
"""Levels of containers: with "params" above, as many as a file holds."""


def check_depth(tree: Any) -> None:
    """Raises `TreeError` for dicts, lists and tuples that are nested too deeply; takes no stack itself.

    >>> tree = {}
    >>> for _ in range(2000):
    ...     tree = {"a": tree}
    >>> check_depth(tree)
    Traceback (most recent call last):
    modelzip_jax.errors.TreeError: the tree is more than 254 levels deep, which is as many as a file can hold
    """
    level = [tree]
    for _ in range(MAX_TREE_DEPTH + 1):
        level = [
            child
            for node in level
            if isinstance(node, dict | list | tuple)
            for child in (node.values() if isinstance(node, dict) else node)
        ]
        if not level:
            return
    raise TreeError(
        f"the tree is more than {MAX_TREE_DEPTH} levels deep, which is as many as a file can hold"
    )
