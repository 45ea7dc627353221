"""Quantized activations: a model's own products computed on rounded or integer operands.

The model is not touched: its jaxpr is evaluated with other arithmetic in the chosen `dot_general` and
`conv_general_dilated` equations, which `trace.uses` has found.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax.errors import TraceError, TransformError
from modelzip_jax.given_values import as_whole
from modelzip_jax.naming import nearest_name
from modelzip_jax.packed import PackedArray, is_packed
from modelzip_jax.packing import Packed
from modelzip_jax.quantization.activations.calibration import as_patterns, check_how, unpacked_params
from modelzip_jax.quantization.activations.operand import ActivationQuantizer
from modelzip_jax.quantization.activations.product_numbers import check_numbers
from modelzip_jax.quantization.activations.sites import fed, product_sites, site_name
from modelzip_jax.rewrites.coded_products import (
    at_least_float32,
    coded_weight,
    integer_product,
    rounded_weight,
    summed_axes,
)
from modelzip_jax.rewrites.stored_steps import Unsuitable, steps_in_product
from modelzip_jax.trace.jaxpr.evaluator import Evaluator, bind
from modelzip_jax.trace.jaxpr.interpreter import equations_at
from modelzip_jax.trace.jaxpr.programs import Equation, Program, program
from modelzip_jax.trace.usage.use import Use
from modelzip_jax.tree import PyTree, named_leaves

__all__ = ["ARITHMETIC", "quantize_activations"]

ARITHMETIC = ("integer", "float")


@dataclasses.dataclass(frozen=True)
class _Product:
    """Computes one product. operand: which of the equation's two is the weight. bits: of its codes, or None."""

    how: ActivationQuantizer
    operand: int
    bits: int | None
    arithmetic: str

    def __call__(self, equation: Equation, operands: list[Any], given: Any) -> tuple[list[Any], None]:
        own, step = given or ({}, None)
        weight, x = operands[self.operand], operands[1 - self.operand]
        axes = summed_axes(equation, 1 - self.operand)
        activation = self.how.rounded(at_least_float32(x), own, axes).astype(x.dtype)
        if self.bits is None:
            return bind(equation.eqn, self._ordered(activation, weight)), None
        codes = coded_weight(at_least_float32(weight), self.bits, summed_axes(equation, self.operand), step)
        values = self._ordered(
            activation, rounded_weight(at_least_float32(weight), codes).astype(weight.dtype)
        )
        if self.arithmetic == "float":
            return bind(equation.eqn, values), None
        both = self._ordered(self.how.coded(at_least_float32(x), own, axes), codes)
        self._check(both[1 - self.operand].step, x, axes)
        return [integer_product(equation, values, both, self.operand)], None

    def _ordered(self, activation: Any, weight: Any) -> list[Any]:
        return [weight, activation] if self.operand == 0 else [activation, weight]

    def _check(self, step: jax.Array, x: jax.Array, axes: tuple[int, ...]) -> None:
        shape = (1,) * (x.ndim - jnp.ndim(step)) + jnp.shape(step)
        if any(shape[a] != 1 for a in axes):
            raise TransformError(
                f"{type(self.how).__name__} gives steps of shape {shape} for activations of {x.shape}: along the axes "
                f"{axes}, which are summed over, an integer product has one step"
            )


