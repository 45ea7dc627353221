"""Features of named layers, read while a model runs: no model has to be changed to expose them."""

from __future__ import annotations

import collections
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from modelzip_jax.errors import TraceError
from modelzip_jax.patterns import matches, require_matches
from modelzip_jax.suggestions import listed
from modelzip_jax.trace.jaxpr.evaluator import Evaluator, Visitor, bind
from modelzip_jax.trace.jaxpr.interpreter import equations_at
from modelzip_jax.trace.jaxpr.programs import Equation, Program, inner_jaxpr, program
from modelzip_jax.trace.measures.layer_outputs import activation_paths
from modelzip_jax.trace.measures.taps import PLACES, Place
from modelzip_jax.trace.usage.use import Use, uses_of
from modelzip_jax.tree import PyTree

__all__ = ["features"]


def features(
    apply_fn: Callable[..., Any],
    params: PyTree,
    *inputs: Any,
    layers: Sequence[str] | Mapping[str, Place],
) -> tuple[PyTree, dict[str, jax.Array]]:
    """The outputs of a model, and what chosen layers of it say, in one run.

    Linen, NNX and plain functions alike: layers are found in the model's jaxpr, by the names of their weights. To be
    called within a jitted step, where the model is traced once; gradients flow through outputs and features.

    A layer's "activations" are what its output has become when other layers read it: after bias, normalisation with
    stored moments, and nonlinearity. Normalisation with the moments of the batch, as in training, is no longer
    elementwise, and the activations end before it: there read the "inputs" of the next layer, which are what it is
    given in any mode. "outputs" are those of the product alone.

    Args:
      apply_fn, params: as for `trace.uses`. Wrapped parameters (`mz.params`) are decoded by the caller.
      *inputs: what else the model takes.
      layers: names, or names with a place each: "activations" (if only names are given), "inputs" or "outputs". A name
        is the path of a weight, `params/Conv_0/kernel`, or of the module that has it, or a pattern, `**/Conv_0`,
        that fits one weight; the uses of tied weights are told apart by `#0`, `#1`.

    Returns:
      `(outputs, {name: activation})`: the model's own outputs, and arrays in the model's shapes and dtypes. In a scan
      over layers an activation has an axis of iterations in front.

    Raises:
      PatternError: a name fits no weight.
      TraceError: it fits several layers, or none that is a dense layer or convolution; a place is unknown; a layer
        stands where its activation cannot be read (`while`, `cond`, inside a function with its own derivative).

    >>> import jax.numpy as jnp
    >>> model = lambda p, x: jax.nn.relu(x @ p["hidden"] + p["bias"]) @ p["head"]
    >>> params = {"hidden": jnp.eye(2), "bias": jnp.array([0.0, -5.0]), "head": jnp.ones((2, 1))}
    >>> outputs, found = features(model, params, jnp.array([[1.0, 2.0]]), layers=["hidden"])
    >>> outputs, found["hidden"]
    (Array([[1.]], dtype=float32), Array([[1., 0.]], dtype=float32))
    """
    traced = program(apply_fn, params, *inputs)
    at: dict[str, list[_Reading]] = collections.defaultdict(list)
    for reading in _readings(traced, layers):
        at[reading.path].append(reading)
    evaluate = Evaluator({path: _visitor(readings) for path, readings in at.items()})
    results, collected = evaluate(traced, jax.tree.leaves((params, inputs)))
    found = {name: array for arrays in collected.values() for name, array in arrays.items()}
    return jax.tree.structure(traced.outputs).unflatten(results), {name: found[name] for name in layers}


class _Reading(NamedTuple):
    """A value to read: operand or result `number` of the equation at `path`."""

    name: str
    path: str
    number: int
    is_operand: bool


def _visitor(readings: Sequence[_Reading]) -> Visitor:
    def visit(equation: Equation, operands: list[Any], _: Any) -> tuple[list[Any], dict[str, Any]]:
        results = bind(equation.eqn, operands)
        return results, {r.name: (operands if r.is_operand else results)[r.number] for r in readings}

    return visit


