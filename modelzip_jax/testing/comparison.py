"""Comparison of trees to the last bit, for `mz.testing`; failures name the law, the leaf, the difference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax import packing
from modelzip_jax import tree as trees
from modelzip_jax.packed import is_packed
from modelzip_jax.transform import Encoded, Transform, dense
from modelzip_jax.tree import PyTree

__all__ = ["Case", "host", "spacing"]


_NAMES = {
    0: "pure, finite, of the params' shapes and dtypes",
    1: "what you train is what you ship",
    2: "what you ship is what you read",
    3: "resume",
    4: "chains compose",
    5: "jit once",
    6: "smaller means smaller",
}


class Case(NamedTuple):
    """One encoded tree, and what it was begun with; `when` describes it in messages."""

    transform: Transform
    params: PyTree
    encoded: Encoded
    given: Mapping[str, Any]
    ulp: int
    when: str

    def decode(self) -> PyTree:
        return self.transform.decode(self.encoded)

    def pack(self) -> packing.Packed:
        stored = self.transform.pack(self.encoded, dense(self.encoded.latents))
        return packing.assembled(trees.overlay(self.params, stored, is_packed), self.transform, 0)

    def fail(self, law: int, problem: str) -> NoReturn:
        raise AssertionError(
            f"law {law} ({_NAMES[law]}), {self.when}: {problem}; transform: {self.transform}"
        )

    def same(self, law: int, actual: PyTree, expected: PyTree, what: str, ulp: int = 0) -> None:
        """Fails unless two trees are equal: structure, dtypes, shapes, and values within `ulp`."""
        self.alike(law, actual, expected, what)
        for (name, a), b in zip(trees.named_leaves(actual), jax.tree.leaves(expected), strict=True):
            difference = _difference(host(a), host(b), ulp)
            if difference:
                self.fail(law, f"leaf {name!r}: {what}: {difference}")

    def alike(self, law: int, actual: PyTree, expected: PyTree, what: str) -> None:
        """Fails unless two trees have one structure, and their leaves one shape and dtype."""
        structures = jax.tree.structure(actual), jax.tree.structure(expected)
        if structures[0] != structures[1]:
            self.fail(law, f"{what}: the structure is {structures[0]}, not {structures[1]}")
        for (name, a), b in zip(trees.named_leaves(actual), jax.tree.leaves(expected), strict=True):
            found, wanted = _aval(a), _aval(b)
            if found != wanted:
                self.fail(law, f"leaf {name!r}: {what}: {found}, not {wanted}")


def _aval(x: Any) -> str:
    return f"{jnp.result_type(x) if not hasattr(x, 'dtype') else x.dtype}{list(jnp.shape(x))}"


def host(x: Any) -> np.ndarray:
    """The leaf as a NumPy array; random keys as their bits."""
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    return np.asarray(x)


def _difference(a: np.ndarray, b: np.ndarray, ulp: int) -> str:
    """What differs between arrays of one shape and dtype; empty if nothing."""
    if a.tobytes() == b.tobytes():
        return ""
    if jnp.issubdtype(a.dtype, jnp.floating):
        wide = a.astype(np.float64), b.astype(np.float64)
        away = np.abs(wide[0] - wide[1])
        unit = spacing(np.max(np.abs(wide[1]), initial=0.0), a.dtype)
        if ulp and np.all(away <= ulp * unit):
            return ""
        signs = np.signbit(wide[0]) != np.signbit(wide[1])  # A zero may differ in its sign only.
        where = np.unravel_index(int(np.argmax(away if away.any() else signs)), away.shape)
        size = f"by up to {np.max(away) / unit:.3g} ulp of its largest magnitude, "
    else:
        where = np.unravel_index(int(np.argmax(a != b)), a.shape)
        size = ""
    return (
        f"{np.sum(a != b)} of {a.size} values differ {size}such as {a[where]} instead of {b[where]} "
        f"at {tuple(int(i) for i in where)}"
    )


def spacing(magnitude: Any, dtype: Any) -> Any:
    """The distance of neighbouring numbers of a dtype at a magnitude, float64."""
    info = jnp.finfo(dtype)
    return np.exp2(np.floor(np.log2(np.maximum(magnitude, float(info.tiny)))) - info.nmant)
