"""Bias correction: what quantized weights add to the mean of each layer's output, taken out of its bias."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax import tree as trees
from modelzip_jax.errors import LeafError, NonFiniteError, TraceError, TransformError, TreeError
from modelzip_jax.float_params import check_float_params
from modelzip_jax.naming import nearest_name
from modelzip_jax.packed import is_packed
from modelzip_jax.packing import unpack
from modelzip_jax.patterns import matches, require_matches
from modelzip_jax.rewrites.normal_inputs import expected_errors
from modelzip_jax.trace.jaxpr.evaluator import Evaluator, Visitor, bind
from modelzip_jax.trace.jaxpr.interpreter import equations_at
from modelzip_jax.trace.jaxpr.model_inputs import batch_inputs, iterated
from modelzip_jax.trace.jaxpr.programs import Equation, Program, program
from modelzip_jax.trace.measures.channel_moments import Channels, empty, measure, pooled
from modelzip_jax.trace.measures.input_statistics import by_layer
from modelzip_jax.trace.measures.taps import Tap
from modelzip_jax.trace.usage.layer_biases import FollowingBias, following_biases
from modelzip_jax.trace.usage.use import Use, uses_of
from modelzip_jax.trace.usage.views import along
from modelzip_jax.tree import PyTree

__all__ = ["BiasCorrected", "correct_bias"]

METHODS = ("empirical", "batch_norm")


@dataclasses.dataclass(frozen=True, eq=False)
class BiasCorrected:
    """A quantized network with other biases.

    params: the quantized params with the corrected ones. corrections: what was added to each bias, float64, by its
    name. left: quantized kernels whose outputs were not corrected, and why.

    >>> BiasCorrected({}, {}, {"kernel": "no bias follows it"}).left
    {'kernel': 'no bias follows it'}
    """

    params: PyTree
    corrections: Mapping[str, np.ndarray]
    left: Mapping[str, str]


def correct_bias(
    apply_fn: Callable[..., Any],
    params: PyTree,
    quantized_params: PyTree,
    batches: Iterable[Any],
    *,
    method: Literal["empirical", "batch_norm"] = "empirical",
    only: str | Sequence[str] | None = None,
) -> BiasCorrected:
    """The quantized params with E[y] - E[y_quantized] added to the bias that follows each quantized layer.

    "empirical": means over `batches`, layer by layer in the order in which they run (each layer of a scan by itself),
    each behind all layers that were corrected before it, so that the mean of every corrected layer's output is that of
    the float network. That takes a pass over all batches for each layer.

    "batch_norm": no data but a batch for the shapes. Behind a batch normalisation a channel is taken to be normal with
    its shift as the mean and its scale as standard deviation; behind a relu or relu6 its mean is that of the clipped
    normal, and the output is off by ΔW E[x]. Weights alone change E[y] so; errors of layers before do not count.

    The bias is the leaf that is added to the product's result, or the running mean that is subtracted from it, as the
    jaxpr says, if nothing else reads that result.

    Args:
      apply_fn, params: as for `trace.statistics`, with all collections.
      quantized_params: the same tree with quantized weights, arrays or packed. A kernel is quantized if it differs.
      batches: as for `trace.statistics`. For "batch_norm" the shapes of the first one count, a batch of 1 suffices.
      method: see above.
      only: path patterns of the kernels whose outputs are corrected; None: all quantized ones that can be.

    Returns:
      `BiasCorrected`.

    Raises:
      TransformError: no layer can be corrected, or not what `only` names: without a bias, or, for "batch_norm", with
        inputs that are not known to be clipped normal; an unknown method.
      TreeError: the two trees differ in structure. TraceError: no batches, or one holds no example, or the model cannot
        be run on it. LeafError: `params` are packed, as where the two are swapped.
      PatternError: a pattern matches no leaf. NonFiniteError: a mean is NaN or infinite.

    Nagel et al. 2019, arXiv:1906.04721, §4.2 and eq. 17 to 20, appendix C and D.

    >>> import modelzip_jax as mz
    >>> params = {"kernel": jnp.array([[0.9, 0.1], [0.2, -0.6]]), "bias": jnp.zeros(2)}
    >>> model = lambda p, x: x @ p["kernel"] + p["bias"]
    >>> coarse = {**params, "kernel": jnp.round(params["kernel"])}
    >>> x = jnp.array([[1.0, 2.0], [3.0, 2.0]])
    >>> corrected = correct_bias(model, params, coarse, [x]).params
    >>> jnp.abs(model(corrected, x).mean(0) - model(params, x).mean(0)).max() < 1e-6
    Array(True, dtype=bool)
    """
    if method not in METHODS:
        raise TransformError(f"method is {method!r}; {nearest_name(str(method), METHODS)}")
    packed = any(map(is_packed, jax.tree.leaves(quantized_params, is_leaf=is_packed)))
    swapped = (
        ""
        if packed
        else "; quantized ones come behind them: correct_bias(apply_fn, params, quantized_params, ...)"
    )
    check_float_params(params, "correct_bias()", swapped)
    if packed:
        quantized_params = unpack(quantized_params)
    pairs = [batch_inputs(batch, number) for number, batch in enumerate(iterated(batches))]
    if not pairs:
        raise TraceError("bias correction needs at least one batch: the iterable of batches was empty")
    traced = program(apply_fn, params, *pairs[0], called="batch 0")
    changed = _changed(params, quantized_params)
    patterns = ["**"] if only is None else [only] if isinstance(only, str) else list(only)
    require_matches(patterns, traced.names)
    uses = uses_of(traced)
    products = [
        use
        for use in uses
        if use.kind in ("dot", "conv") and use.leaf in changed and any(matches(p, use.leaf) for p in patterns)
    ]
    biases = following_biases(traced, uses)
    shapes = dict(zip(traced.names, traced.shapes, strict=True))
    left = {u.leaf: why for u in products if (why := _why_not(u, biases.get(u.path), shapes))}
    todo = {u.path: biases[u.path] for u in products if u.leaf not in left}
    if method == "empirical":
        means = _Means(apply_fn, list(todo.values()), shapes)
        added = _empirical(means, traced, params, quantized_params, pairs)
    else:
        errors, unknown = expected_errors(
            traced, params, quantized_params, {p: b.use.path for p, b in todo.items()}
        )
        left.update({u.leaf: unknown[u.path] for u in products if u.path in unknown and u.leaf not in left})
        added = {
            b.use.leaf: -b.sign
            * _in_leaf(measure(_tap(b).arrange(errors[p]), _tap(b).ndim, _MEAN, None, 0), b, shapes)
            for p, b in todo.items()
            if p in errors
        }
    if (left and only is not None) or not added:
        shown = "; ".join(f"{name!r}: {why}" for name, why in list(left.items())[:6])
        raise TransformError(
            f"no bias can correct these layers: {shown or 'no kernel that matches is quantized'}"
        )
    for name, x in added.items():
        if not np.isfinite(x).all():
            raise NonFiniteError(f"the mean of what {name!r} is added to is NaN or infinite")
    return BiasCorrected(_with(quantized_params, added), added, left)


_MEAN = frozenset(["mean"])


def _changed(params: PyTree, quantized: PyTree) -> set[str]:
    before, after = dict(trees.named_leaves(params)), dict(trees.named_leaves(quantized))
    shapes, others = ({n: np.shape(x) for n, x in leaves.items()} for leaves in (before, after))
    if shapes != others:
        differ = sorted(n for n in {*shapes, *others} if shapes.get(n) != others.get(n))
        raise TreeError(f"params and quantized_params differ in leaves or shapes: {differ[:6]}")
    return {n for n, x in before.items() if not np.array_equal(np.asarray(x), np.asarray(after[n]))}


def _why_not(use: Use, bias: FollowingBias | None, shapes: Mapping[str, tuple[int, ...]]) -> str:
    if bias is None:
        return f"no bias of its own follows the product at {use.path}"
    own, shape = _leaf_axes(bias), shapes[bias.use.leaf]
    size = [f.size for axis in _channels(bias) for f in axis[1].factors]
    layers = [layer.axis.length for layer in bias.use.view.layers]
    wide = sorted(own) == [a for a in range(len(shape)) if shape[a] != 1]
    if not wide or np.prod([*size, *layers]) != np.prod(shape):
        return f"its bias {bias.use.leaf!r} is used in part at {bias.use.path}"
    return ""


def _channels(bias: FollowingBias) -> list[tuple[int, Any]]:
    return [(i, axis) for i, axis in enumerate(bias.use.view.axes) if along([axis])]


def _leaf_axes(bias: FollowingBias) -> list[int]:
    """The leaf's axes in the order in which means are measured."""
    return [
        *(a for layer in bias.use.view.layers for a in along([layer.axis])),
        *along(a for _, a in _channels(bias)),
    ]