def _readings(traced: Program, layers: Sequence[str] | Mapping[str, Place]) -> Iterable[_Reading]:
    if isinstance(layers, str) or not layers:
        raise TraceError(f"layers must be names of layers, in a list or as keys of a dict, not {layers!r}")
    unnamed = [name for name in layers if not isinstance(name, str)]
    if unnamed:
        raise TraceError(
            f"layers must be names of layers, and {unnamed[0]!r} is a {type(unnamed[0]).__name__}"
        )
    places = layers if isinstance(layers, Mapping) else dict.fromkeys(layers, "activations")
    uses, after = uses_of(traced), activation_paths(traced)
    for name, place in places.items():
        if place not in PLACES:
            raise TraceError(f"the place of layer {name!r} must be one of {PLACES}, not {place!r}")
        use = _use(name, uses, traced.names)
        if place == "inputs":
            yield _operand(name, use)
        else:
            path = after.get(use.path, use.path) if place == "activations" else use.path
            yield _result(name, path, traced)


def _use(name: str, uses: Sequence[Use], leaves: Sequence[str]) -> Use:
    """The one product that a name means."""
    pattern, number = name, None
    if asked := re.search(r"#(\d+)\Z", name):
        pattern, number = name[: asked.start()], int(asked[1])

    def fits(leaf: str) -> bool:
        return matches(pattern, leaf) or matches(f"{pattern}/*", leaf)

    if not any(map(fits, leaves)):
        require_matches([pattern], leaves)
    found = [use for use in uses if fits(use.leaf) and use.kind in ("dot", "conv")]
    layers = list(dict.fromkeys(use.leaf for use in found))
    if len(layers) > 1:
        raise TraceError(f"layer {name!r} fits several layers, {listed(layers, 6)}: name one of them")
    if not found:
        raise TraceError(
            f"layer {name!r} takes part in no dense layer or convolution; features of others, such as embeddings, are "
            "the inputs of the layer that reads them"
        )
    if number is None and len(found) == 1:
        return found[0]
    chosen = [use for use in found if use.index == number]
    if not chosen:
        choices = ", ".join(repr(f"{pattern}#{use.index}") for use in found)
        raise TraceError(f"layer {name!r} is used {len(found)} times: name one of {choices}")
    return chosen[0]


def _own_derivative(path: str) -> int | None:
    """Which of the calls around an equation, outermost first, has a derivative of its own; None if none has."""
    steps = path.split("/")[:-1]
    return next((i for i, step in enumerate(steps) if ":custom_" in step), None)


def _operand(name: str, use: Use) -> _Reading:
    if _own_derivative(use.path) is not None:
        raise _unreadable(name, use.path)
    return _Reading(name, use.path, 1 - use.operand if use.kind == "dot" else 0, True)


def _result(name: str, path: str, traced: Program) -> _Reading:
    """The result of the equation at a path, read from around what has a derivative of its own, which so is kept."""
    around, number = _own_derivative(path), 0
    if around is None:
        return _Reading(name, path, number, False)
    steps = path.split("/")
    paths = ["/".join(steps[: i + 1]) for i in range(around, len(steps))]
    equations = equations_at(traced, set(paths))
    for outer, inner in reversed(list(itertools.pairwise(paths))):
        jaxpr = inner_jaxpr(equations[outer].eqn)
        results = (
            [] if jaxpr is None else list(jaxpr.jaxpr.outvars if hasattr(jaxpr, "jaxpr") else jaxpr.outvars)
        )
        made = equations[inner].eqn.outvars[number]
        if not any(v is made for v in results):
            raise _unreadable(name, path)
        number = next(i for i, v in enumerate(results) if v is made)
    return _Reading(name, paths[0], number, False)


def _unreadable(name: str, path: str) -> TraceError:
    return TraceError(
        f"layer {name!r} stands inside a function with a derivative of its own (custom_jvp, custom_vjp), at {path}: "
        "what is inside cannot be read without losing that derivative"
    )
