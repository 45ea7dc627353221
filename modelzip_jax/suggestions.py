"""What somebody may have meant by a path pattern that matches nothing."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence

__all__ = ["listed", "similar"]


def similar(pattern: str, names: Sequence[str], matches: Callable[[str, str], bool]) -> str | None:
    """A pattern like this one that matches some of the names, if there is one.

    >>> from modelzip_jax.patterns import matches
    >>> similar("**attention**", ["encoder/self_attention/kernel"], matches)
    '**/*attention*/**'
    >>> similar("**/Wieght", ["bn/weight", "head/weight"], matches)
    '**/weight'
    """
    for text in dict.fromkeys(
        (pattern, pattern.replace(".", "/"), _respelt(pattern.replace(".", "/"), names))
    ):
        # "**" is only special as a whole segment: within one, people mean a "*" that crosses.
        parts = [re.sub(r"\*{2,}", "*", part) if part != "**" else part for part in text.split("/")]
        core = "/".join(part for part in parts if part).removeprefix("**/").removesuffix("/**")
        loose = "/".join(part if "*" in part else f"*{part}*" for part in core.split("/"))
        for tried in (core, loose):
            for wrapped in (tried, f"{tried}/**", f"**/{tried}", f"**/{tried}/**"):
                if any(matches(wrapped, name) for name in names):
                    return wrapped
    close = difflib.get_close_matches(pattern, names, 1)
    return close[0] if close else None


def _respelt(pattern: str, names: Sequence[str]) -> str:
    """The pattern with each segment that no path has replaced by the most similar one, if there is one."""
    known = {part.lower(): part for name in names for part in name.split("/")}

    def nearest(part: str) -> str:
        if "*" in part or part in known.values():
            return part
        close = difflib.get_close_matches(part.lower(), known, 1, cutoff=0.7)
        return known[close[0]] if close else part

    return "/".join(map(nearest, pattern.split("/")))


def listed(names: Sequence[str], count: int = 5) -> str:
    """Names for a message, the first ones if there are many."""
    return ", ".join(names[:count]) + (f", … ({len(names)} paths)" if len(names) > count else "")
