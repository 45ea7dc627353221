"""Optimal brain surgeon, layer by layer: weights go, and those that stay make up for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax import tree as trees
from modelzip_jax.errors import LeafError, NonFiniteError, TransformError
from modelzip_jax.leaf_checks import check_finite, check_floating
from modelzip_jax.masking.allocation import Allocation, Part, resolve
from modelzip_jax.masking.counting import count_kept
from modelzip_jax.masking.structures import NOfM, Structure, unstructured
from modelzip_jax.masking.surgeon_steps import Padding, prune_stack
from modelzip_jax.patterns import matches, require_matches
from modelzip_jax.trace.measures.layer_matrices import Products, products
from modelzip_jax.tree import PyTree

__all__ = ["Surgery", "surgeon"]


class Surgery(NamedTuple):
    """params: like those given; pruned weights are zero, others of their rows updated. scores: float32 trees
    like them, 1 for what stays and for leaves left alone, 0 for what goes."""

    params: PyTree
    scores: PyTree


def surgeon(
    params: PyTree,
    stats: PyTree,
    *,
    sparsity: float | None = None,
    structure: Structure | None = None,
    allocation: str | Allocation = "uniform",
    only: str | Sequence[str] = "**/kernel",
    damping: float = 0.01,
    block: int = 128,
) -> Surgery:
    """Prunes to the least change of each layer's outputs, and updates the weights that stay (SparseGPT).

    For each output the layer's error is (w - ŵ)ᵀ H (w - ŵ), H = E[x xᵀ] + λI of its inputs. Inputs are taken in
    order, in blocks. Within a block those weights of smallest w² / [H⁻¹]_qq over all outputs go, H being of the
    inputs not yet passed; when weight q goes, those of later inputs change by -w_q / [H⁻¹]_qq · H⁻¹ e_q.
    Frantar & Alistarh 2023, arXiv:2301.00774, algorithm 1; Hassibi & Stork 1993 (OBS), eq. 5.

    The result goes through `mz.prune(mz.scores.given(), ...)` with the same sparsity, allocation and structure,
    which keeps just the weights with score 1. The paper gathers each layer's statistics behind layers that are
    pruned already: call this once for each, with `only`. As a function of `stats` of the dense model it does
    all layers at once.

    Args:
      params: a pytree of arrays. Layers stacked for a scan are pruned one by one.
      stats: `trace.statistics(apply_fn, params, batches, kinds=("gram",))`.
      sparsity: share of each leaf that goes, in [0, 1), spread evenly over layers of a stack and over blocks of
        inputs; counts are those of `mz.prune`, exactly. None with n of m.
      structure: single weights if None, or `mz.structures.n_of_m(n, m)` along the inputs (the last of them, for a
        convolution the input features).
      allocation: as for `mz.prune`, if it gives each leaf a sparsity: not "global".
      only: path patterns of the leaves to prune: dense or convolution kernels.
      damping: λ, as a share of the mean of H's diagonal; positive.
      block: inputs in a block, at least 1; the paper's 128. Each block loses the same share, so where inputs differ
        much in scale, larger ones lose less: of 768 inputs with scales from 1 down to 0.02, half of the weights cost
        0.6 % of the output's power in one block, 2.2 % in six (Wanda 0.6 %, magnitude 7.2 %).

    Returns:
      `Surgery(params, scores)`: updated weights in the leaves' own dtypes, computed in float32.

    Raises:
      TransformError: a sparsity outside [0, 1), none or one too many, damping or block out of range, another
        structure, an allocation by one threshold.
      LeafError: a leaf is no floating-point array, or no kernel of one dense product or ungrouped convolution
        with a Gram matrix in `stats` (tied, grouped, derived and expert weights are refused).
      NonFiniteError: weights or statistics are not finite, or H is too near to singular: raise the damping.
      PatternError: a pattern matches nothing.

    >>> import modelzip_jax as mz
    >>> from modelzip_jax import trace
    >>> x = jnp.array([[1.0, 1.0, 0.0], [1.0, 0.9, 0.0], [0.0, 0.0, 1.0]])
    >>> params = {"kernel": jnp.array([[1.0], [1.1], [2.0]])}
    >>> stats = trace.statistics(lambda p, x: x @ p["kernel"], params, [x], kinds=("gram",))
    >>> found = surgeon(params, stats, sparsity=1 / 3)  # inputs 0 and 1 say nearly the same
    >>> [round(float(w), 2) for w in found.params["kernel"].ravel()]
    [0.0, 2.14, 2.0]
    >>> packed = mz.compress(found.params, mz.prune(mz.scores.given(), sparsity=1 / 3), scores=found.scores)
    >>> bool(jnp.all(mz.unpack(packed)["kernel"] == found.params["kernel"]))
    True
    """
    structure = unstructured() if structure is None else structure
    _check(sparsity, structure, damping, block)
    patterns = [only] if isinstance(only, str) else list(only)
    params = trees.plain(params)
    named = trees.named_leaves(params)
    require_matches(patterns, [name for name, _ in named])
    treedef = jax.tree.structure(params)
    chosen = [any(matches(p, name) for p in patterns) for name, _ in named]
    check_floating(trees.select(params, chosen, treedef), "surgeon()")
    check_finite(trees.select(params, chosen, treedef))
    parts = [Part(n, jnp.shape(w), jnp.size(w)) for (n, w), c in zip(named, chosen, strict=True) if c]
    shares = resolve(allocation)(parts, jnp.float32(sparsity or 0.0))
    if shares is None:
        raise TransformError(
            f"surgeon() prunes layer by layer, so that {allocation!r}, one threshold over all, cannot be its "
            "allocation: use 'uniform', 'erk' or mz.allocation.layers"
        )
    todo, weights, scores = iter(shares), [], []
    for (name, w), measured, operate in zip(named, treedef.flatten_up_to(stats), chosen, strict=True):
        kept = jnp.ones(jnp.shape(w), bool)
        if operate:
            gone = jnp.size(w) - int(count_kept(jnp.size(w), next(todo)))
            w, kept = _operate(
                name, w, _kernel(name, w, measured, structure), gone, structure, damping, block
            )
        weights.append(w)
        scores.append(kept.astype(jnp.float32))
    return Surgery(treedef.unflatten(weights), treedef.unflatten(scores))


def _check(sparsity: float | None, structure: Structure, damping: float, block: int) -> None:
    if structure != unstructured() and not isinstance(structure, NOfM):
        raise TransformError(f"surgeon() prunes single weights or n of m, not {structure}")
    if structure.fixes_sparsity != (sparsity is None):
        fixes = structure.fixes_sparsity
        raise TransformError(
            f"{structure} fixes the sparsity; leave it out" if fixes else "surgeon() needs a sparsity"
        )
    if sparsity is not None and not 0.0 <= sparsity < 1.0:
        raise TransformError(f"sparsity must be in [0, 1), not {sparsity!r}")
    if not damping > 0.0 or block < 1:
        raise TransformError(f"damping and block must be positive, not {damping!r} and {block!r}")


def _kernel(name: str, w: jax.Array, measured: Any, structure: Structure) -> Products:
    """The leaf as a stack of matrices, if it is one that can be pruned.

    Raises:
      LeafError: it is none, or the structure is along another axis than its last input axis.
    """
    found = products(name, w.shape, measured, "surgeon()")
    use = measured[0].use
    if found.uses > 1 or found.batched:
        raise LeafError(
            f"leaf {name!r} of shape {w.shape} is no kernel that surgeon() can prune: it has {found.uses} products, "
            f"the first by {use.primitive} with inputs {use.contracted}, outputs {use.output} and a Gram matrix of "
            f"{measured[0].inputs.gram.shape}"
        )
    last = max(use.contracted)
    if isinstance(structure, NOfM) and structure.axis % w.ndim != last:
        raise LeafError(
            f"{structure} is along axis {structure.axis} of leaf {name!r}, whose last input axis is {last}: pass that "
            "as `axis`"
        )
    return found


def _operate(
    name: str, w: jax.Array, kernel: Products, gone: int, structure: Structure, damping: float, block: int
) -> tuple[jax.Array, jax.Array]:
    """The leaf's updated weights, and which of them stay."""
    layout = kernel.layout
    layers, _, count = layout.sizes
    padding = Padding.of(count, layout.inner, structure, block)
    stack = layout.stack(w).astype(jnp.float32)
    # What goes of each block, so that running totals over all layers and blocks are rounded, not each.
    inputs = np.cumsum(np.bincount(padding.place // padding.block, minlength=padding.blocks))
    done = [k * count + int(n) for k in range(layers) for n in inputs]
    quota = np.diff([gone * d // max(layers * count, 1) for d in done], prepend=0).reshape(
        layers, padding.blocks
    )
    new, kept = prune_stack(stack, kernel.gram, jnp.asarray(quota, jnp.int32), jnp.float32(damping), padding)
    if not bool(jnp.all(jnp.isfinite(new))):
        raise NonFiniteError(
            f"the update of leaf {name!r} is not finite: its Gram matrix is not, or is too near to singular "
            f"for a damping of {damping}; raise it"
        )
    return layout.leaf(new, w.shape).astype(w.dtype), layout.leaf(kept, w.shape)
