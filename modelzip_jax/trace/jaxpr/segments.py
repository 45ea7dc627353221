"""A model run piece by piece: what of its inputs has come how far is kept, so that weights may change on the way."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from modelzip_jax.trace.jaxpr.evaluator import bind
from modelzip_jax.trace.jaxpr.primitives import IDENTITY
from modelzip_jax.trace.jaxpr.programs import Equation, Jaxpr, Program, equation_path, inner_jaxpr, is_literal

__all__ = ["Piece", "SharedPrograms", "Straight"]


class _Step(NamedTuple):
    """An equation, and the numbers of the values that it takes and makes."""

    equation: Equation
    operands: tuple[int, ...]
    results: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Piece:
    """Some steps in a row, and what they read.

    steps: in order. leaves: numbers of the parameters read. live: values of before. wanted: values it makes.
    """

    whole: Straight
    steps: tuple[_Step, ...]
    leaves: tuple[int, ...]
    live: tuple[int, ...]
    wanted: tuple[int, ...]

    def __call__(self, leaves: Sequence[Any], live: Sequence[Any], constants: Sequence[Any]) -> list[Any]:
        """The wanted values, of `leaves` and `live` in the order of those numbers; constants: `Straight.arrays`."""
        known: dict[int, Any] = dict(self.whole.scalars)
        known.update(zip(self.whole.arrays, constants, strict=True))
        known.update(zip(self.leaves, leaves, strict=True))
        known.update(zip(self.live, live, strict=True))
        for step in self.steps:
            results = bind(step.equation.eqn, [known[v] for v in step.operands])
            known.update(zip(step.results, results, strict=True))
        return [known[v] for v in self.wanted]


class Straight:
    """A traced model as one row of steps: calls around what is to be reached are written out.

    Values have numbers, from 0: parameters' leaves, then the other inputs. What depends on leaves and constants only
    is made where it is read, so that it follows a leaf that has changed.
    """

    def __init__(self, traced: Program, reached: Iterable[str]):
        """reached: paths of equations. Loops around them stay whole."""
        self.reached = sorted(set(reached))
        self.steps: list[_Step] = []
        self.scalars: dict[int, Any] = {}
        self.arrays: dict[int, Any] = {}
        inputs = traced.jaxpr.invars
        self.count, self.parameters = len(inputs), len(traced.names)
        self.inputs = range(self.parameters, len(inputs))
        self._write_out(traced.jaxpr, list(range(len(inputs))), "")
        self.made = {v: i for i, step in enumerate(self.steps) for v in step.results}
        self.fixed = {*range(self.parameters), *self.scalars, *self.arrays}
        for step in self.steps:
            if self.fixed.issuperset(step.operands):
                self.fixed.update(step.results)

    def _new(self, constant: Any = None) -> int:
        number, self.count = self.count, self.count + 1
        if constant is not None:
            (self.arrays if np.ndim(constant) else self.scalars)[number] = constant
        return number

    def _write_out(self, jaxpr: Jaxpr, arguments: list[int], path: str) -> list[int]:
        known = dict(zip(jaxpr.invars, arguments, strict=True))
        constants = zip(jaxpr.constvars, getattr(jaxpr, "consts", ()), strict=True)
        known.update({v: self._new(x) for v, x in constants})

        def read(atom: Any) -> int:
            return self._new(atom.val) if is_literal(atom) else known[atom]

        for index, eqn in enumerate(jaxpr.eqns):
            equation = Equation(equation_path(path, index, eqn), eqn, 1)
            operands, inner = [read(v) for v in eqn.invars], inner_jaxpr(eqn)
            if inner is not None and any(p.startswith(equation.path + "/") for p in self.reached):
                results = self._write_out(inner, operands, equation.path)
            else:
                results = [self._new() for _ in eqn.outvars]
                self.steps.append(_Step(equation, tuple(operands), tuple(results)))
            known.update(zip(eqn.outvars, results, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def place(self, path: str) -> int | None:
        """The index of the step that is this equation, or around it; None if there is none, as of an output."""
        paths = ((i, step.equation.path) for i, step in enumerate(self.steps))
        return next((i for i, own in paths if path == own or path.startswith(own + "/")), None)

    def origin(self, value: int) -> Any:
        """What a value is but for casts and reshapes: equal for what is so made of one value in one way."""
        step = self.steps[self.made[value]] if value in self.made else None
        if step is None or step.equation.primitive not in (IDENTITY | {"reshape"}) or len(step.operands) != 1:
            return value
        return step.equation.primitive, str(step.equation.params), self.origin(step.operands[0])

    def live(self, place: int, end: int) -> list[int]:
        """Values made of the inputs before step `place` that steps from there to before `end` read, ascending."""
        read = {v for step in self.steps[place:end] for v in step.operands}
        return sorted(v for v in read if v not in self.fixed and self.made.get(v, -1) < place)

    def piece(self, wanted: Iterable[int], begin: int) -> Piece:
        """How these values are made of leaves, and of what was known before step `begin`."""
        todo, used, read = list(wanted), set(), set()
        asked = tuple(todo)
        while todo:
            value = todo.pop()
            index = self.made.get(value, -1)
            if value in read or index in used or value in self.arrays or value in self.scalars:
                continue
            if index < 0 or (index < begin and value not in self.fixed):
                read.add(value)
                continue
            used.add(index)
            todo += self.steps[index].operands
        leaves = tuple(sorted(v for v in read if v < self.parameters))
        live = tuple(sorted(v for v in read if v >= self.parameters))
        return Piece(self, tuple(self.steps[i] for i in sorted(used)), leaves, live, asked)


class SharedPrograms:
    """`jax.jit` by which functions that come to one program are compiled once, such as the blocks of a network."""

    def __init__(self) -> None:
        self.compiled: dict[str, Any] = {}

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, compiled at its first call for the shapes that it has then; under `disable_jit` as it is."""
        if jax.config.jax_disable_jit:
            return function
        found: list[Any] = []

        def call(*arguments: Any) -> Any:
            flat, structure = jax.tree.flatten(arguments)
            if not found:

                def run(*flat: Any) -> Any:
                    return function(*jax.tree.unflatten(structure, flat))

                # With all arguments: without those that are not read, the same text could mean others of them.
                lowered = jax.jit(run, keep_unused=True).lower(*flat)
                text = lowered.as_text()
                if text not in self.compiled:
                    self.compiled[text] = lowered.compile()
                found.append((self.compiled[text], jax.tree.structure(lowered.out_info)))
            compiled, results = found[0]
            return jax.tree.unflatten(results, jax.tree.leaves(compiled(*flat)))

        return call
