"""Pruning as a transform: one score, one allocation, one schedule."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from modelzip_jax.errors import TransformError
from modelzip_jax.given_values import as_whole
from modelzip_jax.leaf_checks import all_finite
from modelzip_jax.masking import scores as scoring
from modelzip_jax.masking.allocation import Allocation, Groups, resolve
from modelzip_jax.masking.bitmask import pack_mask
from modelzip_jax.masking.masks import Masking, check_told, nowhere
from modelzip_jax.masking.schedules import check_sparsity
from modelzip_jax.masking.scores.score import checked
from modelzip_jax.masking.structures import Structure, unstructured
from modelzip_jax.recipe import recordable
from modelzip_jax.stacking import as_layers
from modelzip_jax.transform import Context
from modelzip_jax.tree import PyTree

__all__ = ["Prune", "prune"]


@recordable
@dataclasses.dataclass(frozen=True, kw_only=True)
class Prune(Masking):
    """See `prune`."""

    @property
    def leafwise(self) -> bool:
        return resolve(self.allocation).leafwise and self.score.pointwise() is not None

    def start(self, weights: PyTree) -> PyTree:
        return self.score.start(weights)

    def observe(self, memory: PyTree, weights: PyTree, context: Context) -> PyTree:
        return self.score.observe(memory, weights, context)

    def due(self, step: jax.Array) -> jax.Array:
        return step % self.every == 0 if self.schedule is None else self.schedule.refreshes(step, self.every)

    def first_masks(self, weights: PyTree, context: Context) -> tuple[PyTree, jax.Array]:
        near, missing = nowhere(weights), context.lacks(self.score.needs)
        if not missing:
            memory = self.observe(self.start(weights), weights, context)
            return self._masks(weights, context, memory, near)
        if not _is_zero(lambda: self.amount(context.step)) or self.structure.fixes_sparsity:
            raise TransformError(
                f"the score {type(self.score).__name__} needs {', '.join(missing)} to choose the first masks: pass "
                f"them to mz.compress(..., {missing[0]}=...) or mz.wrap(..., given={{...}}), or begin with a "
                "schedule at 0"
            )
        return jax.tree.map(lambda w: pack_mask(jnp.ones_like(w, bool)), weights), near

    def chosen(
        self, weights: PyTree, context: Context, memory: PyTree, masks: PyTree, near: jax.Array
    ) -> tuple[PyTree, jax.Array]:
        check_told([self.score], context)
        return self._masks(weights, context, memory, near, masks)

    def _masks(
        self, weights: PyTree, context: Context, memory: PyTree, near: jax.Array, old: PyTree = None
    ) -> tuple[PyTree, jax.Array]:
        """The masks that the scores choose; `old` ones where scores are not finite, as after a skipped step."""
        pointwise = self.score.pointwise() if self.structure.pointwise else None
        scores = weights if pointwise else checked(self.score, weights, context, memory)
        if not jax.tree.leaves(scores):
            return scores, near
        if self.structure.fixes_sparsity:
            new = jax.tree.map(lambda s: pack_mask(self.structure.choose(s)), scores)
        else:
            arrays, allocation = self.grouped(scores), resolve(self.allocation)
            parts, score = self.parts(weights, arrays), pointwise or _same
            groups = Groups(parts, arrays, score, self.structure, context.frozen, near)
            kept, near = allocation.choose(groups, self.amount(context.step))
            new = self.spread(weights, kept)
        if old is None or pointwise:
            return new, near
        finite = all_finite(scores)
        return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old), near


def _is_zero(number: Callable[[], jax.Array]) -> bool:
    """Whether a number is known to be zero, also within `jit`."""
    try:
        with jax.ensure_compile_time_eval():
            return float(number()) == 0.0
    except jax.errors.JAXTypeError:
        return False


def _same(x: jax.Array) -> jax.Array:
    return x


def prune(
    score: scoring.Score | None = None,
    *,
    sparsity: float | Callable[[Any], jax.Array] | None = None,
    allocation: str | Allocation = "uniform",
    every: int | None = None,
    structure: Structure | None = None,
    remember: bool = True,
    layers: int | tuple[int, ...] | Mapping[str, Any] | None = None,
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
      layers: axes that count layers, of leaves that hold many tensors (`nn.scan`, vmapped experts): an axis, several,
        or those of each path pattern, `{"blocks/**": 0}`, which `trace.layer_axes` finds. Each layer
        then is a tensor of its own to the allocation and the structure.

    Raises:
      TransformError: a sparsity outside [0, 1), none or one too many, no score or structure, an unknown allocation;
        (at `init`) a score lacks the gradients or statistics that it needs.
      LeafError (at `init`): a selected leaf is not floating-point.

    Zhu & Gupta 2017, arXiv:1710.01878; Han et al. 2015, arXiv:1506.02626.

    >>> import modelzip_jax as mz
    >>> mz.decoded({"w": jnp.array([3.0, -1.0, 0.5, -2.0])}, prune(sparsity=0.5))
    {'w': Array([ 3.,  0.,  0., -2.], dtype=float32)}
    """
    structure = unstructured() if structure is None else structure
    score = scoring.magnitude() if score is None else score
    check_strategies("prune()", score, structure, every)
    resolve(allocation).check(sparsity, structure)
    if sparsity is not None:
        check_sparsity(sparsity)
    if every is None:
        every = 100 if callable(sparsity) else 0
    return Prune(
        score=score, sparsity=sparsity, allocation=allocation, every=int(every), structure=structure,
        remember=bool(remember), layers=as_layers(layers),
    )  # fmt: skip


def check_strategies(where: str, score: Any, structure: Any, every: Any) -> None:
    """Raises `TransformError` where a strategy is of another kind, or a factory that was not called."""
    for name, value, kind, example in (
        ("score", score, scoring.Score, "mz.scores.magnitude()"),
        ("structure", structure, Structure, "mz.structures.channel()"),
    ):
        if not isinstance(value, kind):
            call = f": call it, {value.__name__}()" if hasattr(value, "__name__") else f", such as {example}"
            raise TransformError(f"{where} takes a {name}{call}, not {value!r:.100}")
    if every is not None:
        as_whole(every, "every", 0)