def _tap(bias: FollowingBias) -> Tap:
    return Tap(bias.use.path, "outputs", 1 - bias.use.operand, (), tuple(_channels(bias)))


def _in_leaf(found: Channels, bias: FollowingBias, shapes: Mapping[str, tuple[int, ...]]) -> np.ndarray:
    """Means in the shape of the bias."""
    axes = _leaf_axes(bias)
    mean = np.asarray(found.mean, np.float64)
    order = sorted(range(len(axes)), key=lambda i: axes[i])
    if mean.ndim != len(axes):
        raise LeafError(f"the outputs that bias {bias.use.leaf!r} is added to do not have its axes")
    made: np.ndarray = mean.transpose(order).reshape(shapes[bias.use.leaf])
    return made


def _empirical(
    means: _Means, traced: Program, params: PyTree, quantized: PyTree, batches: list[tuple[Any, ...]]
) -> dict[str, np.ndarray]:
    wanted = means(params, batches)
    added = {name: np.zeros_like(mean) for name, mean in wanted.items()}
    for bias, layer in _in_order(means.biases, traced):
        name = bias.use.leaf
        found = means(_with(quantized, added), batches)[name]
        added[name][layer] += bias.sign * (wanted[name] - found)[layer]
    return added


def _in_order(biases: list[FollowingBias], traced: Program) -> list[tuple[FollowingBias, tuple[Any, ...]]]:
    """Each bias as often as a scan has layers of it, as they run, and the index of that layer in the leaf."""
    scans = {layer.scan for b in biases for layer in b.use.view.layers}
    backwards = {path for path, e in equations_at(traced, scans).items() if e.params["reverse"]}
    found = []
    for bias in biases:
        layers = bias.use.view.layers
        for place in np.ndindex(*(layer.axis.length for layer in layers)):
            at = {layer.scan: i for layer, i in zip(layers, place, strict=True)}
            index: list[Any] = [slice(None)] * len(bias.use.view.shape)
            for layer, i in zip(layers, place, strict=True):
                (axis,) = along([layer.axis])
                index[axis] = i
            steps, when = bias.use.path.split("/"), []
            for n, step in enumerate(steps):
                scan = "/".join(steps[: n + 1])
                turn = at.get(scan, 0)
                when += [int(step.split(":")[0]) if ":" in step else 0, -turn if scan in backwards else turn]
            found.append((when, bias, tuple(index)))
    return [(bias, index) for _, bias, index in sorted(found, key=lambda each: each[0])]


