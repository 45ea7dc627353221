"""Statistics of the activations that each parameter meets, gathered while the model runs."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax.errors import TraceError
from modelzip_jax.patterns import matches, require_matches
from modelzip_jax.trace.jaxpr.evaluator import Evaluator, Visitor, bind
from modelzip_jax.trace.jaxpr.interpreter import equations_at
from modelzip_jax.trace.jaxpr.model_inputs import batch_inputs, iterated
from modelzip_jax.trace.jaxpr.programs import Equation, Program, program
from modelzip_jax.trace.measures.channel_moments import KINDS, Channels, empty, fold, measure, pooled
from modelzip_jax.trace.measures.layer_outputs import activation_paths
from modelzip_jax.trace.measures.taps import PLACES, Place, Tap, tap
from modelzip_jax.trace.usage.use import Use, uses_of
from modelzip_jax.trace.usage.views import Layer
from modelzip_jax.tree import PyTree

__all__ = ["Measured", "UseStatistics", "by_layer", "scans_around", "statistics", "statistics_pass"]

_ROWS_A_BATCH, _ROWS = 512, 4096


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class UseStatistics:
    """What was seen at one use of a leaf; None for places that were not asked for.

    use: which one. inputs: of the channels that the leaf's contracted axes meet. outputs: of what the
    product gives, before a bias. activations: of what that has become when other layers read it, after
    bias, batch normalisation and nonlinearity, where these are elementwise.

    Channels are laid out as the leaf's axes are: for a kernel `(heads, 64, out)` that contracts the first
    two, inputs have shape `(heads, 64)`. In front stands an axis for each scan over layers. A use of a part
    of the leaf has the channels of that part. Batched axes (experts) come first, then channels. Of a grouped
    convolution inputs are all of its input features.

    >>> seen = statistics(lambda p, x: x @ p, jnp.ones((2, 5)), [jnp.array([[1.0, -2.0]])], ("mean",))[0]
    >>> seen.use.kind, seen.inputs.mean, seen.outputs
    ('dot', Array([ 1., -2.], dtype=float32), None)
    """

    use: Use = dataclasses.field(metadata={"static": True})
    inputs: Channels | None = None
    outputs: Channels | None = None
    activations: Channels | None = None


class Measured(tuple[UseStatistics, ...]):
    """The statistics of a leaf's uses in products, in order: empty for a bias, two for tied weights.

    >>> tied = lambda p, x: x @ p["w"] @ p["w"].T + p["b"]
    >>> found = statistics(tied, {"w": jnp.ones((2, 3)), "b": jnp.ones(2)}, [jnp.ones((1, 2))])
    >>> len(found["w"]), len(found["b"])
    (2, 0)
    """

    __slots__ = ()


jax.tree_util.register_pytree_node(Measured, lambda m: (tuple(m), None), lambda _, m: Measured(m))


def statistics(
    apply_fn: Callable[..., Any],
    params: PyTree,
    batches: Iterable[Any],
    kinds: Sequence[str] = ("mean_abs", "second_moment", "zeros", "range"),
    places: Sequence[Place] = ("inputs",),
    only: str | Sequence[str] = "**",
    percentiles: Sequence[float] = (0.1, 1.0, 50.0, 99.0, 99.9),
    jit: Callable[..., Any] = jax.jit,
) -> PyTree:
    """Runs a model and gathers what its parameters meet: one jitted pass for each batch.

    Means are means over all values of a channel (all batches, positions, and iterations that share the
    weight), accumulated in float32 whatever the model's dtype. Inside a scan over layers each layer has its
    own. A "gram" matrix (as GPTQ and K-FAC read) is E[x xᵀ] over the rows that an output sums over:
    X Xᵀ is `gram` times the number of rows; a convolution's rows are patches.

    "percentiles" are exact over a sample: from each batch at most 512 rows, evenly spread over examples and
    positions, of all of them at most 4,096, evenly thinned when there are more.

    Args:
      apply_fn, params: as for `uses`.
      batches: each a tuple of what `apply_fn` takes after `params`, or that one array.
      kinds: of "mean", "mean_abs", "above_mean", "second_moment", "zeros", "range", "gram", "percentiles"; see
        `Channels`.
      places: of "inputs", "outputs", "activations"; Gram matrices are of inputs only.
      only: path patterns of the leaves to look at; Gram matrices of all of them may not fit in memory.
      percentiles: which ones, in percent.
      jit: what compiles a pass, for one shape of batch.

    Returns:
      The structure of `params` with a `Measured` for each leaf: a tuple of `UseStatistics`, one for each
      product (`dot_general`, `conv_general_dilated`) it takes part in. Usable as `stats=` of `mz.compress`.

    Raises:
      TraceError: there are no batches, or one holds no example, or the model cannot be run on it; a kind or place
        is unknown; a use cannot be looked at where it stands (in `shard_map`, or for percentiles in `while`).
      PatternError: a pattern matches no leaf.

    >>> import modelzip_jax.trace as trace
    >>> x = jnp.array([[1.0, -2.0], [3.0, 0.0]])
    >>> stats = trace.statistics(lambda p, x: x @ p["kernel"], {"kernel": jnp.ones((2, 5))}, [x])
    >>> stats["kernel"][0].inputs.mean_abs, stats["kernel"][0].inputs.zeros
    (Array([2., 1.], dtype=float32), Array([0. , 0.5], dtype=float32))
    """
    inputs = (batch_inputs(batch, number) for number, batch in enumerate(iterated(batches)))
    return statistics_of_inputs(apply_fn, params, inputs, kinds, places, only, percentiles, jit)


def statistics_of_inputs(
    apply_fn: Callable[..., Any],
    params: PyTree,
    batches: Iterable[tuple[Any, ...]],
    kinds: Sequence[str],
    places: Sequence[Place],
    only: str | Sequence[str],
    percentiles: Sequence[float],
    jit: Callable[..., Any],
) -> PyTree:
    """`statistics` of what needs no examples, such as a piece of a model."""
    _check(kinds, KINDS, "kinds")
    _check(places, PLACES, "places")
    patterns = [only] if isinstance(only, str) else list(only)
    passes: dict[Any, _Pass] = {}
    found: _Gathered | None = None
    for number, inputs in enumerate(batches):
        key = str(jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), inputs))
        if key not in passes:
            traced = program(apply_fn, params, *inputs, called=f"batch {number}")
            require_matches(patterns, traced.names)
            passes[key] = _Pass(traced, frozenset(kinds), places, patterns, jit)
        found = found or _Gathered(passes[key])
        found.add(passes[key](params, *inputs))
    if found is None:
        raise TraceError("statistics need at least one batch: the iterable of batches was empty")
    return found.tree(percentiles)


def statistics_pass(
    apply_fn: Callable[..., Any],
    params: PyTree,
    *inputs: Any,
    kinds: Sequence[str] = ("mean_abs", "second_moment", "zeros", "range"),
    places: Sequence[Place] = ("inputs",),
    only: Sequence[str] = ("**",),
) -> Callable[..., dict[tuple[str, int, Place], Channels]]:
    """The jitted pass that `statistics` makes over batches of one shape.

    It takes params and inputs, and gives `Channels` by leaf, number of its use, and place, of one batch.
    Uses that share a tap share its arrays. Percentiles are still the sampled rows.
    """
    return _Pass(program(apply_fn, params, *inputs), frozenset(kinds), places, only)


def _check(asked: Sequence[str], known: Sequence[str], what: str) -> None:
    unknown = [a for a in asked if a not in known]
    if unknown or isinstance(asked, str):
        raise TraceError(f"{what} must be a sequence of {', '.join(map(repr, known))}, not {asked!r}")


_Key = tuple[str, int, Place]
"""Leaf, index of the use, place."""
_Layered = tuple[Tap, tuple[Layer, ...]]
"""A tap, and the scans that took the leaf apart."""


class _Pass:
    """One jitted pass of a model at one shape of batch: from params and inputs to `Channels` by key."""

    def __init__(
        self,
        traced: Program,
        kinds: frozenset[str],
        places: Sequence[Place],
        patterns: Sequence[str],
        jit: Callable[..., Any] = jax.jit,
    ):
        self.traced, self.kinds = traced, kinds
        self.uses = [u for u in uses_of(traced) if u.kind in ("dot", "conv")]
        self.uses = [u for u in self.uses if any(matches(p, u.leaf) for p in patterns)]
        self.equations = equations_at(traced, {u.path for u in self.uses})
        after = activation_paths(traced) if "activations" in places else {}
        self.taps: dict[_Key, _Layered] = {
            (u.leaf, u.index, place): (tap(u, place, self.equations[u.path], after), u.view.layers)
            for u in self.uses
            for place in places
        }
        self.run = jit(self._run)

    def __call__(self, params: PyTree, *inputs: Any) -> dict[_Key, Channels]:
        """The moments of one batch."""
        found = self.run(jax.tree.leaves((params, inputs)))
        places = {layered: i for i, layered in enumerate(dict.fromkeys(self.taps.values()))}
        return {key: found[places[layered]] for key, layered in self.taps.items()}

    def _run(self, arguments: list[Any]) -> list[Channels]:
        """One `Channels` for each distinct tap: uses that share one share its measurement."""
        at: dict[str, dict[Tap, int]] = collections.defaultdict(dict)
        for each, _ in self.taps.values():
            at[each.path].setdefault(each, len(at[each.path]))
        evaluate = Evaluator({p: self._visitor(list(taps)) for p, taps in at.items()}, _merge_all, _empty_all)
        _, collected = evaluate(self.traced, arguments)
        return [
            by_layer(collected[each.path][at[each.path][each]], each.path, layers)
            for each, layers in dict.fromkeys(self.taps.values())
        ]

    def _visitor(self, taps: list[Tap]) -> Visitor:
        def visit(equation: Equation, operands: list[Any], _: Any) -> tuple[list[Any], list[Channels]]:
            results = bind(equation.eqn, operands)
            return results, [self._measure(t, equation, operands, results) for t in taps]

        return visit

    def _measure(self, t: Tap, equation: Equation, operands: list[Any], results: list[Any]) -> Channels:
        x = operands[t.operand] if t.place == "inputs" else results[0]
        gram = "gram" in self.kinds and t.place == "inputs"
        rows = t.rows(x, equation) if gram else None
        return measure(t.arrange(x), t.ndim, self.kinds, rows, _ROWS_A_BATCH, len(t.kept_shape))


def by_layer(found: Channels, path: str, layers: tuple[Layer, ...]) -> Channels:
    """Without the axes of scans that did not take this leaf apart: their iterations share its weights."""
    taken = {layer.scan: layer for layer in layers}
    axis = 0
    for scan in scans_around(path):
        if scan in taken:
            found = _own_layers(found, axis, taken[scan])
            axis += 1
        else:
            found = fold(found, axis)
    return found


def _places(taps: dict[_Key, _Layered], use: Use) -> Iterable[Place]:
    return (place for place in PLACES if (use.leaf, use.index, place) in taps)


def _own_layers(found: Channels, axis: int, layer: Layer) -> Channels:
    """The layers that are this leaf's, where a scan runs over several leaves stacked."""
    own = layer.axis
    if own.full:
        return found
    return jax.tree.map(
        lambda x: jax.lax.slice_in_dim(x, own.origin, own.origin + own.length, axis=axis), found
    )


