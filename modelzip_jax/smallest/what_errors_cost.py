"""What errors of weights cost in a model's outputs: what the calibrated recipe goes by."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax import tree as trees
from modelzip_jax.errors import NonFiniteError, TransformError
from modelzip_jax.smallest.drops import output_power
from modelzip_jax.smallest.recipes import table_names
from modelzip_jax.trace.jaxpr.model_inputs import batch_inputs, holds_nonfinite, running_on
from modelzip_jax.trace.measures.curvature import FisherInformation, fisher_information
from modelzip_jax.trace.usage.use import Use, uses
from modelzip_jax.tree import PyTree

__all__ = ["Information", "information"]

_OUTPUTS = 2048
"""The most outputs of a layer of which the curvature, as large as their square, is gathered."""
_LABELS = 128
"""Labels that are sampled at least: of few outputs several each, which costs next to nothing."""


class Information(NamedTuple):
    """importance: the Fisher information of each weight, in units of the outputs' power where they are no classes.

    curvature: `FisherInformation` of each leaf: of products with factors of outputs, of tables with that of columns.
    products: names of leaves that error feedback can round. tables: names of tables. outputs: how many were
    looked at, each of which had a label sampled.
    """

    importance: PyTree
    curvature: PyTree
    products: list[str]
    tables: list[str]
    outputs: int


def information(
    apply_fn: Callable[..., Any],
    params: PyTree,
    batches: list[Any],
    likelihood: Literal["categorical", "gaussian"],
    keep: Sequence[str],
) -> Information:
    """The model runs twice over all batches, forwards and backwards, for labels sampled from its own outputs.

    Of few outputs several labels each are sampled, by more passes over them.

    >>> import jax.numpy as jnp
    >>> params = {"w": jnp.ones((2, 3))}
    >>> found = information(lambda p, x: x @ p["w"], params, [jnp.eye(2)], "categorical", ())
    >>> found.products, found.curvature["w"].factors[0].outputs.shape
    (['w'], (3, 3))
    """
    plain = trees.plain(params)
    outputs = _outputs(apply_fn, params, batches)
    batches = batches * max(_LABELS // outputs, 1)
    met = _by_leaf(apply_fn, params, batches[0])
    products = [name for name, found in met.items() if _is_kernel(found)]
    tables = table_names(plain, products, keep)
    fisher = fisher_information(
        apply_fn, params, batches, likelihood=likelihood, gradients="batches", columns=tables
    )
    importance = _diagonals(fisher, plain)
    _check_finite(importance, batches)
    if likelihood == "gaussian":
        # Errors in the unit of the outputs themselves, so that steps mean the same for all networks.
        power = output_power(apply_fn, params, batches)
        importance = jax.tree.map(lambda x: x / power, importance)
    sizes = dict(trees.named_leaves(plain))
    both = [name for name in products if _can_have_factors(met[name], np.shape(sizes[name]))]
    if both:
        factors = fisher_information(
            apply_fn, params, batches, kinds=("outputs",), likelihood=likelihood, only=both
        )
        fisher = jax.tree.map(
            lambda f, k: dataclasses.replace(f, factors=k.factors), fisher, factors, is_leaf=_is_information
        )
    return Information(importance, fisher, products, tables, outputs)


def _check_outputs(made: Any) -> None:
    single = hasattr(made, "shape")
    if not single or not made.shape or not jnp.issubdtype(made.dtype, jnp.floating):
        what = f"{made.dtype}{list(made.shape)}" if single else f"a {type(made).__name__}"
        raise TransformError(
            f"apply_fn of calibrate= gives {what}; let it return one floating-point array with a row for each example, "
            "such as the logits before argmax"
        )


def _check_finite(importance: PyTree, batches: list[Any]) -> None:
    for name, found in trees.named_leaves(importance):
        if not np.isfinite(found).all():
            bad = [i for i, batch in enumerate(batches) if holds_nonfinite(batch_inputs(batch, i))]
            why = (
                f"batch {bad[0]} of calibrate= holds NaN or infinity"
                if bad
                else "so are the model's outputs or gradients"
            )
            raise NonFiniteError(f"what errors of {name!r} cost is NaN or infinite: {why}")


def _outputs(apply_fn: Callable[..., Any], params: PyTree, batches: list[Any]) -> int:
    """How many outputs there are, each a vector along the last axis: examples, or positions of all of them."""
    shapes: dict[Any, int] = {}
    total = 0
    for number, batch in enumerate(batches):
        inputs = batch_inputs(batch, number)
        key = str(jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), inputs))
        if key not in shapes:
            with running_on(f"batch {number}", inputs):
                made = jax.eval_shape(apply_fn, params, *inputs)
            with running_on(f"batch {number}", inputs):
                made = jax.eval_shape(apply_fn, params, *inputs)
            _check_outputs(made)
            shapes[key] = int(np.prod(made.shape[:-1] or made.shape))
        total += shapes[key]
    return max(total, 1)


def _is_information(x: Any) -> bool:
    return isinstance(x, FisherInformation)


def _diagonals(fisher: PyTree, params: PyTree) -> PyTree:
    """Each in its leaf's place; zero of leaves that are not floating-point."""

    def diagonal(found: FisherInformation, leaf: Any) -> Any:
        return np.zeros(np.shape(leaf), np.float32) if found.diagonal is None else found.diagonal

    return jax.tree.map(diagonal, fisher, params, is_leaf=_is_information)


def _by_leaf(apply_fn: Callable[..., Any], params: PyTree, batch: Any) -> dict[str, list[Use]]:
    found: dict[str, list[Use]] = {}
    for use in uses(apply_fn, params, *batch_inputs(batch, 0)):
        found.setdefault(use.leaf, []).append(use)
    return found


def _is_kernel(found: Sequence[Use]) -> bool:
    """Whether all of the leaf is in every product of it, summed over the same axes in all of them."""
    plain = all(use.kind in ("dot", "conv") and not use.derived and use.view.complete for use in found)
    return plain and len({(use.contracted, use.output, use.batch) for use in found}) == 1


def _can_have_factors(found: Sequence[Use], shape: tuple[int, ...]) -> bool:
    """Whether gradients of what its products give can be followed, and are not too many for a matrix of them."""
    followed = not any(
        step.startswith("custom_") or ":custom_" in step for u in found for step in u.path.split("/")
    )
    return followed and all(np.prod([shape[a] for a in use.output]) <= _OUTPUTS for use in found)
