"""The base of transforms that hide weights: masks, when they are chosen anew, and how they are stored."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from modelzip_jax import tree as trees
from modelzip_jax.by_shape import map_by_shape
from modelzip_jax.concrete import traced_once
from modelzip_jax.errors import TransformError
from modelzip_jax.latents import latent
from modelzip_jax.leaf_checks import check_floating
from modelzip_jax.masking.allocation import Allocation, Part, resolve
from modelzip_jax.masking.bitmask import host_mask, pack_mask, share_of_bits, share_of_changes, unpack_mask
from modelzip_jax.masking.masked import Masked
from modelzip_jax.masking.schedules import Schedule, as_schedule
from modelzip_jax.masking.scores import Score
from modelzip_jax.masking.structures import Structure, unstructured
from modelzip_jax.meshes import sharded_as
from modelzip_jax.packed import is_packed, narrowed, widened
from modelzip_jax.stacking import LayerAxes, check_layers, stacked, stacked_axes, unstacked
from modelzip_jax.transform import Context, Encoded, Rate, Transform
from modelzip_jax.tree import PyTree, Static

__all__ = ["Masking", "PruneState", "check_told", "nowhere"]


class PruneState(NamedTuple):
    """masks: uint8 `(..., ceil(n / 8))` a leaf, one bit a weight.

    churn: float32 scalar, the share of mask bits that the last refresh changed.
    dtypes: each leaf's dtype before encoding (static). memory: what the scores remember.
    thresholds: uint32 `(leaves,)`: where the last refresh found each leaf's threshold (a global one in the
    first place), and the next one begins to search; 0: nowhere yet.
    """

    masks: PyTree
    churn: jax.Array
    dtypes: PyTree
    memory: PyTree
    thresholds: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Masking(Transform, abc.ABC):
    """A mask a leaf, chosen at `init` and anew at steps that a schedule says. The rest is a subclass's.

    score, sparsity, allocation, every, structure, remember, layers: as in `prune`.
    """

    score: Score
    sparsity: float | Schedule | Callable[[Any], jax.Array] | None
    allocation: str | Allocation
    every: int
    structure: Structure = unstructured()
    remember: bool = True
    layers: LayerAxes = ()

    @abc.abstractmethod
    def start(self, weights: PyTree) -> PyTree:
        """What scores remember before the first step."""

    @abc.abstractmethod
    def observe(self, memory: PyTree, weights: PyTree, context: Context) -> PyTree:
        """What scores remember after a step."""

    @abc.abstractmethod
    def first_masks(self, weights: PyTree, context: Context) -> tuple[PyTree, jax.Array]:
        """The first masks, packed, and where their thresholds are."""

    @abc.abstractmethod
    def due(self, step: jax.Array) -> jax.Array:
        """Whether masks are chosen anew at a step."""

    @abc.abstractmethod
    def chosen(
        self, weights: PyTree, context: Context, memory: PyTree, masks: PyTree, near: jax.Array
    ) -> tuple[PyTree, jax.Array]:
        """New masks, packed, and where their thresholds are; `near` is where they were."""

    @property
    def hides(self) -> bool:
        return True

    @property
    def remasks(self) -> bool:
        return self.every > 0

    @property
    def moves_latents(self) -> bool:
        return self.every > 0 and not self.remember

    @property
    def schedule(self) -> Schedule | None:
        """The sparsity as a function of the step."""
        return None if self.sparsity is None else as_schedule(self.sparsity)

    def amount(self, step: Any) -> jax.Array:
        """The sparsity at a step; of a budget, how much of the way to it is gone."""
        return resolve(self.allocation).amount(self.schedule, step)

    def init(self, weights: PyTree, context: Context) -> Encoded:
        check_floating(weights, "prune")
        check_layers(self.layers, weights)
        dtypes = jax.tree.map(lambda x: Static(str(jnp.result_type(x))), weights)
        latents = jax.tree.map(latent, weights)
        masks, near = self.first_masks(latents, context)
        latents = latents if self.remember else jax.tree.map(_silenced, latents, masks)
        churn = jnp.zeros((), jnp.float32)
        return Encoded(latents, (), PruneState(masks, churn, dtypes, self.start(latents), near))

    def decode(self, encoded: Encoded) -> PyTree:
        return jax.tree.map(_decode, encoded.latents, encoded.state.masks, encoded.state.dtypes)

    def update(self, encoded: Encoded, context: Context) -> Encoded:
        if self.every == 0:
            return encoded
        latents, _, state = encoded
        memory = _finite(self.observe(state.memory, latents, context), state.memory)

        def refresh(old: PyTree, near: jax.Array) -> tuple[PyTree, jax.Array, jax.Array]:
            new, place = self.chosen(latents, context, memory, old, near)
            return new, share_of_changes(old, new, latents), place

        def rest(old: PyTree, near: jax.Array) -> tuple[PyTree, jax.Array, jax.Array]:
            return old, state.churn, near

        masks, churn, near = jax.lax.cond(
            self.due(context.step), refresh, rest, state.masks, state.thresholds
        )
        latents = latents if self.remember else jax.tree.map(_silenced, latents, masks)
        return Encoded(latents, (), PruneState(masks, churn, state.dtypes, memory, near))

    def follow(self, encoded: Encoded, context: Context) -> Context:
        def unpacked(value: jax.Array, bits: jax.Array) -> jax.Array:
            return sharded_as(unpack_mask(bits, jnp.shape(value)), value)

        kept = jax.tree.map(unpacked, encoded.latents, encoded.state.masks)
        before = context.support
        return context.replace(
            support=kept if before is None else jax.tree.map(jnp.logical_and, kept, before)
        )

    def pack(self, encoded: Encoded, inner: PyTree) -> PyTree:
        def wrap(value: Any, bits: jax.Array, dtype: Static, packed: Any) -> Masked:
            return Masked.of(host_mask(bits, jnp.shape(value)), narrowed(packed, dtype.value), dtype.value)

        return jax.tree.map(wrap, encoded.latents, encoded.state.masks, encoded.state.dtypes, inner)

    def resume(self, packed: PyTree) -> tuple[PyTree, PruneState, PyTree]:
        def over(function: Callable[[Masked], Any]) -> PyTree:
            return jax.tree.map(function, packed, is_leaf=is_packed)

        like = over(lambda p: jax.ShapeDtypeStruct(p.shape, jnp.float32))
        state = PruneState(
            over(lambda p: pack_mask(p.positions())), jnp.zeros((), jnp.float32),
            over(lambda p: Static(p.dtype)), self.start(like), nowhere(like),
        )  # fmt: skip
        return (), state, over(lambda p: widened(p.expanded()))

    def rate(self, encoded: Encoded, inner: PyTree) -> PyTree:
        def thin(value: jax.Array, bits: jax.Array, r: Rate) -> Rate:
            mask = unpack_mask(bits, jnp.shape(value))
            side = jnp.size(value) * _entropy(share_of_bits(bits, value))
            return Rate(jnp.where(mask, r.elements, 0.0), r.side + side)

        return jax.tree.map(thin, encoded.latents, encoded.state.masks, inner)

    def metrics(self, encoded: Encoded) -> dict[str, jax.Array]:
        kept = share_of_bits(encoded.state.masks, encoded.latents)
        return {"sparsity": 1.0 - kept, "mask_churn": encoded.state.churn}

    def parts(self, weights: PyTree, grouped: list[jax.Array]) -> list[Part]:
        """The leaves as an allocation sees them, given their groups."""
        found = []
        for (name, leaf), groups in zip(trees.named_leaves(weights), grouped, strict=True):
            shape = tuple(jnp.shape(leaf))
            axes = stacked_axes(self.layers, name, shape)
            rest = tuple(n for axis, n in enumerate(shape) if axis not in axes)
            layers = len(groups) if axes else None
            found.append(Part(name, rest, groups.size // max(layers or 1, 1), layers))
        return found

    def grouped(self, scores: PyTree) -> list[jax.Array]:
        """The scores of the groups of each leaf, `(layers, *groups)` of stacked ones."""

        def group(name: str, x: jax.Array) -> jax.Array:
            axes = stacked_axes(self.layers, name, x.shape)
            return jax.vmap(self.structure.group)(stacked(x, axes)) if axes else self.structure.group(x)

        return jax.tree.leaves(trees.map_named(group, scores))

    def spread(self, weights: PyTree, kept: list[jax.Array]) -> PyTree:
        """The packed masks of the groups that each leaf keeps."""

        def spread(where: tuple[Any, ...], kept: jax.Array) -> jax.Array:
            axes, shape = where
            if not axes:
                return pack_mask(self.structure.spread(kept, shape))
            rest = tuple(n for axis, n in enumerate(shape) if axis not in axes)
            return pack_mask(unstacked(jax.vmap(lambda k: self.structure.spread(k, rest))(kept), axes, shape))

        shapes = [(name, jnp.shape(leaf)) for name, leaf in trees.named_leaves(weights)]
        places = [(stacked_axes(self.layers, *one), one[1]) for one in shapes]
        return jax.tree.unflatten(jax.tree.structure(weights), map_by_shape(spread, kept, labels=places))


def check_told(scores: Iterable[Score], context: Context) -> None:
    """Raises `TransformError` if scores lack what they read when masks are chosen anew."""
    for score in scores:
        missing = context.lacks(score.needs)
        if missing:
            raise TransformError(
                f"the score {type(score).__name__} needs {', '.join(missing)} to choose masks anew: pass them to "
                "mz.wrap(..., given={...}) for all steps, or to each tx.update(...), or take every=0"
            )


def nowhere(weights: PyTree) -> jax.Array:
    """No threshold known of any leaf."""
    return jnp.zeros(len(jax.tree.leaves(weights)), jnp.uint32)


def _finite(new: PyTree, old: PyTree) -> PyTree:
    """What is remembered, where it is finite: one gradient of NaN must not be felt for ever."""

    def choose(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.where(jnp.isfinite(a), a, b) if jnp.issubdtype(a.dtype, jnp.floating) else a

    return jax.tree.map(choose, new, old)


@traced_once()
def _silenced(value: jax.Array, bits: jax.Array) -> jax.Array:
    return jnp.where(unpack_mask(bits, jnp.shape(value)), value, jnp.zeros((), value.dtype))


def _decode(value: jax.Array, bits: jax.Array, dtype: Static) -> jax.Array:
    return _silenced(value, bits).astype(dtype.value)


def _entropy(p: jax.Array) -> jax.Array:
    """Bits of a binary choice with probability p."""
    q = jnp.stack([p, 1.0 - p])
    return -jnp.sum(jnp.where(q > 0, q * jnp.log2(jnp.maximum(q, 1e-30)), 0.0))
