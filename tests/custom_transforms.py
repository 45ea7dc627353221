"""Transforms as a user would write them: latents of another shape, and latents that are subtrees."""

import dataclasses
import math

import jax
import jax.numpy as jnp

import modelzip_jax as mz
from modelzip_jax.packed import PackedArray, is_packed, static
from modelzip_jax.transform import Encoded, Rate
from modelzip_jax.tree import Static

HALVES = jnp.float32(0.70710677)


def _rotate(x):
    """Orthogonal, on pairs: (a, b) -> (a + b, a - b) / sqrt(2); a matrix to a vector."""
    pairs = x.reshape(-1, 2)
    return jnp.concatenate([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]]) * HALVES


def _rotate_back(y, shape):
    first, second = jnp.split(y, 2)
    return (jnp.stack([first + second, first - second], axis=1) * HALVES).reshape(shape)


def _evenly(bits, shape):
    return Rate(jnp.full(shape, bits / math.prod(shape)), jnp.zeros(()))


@mz.packed_kind("test-rotated")
class Rotated(PackedArray):
    inner: PackedArray
    shape: tuple[int, ...] = static()

    def unpack(self):
        return _rotate_back(self.inner.unpack(), self.shape)


@mz.recordable
@dataclasses.dataclass(frozen=True)
class Rotate(mz.Transform):
    """An orthogonal analysis: leaves of an even size become vectors of coefficients."""

    def init(self, values, **extra):
        shapes = jax.tree.map(lambda x: Static(jnp.shape(x)), values)
        return Encoded(jax.tree.map(_rotate, values), (), shapes)

    def analysis(self, values, state):
        return jax.tree.map(_rotate, values)

    def synthesis(self, values, state):
        return jax.tree.map(lambda x, s: _rotate_back(x, s.value), values, state)

    def decode(self, values, extras, state):
        return self.synthesis(values, state)

    def pack(self, values, extras, state, inner):
        return jax.tree.map(lambda _, s, p: Rotated(p, s.value), values, state, inner)

    def resume(self, packed):
        shapes = jax.tree.map(lambda p: Static(p.shape), packed, is_leaf=is_packed)
        return (), shapes, jax.tree.map(lambda p: p.inner, packed, is_leaf=is_packed)

    def rate(self, values, extras, state, inner):
        def spread(s, r):
            return _evenly(r.total(), s.value)

        return jax.tree.map(spread, state, inner, is_leaf=lambda x: isinstance(x, Static))


@mz.packed_kind("test-pair")
class Pair(PackedArray):
    left: PackedArray
    right: PackedArray
    shape: tuple[int, ...] = static()

    def unpack(self):
        return _product(self.left.unpack(), self.right.unpack())


def _product(left, right):
    return jnp.matmul(left, right, precision="highest")


def _factors(x, rank):
    u, s, v = jnp.linalg.svd(x, full_matrices=False)
    return {"left": u[:, :rank] * s[:rank], "right": v[:rank]}


@mz.recordable
@dataclasses.dataclass(frozen=True)
class LowRank(mz.Transform):
    """A matrix becomes a subtree of two factors."""

    rank: int

    def init(self, values, **extra):
        # A marker a leaf tells where the subtrees of factors are.
        marks = jax.tree.map(lambda x: Static("factored"), values)
        return Encoded(jax.tree.map(lambda x: _factors(x, self.rank), values), (), marks)

    def _map(self, function, state, *trees):
        return jax.tree.map(
            lambda _, *x: function(*x), state, *trees, is_leaf=lambda x: isinstance(x, Static)
        )

    def analysis(self, values, state):
        return self._map(lambda x: _factors(x, self.rank), state, values)

    def synthesis(self, values, state):
        return self._map(lambda f: _product(f["left"], f["right"]), state, values)

    def decode(self, values, extras, state):
        return self.synthesis(values, state)

    def pack(self, values, extras, state, inner):
        def pair(f, p):
            return Pair(p["left"], p["right"], (f["left"].shape[0], f["right"].shape[1]))

        return self._map(pair, state, values, inner)

    def resume(self, packed):
        marks = jax.tree.map(lambda p: Static("factored"), packed, is_leaf=is_packed)
        inner = jax.tree.map(lambda p: {"left": p.left, "right": p.right}, packed, is_leaf=is_packed)
        return (), marks, inner

    def rate(self, values, extras, state, inner):
        def both(f, r):
            shape = f["left"].shape[0], f["right"].shape[1]
            return _evenly(r["left"].total() + r["right"].total(), shape)

        return self._map(both, state, values, inner)
