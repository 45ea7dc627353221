"""Path patterns, by which leaves are chosen."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence

from modelzip_jax.errors import PatternError
from modelzip_jax.suggestions import listed, similar

__all__ = ["matches", "require_matches"]


@functools.lru_cache(maxsize=1 << 12)
def _regex(pattern: str) -> re.Pattern[str]:
    """Time O(pattern · name): of what lies between two wildcards the first place will do, so none is tried twice."""
    blocks: list[list[str]] = [[]]
    for part in pattern.split("/"):
        if part == "**":
            blocks.append([])
        else:
            blocks[-1].append(_segment(part))
    first, *rest = blocks
    if not rest:
        return re.compile("/".join(first) + r"\Z")
    whole = [f"{part}/" for part in first]
    whole += [rf"(?>(?:[^/]*/)*?{''.join(f'{part}/' for part in block)})" for block in rest[:-1] if block]
    whole += [rf"(?:[^/]*/)*?{'/'.join(rest[-1])}\Z"] if rest[-1] else []
    return re.compile("".join(whole))


def _segment(part: str) -> str:
    first, *rest = ("".join("[^/]" if c == "?" else re.escape(c) for c in piece) for piece in part.split("*"))
    middle = "".join(f"(?>[^/]*?{piece})" for piece in rest[:-1] if piece)
    return first + middle + (f"[^/]*{rest[-1]}" if rest else "")


def matches(pattern: str, name: str) -> bool:
    """Whether a leaf's name matches a pattern: `*` and `?` stay in a segment, `**` crosses.

    >>> matches("**/kernel", "kernel"), matches("*/kernel", "a/b/kernel")
    (True, False)
    >>> matches("encoder/**", "encoder/layer_0/kernel"), matches("**", "bias")
    (True, True)
    """
    return _regex(pattern).match(name) is not None


def require_matches(patterns: Iterable[str], names: Sequence[str]) -> None:
    """Raises `PatternError` for a pattern that matches none of the names; lists them and suggests one that does.

    >>> require_matches(["*/kernal"], ["a/kernel", "b/kernel"])
    Traceback (most recent call last):
    modelzip_jax.errors.PatternError: pattern '*/kernal' matches no leaf; did you mean '*/kernel'? ...
    """
    for pattern in patterns:
        if not any(matches(pattern, name) for name in names):
            shown = (
                "(one leaf without a path, as within optax.flatten, which goes into mz.wrap)"
                if list(names) == [""]
                else listed(names, 12)
            )
            meant = similar(pattern, names, matches)
            raise PatternError(
                f"pattern {pattern!r} matches no leaf{f'; did you mean {meant!r}?' if meant else ';'} '*' stays within "
                f"a path segment and '**' crosses them; the paths are: {shown or '(the tree has no leaves)'}"
            )
