"""Transforms that are linear maps of each leaf: all but two functions is derived."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from modelzip_jax import tree as trees
from modelzip_jax.errors import RecipeError, TransformError
from modelzip_jax.latents import latent
from modelzip_jax.leaf_checks import check_finite, check_floating
from modelzip_jax.packed import PackedArray, is_packed, packed_kind, static
from modelzip_jax.recipe import from_plain, to_plain
from modelzip_jax.transform import Context, Encoded, Reparametrization
from modelzip_jax.tree import PyTree, Static

__all__ = ["Linear", "LinearState", "Synthesized"]

_PROBES = 64


class LinearState(NamedTuple):
    """maps: what each leaf's linear map depends on beside the hyperparameters. dtypes: of the weights (static)."""

    maps: PyTree
    dtypes: PyTree


@dataclasses.dataclass(frozen=True)
class Linear(Reparametrization):
    """Latents that are linear in the weights, leaf by leaf.

    Subclasses define `analysis` and `synthesis`, and `prepare` where the map depends on a leaf's values or
    name. What `prepare` gives is a `Static`, or else the subclass says how it is stored: `pack` and `resume`.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Reversed(Linear):
    ...     def analysis(self, w, leaf):
    ...         return w[::-1]
    ...
    ...     def synthesis(self, z, leaf):
    ...         return z[::-1]
    >>> encoded = Reversed().init({"w": jnp.array([1.0, 2.0])}, Context())
    >>> encoded.latents, Reversed().decode(encoded)
    ({'w': Array([2., 1.], dtype=float32)}, {'w': Array([1., 2.], dtype=float32)})
    """

    def prepare(self, name: str, w: jax.Array) -> Any:
        """What the map of a leaf depends on: its shape (static), unless overridden."""
        return Static(tuple(jnp.shape(w)))

    def analysis(self, w: jax.Array, leaf: Any) -> jax.Array:
        """Weights to latents; `leaf` is what `prepare` gave."""
        raise TransformError(f"{type(self).__name__} defines no analysis()")

    def synthesis(self, z: jax.Array, leaf: Any) -> jax.Array:
        """Latents to weights: linear, and the inverse of `analysis` on its range."""
        raise TransformError(f"{type(self).__name__} defines no synthesis()")

    def init(self, weights: PyTree, context: Context) -> Encoded:
        check_floating(weights, type(self).__name__)
        maps = trees.map_named(self.prepare, weights)
        dtypes = jax.tree.map(lambda w: Static(str(jnp.result_type(w))), weights)
        latents = jax.tree.map(lambda w, leaf: self.analysis(latent(w), leaf), weights, maps)
        check_finite(latents)  # Sums of the largest floats are none.
        return Encoded(latents, (), LinearState(maps, dtypes))

    def relaxed(self, encoded: Encoded) -> PyTree:
        return jax.tree.map(self.synthesis, encoded.latents, encoded.state.maps)

    def encode(self, weights: PyTree, encoded: Encoded) -> PyTree:
        return jax.tree.map(self.analysis, weights, encoded.state.maps)

    def decode(self, encoded: Encoded) -> PyTree:
        return jax.tree.map(lambda w, d: w.astype(d.value), self.relaxed(encoded), encoded.state.dtypes)

    def follow(self, encoded: Encoded, context: Context) -> Context:
        importance = context.importance
        if importance is not None:
            importance = jax.tree.map(self.importance, encoded.latents, importance, encoded.state.maps)
        return super().follow(encoded, context).replace(importance=importance)

    def importance(self, z: jax.Array, weights: jax.Array, leaf: Any) -> jax.Array:
        """The importance of latents, Σ_i h_i S_ij² for weights of importance h: of an error of each alone.

        Estimated by 64 random signs r as the mean of (Sᵀ (√h r))², each within 18 % (one standard error).
        """
        weights = jnp.broadcast_to(weights, jax.eval_shape(lambda z: self.synthesis(z, leaf), z).shape)
        root = jnp.sqrt(weights.astype(z.dtype))

        def probe(total: jax.Array, key: jax.Array) -> tuple[jax.Array, None]:
            signs = jax.random.rademacher(key, root.shape, root.dtype)
            _, pull = jax.vjp(lambda z: self.synthesis(z, leaf), z)
            return total + jnp.square(pull(root * signs)[0]), None

        total, _ = jax.lax.scan(probe, jnp.zeros_like(z), jax.random.split(jax.random.key(0), _PROBES))
        return total / _PROBES

    def pack(self, encoded: Encoded, inner: PyTree) -> PyTree:
        recipe = json.dumps(to_plain(self))

        def wrap(z: Any, leaf: Any, dtype: Static, packed: PackedArray) -> Synthesized:
            if not isinstance(leaf, Static) or not isinstance(leaf.value, Hashable):
                raise TransformError(
                    f"{type(self).__name__} keeps arrays for a leaf, so it has to define pack() and resume()"
                )
            shape = jax.eval_shape(lambda z: self.synthesis(z, leaf), z).shape
            return Synthesized(packed, recipe, json.dumps(leaf.value), shape, dtype.value)

        return jax.tree.map(wrap, encoded.latents, encoded.state.maps, encoded.state.dtypes, inner)

    def resume(self, packed: PyTree) -> tuple[PyTree, PyTree, PyTree]:
        maps, dtypes, inner = (
            jax.tree.map(f, packed, is_leaf=is_packed)
            for f in (lambda p: p.leaf(), lambda p: Static(p.dtype), lambda p: p.inner)
        )
        return (), LinearState(maps, dtypes), inner


@packed_kind("linear")
class Synthesized(PackedArray):
    """`transform.synthesis(inner)`, the transform being named by its recipe.

    recipe: JSON of the transform. map: JSON of what `prepare` gave. shape, dtype: of the unpacked values.
    """

    inner: PackedArray
    recipe: str = static()
    map: str = static()
    shape: tuple[int, ...] = static()
    dtype: str = static()

    def leaf(self) -> Static:
        """What `prepare` gave for the leaf."""
        return Static(_tuples(json.loads(self.map)))

    def check(self) -> None:
        super().check()
        transform = from_plain(json.loads(self.recipe))
        if isinstance(transform, Linear) and type(transform).pack is not Linear.pack:
            raise ValueError(f"{type(transform).__name__} is stored in another form")
        hash(self.leaf().value)

    def unpack(self) -> jax.Array:
        transform = from_plain(json.loads(self.recipe))
        if not isinstance(transform, Linear):
            raise RecipeError(
                f"import the module that defines {self.recipe[:200]} before these weights are unpacked"
            )
        return transform.synthesis(self.inner.unpack(), self.leaf()).reshape(self.shape).astype(self.dtype)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