def quantize_activations(
    apply_fn: Callable[..., Any],
    how: ActivationQuantizer,
    scales: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    only: str | Sequence[str] = "**",
    weights: int | str | None = "auto",
    arithmetic: str | None = None,
) -> Callable[..., Any]:
    """The model with quantized inputs in its products with parameters; same signature, same outputs.

    Products of two activations, and of *derived* weights (LoRA's W + A B), stay as they are. All outputs are
    kept, updated batch statistics among them, which are those of the quantized activations.

    The result is pure, works under `jit`, `grad` and `vmap`, and with `scan` and `remat` inside the model. Building it
    costs nothing, so that a loss may build it from numbers that are trained:

        def loss(params, scales, x):
            return criterion(quantize_activations(apply_fn, how, scales)(params, x))

    Args:
      apply_fn: called as `apply_fn(params, *inputs)`. `params` may hold packed arrays, which are unpacked
        inside: weights stay packed in device memory.
      how: of `mz.activations`, or your own.
      scales: of `mz.activations.calibrate`, or what an optimizer has made of them; for what keeps such numbers.
      only: path patterns of the leaves whose products are quantized.
      weights: of these products. 2 to 8: rounded to so many bits, symmetric, with a step for each output channel;
        those packed as symmetric codes, with steps for output channels or the tensor, keep their own. "stored": only
        products with weights packed so are quantized. None: weights as they are, as in training with `mz.wrap`, which
        has rounded them; products are of floats. "auto": 8 for `static` and `dynamic`, "stored" for `dynamic_range`,
        None for all others.
      arithmetic: "integer": int8 operands and int32 sums, scaled afterwards; "float": a product of what the same codes
        stand for, for devices without fast integer products. None: "integer" where weights have codes. Convolutions on
        a GPU sum codes in float32, exact up to 2**24.

    Raises:
      TransformError: an unknown option; numbers are missing, or given to what keeps none; at the first call,
        "stored" weights that are packed otherwise, by name, and numbers that were calibrated for another `how`.
      PatternError (at the first call): a pattern matches no leaf.
      TraceError (at the first call): no product to quantize, or `scales` lack one.
      NonFiniteError (at the first call): a scale is NaN or infinite.

    Gradients are those of the product at the rounded operands; to the activations as `how` says, to the weights
    straight through. A product inside a function with a derivative of its own (`custom_jvp`, `custom_vjp`) has none:
    differentiating it raises `TraceError`; leave it out by `only`.

    Jacob et al. 2018, arXiv:1712.05877, section 2.3 (zero points).

    >>> import modelzip_jax as mz
    >>> params = {"kernel": jnp.array([[1.0, 0.5], [-1.0, 0.25]])}
    >>> model = quantize_activations(lambda p, x: x @ p["kernel"], mz.activations.dynamic())
    >>> model(params, jnp.array([[2.0, 1.0]]))
    Array([[0.992126 , 1.2539525]], dtype=float32)
    """
    check_how(how, "quantize_activations", apply_fn)
    weights = how.weights if weights == "auto" else weights
    weights = as_whole(weights, "bits of weights", 2, 8) if isinstance(weights, np.integer) else weights
    arithmetic = arithmetic or ("float" if weights is None else "integer")
    _check(how, scales, weights, arithmetic)
    patterns = as_patterns(only)
    bits = 8 if weights == "stored" else weights

    @functools.wraps(apply_fn)
    def quantized(params: PyTree, *inputs: Any) -> Any:
        if isinstance(params, Packed):
            raise TransformError("the quantized model takes the params of a packed model: pass packed.params")
        packed = {name: x for name, x in named_leaves(params, is_leaf=is_packed) if is_packed(x)}
        params = unpacked_params(params)
        traced = program(apply_fn, params, *inputs)
        sites = product_sites(traced, patterns)
        if weights == "stored":
            sites = {
                path: use
                for path, use in sites.items()
                if use.leaf in packed and packed[use.leaf].tag != "dense"
            }
            if not sites:
                raise TraceError(
                    f"no leaf that {patterns} matches is packed: mz.compress(params, mz.quantize(8)).params"
                )
        steps = {} if weights is None else _stored(traced, sites, packed, weights == "stored")
        owns = _owned(how, sites, scales) if how.holds else {}
        given = {p: (owns.get(p, {}), steps.get(p)) for p in sites if p in owns or p in steps}
        visitors = {path: _Product(how, use.operand, bits, arithmetic) for path, use in sites.items()}  # type: ignore[arg-type]
        evaluate = Evaluator(visitors, lambda a, b: a, lambda shapes: shapes)
        outputs, _ = evaluate(traced, jax.tree.leaves((params, inputs)), fed(traced, given, sites))
        return jax.tree.unflatten(jax.tree.structure(traced.outputs), outputs)

    return quantized


def _check(how: ActivationQuantizer, scales: Any, weights: Any, arithmetic: str) -> None:
    if arithmetic not in ARITHMETIC:
        raise TransformError(f"arithmetic is {arithmetic!r}; {nearest_name(str(arithmetic), ARITHMETIC)}")
    width = isinstance(weights, int) and not isinstance(weights, bool) and 2 <= weights <= 8
    if weights is not None and weights != "stored" and not width:
        raise TransformError(f"weights are 'auto', 'stored', None, or bits from 2 to 8, not {weights!r}")
    if weights is None and arithmetic == "integer":
        raise TransformError(
            "integer products need weights with codes: weights=8, or the bits that mz.quantize has"
        )
    if how.holds and scales is None:
        raise TransformError(
            f"{how} keeps numbers for each product: scales=mz.activations.calibrate(apply_fn, how, ...)"
        )
    if how.holds and not isinstance(scales, Mapping):
        raise TransformError(
            f"scales are numbers by product, as calibrate gives them, not a {type(scales).__name__}"
        )
    if not how.holds and scales is not None:
        raise TransformError(f"{how} keeps no numbers for products: leave scales out")


def _owned(how: ActivationQuantizer, sites: Mapping[str, Use], scales: Any) -> dict[str, Any]:
    """The numbers of each product, by path."""
    lacking = [site_name(use) for use in sites.values() if site_name(use) not in scales]
    if lacking:
        raise TraceError(
            f"scales lack {', '.join(map(repr, lacking[:5]))}; they have {', '.join(map(repr, list(scales)[:5]))}: "
            "calibrate with the same `only`"
        )
    for name in dict.fromkeys(map(site_name, sites.values())):
        check_numbers(how, name, scales[name])
    return {path: dict(scales[site_name(use)]) for path, use in sites.items()}


def _stored(
    traced: Program, sites: Mapping[str, Use], packed: Mapping[str, PackedArray], needed: bool
) -> dict[str, jax.Array]:
    """The steps of packed weights, by path. needed: whether one that has none is an error."""
    found = {}
    equations = equations_at(traced, set(sites))
    for path, use in sites.items():
        if use.leaf not in packed:
            continue
        try:
            found[path] = steps_in_product(use, packed[use.leaf], summed_axes(equations[path], use.operand))
        except Unsuitable:
            if needed:
                raise
    return found
