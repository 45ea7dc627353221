"""Evaluates a jaxpr with visitors at chosen equations, which may look, replace and collect.

What stands around a visited equation is rebuilt as it was: scans stay scans, and what a visitor
collects inside comes out stacked, one entry an iteration; a `while` merges what its iterations collect;
of a `cond` only the branch that ran counts. Everything else is bound as it stands in the jaxpr, custom
derivatives included.

A call with a derivative of its own (`custom_jvp`, `custom_vjp`) has it for the function as it was written.
With a visitor inside, its results are computed and none is differentiated: that raises a `TraceError`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax import lax

from modelzip_jax.errors import TraceError
from modelzip_jax.trace.jaxpr.programs import (
    Equation,
    Jaxpr,
    Program,
    Scan,
    While,
    equation_path,
    inner_jaxpr,
    is_literal,
)
from modelzip_jax.tree import PyTree

__all__ = ["Evaluator", "Visitor", "bind"]

Visitor = Callable[[Equation, list[Any], Any], tuple[list[Any], PyTree]]
"""From an equation, its operands and what is fed to it (or None): its results, and what to collect."""
Collected = dict[str, PyTree]


def bind(eqn: Any, operands: Sequence[Any]) -> list[Any]:
    """The results of an equation as it stands in the jaxpr."""
    found = eqn.primitive.get_bind_params(eqn.params)
    functions, params = found if isinstance(found, tuple) else ((), found)  # Before jax 0.10: both.
    with eqn.ctx.manager:
        results = eqn.primitive.bind(*functions, *operands, **params)
    return list(results) if eqn.primitive.multiple_results else [results]


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Evaluates programs, with visitors.

    visitors: by the path of the equation that each one takes over.
    merge: combines what two iterations of a `while` collected.
    empty: what an equation that did not run has collected, from the `ShapeDtypeStruct`s of what it would.
    """

    visitors: Mapping[str, Visitor]
    merge: Callable[[PyTree, PyTree], PyTree] | None = None
    empty: Callable[[PyTree], PyTree] | None = None

    def __call__(
        self, program: Program, arguments: Sequence[Any], feeds: Mapping[str, Any] | None = None
    ) -> tuple[list[Any], Collected]:
        """The program's outputs, flat, and what the visitors collected, by path.

        Args:
          program: the model.
          arguments: its inputs, flat.
          feeds: arrays handed to visitors, by path; inside a scan, with a leading axis of its length.
        """
        return self._run(program.jaxpr, arguments, "", dict(feeds or {}))

    def _run(
        self, jaxpr: Jaxpr, arguments: Sequence[Any], path: str, feeds: dict[str, Any]
    ) -> tuple[list[Any], Collected]:
        known = dict(zip(jaxpr.constvars, getattr(jaxpr, "consts", ()), strict=True))
        known.update(zip(jaxpr.invars, arguments, strict=True))
        collected: Collected = {}

        def read(atom: Any) -> Any:
            return atom.val if is_literal(atom) else known[atom]

        for index, eqn in enumerate(jaxpr.eqns):
            equation = Equation(equation_path(path, index, eqn), eqn, 1)
            results, more = self._equation(equation, [read(v) for v in eqn.invars], feeds)
            collected.update(more)
            known.update(zip(eqn.outvars, results, strict=True))
        return [read(v) for v in jaxpr.outvars], collected

    def _equation(
        self, equation: Equation, operands: list[Any], feeds: dict[str, Any]
    ) -> tuple[list[Any], Collected]:
        path = equation.path
        if path in self.visitors:
            results, found = self.visitors[path](equation, operands, feeds.get(path))
            return results, {} if found is None else {path: found}
        if not any(p.startswith(path + "/") for p in self.visitors):
            return bind(equation.eqn, operands), {}
        inside = {p: f for p, f in feeds.items() if p.startswith(path + "/")}
        inner = inner_jaxpr(equation.eqn)
        if inner is not None:
            return self._call(equation, inner, operands, inside)
        visit = {"scan": self._scan, "while": self._while, "cond": self._cond}.get(equation.primitive)
        if visit is None:
            raise TraceError(
                f"equations inside {path} cannot be evaluated apart: {equation.primitive} has to run as a "
                "whole; trace the model without it"
            )
        return visit(equation, operands, inside)

    def _call(
        self, equation: Equation, inner: Jaxpr, operands: list[Any], feeds: dict[str, Any]
    ) -> tuple[list[Any], Collected]:
        def run(operands: list[Any], feeds: dict[str, Any]) -> tuple[list[Any], Collected]:
            return self._run(inner, operands, equation.path, feeds)

        if "policy" in equation.params:  # remat
            p = equation.params
            run = jax.checkpoint(run, policy=p["policy"], prevent_cse=p.get("prevent_cse", True))
        results, found = run(operands, feeds)
        if equation.primitive.startswith("custom_"):
            results = [_underived(equation.path, x) for x in results]
        return results, found

    def _scan(
        self, equation: Equation, operands: list[Any], feeds: dict[str, Any]
    ) -> tuple[list[Any], Collected]:
        scan, p = Scan.of(equation.eqn), equation.params
        first = scan.num_consts + scan.num_carry
        consts, carry, scanned = (
            operands[: scan.num_consts],
            operands[scan.num_consts : first],
            operands[first:],
        )

        def body(carry: list[Any], layer: Any) -> tuple[list[Any], Any]:
            results, found = self._run(scan.body, [*consts, *carry, *layer[0]], equation.path, layer[1])
            return results[: scan.num_carry], (results[scan.num_carry :], found)

        carry, (stacked, found) = lax.scan(
            body, carry, (scanned, feeds), scan.length, reverse=p["reverse"], unroll=p["unroll"]
        )
        return [*carry, *stacked], found

    def _while(
        self, equation: Equation, operands: list[Any], feeds: dict[str, Any]
    ) -> tuple[list[Any], Collected]:
        loop, path = While.of(equation.eqn), equation.path
        if self.merge is None or self.empty is None or feeds:
            raise TraceError(f"what is asked of the equations in the while loop {path} cannot be told apart")
        if any(p.startswith(path + "/cond/") for p in self.visitors):
            raise TraceError(f"the condition of the while loop {path} cannot be looked into")
        first, merge = loop.cond_consts + loop.body_consts, self.merge
        consts, cond_consts = operands[loop.cond_consts : first], operands[: loop.cond_consts]

        def run(carry: list[Any]) -> tuple[list[Any], Collected]:
            return self._run(loop.body, [*consts, *carry], equation.inside("body"), {})

        def body(state: tuple[list[Any], Collected]) -> tuple[list[Any], Collected]:
            results, found = run(state[0])
            return results, {p: merge(state[1][p], found[p]) for p in found}

        def go_on(state: tuple[list[Any], Collected]) -> Any:
            return self._run(loop.cond, [*cond_consts, *state[0]], equation.inside("cond"), {})[0][0]

        # As arrays: a literal's type would change in the first iteration.
        carry = [jax.numpy.asarray(x) for x in operands[first:]]
        nothing = {p: self.empty(x) for p, x in jax.eval_shape(run, carry)[1].items()}
        return lax.while_loop(go_on, body, (carry, nothing))

    def _cond(
        self, equation: Equation, operands: list[Any], feeds: dict[str, Any]
    ) -> tuple[list[Any], Collected]:
        def branch(i: int, jaxpr: Jaxpr) -> Callable[..., tuple[list[Any], Collected]]:
            path = equation.inside(str(i))
            return lambda *x: self._run(jaxpr, x, path, feeds)

        runs = [branch(i, jaxpr) for i, jaxpr in enumerate(equation.params["branches"])]
        shapes: Collected = {}
        for run in runs:
            shapes.update(jax.eval_shape(run, *operands[1:])[1])
        if self.empty is None and shapes:
            raise TraceError(f"what is asked of the equations in {equation.path} needs them to run always")
        nothing = {p: self.empty(x) for p, x in shapes.items()} if self.empty else {}

        def complete(run: Callable[..., Any]) -> Callable[..., tuple[list[Any], Collected]]:
            def completed(*x: Any) -> tuple[list[Any], Collected]:
                results, found = run(*x)
                return results, {**nothing, **found}

            return completed

        return lax.switch(operands[0], [complete(run) for run in runs], *operands[1:])


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _underived(path: str, result: Any) -> Any:
    """The result of a call whose own derivative does not hold for what visitors have made of it."""
    return result


@_underived.defjvp
def _(path: str, primals: Any, tangents: Any) -> Any:
    raise TraceError(
        f"{path} has a derivative of its own (custom_jvp, custom_vjp), and an equation inside is looked at or "
        "replaced: what comes out has no derivative then; leave that layer out, or differentiate the model "
        "as it is"
    )
