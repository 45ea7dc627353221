"""What somebody may have meant by a path pattern that matches nothing."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence

__all__ = ["similar"]


def similar(pattern: str, names: Sequence[str], matches: Callable[[str, str], bool]) -> str | None:
    """A pattern like this one that matches some of the names, if there is one.

    >>> from modelzip_jax.tree import matches
    >>> similar("**attention**", ["encoder/self_attention/kernel"], matches)
    '**/*attention*/**'
    """
    for text in dict.fromkeys((pattern, pattern.replace(".", "/"))):
        # "**" is only special as a whole segment: within one, people mean a "*" that crosses.
        parts = [re.sub(r"\*{2,}", "*", part) if part != "**" else part for part in text.split("/")]
        core = "/".join(parts).removeprefix("**/").removesuffix("/**")
        loose = "/".join(part if "*" in part else f"*{part}*" for part in core.split("/"))
        for tried in (core, loose):
            for wrapped in (tried, f"{tried}/**", f"**/{tried}", f"**/{tried}/**"):
                if any(matches(wrapped, name) for name in names):
                    return wrapped
    close = difflib.get_close_matches(pattern, names, 1)
    return close[0] if close else None
