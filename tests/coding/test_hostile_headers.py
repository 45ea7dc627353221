"""Headers in which one thing stands for another: refused in words, or a model; soon, and in little memory."""

import importlib.util
from pathlib import Path

import pytest

from modelzip_jax.packed import kinds

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("fuzz", ROOT / "scripts" / "fuzz.py")
fuzz = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(fuzz)

VALUES = [
    -1, 0, 1, 255, 2**20, 2**31, 2**62, 0.5, float("nan"), None, True, "", "float64", "O", "(9,)f4", "haar", b"\0", [],
    {}, [[2**40]], {"a": None}, [0, "float32", 2**20, 2**20],
]  # fmt: skip
"""What an attacker writes where something else is meant: other types, negative, empty, of sizes that nobody has."""
TRIED = 300


def places(item, at=()):
    """The way to everything in plain data."""
    yield at
    if isinstance(item, dict | list):
        for key in item if isinstance(item, dict) else range(len(item)):
            yield from places(item[key], (*at, key))


def replaced(item, at, value):
    if not at:
        return value
    copy = item.copy()
    copy[at[0]] = replaced(item[at[0]], at[1:], value)
    return copy


def corpus():
    """As few files as have every packed kind, the smallest first."""
    left, found = {tag for tag, kind in kinds.items() if kind.__module__.startswith("modelzip_jax.")}, []
    files = [*ROOT.glob("tests/golden/*.mz"), ROOT / "tests" / "fuzz" / "seeds" / "linear.mz"]
    for path in sorted(files, key=lambda path: path.stat().st_size):
        parts = fuzz.parts(path.read_bytes())
        here = {tag for tag in left if f"'{tag}'" in repr(parts[1][4])}
        if here:
            left -= here
            found.append(parts)
    assert not left
    return found


def headers():
    for version, meta, tables, pieces in corpus():
        for at in places(meta):
            for value in VALUES:
                yield version, replaced(meta, at, value), tables, pieces


def check(path, cases):
    for version, meta, tables, pieces in cases:
        path.write_bytes(fuzz.joined(version, meta, tables, pieces))
        assert fuzz.fault(path) is None, meta


def test_three_hundred(tmp_path):
    cases = list(headers())
    assert len(cases) > 10 * TRIED
    check(tmp_path / "x.mz", cases[:: len(cases) // TRIED])


@pytest.mark.slow
def test_all_of_them(tmp_path):
    check(tmp_path / "x.mz", headers())