def scans_around(path: str) -> list[str]:
    """Paths of the scans around an equation, outermost first."""
    steps = path.split("/")
    return ["/".join(steps[: i + 1]) for i, step in enumerate(steps[:-1]) if step.endswith(":scan")]


def _merge_all(a: list[Channels], b: list[Channels]) -> list[Channels]:
    return [pooled(x, y) for x, y in zip(a, b, strict=True)]


def _empty_all(shapes: list[Channels]) -> list[Channels]:
    if any(x.sample is not None for x in shapes):
        raise TraceError(
            "percentiles cannot be sampled inside `while` or `cond`, whose equations may not run: leave "
            "'percentiles' out of the kinds, or these leaves with `only`"
        )
    return [empty(x) for x in shapes]


class _Gathered:
    """What all batches so far have shown."""

    def __init__(self, first: _Pass):
        self.traced, self.uses, self.taps = first.traced, first.uses, first.taps
        self.total: dict[_Key, Channels] = {}
        self.samples: dict[_Key, list[np.ndarray]] = collections.defaultdict(list)
        self.every, self.seen = 1, 0

    def add(self, batch: dict[_Key, Channels]) -> None:
        """Merges a batch's moments, and keeps its samples on the host."""
        if self.seen % self.every == 0:
            for key, channels in batch.items():
                if channels.sample is not None:
                    self.samples[key].append(np.asarray(channels.sample))
        self.seen += 1
        plain = {key: dataclasses.replace(c, sample=None) for key, c in batch.items()}
        self.total = _merge_batches(self.total, plain) if self.total else plain
        # Every second batch is dropped, before and from now on: what is kept stays evenly spread.
        if any(sum(s.shape[self._row_axis(k)] for s in v) > _ROWS for k, v in self.samples.items()):
            self.every *= 2
            self.samples = collections.defaultdict(list, {k: v[::2] for k, v in self.samples.items()})

    def _row_axis(self, key: _Key) -> int:
        return int(self.total[key].count.ndim)

    def tree(self, percentiles: Sequence[float]) -> PyTree:
        """The structure of the parameters with a `Measured` for each leaf."""
        by_leaf: dict[str, list[UseStatistics]] = collections.defaultdict(list)
        for use in self.uses:
            places = {p: self._final((use.leaf, use.index, p), percentiles) for p in _places(self.taps, use)}
            by_leaf[use.leaf].append(UseStatistics(use, **places))
        return self.traced.treedef.unflatten([Measured(by_leaf[name]) for name in self.traced.names])

    def _final(self, key: _Key, percentiles: Sequence[float]) -> Channels:
        found = self.total[key]
        if key not in self.samples:
            return found
        axis = self._row_axis(key)
        rows = np.concatenate(self.samples[key], axis=axis)
        return dataclasses.replace(
            found, percentiles=jnp.asarray(np.percentile(rows, percentiles, axis=axis), jnp.float32)
        )


@jax.jit
def _merge_batches(a: dict[_Key, Channels], b: dict[_Key, Channels]) -> dict[_Key, Channels]:
    return {key: pooled(a[key], b[key]) for key in a}
