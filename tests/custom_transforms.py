"""Transforms as a user would write them: latents of another shape, and latents that are subtrees."""

import dataclasses

import jax
import jax.numpy as jnp

import modelzip_jax as mz
from modelzip_jax.packed import PackedArray, is_packed, static
from modelzip_jax.transform import Encoded
from modelzip_jax.tree import Static

HALVES = jnp.float32(0.70710677)


@mz.recordable
@dataclasses.dataclass(frozen=True)
class Rotate(mz.Linear):
    """Orthogonal, on pairs: (a, b) -> (a + b, a - b) / sqrt(2); a leaf of an even size to a vector."""

    def analysis(self, w, leaf):
        pairs = w.reshape(-1, 2)
        return jnp.concatenate([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]]) * HALVES

    def synthesis(self, z, leaf):
        first, second = jnp.split(z, 2)
        return (jnp.stack([first + second, first - second], axis=1) * HALVES).reshape(leaf.value)


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
class LowRank(mz.Reparametrization):
    """A matrix becomes a subtree of two factors."""

    rank: int

    def init(self, weights, context):
        # A marker a leaf tells where the subtrees of factors are.
        marks = jax.tree.map(lambda x: Static("factored"), weights)
        return Encoded(jax.tree.map(lambda x: _factors(x, self.rank), weights), (), marks)

    def _map(self, function, state, *trees):
        return jax.tree.map(
            lambda _, *x: function(*x), state, *trees, is_leaf=lambda x: isinstance(x, Static)
        )

    def relaxed(self, encoded):
        return self._map(lambda f: _product(f["left"], f["right"]), encoded.state, encoded.latents)

    def encode(self, weights, encoded):
        return self._map(lambda x: _factors(x, self.rank), encoded.state, weights)

    def pack(self, encoded, inner):
        def pair(f, p):
            return Pair(p["left"], p["right"], (f["left"].shape[0], f["right"].shape[1]))

        return self._map(pair, encoded.state, encoded.latents, inner)

    def resume(self, packed):
        marks = jax.tree.map(lambda p: Static("factored"), packed, is_leaf=is_packed)
        inner = jax.tree.map(lambda p: {"left": p.left, "right": p.right}, packed, is_leaf=is_packed)
        return (), marks, inner
