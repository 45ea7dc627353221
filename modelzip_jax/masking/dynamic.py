"""Dynamic sparse training: weights are dropped and others grown in their place, at a constant sparsity."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax.errors import TransformError
from modelzip_jax.given_values import as_whole
from modelzip_jax.leaf_checks import all_finite
from modelzip_jax.masking import scores as scoring
from modelzip_jax.masking.allocation import Allocation, resolve
from modelzip_jax.masking.allocation.allocator import shared_out
from modelzip_jax.masking.bitmask import unpack_mask
from modelzip_jax.masking.counting import count_kept
from modelzip_jax.masking.masks import Masking, check_told
from modelzip_jax.masking.pruning import check_strategies, prune
from modelzip_jax.masking.schedules import check_sparsity
from modelzip_jax.masking.scores.score import checked
from modelzip_jax.masking.structures import Structure, unstructured
from modelzip_jax.masking.threshold import keep_largest_each
from modelzip_jax.recipe import recordable
from modelzip_jax.stacking import as_layers
from modelzip_jax.transform import Context
from modelzip_jax.tree import PyTree

__all__ = ["Regrow", "regrow", "rigl", "sparse_evolution"]


@recordable
@dataclasses.dataclass(frozen=True, kw_only=True)
class Regrow(Masking):
    """See `regrow`. score: what is dropped by."""

    grow: scoring.Score = scoring.gradient_magnitude()
    fraction: float = 0.3
    end: int = 0
    first: scoring.Score = scoring.random()

    @property
    def leafwise(self) -> bool:
        return False

    def start(self, weights: PyTree) -> PyTree:
        return self.score.start(weights), self.grow.start(weights)

    def observe(self, memory: PyTree, weights: PyTree, context: Context) -> PyTree:
        pairs = zip((self.score, self.grow), memory, strict=True)
        return tuple(score.observe(m, weights, context) for score, m in pairs)

    def due(self, step: jax.Array) -> jax.Array:
        return (step % self.every == 0) & (step < self.end)

    def first_masks(self, weights: PyTree, context: Context) -> tuple[PyTree, jax.Array]:
        start = prune(
            self.first, sparsity=self.sparsity, allocation=self.allocation, structure=self.structure,
            layers=dict(self.layers),
        )  # fmt: skip
        return start.first_masks(weights, context)

    def chosen(
        self, weights: PyTree, context: Context, memory: PyTree, masks: PyTree, near: jax.Array
    ) -> tuple[PyTree, jax.Array]:
        check_told([self.score, self.grow], context)
        dropping, growing = (
            self.grouped(checked(score, weights, context, m))
            for score, m in zip((self.score, self.grow), memory, strict=True)
        )
        if not dropping:
            return masks, near
        flags = jax.tree.map(lambda w, bits: unpack_mask(bits, w.shape).astype(jnp.float32), weights, masks)
        held = [group > 0.5 for group in self.grouped(flags)]
        moved = 0.5 * self.fraction * (1.0 + jnp.cos(jnp.pi * context.step.astype(jnp.float32) / self.end))

        def exchange(shared: list[list[Any]], shares: list[jax.Array]) -> list[list[jax.Array]]:
            groups = [tuple(map(list, zip(*rows, strict=True))) for rows in shared]
            return _exchange([Exchange(*group) for group in groups], shares, moved)

        def exchange_layers(row: Any, share: jax.Array) -> jax.Array:
            def of_layer(*arrays: jax.Array) -> jax.Array:
                return _exchange([Exchange(*([x] for x in arrays))], [share], moved)[0][0]

            return jax.vmap(of_layer)(*row)

        sparsity, parts = self.amount(context.step), self.parts(weights, dropping)
        shares = resolve(self.allocation)(parts, sparsity)
        rows = list(zip(held, dropping, growing, strict=True))
        new = self.spread(weights, shared_out(shares, sparsity, parts, rows, exchange, exchange_layers))
        finite = all_finite((dropping, growing))
        return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, masks), near


class Exchange(NamedTuple):
    """The groups of leaves under one threshold: which are held, and what they are dropped and grown by.

    >>> flags, scores = [jnp.array([True, False])], [jnp.array([1.0, 2.0])]
    >>> Exchange(flags, scores, scores).size
    2
    """

    held: list[jax.Array]
    drop: list[jax.Array]
    grow: list[jax.Array]

    @property
    def size(self) -> int:
        return sum(x.size for x in self.held)


def _exchange(exchanges: list[Exchange], shares: list[jax.Array], moved: jax.Array) -> list[list[jax.Array]]:
    """Which groups are held afterwards: of those held, a share `moved` is dropped, and as many others are grown.

    What is dropped may be grown again at once, as in RigL.
    """
    keep = count_kept(np.array([one.size for one in exchanges]), jnp.stack(shares))
    count = jnp.round(moved * keep.astype(jnp.float32)).astype(jnp.int32)
    low = jnp.float32(-jnp.inf)

    def largest(groups: list[list[jax.Array]], keep: jax.Array) -> list[list[jax.Array]]:
        masks = iter(keep_largest_each(groups, keep).masks)
        return [[next(masks) for _ in group] for group in groups]

    held = [[jnp.where(h, d, low) for h, d in zip(e.held, e.drop, strict=True)] for e in exchanges]
    stay = largest(held, keep - count)
    grown = [
        [jnp.where(s, low, g) for s, g in zip(kept, e.grow, strict=True)]
        for kept, e in zip(stay, exchanges, strict=True)
    ]
    come = largest(grown, count)
    return [[s | c for s, c in zip(a, b, strict=True)] for a, b in zip(stay, come, strict=True)]


def regrow(
    grow: scoring.Score,
    *,
    sparsity: float,
    every: int = 100,
    end: int,
    fraction: float = 0.3,
    drop: scoring.Score | None = None,
    first: scoring.Score | None = None,
    allocation: str | Allocation = "erk",
    structure: Structure | None = None,
    layers: int | tuple[int, ...] | Mapping[str, Any] | None = None,
) -> Regrow:
    """Trains a sparse network from scratch: every so often some weights are dropped and as many grown.

    At step t a share f(t) = fraction / 2 (1 + cos(π t / end)) of the kept weights of smallest `drop` score goes,
    and as many of largest `grow` score come, from zero, with cleared optimizer moments. The count of kept
    weights is the same at every step. The gradient that `grow` reads is the dense one that `mz.wrap` is given anyway.

    Args:
      grow: what to grow by.
      sparsity: share of weights that are zero, in [0, 1).
      every: optimizer steps between exchanges, 1 or more.
      end: the step after which masks stay; about three quarters of training in RigL's paper.
      fraction: of kept weights exchanged at first, in (0, 1].
      drop: what to drop by; magnitude if None.
      first: what the first masks are chosen by; at random if None.
      allocation, structure, layers: as in `prune`; n of m is not supported.

    Raises:
      TransformError: a value out of range.

    >>> import optax, modelzip_jax as mz
    >>> tx = mz.wrap(optax.sgd(0.1), mz.rigl(sparsity=0.5, every=1, end=10))
    >>> params, state = mz.start(tx, {"w": jnp.array([1.0, 2.0, 3.0, 4.0])})
    >>> updates, state = tx.update({"w": jnp.array([9.0, 0.0, 0.0, 9.0])}, state, params)
    >>> int(jnp.sum(mz.params(state, params)["w"] == 0.0))
    2
    """
    structure = unstructured() if structure is None else structure
    drop, first = drop or scoring.magnitude(), first or scoring.random()
    for score in (grow, drop, first):
        check_strategies("regrow()", score, structure, every)
    if callable(sparsity):
        raise TransformError("sparse training keeps one sparsity; to change it, use mz.prune with a schedule")
    check_sparsity(sparsity)
    every, end = as_whole(every, "every", 1), as_whole(end, "end", 1)
    if not 0.0 < fraction <= 1.0:
        raise TransformError(f"fraction must be in (0, 1], not {fraction!r}")
    if structure.fixes_sparsity:
        raise TransformError(
            f"{structure} leaves nothing to regrow freely; use single weights, blocks or channels"
        )
    if resolve(allocation).fixes_sparsity:
        raise TransformError(
            "a budget fixes the sparsity of mz.prune; sparse training takes a sparsity and 'erk'"
        )
    resolve(allocation).check(sparsity, structure)
    return Regrow(
        score=drop, sparsity=float(sparsity), allocation=allocation, every=int(every), structure=structure,
        remember=False, layers=as_layers(layers), grow=grow, fraction=float(fraction), end=int(end), first=first,
    )  # fmt: skip


def rigl(*, sparsity: float, end: int, every: int = 100, fraction: float = 0.3, **options: Any) -> Regrow:
    """RigL: drops by magnitude, grows by |gradient| (Evci et al. 2020, arXiv:1911.11134, algorithm 1).

    Args and errors as `regrow`.

    >>> rigl(sparsity=0.9, end=1000).grow
    GradientMagnitude()
    """
    return regrow(
        scoring.gradient_magnitude(), sparsity=sparsity, end=end, every=every, fraction=fraction, **options
    )


def sparse_evolution(
    *, sparsity: float, end: int, every: int = 100, fraction: float = 0.3, seed: int = 0, **options: Any
) -> Regrow:
    """SET: drops by magnitude, grows at random (Mocanu et al. 2018, arXiv:1707.04780, algorithm 2).

    The paper exchanges the same fraction throughout; here it falls as in `regrow`, as RigL's authors found better
    for both. Args and errors as `regrow`.

    >>> sparse_evolution(sparsity=0.9, end=1000).grow
    Random(seed=0, renewed=True)
    """
    grow = scoring.random(seed, renewed=True)
    return regrow(grow, sparsity=sparsity, end=end, every=every, fraction=fraction, **options)
