"""Kronecker factors of the Fisher information: inputs' and output gradients' second moments."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from modelzip_jax.errors import TraceError
from modelzip_jax.patterns import matches
from modelzip_jax.trace.jaxpr.evaluator import Evaluator, Visitor, bind
from modelzip_jax.trace.jaxpr.interpreter import equations_at
from modelzip_jax.trace.jaxpr.programs import Equation, Program, Scan, program
from modelzip_jax.trace.measures.channel_moments import Channels, empty, measure, pooled
from modelzip_jax.trace.measures.input_statistics import by_layer, scans_around
from modelzip_jax.trace.measures.likelihood import Loss
from modelzip_jax.trace.measures.taps import Tap, tap
from modelzip_jax.trace.usage.use import Use, uses_of
from modelzip_jax.tree import PyTree

__all__ = ["Factors", "KroneckerPass"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Factors:
    """The two factors of a weight matrix's block of the Fisher information, float32.

    use: the product. inputs: A = E[a aᵀ], `(..., n, n)`, n in C order of the contracted axes; None if not asked for.
    outputs: G = E[Σ g gᵀ], `(..., m, m)`, m in C order of the output axes. In front stand an axis for each scan over
    layers and one for each batched axis (experts, groups of a convolution's inputs).

    >>> from modelzip_jax import trace
    >>> batches = [(jnp.array([[2.0, 1.0]]), jnp.array([0]))]
    >>> found = trace.fisher_information(
    ...     lambda p, x: x @ p, jnp.zeros((2, 2)), batches, kinds=("kronecker",), labels="given"
    ... )
    >>> found.factors[0].inputs, found.factors[0].outputs
    (Array([[4., 2.],
           [2., 1.]], dtype=float32), Array([[ 0.25, -0.25],
           [-0.25,  0.25]], dtype=float32))
    """

    use: Use = dataclasses.field(metadata={"static": True})
    inputs: Any
    outputs: Any


@dataclasses.dataclass(frozen=True)
class _Site:
    """A use and its taps."""

    use: Use
    inputs: Tap
    outputs: Tap


class KroneckerPass:
    """Gathers the factors of all uses over batches."""

    def __init__(
        self, apply_fn: Callable[..., Any], params: PyTree, loss: Loss, patterns: Sequence[str], inputs: bool
    ) -> None:
        """inputs: whether their factors are gathered, or those of outputs alone."""
        self.apply_fn, self.params, self.loss, self.patterns = apply_fn, params, loss, patterns
        self.of_inputs = inputs
        self.steps: dict[str, tuple[list[_Site], Any]] = {}
        self.sites: list[_Site] = []
        self.inputs: list[Channels] = []
        self.outputs: list[jax.Array] = []
        self.count = 0

    def add(self, inputs: tuple[Any, ...], labels: Any, key: jax.Array, examples: int, called: str) -> None:
        """One batch; `called` so in messages."""
        shapes = str(jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), (inputs, labels)))
        if shapes not in self.steps:
            traced = program(self.apply_fn, self.params, *inputs, called=called)
            sites = _sites(traced, self.patterns)
            self.steps[shapes] = sites, jax.jit(_step(traced, sites, self.loss, examples, self.of_inputs))
        self.sites, step = self.steps[shapes]
        moments, gradients = step(jax.tree.leaves((self.params, inputs)), labels, key)
        self.count += examples
        if self.outputs:
            moments = [pooled(a, b) for a, b in zip(self.inputs, moments, strict=True)]
            share = examples / self.count
            gradients = [a + (b - a) * share for a, b in zip(self.outputs, gradients, strict=True)]
        self.inputs, self.outputs = moments, gradients

    def factors(self) -> dict[str, tuple[Factors, ...]]:
        """The factors of each leaf."""
        found: dict[str, tuple[Factors, ...]] = collections.defaultdict(tuple)
        grams = [a.gram for a in self.inputs] if self.of_inputs else [None] * len(self.sites)
        for site, a, g in zip(self.sites, grams, self.outputs, strict=True):
            found[site.use.leaf] += (Factors(site.use, a, g),)
        return found


def _sites(traced: Program, patterns: Sequence[str]) -> list[_Site]:
    uses = [
        u for u in uses_of(traced) if u.kind in ("dot", "conv") and any(matches(p, u.leaf) for p in patterns)
    ]
    for use in uses:
        custom = [step for step in use.path.split("/") if ":custom_" in step]
        if custom:
            raise TraceError(
                f"leaf {use.leaf!r} is used at {use.path}, inside a function with custom derivatives, which "
                "cannot be followed: leave it out with `only`"
            )
    equations = equations_at(traced, {u.path for u in uses})
    return [
        _Site(u, tap(u, "inputs", equations[u.path], {}), tap(u, "outputs", equations[u.path], {}))
        for u in uses
    ]


def _step(
    traced: Program, sites: list[_Site], loss: Loss, examples: int, of_inputs: bool
) -> Callable[..., Any]:
    """From arguments, labels and key to the moments of inputs and Σ g gᵀ of output gradients of a batch."""
    at: dict[str, list[int]] = collections.defaultdict(list)
    for i, site in enumerate(sites):
        at[site.use.path].append(i)
    silence = {path: _zeros(traced, path, [sites[i].outputs for i in own]) for path, own in at.items()}
    visitors = {path: _visitor([sites[i] for i in own], of_inputs) for path, own in at.items()}
    structure = jax.tree.structure(traced.outputs)

    def total(
        feeds: dict[str, Any], arguments: list[Any], labels: Any, key: jax.Array
    ) -> tuple[jax.Array, dict[str, list[Channels]]]:
        evaluate = Evaluator(visitors, empty=lambda shapes: [empty(x) for x in shapes])
        outputs, collected = evaluate(traced, arguments, feeds)
        return jnp.sum(loss(structure.unflatten(outputs), key, labels)), collected

    def step(arguments: list[Any], labels: Any, key: jax.Array) -> tuple[list[Channels], list[jax.Array]]:
        squares, collected = jax.grad(total, has_aux=True)(silence, arguments, labels, key)
        moments, gradients = [], []
        for i, site in enumerate(sites):
            path, layers = site.use.path, site.use.view.layers
            place = at[path].index(i)
            if of_inputs:
                moments.append(by_layer(collected[path][place], path, layers))
            # As `Channels` of one value each, so that iterations that share the weight are averaged.
            square = squares[path][place] / examples
            ahead = square.shape[: len(scans_around(path))]
            wrapped = by_layer(Channels(jnp.ones(ahead), gram=square), path, layers)
            number = wrapped.count.reshape(
                wrapped.count.shape + (1,) * (wrapped.gram.ndim - wrapped.count.ndim)
            )
            gradients.append(wrapped.gram * number)
        return moments, gradients

    return step


def _zeros(traced: Program, path: str, taps: list[Tap]) -> list[jax.Array]:
    """What is fed to the visitors: zeros, whose gradients will be g gᵀ."""
    scans = scans_around(path)
    found = equations_at(traced, set(scans))
    ahead = tuple(Scan.of(found[scan].eqn).length for scan in scans)
    return [jnp.zeros((*ahead, *t.kept_shape, *(math.prod(t.channel_shape),) * 2)) for t in taps]


def _visitor(sites: list[_Site], of_inputs: bool) -> Visitor:
    def visit(equation: Equation, operands: list[Any], feeds: Any) -> tuple[list[Any], list[Channels]]:
        results = bind(equation.eqn, operands)
        y = results[0]
        for site, feed in zip(sites, feeds, strict=True):
            y = _listen(site.outputs, y, feed)
        found = []
        for site in sites if of_inputs else []:
            x = lax.stop_gradient(operands[site.inputs.operand])
            rows = site.inputs.rows(x, equation)
            found.append(measure(site.inputs.arrange(x), site.inputs.ndim, frozenset(), rows, 0))
        return [y], found

    return visit


def _listen(t: Tap, y: jax.Array, feed: jax.Array) -> jax.Array:
    """`y`, unchanged; the gradient of `feed` is the sum of g gᵀ over rows of the gradient of `y`."""

    @jax.custom_vjp
    def through(y: jax.Array, feed: jax.Array) -> jax.Array:
        return y

    def backward(_: None, g: jax.Array) -> tuple[jax.Array, jax.Array]:
        rows = t.matrix(g).astype(jnp.float32)
        return g, jnp.einsum("...ri,...rj->...ij", rows, rows, precision=lax.Precision.HIGHEST)

    through.defvjp(lambda y, feed: (y, None), backward)
    return through(y, feed)
