"""Layers compressed in turn, each by the inputs that those before it give once they are compressed."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from modelzip_jax import tree as trees
from modelzip_jax.combinator import reads
from modelzip_jax.errors import TransformError
from modelzip_jax.trace.jaxpr.interpreter import equations_at
from modelzip_jax.trace.jaxpr.model_inputs import batch_inputs, shapes_in
from modelzip_jax.trace.jaxpr.programs import Program, program
from modelzip_jax.trace.jaxpr.segments import SharedPrograms, Straight
from modelzip_jax.trace.measures.channel_moments import pooled
from modelzip_jax.trace.measures.input_statistics import Measured, UseStatistics, statistics_of_inputs
from modelzip_jax.trace.measures.taps import tap
from modelzip_jax.trace.usage.use import Use, uses_of
from modelzip_jax.transform import Transform
from modelzip_jax.tree import PyTree

__all__ = ["Calibration"]

_KINDS = ("mean", "mean_abs", "second_moment", "gram")


class _Turn(NamedTuple):
    """Leaves that are compressed together, having the same inputs.

    leaves: their indices. begin: the first step that any of them is used in. until: the last step that looks at them.
    """

    leaves: tuple[int, ...]
    begin: int
    until: int


@dataclasses.dataclass
class _Shape:
    """The batches of one shape: how the model runs on them, and what of each has come how far."""

    straight: Straight
    turns: list[_Turn]
    values: list[dict[int, Any]]
    at: int = 0

    def turn(self, leaves: Sequence[int]) -> _Turn:
        """The turn of these leaves."""
        found = [t for t in self.turns if set(t.leaves) == set(leaves) and t.begin >= self.at]
        if len(found) != 1:
            raise TransformError(
                "the model meets its layers in another order for batches of another shape, so that calibrate= cannot "
                "take them in turn: give it batches of one shape"
            )
        return found[0]


def checked_pair(calibrate: Any) -> tuple[Callable[..., Any], Sequence[Any]]:
    """What `calibrate=` is given, if it can be a model and its batches.

    Raises:
      TransformError: it is something else, or one array in the place of batches.

    >>> checked_pair((len, jnp.ones((128, 40))))
    Traceback (most recent call last):
    modelzip_jax.errors.TransformError: calibrate= takes (apply_fn, batches), with a list of ...
    """
    pair = isinstance(calibrate, tuple) and len(calibrate) == 2 and callable(calibrate[0])
    if not pair or not hasattr(calibrate[1], "__iter__"):
        raise TransformError(
            "calibrate= takes (apply_fn, batches), such as (model.apply, [x, ...]): batches as of trace.statistics, "
            f"not {shapes_in(calibrate)}"
        )
    if hasattr(calibrate[1], "shape"):
        raise TransformError(
            "calibrate= takes (apply_fn, batches), with a list of batches, such as [x], and not one array, "
            f"of shape {tuple(calibrate[1].shape)}"
        )
    return calibrate


class Calibration:
    """Runs a model over batches as far as the next layers that need statistics, again and again.

    The model runs once, in pieces: what a piece gives of every batch is kept until the next one is run. Layers that
    meet the same inputs take one turn, as do the layers of a scan; those of a scan's body meet what the scan gives
    after the turns before.
    """

    def __init__(
        self, calibrate: Any, params: PyTree, transform: Transform, keep: Sequence[bool], told: Sequence[str]
    ):
        """params: as the model takes them. keep: which leaves are encoded. told: names of what else was given."""
        apply_fn, batches = _alone(calibrate, told)
        self.leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(params)]
        self.names = [name for name, _ in trees.named_leaves(params)]
        asked = reads(transform, trees.outlines(trees.plain(params)), "stats")
        self.wanted = [i for i, (a, k) in enumerate(zip(asked, keep, strict=True)) if a and k]
        if not self.wanted:
            raise TransformError(
                "compress() was given calibrate=, and nothing in the transform needs statistics: leave it out, or "
                "round by them: mz.quantize(4, rounding=mz.rounding.error_feedback())"
            )
        if not transform.leafwise:
            raise TransformError(
                "calibrate= compresses layers in turn, and the transform decides about all leaves at once: give it "
                "stats=trace.statistics(apply_fn, params, batches, kinds=('gram',)) instead"
            )
        self.shared = SharedPrograms()
        self.shapes: dict[str, _Shape] = {}
        for number, batch in enumerate(batches):
            inputs = jax.tree.map(jnp.asarray, batch_inputs(batch, number))
            key = str(jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), inputs))
            if key not in self.shapes:
                self.shapes[key] = self._shape(program(apply_fn, params, *inputs, called=f"batch {number}"))
            straight = self.shapes[key].straight
            self.shapes[key].values.append(dict(zip(straight.inputs, jax.tree.leaves(inputs), strict=True)))
        if not self.shapes:
            raise TransformError("calibrate= needs at least one batch: the sequence of batches was empty")

    def settle(self, index: int, leaf: Any) -> None:
        """From now on the model runs with this leaf."""
        self.leaves[index] = leaf

    def turns(self) -> Iterator[tuple[list[int], dict[int, Measured]]]:
        """Indices of leaves, in the order in which the model meets them, and the statistics of each.

        Between two turns the leaves of the first are to be settled.
        """
        met: set[int] = set()
        for turn in next(iter(self.shapes.values())).turns:
            found = [self._measured(shape, turn.leaves) for shape in self.shapes.values()]
            yield (
                list(turn.leaves),
                {i: _pooled_uses([each[self.names[i]] for each in found]) for i in turn.leaves},
            )
            met.update(turn.leaves)
        unmet = [i for i in self.wanted if i not in met]
        if unmet:
            yield unmet, {i: Measured() for i in unmet}

    def _shape(self, traced: Program) -> _Shape:
        by_leaf: dict[str, list[Use]] = {self.names[i]: [] for i in self.wanted}
        for use in uses_of(traced):
            if use.leaf in by_leaf:
                by_leaf[use.leaf].append(use)
        straight = Straight(traced, [use.path for uses in by_leaf.values() for use in uses])
        return _Shape(straight, self._turns(traced, straight, by_leaf), [])

    def _turns(self, traced: Program, straight: Straight, by_leaf: dict[str, list[Use]]) -> list[_Turn]:
        products = {u.path for uses in by_leaf.values() for u in uses if u.kind in ("dot", "conv")}
        equations = equations_at(traced, products)
        order = {path: i for i, path in enumerate(equations)}
        found: dict[Any, list[tuple[int, int, int, int]]] = {}
        for index in self.wanted:
            places, inputs = [], []
            for use in by_leaf[self.names[index]]:
                place = straight.place(use.path)
                if place is None:
                    continue
                places.append(place)
                if use.path in order:
                    inputs.append((use, place))
            if not inputs:
                continue
            key = tuple(self._input(straight, use, place, equations[use.path]) for use, place in inputs)
            rank = min(order[use.path] for use, _ in inputs)
            until = 1 + max(place for _, place in inputs)
            found.setdefault(key, []).append((min(places), rank, index, until))
        turns = [
            (
                min(m[:2] for m in members),
                _Turn(tuple(m[2] for m in members), min(members)[0], max(m[3] for m in members)),
            )
            for members in found.values()
        ]
        return [turn for _, turn in sorted(turns)]

    @staticmethod
    def _input(straight: Straight, use: Use, place: int, equation: Any) -> Any:
        """What the product multiplies the leaf by: equal for leaves that meet the same."""
        operand = tap(use, "inputs", equation, {}).operand
        step = straight.steps[place]
        if step.equation.path == use.path:
            return straight.origin(step.operands[operand])
        return use.path.rpartition("/")[0], id(equation.eqn.invars[operand])

    def _measured(self, shape: _Shape, leaves: Sequence[int]) -> dict[str, Measured]:
        """Statistics of the leaves of one turn: of the model from there on, as far as it looks at them."""
        turn, straight = shape.turn(leaves), shape.straight
        self._advance(shape, turn.begin)
        looked = straight.steps[turn.begin : turn.until]
        piece = straight.piece([v for step in looked for v in step.results], turn.begin)
        constants = list(straight.arrays.values())

        def run(weights: dict[str, Any], live: list[Any], constants: list[Any]) -> list[Any]:
            return piece([weights[self.names[i]] for i in piece.leaves], live, constants)

        weights = {self.names[i]: self.leaves[i] for i in piece.leaves}
        batches = (([values[v] for v in piece.live], constants) for values in shape.values)
        names = [self.names[i] for i in turn.leaves]
        found = statistics_of_inputs(run, weights, batches, _KINDS, ("inputs",), names, (), self.shared)
        return {name: found[name] for name in names}

    def _advance(self, shape: _Shape, to: int) -> None:
        """Runs all batches to where a turn begins."""
        if to == shape.at:
            return
        straight, end = shape.straight, max(turn.until for turn in shape.turns)
        piece = straight.piece(straight.live(to, end), shape.at)
        run = self.shared(piece)
        leaves, constants = [self.leaves[i] for i in piece.leaves], list(straight.arrays.values())
        for place, values in enumerate(shape.values):
            made = run(leaves, [values[v] for v in piece.live], constants)
            shape.values[place] = dict(zip(piece.wanted, made, strict=True))
        shape.at = to


def _alone(calibrate: Any, told: Sequence[str]) -> tuple[Callable[..., Any], Sequence[Any]]:
    pair = checked_pair(calibrate)
    if "stats" in told:
        raise TransformError(
            "compress() takes stats=, of the model as it is, or calibrate=, which gathers them in turn"
        )
    return pair


def _pooled_uses(each: list[Measured]) -> Measured:
    """The statistics of one leaf over batches of all shapes."""

    def both(a: UseStatistics, b: UseStatistics) -> UseStatistics:
        return dataclasses.replace(a, inputs=pooled(a.inputs, b.inputs))  # type: ignore[arg-type]

    return functools.reduce(lambda a, b: Measured(map(both, a, b)), each)
