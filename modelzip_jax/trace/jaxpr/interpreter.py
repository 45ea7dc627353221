"""One abstract interpreter for all analyses: a `Domain` says what is known about each variable.

It descends into `jit`, `remat`, `custom_jvp`/`custom_vjp`, `scan`, `while`, `cond` and `shard_map`,
and runs loops until nothing new is learned. Everything else is the domain's: one method for
primitives, and a few that say what scanning, joining and sharding do to a value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from modelzip_jax.trace.jaxpr.programs import (
    Equation,
    Jaxpr,
    Program,
    Scan,
    While,
    equation_path,
    inner_jaxpr,
    is_literal,
    writes_refs,
)

__all__ = ["Domain", "Visit", "equations_at", "interpret"]

V = TypeVar("V")


class Domain(Generic[V]):
    """What an analysis knows about a variable (a value `V`), and how equations change it."""

    def constant(self, shape: tuple[int, ...]) -> V:
        """A literal, or an array that the model closes over."""
        raise TypeError(f"{type(self).__name__} defines no constant()")

    def literal(self, number: Any, shape: tuple[int, ...]) -> V:
        """A number written into the jaxpr: a constant, for domains that look at no values."""
        return self.constant(shape)

    def primitive(self, equation: Equation, values: list[V]) -> list[V]:
        """The results of an equation that the interpreter does not look into."""
        raise TypeError(f"{type(self).__name__} defines no primitive()")

    def join(self, old: V, new: V, equation: Equation) -> V:
        """A value that may be either: of a `cond`'s branches, of a loop's carry. `old` if `new` adds nothing."""
        raise TypeError(f"{type(self).__name__} defines no join()")

    def layer(self, value: V, equation: Equation) -> V:
        """What one iteration of a scan sees of a scanned operand: the value without its first axis."""
        raise TypeError(f"{type(self).__name__} defines no layer()")

    def stack(self, value: V, length: int, equation: Equation) -> V:
        """All iterations' results of a scan: the value with a new first axis."""
        raise TypeError(f"{type(self).__name__} defines no stack()")

    def shard(self, value: V, parts: Sequence[int], equation: Equation) -> V:
        """What one shard sees; `parts[i]` is the number of shards of axis i."""
        return value

    def unshard(self, value: V, parts: Sequence[int], equation: Equation) -> V:
        """The whole of what every shard has a part of."""
        return value

    def mutable(self, equation: Equation, values: list[V]) -> list[V]:
        """A new `Ref` that is written to later: it may come to hold anything."""
        return self.primitive(equation, values)

    def enter(self, equation: Equation) -> None:
        """An equation that the interpreter looks into."""

    def restart(self, path: str) -> None:
        """Forget what was recorded below a path: a loop's body is interpreted again, knowing more."""


def interpret(domain: Domain[V], program: Program, arguments: Sequence[V]) -> list[V]:
    """The values of a program's outputs, given those of its inputs."""
    return _Walk(domain, writes_refs(program.jaxpr)).closed(program.jaxpr, arguments, "", 1)


class Visit(Domain[None]):
    """Knows nothing of variables: subclasses see each equation once, in `visit`."""

    def visit(self, equation: Equation) -> None:
        raise TypeError(f"{type(self).__name__} defines no visit()")

    def primitive(self, equation: Equation, values: list[None]) -> list[None]:
        self.visit(equation)
        return [None] * len(equation.eqn.outvars)

    def constant(self, shape: tuple[int, ...]) -> None:
        return None

    def join(self, old: None, new: None, equation: Equation) -> None:
        return None

    def layer(self, value: None, equation: Equation) -> None:
        return None

    def stack(self, value: None, length: int, equation: Equation) -> None:
        return None

    def over(self, program: Program) -> None:
        """Visits every equation of a program."""
        interpret(self, program, [None] * len(program.jaxpr.jaxpr.invars))


def equations_at(program: Program, paths: set[str]) -> dict[str, Equation]:
    """The equations at these paths."""
    found: dict[str, Equation] = {}

    class Find(Visit):
        def visit(self, equation: Equation) -> None:
            if equation.path in paths:
                found[equation.path] = equation

        enter = visit

    Find().over(program)
    return found


