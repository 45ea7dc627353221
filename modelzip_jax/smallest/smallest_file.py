"""The search for the smallest file: steps are tried until the target is met."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from modelzip_jax import tree as trees
from modelzip_jax.coding.writer import file_sizes
from modelzip_jax.errors import TransformError
from modelzip_jax.given_values import as_positive, as_whole
from modelzip_jax.leaf_checks import check_arrays, check_finite
from modelzip_jax.metadata import Metadata
from modelzip_jax.packing import Packed, compress, unpack
from modelzip_jax.search import Search
from modelzip_jax.smallest.drops import Measure, drop_of, output_scores, scores_by
from modelzip_jax.smallest.recipes import (
    QUALITY,
    calibrated,
    data_free,
    importance_of,
    kernel_names,
    weights_in,
)
from modelzip_jax.smallest.step_search import within_bytes, within_drop
from modelzip_jax.trace.measures.curvature import fisher_information
from modelzip_jax.transform import Transform
from modelzip_jax.tree import PyTree

__all__ = ["Smallest", "smallest"]

_FIRST = 1e-3
"""The step of calibrated searches to begin with: an error of step² / 24 nats a weight."""
_HELD = 4
"""One batch of so many is held out to measure a drop on."""

Recipe = Callable[[float], tuple[Transform, dict[str, Any]]]
"""From a step size to the transform, and what `mz.compress` is to be given beside it."""


@dataclasses.dataclass(frozen=True)
class Smallest(Search):
    """See `smallest`."""

    bytes: int | None
    max_drop: float | None
    measure: Measure | None
    likelihood: Literal["categorical", "gaussian"]
    rate_weight: float

    def compressed(
        self,
        params: PyTree,
        *,
        variables: PyTree,
        calibrate: tuple[Callable[..., Any], Sequence[Any]] | None,
        progress: Callable[[str, int], None] | None,
        given: dict[str, Any],
    ) -> Packed:
        if given:
            raise TransformError(f"smallest() finds {', '.join(sorted(given))} itself: leave it out")
        trees.check_not_module(params)
        check_arrays(trees.plain(params))
        check_finite(trees.plain(params))
        if calibrate is None and self.max_drop is not None and self.measure is None:
            raise TransformError(
                "max_drop= needs something to measure: calibrate=(apply_fn, batches), on a part of which outputs are "
                "compared, or measure=, a function from params to scores"
            )
        model = (
            None
            if calibrate is None
            else _checked(calibrate, self.max_drop is not None and self.measure is None)
        )
        recipe, first = self._without_data(params) if model is None else self._with_data(params, *model[:2])

        def make(step: float) -> Packed:
            transform, told = recipe(step)
            packed = compress(params, transform, variables=variables, progress=progress, **told)
            return dataclasses.replace(packed, metadata=Metadata({"smallest": {"step": step}}))

        if self.bytes is not None:
            count = sum(np.size(leaf) for leaf in weights_in(params, 0).values())
            sized = lambda step: (packed := make(step), file_sizes(packed).total)  # noqa: E731
            return within_bytes(sized, first, self.bytes, count).result
        return make(first) if self.max_drop is None else self._within_drop(make, first, params, model)

    def _within_drop(
        self, make: Callable[[float], Packed], first: float, params: PyTree, model: Any
    ) -> Packed:
        measure = self.measure
        if measure is None:
            apply_fn, _, held = model
            measure = output_scores(apply_fn, params, held, self.likelihood)
        reference, drops = scores_by(measure, params), {}

        def dropped(step: float) -> tuple[Packed, float]:
            packed = make(step)
            weights = trees.restored(unpack(packed), params)
            drops[step] = drop_of(scores_by(measure, weights), reference)
            return packed, drops[step].worst

        found = within_drop(dropped, first, self.max_drop)  # type: ignore[arg-type]
        drop = drops[found.step]
        told = {"step": found.step, "drop": drop.mean, "drop_error": drop.error}
        return dataclasses.replace(found.result, metadata=Metadata({"smallest": told}))

    def _without_data(self, params: PyTree) -> tuple[Recipe, float]:
        plain = trees.plain(params)
        return lambda step: (data_free(plain, step), {}), QUALITY

    def _with_data(self, params: PyTree, apply_fn: Any, batches: list[Any]) -> tuple[Recipe, float]:
        fisher = fisher_information(
            apply_fn, params, batches, likelihood=self.likelihood, gradients="batches"
        )
        plain = trees.plain(params)
        importance = importance_of(fisher, plain)
        by_name = dict(trees.named_leaves(importance))
        products = kernel_names(apply_fn, params, batches[0])

        def recipe(step: float) -> tuple[Transform, dict[str, Any]]:
            transform = calibrated(plain, step, products, by_name, self.rate_weight)
            return transform, {"importance": importance, "calibrate": (apply_fn, batches)}

        return recipe, _FIRST


def _checked(calibrate: Any, hold: bool) -> tuple[Callable[..., Any], list[Any], list[Any]]:
    """The model, the batches that calibrate, and those that are held out."""
    pair = isinstance(calibrate, tuple) and len(calibrate) == 2 and callable(calibrate[0])
    if not pair or not hasattr(calibrate[1], "__iter__"):
        raise TransformError("calibrate= takes (apply_fn, batches), such as (model.apply, [x, ...])")
    batches = list(calibrate[1])
    if not batches:
        raise TransformError("calibrate= needs at least one batch: the sequence of batches was empty")
    if not hold:
        return calibrate[0], batches, []
    if len(batches) < 2:
        raise TransformError("max_drop= holds batches out to measure on: give calibrate= at least two")
    held = batches[_HELD - 1 :: _HELD] or batches[-1:]
    kept = [batch for index, batch in enumerate(batches) if not any(batch is each for each in held)]
    return calibrate[0], kept, held


def smallest(
    *,
    bytes: int | None = None,
    max_drop: float | None = None,
    measure: Callable[[PyTree], Any] | None = None,
    likelihood: Literal["categorical", "gaussian"] = "gaussian",
    rate_weight: float = 1.0,
) -> Smallest:
    """The smallest file: `mz.compress(params, mz.smallest(bytes=N))`. Steps, sparsity and bits follow from the target.

    Weights are rounded to integers with no largest one (`mz.entropy_constrained`), and what is chosen is the step of
    each, so that the file, which is entropy-coded, meets the target.

    Without `calibrate=`, from the weights alone: steps by the root of a channel's deviation, coarser for tables of
    which an input reads few rows (`mz.spreads.root_deviation`). Leaves of fewer than two axes stay lossless.

    With `calibrate=(apply_fn, batches)`, by what errors do to the outputs: the Fisher information, for labels sampled
    from the model, sets the step of every leaf, biases and embeddings included; kernels are taken in the order in which
    the model meets them, each with the inputs that it gets from those before once they are rounded, with a step for
    each input and output (`mz.spreads.water_filling`) and error feedback (`mz.rounding.error_feedback`). Each try of a
    step runs the model once over all batches.

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

    Neither `bytes` nor `max_drop`: steps of 0.16 deviations without data; with data an error of 4e-8 nats a weight.

    Raises:
      TransformError: both targets, or what is no target; a drop without a measure; at `compress` also a target below
        what is possible, of which the smallest is named.

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
    if (
        isinstance(rate_weight, bool)
        or not isinstance(rate_weight, int | float)
        or not 0 <= rate_weight < 1e6
    ):
        raise TransformError(f"rate_weight must be a number of at least 0, not {rate_weight!r:.100}")
    return Smallest(
        None if bytes is None else as_whole(bytes, "bytes", 1),
        None if max_drop is None else as_positive(max_drop, "max_drop"),
        measure, likelihood, float(rate_weight),
    )  # fmt: skip
