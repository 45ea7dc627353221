"""The search for the smallest file: steps are tried until the target is met."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import numpy as np

from modelzip_jax import tree as trees
from modelzip_jax.coding.writer import file_sizes
from modelzip_jax.combinator import check_transform
from modelzip_jax.errors import SilentLayerError, TransformError
from modelzip_jax.given_values import as_positive, as_whole
from modelzip_jax.leaf_checks import check_arrays, check_finite
from modelzip_jax.metadata import Metadata
from modelzip_jax.naming import nearest_name
from modelzip_jax.packing import Packed, compress, unpack
from modelzip_jax.search import Search
from modelzip_jax.smallest.drops import Measure, drop_of, output_scores, scores_by
from modelzip_jax.smallest.held_out import calibration_parts
from modelzip_jax.smallest.leaf_selection import kept_names, path_patterns
from modelzip_jax.smallest.recipes import (
    QUALITY,
    Recipe,
    calibrated,
    data_free,
    floating_leaves,
    shares,
    weights_in,
)
from modelzip_jax.smallest.step_search import within_bytes, within_drop
from modelzip_jax.smallest.what_errors_cost import information
from modelzip_jax.trace.measures.curvature import FisherInformation
from modelzip_jax.transform import Context, Transform
from modelzip_jax.tree import PyTree

__all__ = ["Smallest", "smallest"]

_DROP = 0.01
"""The drop that is kept within where there is a model to run, and no target."""


Tried = Callable[[int, int | None, float | None], Any]


@dataclasses.dataclass(frozen=True)
class Smallest(Search):
    """See `smallest`."""

    bytes: int | None
    max_drop: float | None
    measure: Measure | None
    likelihood: Literal["categorical", "gaussian"]
    rate_weight: float
    keep: tuple[str, ...]
    only: tuple[str, ...]
    min_ndim: int
    before: Transform | None
    tried: Tried | None
    besides: int = 0
    """Bytes that the file will have beside the model, which count among `bytes`."""

    def compressed(
        self,
        params: PyTree,
        *,
        variables: PyTree,
        calibrate: tuple[Callable[..., Any], Sequence[Any]] | None,
        progress: Callable[[str, int], None] | None,
        given: dict[str, Any],
    ) -> Packed:
        for name in sorted(given):
            if name in (f.name for f in dataclasses.fields(Context)):
                raise TransformError(f"smallest() finds {name}= itself: leave it out")
            known = nearest_name(name, ["calibrate", "variables", "progress"])
            raise TransformError(f"compress() was given {name}=, which nothing reads; {known}")
        if calibrate is not None and self.measure is None and (self.max_drop or 0.0) >= 1.0:
            raise TransformError(
                f"max_drop= is of agreement with the float model, from 0 to 1, so that {self.max_drop:g} would allow "
                "for anything; with measure= it is in the unit of its scores"
            )
        if calibrate is not None and self.before is not None:
            raise TransformError("before= goes without calibrate=, where sparsity follows from the steps")
        trees.check_not_module(params)
        plain = trees.plain(params)
        check_arrays(plain)
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(plain)):
            raise TransformError(
                "compress() with smallest() runs outside of jit, where the weights are known"
            )
        keep = kept_names(plain, self.only, self.min_ndim, self.keep)
        if calibrate is None and self.bytes is None and self.measure is None and not self.max_drop:
            check_finite(floating_leaves(plain, 0, keep))
            recipe, model = data_free(plain, keep, self.before), [plain]
            # Held in a list that is emptied: each leaf is freed once it is packed, if the caller holds none.
            del params, plain
            packed = compress(model.pop(), recipe(QUALITY), variables=variables, progress=progress)
            return _noted(packed, {"step": QUALITY})
        return self._searched(params, plain, keep, variables, calibrate, progress)

    def encoded_names(self, params: PyTree, calibrated: bool) -> set[str]:
        """The names of leaves of plain params that are encoded, with `calibrate=` or without.

        Raises:
          PatternError: a pattern matches nothing. NonFiniteError: a leaf that is not kept holds NaN or infinity.
        """
        keep = kept_names(params, self.only, self.min_ndim, self.keep)
        every = floating_leaves(params, 0, keep)
        check_finite(every)
        if calibrated:
            return set(every)
        found = shares(params, keep)
        return {*found.plain, *found.tables, *found.one_axis}

    def _searched(
        self,
        params: PyTree,
        plain: PyTree,
        keep: tuple[str, ...],
        variables: PyTree,
        calibrate: tuple[Callable[..., Any], Sequence[Any]] | None,
        progress: Callable[[str, int], None] | None,
    ) -> Packed:
        leaves = weights_in(plain, 0, keep)
        check_finite(leaves)
        limit = _DROP if calibrate is not None and self.bytes is None and not self.max_drop else self.max_drop
        if calibrate is None and limit and self.measure is None:
            raise TransformError(
                "max_drop= needs something to measure: calibrate=(apply_fn, batches), on a part of which outputs are "
                "compared, or measure=, a function from params to scores"
            )
        first, measure = QUALITY, self.measure
        told: dict[str, Any] = {}
        if calibrate is None:
            recipe = data_free(plain, keep, self.before)
        else:
            apply_fn, batches, held = calibration_parts(calibrate, bool(limit) and measure is None)
            if held:
                measure = output_scores(apply_fn, params, held, self.likelihood)
            recipe, told = self._calibrated(params, apply_fn, batches, keep)
            # An error of this quantizer costs step² / 24 nats a weight.
            first = math.sqrt(24.0 * _DROP / sum(np.size(leaf) for leaf in leaves.values()))

        def make(step: float) -> Any:
            try:
                packed = compress(params, recipe(step), variables=variables, progress=progress, **told)
            except SilentLayerError:
                if calibrate is None or step == first:
                    raise
                return None  # Steps so coarse that nothing passes a layer.
            return _noted(packed, {"step": step})

        tell = (lambda *_: None) if self.tried is None else self.tried
        numbers = itertools.count(1)
        if self.bytes is not None:
            count = sum(np.size(leaf) for leaf in leaves.values())

            def sized(step: float) -> tuple[Any, int]:
                packed = make(step)
                size = 0 if packed is None else file_sizes(packed).total + self.besides
                tell(next(numbers), size, None)
                return packed, size

            return within_bytes(sized, first, self.bytes, count).result
        assert measure is not None, "there is a limit, and what it is of"
        return _kept_within(limit, measure, make, first, params, lambda drop: tell(next(numbers), None, drop))

    def _calibrated(
        self, params: PyTree, apply_fn: Callable[..., Any], batches: list[Any], keep: tuple[str, ...]
    ) -> tuple[Recipe, dict[str, Any]]:
        """The recipe, and what `mz.compress` is to be given beside it."""
        plain = trees.plain(params)
        found = information(apply_fn, params, batches, self.likelihood, keep)
        by_name = dict(trees.named_leaves(found.importance))
        fisher = dict(trees.named_leaves(found.curvature, lambda x: isinstance(x, FisherInformation)))
        metrics = {name: fisher[name].columns for name in found.tables}
        recipe = calibrated(plain, keep, found.products, by_name, metrics, self.rate_weight, found.outputs)
        told = {"importance": found.importance, "curvature": found.curvature}
        if any(np.max(by_name[name], initial=0.0) > 0 for name in found.products if name in by_name):
            return recipe, {**told, "calibrate": (apply_fn, batches)}
        return recipe, told  # No layer is rounded by its inputs: there is none, or they are all zero.


def _kept_within(
    limit: Any,
    measure: Measure,
    make: Callable[[float], Any],
    first: float,
    params: PyTree,
    tell: Callable[[float], Any],
) -> Packed:
    reference, drops = scores_by(measure, params), {}

    def dropped(step: float) -> tuple[Any, float]:
        packed = make(step)
        if packed is None:
            tell(math.inf)
            return None, math.inf
        drops[step] = drop_of(scores_by(measure, trees.restored(unpack(packed), params)), reference)
        tell(drops[step].worst)
        return packed, drops[step].worst

    found = within_drop(dropped, first, limit)
    drop = drops[found.step]
    return _noted(found.result, {"step": found.step, "drop": drop.mean, "drop_error": drop.error})


def _noted(packed: Packed, told: dict[str, float]) -> Packed:
    return dataclasses.replace(packed, metadata=Metadata({"smallest": told}))


def smallest(
    *,
    bytes: int | None = None,
    max_drop: float | None = None,
    measure: Callable[[PyTree], Any] | None = None,
    likelihood: Literal["categorical", "gaussian"] = "gaussian",
    rate_weight: float = 0.5,
    keep: str | Sequence[str] = (),
    only: str | Sequence[str] = (),
    min_ndim: int = 0,
    before: Transform | None = None,
    tried: Callable[[int, int | None, float | None], Any] | None = None,
) -> Smallest:
    """The smallest file: `mz.compress(params, mz.smallest(bytes=N))`. Steps, sparsity and bits follow from the target.

    Weights are rounded to integers with no largest one (`mz.entropy_constrained`), and what is chosen is the step of
    each, so that the file, which is entropy-coded, meets the target.

    Without `calibrate=`, from the weights alone: steps by the root of a channel's deviation and the fourth root of how
    many weights a leaf has (`mz.spreads.root_deviation`), coarser for tables of words, of which an input reads few
    rows, and finer for small tables. Leaves of one axis that are called as biases and scales are get finer steps, too;
    those of other names, such as running statistics, and those of one sign in which a number is so small that rounding
    could change it by more than 3 %, stay lossless, as do single numbers.

    With `calibrate=(apply_fn, batches)`, by what errors do to the outputs: the Fisher information, for labels sampled
    from the model, sets the step of every leaf, biases and embeddings included; kernels are taken in the order in which
    the model meets them, each with the inputs that it gets from those before once they are rounded, with a step for
    each input and output (`mz.spreads.water_filling`) and error feedback over inputs and outputs
    (`mz.rounding.error_feedback`); large tables are encoded in a basis of their own (`mz.karhunen_loeve`). Each try of
    a step runs the model once over all batches. Batches are best without padding, which counts as inputs, too.

    Args:
      bytes: of the file that `mz.save` writes, without metadata of your own: met within 1 % and never exceeded, by as
        many tries as that takes. Not less than 99 % unless finer steps would say nothing more.
      max_drop: the largest drop of the mean score, a standard error included; positive. The largest step that keeps
        within it, to a twentieth of an octave.
      measure: from params to scores, higher being better: a number, or one for each of some held-out examples, so that
        drops have a standard error. If None, every fourth batch of `calibrate=` is held out, and outputs are compared
        with the float model's: see `likelihood`.
      likelihood: what outputs are. "categorical": logits; the Fisher information is that of the softmax, scores are
        agreement of the likeliest class. "gaussian": anything else; squared errors, scores are cosines.
      rate_weight: as of `mz.entropy_constrained`, where there is a model to run.
      keep: path patterns of leaves that stay lossless.
      only: path patterns of leaves that are encoded; if there are none, of all. Those of `keep` stay lossless all the
        same.
      min_ndim: leaves of fewer axes stay lossless.
      before: what leaves of two axes and more go through before they are encoded, such as `mz.prune(sparsity=0.5)`.
        Only without `calibrate=`.
      tried: called after each try with its number, from 1, and the file's bytes or the drop, a standard error included.

    Neither `bytes` nor `max_drop`: steps of 0.13 deviations without data, where there is nothing to search for, and
    params that nobody else holds are freed leaf by leaf; with data `max_drop=0.01`.

    Raises:
      TransformError: both targets, or what is no target; a drop without a measure; at `compress` also a target below
        what is possible, of which the smallest is named.
      PatternError (at `compress`): `keep` or `only` matches nothing.
      NonFiniteError (at `compress`): a leaf that is encoded holds NaN or infinity.

    The packed model's metadata tell the step, and for a drop what it came to, under "smallest".

    Wiedemann et al. 2020 (DeepCABAC), arXiv:1907.11900; Frantar et al. 2022 (GPTQ), arXiv:2210.17323; WaterSIC,
    arXiv:2603.04956.

    >>> import modelzip_jax as mz
    >>> params = {"w": np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)}
    >>> packed = mz.compress(params, smallest(bytes=1500))
    >>> 1485 <= file_sizes(packed).total <= 1500
    True
    """
    if bytes is not None and max_drop is not None:
        raise TransformError("smallest() takes bytes= or max_drop=, not both")
    if measure is not None and (max_drop is None or not callable(measure)):
        raise TransformError("measure= is a function from params to scores, and goes with max_drop=")
    if likelihood not in ("categorical", "gaussian"):
        raise TransformError(f"likelihood must be 'categorical' or 'gaussian', not {likelihood!r:.100}")
    if tried is not None and not callable(tried):
        raise TransformError(f"tried= is called after each try, and is no function: {tried!r:.100}")
    if before is not None:
        check_transform(before, "smallest()")
        if getattr(before, "terminal", False):
            raise TransformError(
                f"before= takes what is encoded afterwards, such as mz.prune(sparsity=0.5), not {type(before).__name__}"
            )
    return Smallest(
        None if bytes is None else as_whole(bytes, "bytes", 1),
        None if max_drop is None else as_positive(max_drop, "max_drop"),
        measure, likelihood, as_positive(rate_weight, "rate_weight", or_zero=True),
        path_patterns(keep, "keep"), path_patterns(only, "only"), as_whole(min_ndim, "min_ndim", 0), before, tried,
    )  # fmt: skip
