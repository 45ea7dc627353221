"""Pruning as a transform: one score, one allocation, one schedule."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax import tree as trees
from modelzip_jax.errors import TransformError
from modelzip_jax.masking import scores as scoring
from modelzip_jax.masking.allocation import Allocation, AtMost, resolve
from modelzip_jax.masking.allocation.allocator import parts_of, shared_out
from modelzip_jax.masking.bitmask import count_bits, pack_mask, unpack_mask
from modelzip_jax.masking.host_threshold import choose_on_host
from modelzip_jax.masking.masked import Masked
from modelzip_jax.masking.structures import NOfM, Structure, unstructured
from modelzip_jax.masking.threshold import count_kept, keep_largest
from modelzip_jax.packed import Dense, PackedArray, is_packed
from modelzip_jax.recipe import recordable
from modelzip_jax.transform import Encoded, Rate, Transform
from modelzip_jax.tree import Static

__all__ = ["Prune", "PruneState", "prune"]

PyTree = Any


class PruneState(NamedTuple):
    """masks: uint8 `(..., ceil(n / 8))` a leaf, one bit a weight.

    churn: float32 scalar, the share of mask bits that the last refresh changed.
    dtypes: each leaf's dtype before encoding (static). memory: what the score remembers.
    thresholds: uint32 `(leaves,)`: where the last refresh found each leaf's threshold (a global one in the
    first place), and the next one begins to search; 0: nowhere yet.
    """

    masks: PyTree
    churn: jax.Array
    dtypes: PyTree
    memory: PyTree = ()
    thresholds: jax.Array = np.zeros(0, np.uint32)  # type: ignore[assignment]


@recordable
@dataclasses.dataclass(frozen=True)
class Prune(Transform):
    """See `prune`."""

    score: scoring.Score
    sparsity: float | Callable[[Any], jax.Array] | None
    allocation: str | Allocation
    every: int
    structure: Structure = unstructured()
    remember: bool = True

    def _sparsity(self, step: Any) -> jax.Array:
        """At a step; of a budget how much of the way to it is gone."""
        allocation = resolve(self.allocation)
        if isinstance(allocation, AtMost):
            return allocation.progress(self.sparsity if callable(self.sparsity) else None, step)
        value = self.sparsity(step) if callable(self.sparsity) else self.sparsity
        return jnp.asarray(0.0 if value is None else value, jnp.float32)

    def _masks(
        self, values: PyTree, sparsity: jax.Array, memory: PyTree, extra: dict[str, Any], near: jax.Array
    ) -> tuple[PyTree, jax.Array]:
        """The masks, packed, and where their thresholds are; `near` is where they were."""
        pointwise = self.score.pointwise() if self.structure == unstructured() else None
        found = values if pointwise else self.score(values, memory=memory, **extra)
        leaves, treedef = jax.tree.flatten(found)
        if not leaves:
            return found, near
        if isinstance(self.structure, NOfM):
            return treedef.unflatten([_packed_choice(self.structure, leaf) for leaf in leaves]), near
        grouped = self._grouped(found)
        parts, score = parts_of(values, grouped), pointwise or _same
        if isinstance(allocation := resolve(self.allocation), AtMost):
            frozen = extra.get("frozen", 0)
            kept = allocation.choose(parts, grouped, score, self.structure, sparsity, frozen)
            return self._spread(values, kept), near

        def choose(rows: list[Any], share: jax.Array) -> list[Any]:
            groups, places = (list(column) for column in zip(*rows, strict=True))
            masks, place = choose_on_host(groups, share, score) or _choose(groups, share, score, places[0])
            return list(zip(masks, [place, *places[1:]], strict=True))

        rows = list(zip(grouped, jnp.split(near, near.size), strict=True))
        found = shared_out(allocation(parts, sparsity), sparsity, rows, choose)
        return self._spread(values, [mask for mask, _ in found]), jnp.concatenate([at for _, at in found])

    def _grouped(self, tree: PyTree) -> list[jax.Array]:
        """The groups of each leaf."""
        return [self.structure.group(leaf) for leaf in jax.tree.leaves(tree)]

    def _spread(self, values: PyTree, kept: list[jax.Array]) -> PyTree:
        """The masks of the groups that each leaf keeps, packed."""
        leaves, treedef = jax.tree.flatten(values)
        spread = [self.structure.spread(k, jnp.shape(w)) for k, w in zip(kept, leaves, strict=True)]
        return treedef.unflatten([pack_mask(mask) for mask in spread])

    def _first_masks(self, values: PyTree, step: Any, extra: dict[str, Any]) -> tuple[PyTree, jax.Array]:
        near = _nowhere(values)
        missing = [name for name in self.score.needs if extra.get(name) is None]
        if not missing:
            memory = self.score.observe(self.score.start(values), values, **extra)
            return self._masks(values, self._sparsity(step), memory, extra, near)
        if not _is_zero(lambda: self._sparsity(step)) or self.structure.fixes_sparsity:
            name = type(self.score).__name__
            raise TransformError(
                f"the score {name} needs {', '.join(missing)} to choose the first masks: pass them to mz.compress or "
                "mz.start, or begin with a schedule at sparsity 0"
            )
        return jax.tree.map(lambda w: pack_mask(jnp.ones_like(w, bool)), values), near

    def init(self, values: PyTree, **extra: Any) -> Encoded:
        trees.check_floating(values, "prune")
        dtypes = jax.tree.map(lambda x: Static(str(jnp.result_type(x))), values)
        latents = jax.tree.map(trees.latent, values)
        masks, near = self._first_masks(latents, extra.pop("step", 0), extra)
        latents = latents if self.remember else jax.tree.map(_silenced, latents, masks)
        return Encoded(
            latents,
            (),
            PruneState(masks, jnp.zeros((), jnp.float32), dtypes, self._remembered(latents), near),
        )

    def decode(self, values: PyTree, extras: PyTree, state: PruneState) -> PyTree:
        return jax.tree.map(_decode, values, state.masks, state.dtypes)

    @property
    def leafwise(self) -> bool:
        return resolve(self.allocation).leafwise and self.score.pointwise() is not None

    def _due(self, step: jax.Array) -> jax.Array | bool:
        """Whether the masks are chosen anew after this step."""
        if self.every == 0:
            return False
        refreshes = getattr(self.sparsity, "refreshes", None)
        return step % self.every == 0 if refreshes is None else refreshes(step, self.every)

    def update(self, values: PyTree, extras: PyTree, state: PruneState, **extra: Any) -> Encoded:
        if self.every == 0:
            return Encoded(values, extras, state)
        step = extra["step"]
        memory = self._observed(state.memory, values, extra)

        def refresh(old: PyTree, near: jax.Array) -> tuple[PyTree, jax.Array, jax.Array]:
            new, near = self._refreshed(old, values, step, memory, extra, near)
            changed = jax.tree.map(lambda a, b: count_bits(a ^ b), old, new)
            total = sum(jnp.size(leaf) for leaf in jax.tree.leaves(values))
            return new, sum(jax.tree.leaves(changed), jnp.int32(0)) / jnp.float32(max(total, 1)), near

        def rest(old: PyTree, near: jax.Array) -> tuple[PyTree, jax.Array, jax.Array]:
            return old, state.churn, near

        masks, churn, near = jax.lax.cond(self._due(step), refresh, rest, state.masks, state.thresholds)
        values = values if self.remember else jax.tree.map(_silenced, values, masks)
        return Encoded(values, extras, PruneState(masks, churn, state.dtypes, memory, near))

    def _remembered(self, values: PyTree) -> PyTree:
        return self.score.start(values)

    def _observed(self, memory: PyTree, values: PyTree, extra: dict[str, Any]) -> PyTree:
        return self.score.observe(memory, values, **extra)

    def _refreshed(
        self, masks: PyTree, values: PyTree, step: Any, memory: PyTree, extra: Any, near: jax.Array
    ) -> tuple[PyTree, jax.Array]:
        return self._masks(values, self._sparsity(step), memory, extra, near)

    def support(self, values: PyTree, state: PruneState, before: PyTree | None) -> PyTree:
        kept = jax.tree.map(lambda v, bits: unpack_mask(bits, jnp.shape(v)), values, state.masks)
        return kept if before is None else jax.tree.map(jnp.logical_and, kept, before)

    def pack(self, values: PyTree, extras: PyTree, state: PruneState, inner: PyTree) -> PyTree:
        def wrap(value: Any, bits: jax.Array, dtype: Static, packed: Any) -> Masked:
            mask = np.asarray(unpack_mask(bits, jnp.shape(value)))
            if isinstance(packed, Dense):  # the latents may be wider than what is computed with
                packed = Dense(packed.array.astype(dtype.value), packed.shape)
            return Masked.of(mask, packed, dtype.value)

        return jax.tree.map(wrap, values, state.masks, state.dtypes, inner)

    def resume(self, packed: PyTree) -> tuple[PyTree, PruneState, PyTree]:
        masks = jax.tree.map(lambda p: pack_mask(p.positions()), packed, is_leaf=is_packed)
        dtypes = jax.tree.map(lambda p: Static(p.dtype), packed, is_leaf=is_packed)
        inner = jax.tree.map(_inner, packed, is_leaf=is_packed)
        like = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, jnp.float32), packed, is_leaf=is_packed)
        return (
            (),
            PruneState(masks, jnp.zeros((), jnp.float32), dtypes, self._remembered(like), _nowhere(like)),
            inner,
        )

    def rate(self, values: PyTree, extras: PyTree, state: PruneState, inner: PyTree) -> PyTree:
        def thin(value: jax.Array, bits: jax.Array, r: Rate) -> Rate:
            mask = unpack_mask(bits, jnp.shape(value))
            size = max(jnp.size(value), 1)
            return Rate(jnp.where(mask, r.elements, 0.0), r.side + size * _entropy(count_bits(bits) / size))

        return jax.tree.map(thin, values, state.masks, inner)

    def metrics(self, values: PyTree, extras: PyTree, state: PruneState) -> dict[str, jax.Array]:
        kept = sum((count_bits(b) for b in jax.tree.leaves(state.masks)), jnp.int32(0))
        total = max(sum(jnp.size(v) for v in jax.tree.leaves(values)), 1)
        return {"sparsity": 1.0 - kept / jnp.float32(total), "mask_churn": state.churn}


def _inner(packed: Masked) -> PackedArray:
    """What the mask was packed around, floats as latents again."""
    inner = packed.expanded()
    return Dense(trees.latent(inner.array), inner.shape) if isinstance(inner, Dense) else inner


def _is_zero(number: Callable[[], jax.Array]) -> bool:
    """Whether a number is known to be zero, also within `jit`."""
    try:
        with jax.ensure_compile_time_eval():
            return float(number()) == 0.0
    except jax.errors.JAXTypeError:
        return False


def _nowhere(values: PyTree) -> jax.Array:
    return jnp.zeros(len(jax.tree.leaves(values)), jnp.uint32)


def _same(x: jax.Array) -> jax.Array:
    return x


@functools.partial(jax.jit, static_argnums=2)
def _choose(
    arrays: list[jax.Array], sparsity: jax.Array, score: Callable[[jax.Array], jax.Array], near: jax.Array
) -> tuple[list[jax.Array], jax.Array]:
    """Masks that keep the largest scores over all of the arrays together, and the threshold: uint32 `(1,)`."""
    kept = keep_largest(arrays, count_kept(sum(x.size for x in arrays), sparsity), score, near[0])
    return kept.masks, kept.threshold[None]


@functools.partial(jax.jit, static_argnums=0)
def _packed_choice(structure: NOfM, scores: jax.Array) -> jax.Array:
    return pack_mask(structure.choose(scores))


def _silenced(value: jax.Array, bits: jax.Array) -> jax.Array:
    return jnp.where(unpack_mask(bits, jnp.shape(value)), value, 0)


def _decode(value: jax.Array, bits: jax.Array, dtype: Static) -> jax.Array:
    return _silenced(value, bits).astype(dtype.value)


def _entropy(p: jax.Array) -> jax.Array:
    """Bits of a binary choice with probability p."""
    q = jnp.stack([p, 1.0 - p])
    return -jnp.sum(jnp.where(q > 0, q * jnp.log2(jnp.maximum(q, 1e-30)), 0.0))


def prune(
    score: scoring.Score | None = None,
    *,
    sparsity: float | Callable[[Any], jax.Array] | None = None,
    allocation: str | Allocation = "uniform",
    every: int | None = None,
    structure: Structure | None = None,
    remember: bool = True,
) -> Prune:
    """Sets the weights of smallest score to zero, exactly as many as asked.

    The latents keep their values under the mask, so a weight can come back at a later refresh (see `remember`);
    meanwhile no gradient and no momentum moves them. The network computes with exact zeros; the file stores
    the mask and the kept weights only.

    Args:
      score: what to rank by; `mz.scores.magnitude()` if None.
      sparsity: share of weights set to zero, in [0, 1): a number (chosen once, at init, unless
        `every` is given), or a schedule: a function of the optimizer step.
      allocation: "uniform": the same share of every tensor. "global": one threshold over all
        selected tensors together. "erk": Erdős–Rényi–Kernel, smaller layers denser. Or one of
        `mz.allocation`, such as a share for each path pattern. Shares are of groups of the structure. Under a
        budget, `mz.allocation.at_most(params=...)`, leave the sparsity out.
      every: optimizer steps between mask refreshes; 0 keeps the first masks. Default: 100 with a
        schedule, 0 with a number. Under `mz.schedules` refreshes end with the schedule.
      structure: what is pruned together, one of `mz.structures`: channels, blocks, n of m (which
        fixes the sparsity itself). Single weights if None.
      remember: whether a pruned weight keeps its latent, with which it may come back at a later refresh;
        if not, it comes back from zero, as dense phases are meant to begin.

    Raises:
      TransformError: a sparsity outside [0, 1), none or one too many, an unknown allocation; (at `init`)
        a score lacks the gradients or statistics that it needs.
      LeafError (at `init`): a selected leaf is not floating-point.

    Zhu & Gupta 2017, arXiv:1710.01878; Han et al. 2015, arXiv:1506.02626.

    >>> t = prune(sparsity=0.5)
    >>> t.decode(*t.init({"w": jnp.array([3.0, -1.0, 0.5, -2.0])}))
    {'w': Array([ 3.,  0.,  0., -2.], dtype=float32)}
    """
    structure = unstructured() if structure is None else structure
    if isinstance(budget := resolve(allocation), AtMost):
        budget.check(sparsity, structure)
    elif structure.fixes_sparsity != (sparsity is None):
        raise TransformError(
            f"{structure} fixes the sparsity; leave it out"
            if structure.fixes_sparsity
            else "prune needs a sparsity"
        )
    if sparsity is not None and not callable(sparsity) and not 0.0 <= sparsity < 1.0:
        raise TransformError(f"sparsity must be in [0, 1) or a schedule, not {sparsity!r}")
    if every is None:
        every = 100 if callable(sparsity) else 0
    if every < 0:
        raise TransformError(f"every must be 0 or more steps, not {every}")
    return Prune(score or scoring.magnitude(), sparsity, allocation, int(every), structure, remember)
