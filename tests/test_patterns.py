"""Patterns: their meaning, and that no pattern takes long."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelzip_jax.patterns import matches

PARTS = st.lists(st.sampled_from(["**", "*", "a", "b", "a*", "*b", "a*b", "?", "*a*b*", ""]), max_size=6)
NAMES = st.text("ab/\n", max_size=14)


def meant(pattern):
    """The plain translation, which may take exponential time."""
    parts, segments = [], pattern.split("/")
    for index, part in enumerate(segments):
        last = index == len(segments) - 1
        if part == "**":
            parts.append(".*" if last else "(?:.*/)?")
            continue
        parts.append("".join("[^/]*" if c == "*" else "[^/]" if c == "?" else re.escape(c) for c in part))
        parts.append("" if last else "/")
    return re.compile("".join(parts) + r"\Z", re.DOTALL)


@given(PARTS, NAMES)
def test_the_same_as_the_plain_translation(parts, name):
    pattern = "/".join(parts)
    assert matches(pattern, name) == (meant(pattern).match(name) is not None)


@pytest.mark.parametrize(
    "pattern",
    ["**/" * 10 + "b", "**/" * 300 + "b", "**/a/" * 40 + "b", "*a" * 40 + "b", "**/*a*a*/" * 20 + "b"],
)
def test_hostile_patterns_end(pattern):
    """Were the time exponential, in centuries."""
    assert not matches(pattern, "a/" * 200 + "a" * 300)