class _Walk(Generic[V]):
    def __init__(self, domain: Domain[V], writes: bool):
        self.domain, self.writes = domain, writes

    def closed(self, jaxpr: Jaxpr, arguments: Sequence[V], path: str, trips: int | None) -> list[V]:
        """The results of a jaxpr that stands at `path` and runs `trips` times."""
        domain, known = self.domain, {}
        for v in jaxpr.constvars:
            known[v] = domain.constant(tuple(v.aval.shape))
        known.update(zip(jaxpr.invars, arguments, strict=True))

        def read(atom: Any) -> V:
            return domain.literal(atom.val, tuple(atom.aval.shape)) if is_literal(atom) else known[atom]

        for index, eqn in enumerate(jaxpr.eqns):
            equation = Equation(equation_path(path, index, eqn), eqn, trips)
            results = self.equation(equation, [read(v) for v in eqn.invars])
            known.update(zip(eqn.outvars, results, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def equation(self, equation: Equation, values: list[V]) -> list[V]:
        inner = inner_jaxpr(equation.eqn)
        if inner is not None and len(inner.invars) == len(values):
            self.domain.enter(equation)
            return self.closed(inner, values, equation.path, equation.trips)
        visit: Callable[[Equation, list[V]], list[V]] | None = getattr(self, f"_{equation.primitive}", None)
        if visit is None:
            return self.domain.primitive(equation, values)
        self.domain.enter(equation)
        return visit(equation, values)

    def _scan(self, equation: Equation, values: list[V]) -> list[V]:
        scan, domain = Scan.of(equation.eqn), self.domain
        first = scan.num_consts + scan.num_carry
        consts, carry, scanned = values[: scan.num_consts], values[scan.num_consts : first], values[first:]
        layers = [domain.layer(v, equation) for v in scanned]
        trips = equation.times(scan.length)

        def body(carry: list[V]) -> list[V]:
            return self.closed(scan.body, [*consts, *carry, *layers], equation.path, trips)

        carry, results = self._until_stable(body, carry, equation)
        stacked = [domain.stack(v, scan.length, equation) for v in results[scan.num_carry :]]
        return [*carry, *stacked]

    def _while(self, equation: Equation, values: list[V]) -> list[V]:
        loop = While.of(equation.eqn)
        first = loop.cond_consts + loop.body_consts
        consts = values[loop.cond_consts : first]

        def body(carry: list[V]) -> list[V]:
            return self.closed(loop.body, [*consts, *carry], equation.inside("body"), None)

        carry, _ = self._until_stable(body, values[first:], equation)
        self.closed(loop.cond, [*values[: loop.cond_consts], *carry], equation.inside("cond"), None)
        return carry

    def _until_stable(
        self, body: Callable[[list[V]], list[V]], carry: list[V], equation: Equation
    ) -> tuple[list[V], list[V]]:
        """The carry that holds before and after every iteration, and the body's results with it."""
        while True:
            results = body(carry)
            joined = [
                self.domain.join(old, new, equation)
                for old, new in zip(carry, results[: len(carry)], strict=True)
            ]
            if all(a is b or a == b for a, b in zip(joined, carry, strict=True)):
                return carry, results
            carry = joined
            self.domain.restart(equation.path)

    def _cond(self, equation: Equation, values: list[V]) -> list[V]:
        branches = equation.params["branches"]
        results = self.closed(branches[0], values[1:], equation.inside("0"), equation.trips)
        for i, branch in enumerate(branches[1:], 1):
            more = self.closed(branch, values[1:], equation.inside(str(i)), equation.trips)
            results = [self.domain.join(a, b, equation) for a, b in zip(results, more, strict=True)]
        return results

    def _new_ref(self, equation: Equation, values: list[V]) -> list[V]:
        return self.domain.mutable(equation, values) if self.writes else values

    def _get(self, equation: Equation, values: list[V]) -> list[V]:
        whole = len(values) == 1 and not self.writes
        return values if whole else self.domain.primitive(equation, values)

    def _shard_map(self, equation: Equation, values: list[V]) -> list[V]:
        p, domain = equation.params, self.domain
        sizes = dict(p["mesh"].shape)
        inside = [
            domain.shard(v, _parts(spec, len(shape), sizes), equation)
            for v, spec, shape in zip(values, p["in_specs"], equation.operand_shapes, strict=True)
        ]
        results = self.closed(p["jaxpr"], inside, equation.path, equation.times(math.prod(sizes.values())))
        return [
            domain.unshard(v, _parts(spec, len(shape), sizes), equation)
            for v, spec, shape in zip(results, p["out_specs"], equation.result_shapes, strict=True)
        ]


def _parts(spec: Any, ndim: int, sizes: dict[str, int]) -> list[int]:
    """The number of shards of each axis, from a `PartitionSpec`."""
    parts = [1] * ndim
    for axis, names in enumerate(spec):
        for name in () if names is None else names if isinstance(names, tuple) else (names,):
            parts[axis] *= sizes[name]
    return parts