class _Means:
    """The means, over batches, of what biases were added to, in the shapes of the biases."""

    def __init__(
        self, apply_fn: Callable[..., Any], biases: list[FollowingBias], shapes: Mapping[str, tuple[int, ...]]
    ) -> None:
        self.apply_fn, self.biases, self.shapes = apply_fn, biases, shapes
        self.passes: dict[str, Callable[..., dict[str, Channels]]] = {}

    def __call__(self, params: PyTree, batches: list[tuple[Any, ...]]) -> dict[str, np.ndarray]:
        total: dict[str, Channels] = {}
        for number, inputs in enumerate(batches):
            key = str(jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), inputs))
            if key not in self.passes:
                self.passes[key] = self._pass(
                    program(self.apply_fn, params, *inputs, called=f"batch {number}")
                )
            found = self.passes[key](jax.tree.leaves((params, inputs)))
            total = {n: pooled(total[n], x) if n in total else x for n, x in found.items()}
        return {b.use.leaf: _in_leaf(total[b.use.leaf], b, self.shapes) for b in self.biases}

    def _pass(self, traced: Program) -> Callable[..., dict[str, Channels]]:
        def run(arguments: list[Any]) -> dict[str, Channels]:
            visitors = {b.use.path: _visitor(_tap(b)) for b in self.biases}
            _, found = Evaluator(visitors, pooled, empty)(traced, arguments)
            return {
                b.use.leaf: by_layer(found[b.use.path], b.use.path, b.use.view.layers) for b in self.biases
            }

        return jax.jit(run)


def _visitor(tap: Tap) -> Visitor:
    def visit(equation: Equation, operands: list[Any], _: Any) -> tuple[list[Any], Channels]:
        results = bind(equation.eqn, operands)
        return results, measure(tap.arrange(results[0]), tap.ndim, _MEAN, None, 0)

    return visit


def _with(params: PyTree, added: Mapping[str, np.ndarray]) -> PyTree:
    def corrected(name: str, x: Any) -> Any:
        if name not in added:
            return x
        made = (np.asarray(x, np.float64) + added[name]).astype(jnp.result_type(x))
        return jnp.asarray(made) if isinstance(x, jax.Array) else made

    return trees.map_named(corrected, params)
