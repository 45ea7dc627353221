"""Mixed precision: which candidate each leaf gets, from what its error costs the network, under a budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np

from modelzip_jax import tree as trees
from modelzip_jax.coding.writer import file_sizes
from modelzip_jax.combinator import selects
from modelzip_jax.errors import PatternError, TransformError
from modelzip_jax.float_params import check_float_params
from modelzip_jax.leaf_checks import check_arrays, check_finite
from modelzip_jax.packing import compress
from modelzip_jax.partitioning import only as only_leaves
from modelzip_jax.quantization.leaf_candidates import Measurements, measured, named_candidates
from modelzip_jax.quantization.mixed_result import ChoiceProblem, MixedPrecision
from modelzip_jax.quantization.operation_counts import ActivationBits, bit_operations
from modelzip_jax.quantization.sensitivity import Sensitivity
from modelzip_jax.transform import Transform, identity
from modelzip_jax.tree import PyTree

if TYPE_CHECKING:
    from modelzip_jax.trace import Cost

__all__ = ["leaf_measurements", "mixed_precision"]


def mixed_precision(
    params: PyTree,
    candidates: Mapping[str, Transform] | Sequence[Transform],
    *,
    sensitivity: Sensitivity,
    budget_bytes: int | None = None,
    budget_bit_operations: int | None = None,
    counted: Literal["packed", "file"] = "packed",
    only: str | tuple[str, ...] = "**",
    min_ndim: int = 0,
    costs: Cost | None = None,
    activation_bits: ActivationBits = 8,
    progress: Callable[[str, int], None] | None = None,
    **given: Any,
) -> MixedPrecision:
    """Gives each leaf the candidate with which the network loses least, under a budget that is never exceeded.

    Each chosen leaf is compressed by each candidate, its bytes counted as `mz.compress` stores them and its error
    measured; the errors of several leaves are added (Dong et al. 2019, HAWQ, arXiv:1905.03696; 2020, HAWQ-V2,
    arXiv:1911.03852). One candidate a leaf within a budget is a multiple-choice knapsack: its linear relaxation is
    solved exactly (`bound`), the choices by a dynamic program over what the relaxation leaves open, so that the error
    falls with the budget and is no larger than that of any candidate for all leaves that fits it.

    Args:
      params: a pytree of arrays.
      candidates: transforms that encode each leaf by itself: widths, granularities, grids, chains; `mz.identity()` for
        floats. By name, or in a sequence. One whose patterns leave a leaf out (`layers={"blocks/**": 0}`) is no
        candidate for it.
      sensitivity: of `mz.sensitivity`, or your own: `loss_increase`, `layer_error`, `output_kl`, `output_error`.
      budget_bytes: most bytes of the whole model. As for `mz.allocation.at_most`, what no candidate compresses counts.
      budget_bit_operations: most bit operations of a call, Σ multiplications × bits of weights × of activations; needs
        `costs`. Integer codes have their bits, what decodes to floats has those of its dtype.
      counted: what bytes are meant, "packed" in memory (`Packed.nbytes`) or of the "file", where each leaf's are
        estimated from its own entropy codes, and the real file of the choices is counted before they are returned.
      only, min_ndim: which leaves get a candidate, as in `mz.only`; others stay dense.
      costs: `trace.cost(apply_fn, params, *inputs)`.
      activation_bits: of the activations that meet weights: of all, or by path pattern of the leaf that they meet.
      progress: called with a leaf's name and dense bytes once it is measured.
      **given: what candidates read beside the weights, as for `mz.compress`.

    Returns:
      `MixedPrecision`: `transform`, an `mz.partition` recipe; `table()`, `figure()`, `bytes`, `error`, `bound`, and
      `at(budget)` for other budgets without measuring anew.

    Raises:
      TransformError: no candidates, or what one needs is not given; `calibrate=`, which is of `mz.compress`; neither or
        both budgets, one below the least possible cost, which is stated; bit operations without costs.
      PatternError: a pattern matches nothing, or a path has a `*` or `?` in it.
      NonFiniteError: weights or a sensitivity are NaN or infinite.
      TreeError: what is given is no tree like the params. LeafError: a leaf is not floating-point, or is packed.

    >>> import modelzip_jax as mz
    >>> rng = np.random.default_rng(0)
    >>> params = {name: rng.normal(size=(64, 64), scale=s).astype("f4") for name, s in [("fine", 0.1), ("coarse", 9.0)]}
    >>> found = mz.mixed_precision(
    ...     params, {f"{b} bits": mz.quantize(b) for b in (2, 4, 8)}, sensitivity=mz.sensitivity.squared_error(),
    ...     budget_bytes=6_000,
    ... )
    >>> print(found.table())
    | leaf | values | choice | bits a value | bytes | error |
    | --- | ---: | --- | ---: | ---: | ---: |
    | coarse | 4,096 | 8 bits | 8.50 | 4,352 | 12 |
    | fine | 4,096 | 2 bits | 2.50 | 1,280 | 20.21 |
    | all of them | 8,192 |  | 5.50 | 5,632 | 32.2 |
    >>> mz.compress(params, found.transform).nbytes == found.bytes <= 6_000
    True
    """
    if (budget_bytes is None) == (budget_bit_operations is None):
        raise TransformError("mixed_precision() takes budget_bytes or budget_bit_operations, and not both")
    if (budget_bit_operations is None) != (costs is None):
        raise TransformError("costs=trace.cost(apply_fn, params, *inputs) goes with budget_bit_operations")
    if counted not in ("packed", "file"):
        raise TransformError(f"counted must be 'packed' or 'file', not {counted!r}")
    in_files = budget_bytes is not None and counted == "file"
    found = leaf_measurements(
        params,
        candidates,
        sensitivity,
        given,
        only=only,
        min_ndim=min_ndim,
        in_files=in_files,
        progress=progress,
    )
    params = trees.plain(params)
    rest = sum(trees.nbytes(x) for name, x in trees.named_leaves(params) if name not in found.leaves)
    if budget_bytes is None:
        assert costs is not None
        assert budget_bit_operations is not None
        each, fixed = bit_operations(costs, params, found.leaves, found.widths, activation_bits)
        return ChoiceProblem(found, "bit operations", each, fixed, rest).solved(budget_bit_operations)
    if not in_files:
        return ChoiceProblem(found, "bytes", found.nbytes, rest, rest).solved(budget_bytes)
    return _of_files(params, found, rest, given).solved(budget_bytes)


def leaf_measurements(
    params: PyTree,
    candidates: Any,
    sensitivity: Sensitivity,
    given: Mapping[str, Any],
    *,
    only: str | tuple[str, ...],
    min_ndim: int,
    in_files: bool,
    progress: Callable[[str, int], None] | None,
    called: str = "mixed_precision()",
) -> Measurements:
    """Each chosen leaf compressed by each candidate, alone: what `mixed_precision` chooses from.

    Arguments and errors are those of `mixed_precision`; called: who measures, in messages.
    """
    if not isinstance(sensitivity, Sensitivity):
        raise TransformError(
            "sensitivity= takes one of mz.sensitivity, such as mz.sensitivity.squared_error(), not "
            f"{sensitivity!r:.100}"
        )
    if "calibrate" in given:
        raise TransformError(
            f"{called} measures each leaf by itself and takes "
            "stats=trace.statistics(apply_fn, params, batches, kinds=('gram',)), not calibrate="
        )
    named = named_candidates(candidates, called)
    trees.check_not_module(params)
    check_float_params(params, called)
    model, params = params, trees.plain(params)
    check_arrays(params)
    keep = selects(only_leaves(only, identity(), min_ndim=min_ndim), trees.outlines(params))
    _check_leaves(params, keep)
    measure = sensitivity.prepare(model)
    return measured(params, keep, named, measure, given, in_files=in_files, progress=progress, called=called)


def _check_leaves(params: PyTree, keep: Sequence[bool]) -> None:
    names = [name for (name, _), chosen in zip(trees.named_leaves(params), keep, strict=True) if chosen]
    if not names:
        raise PatternError("no leaf has as many axes as min_ndim asks for")
    if wild := [name for name in names if "*" in name or "?" in name]:
        raise PatternError(
            f"leaf {wild[0]!r} has a '*' or '?' in its path, so that no pattern can name it alone"
        )
    check_finite(trees.select(params, keep, jax.tree.structure(params)))


def _of_files(params: PyTree, found: Measurements, rest: int, given: Mapping[str, Any]) -> ChoiceProblem:
    """The problem in bytes of files: what each has beside its leaves' payloads is that of the cheapest choices."""
    assert found.stored is not None

    def size(transform: Transform) -> int:
        return file_sizes(compress(params, transform, **given)).total

    problem = ChoiceProblem(found, "bytes of the file", found.stored, 0, rest, size)
    cheapest = np.where(np.isfinite(found.errors), found.stored, np.iinfo(np.int64).max).argmin(axis=1)
    places = tuple(cheapest.tolist())
    fixed = size(problem.transform(places)) - problem.totals(places).cost
    return ChoiceProblem(found, problem.unit, found.stored, fixed, rest, size)
