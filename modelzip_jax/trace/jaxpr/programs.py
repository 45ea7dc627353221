"""A model as a jaxpr whose inputs have names: what every analysis reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.extend import core as jex

from modelzip_jax import tree as trees
from modelzip_jax.errors import LeafError, TraceError
from modelzip_jax.trace.jaxpr.model_inputs import running_on
from modelzip_jax.trace.jaxpr.primitives import CALLS
from modelzip_jax.tree import PyTree

__all__ = ["Equation", "Program", "Scan", "While", "inner_jaxpr", "program", "writes_refs"]

Jaxpr = Any
"""A `Jaxpr` or `ClosedJaxpr`: their attributes are the same, and jax 0.12 makes them one."""


@dataclasses.dataclass(frozen=True)
class Program:
    """A traced model.

    jaxpr: its inputs are the leaves of the parameters, then those of the other inputs. names, shapes: of the
    parameters' leaves, in order. treedef: of the parameters, NNX variables replaced by their arrays.
    outputs: the tree of `ShapeDtypeStruct` that the model returns.
    """

    jaxpr: Jaxpr
    names: tuple[str, ...]
    treedef: Any
    outputs: PyTree

    @property
    def parameters(self) -> list[Any]:
        """The jaxpr's variables that hold the parameters' leaves."""
        return self.jaxpr.jaxpr.invars[: len(self.names)]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the parameters' leaves."""
        return [tuple(v.aval.shape) for v in self.parameters]


def program(
    apply_fn: Callable[..., Any], params: PyTree, *inputs: Any, called: str = "the inputs given"
) -> Program:
    """Traces `apply_fn(params, *inputs)`; nothing is computed, so that shapes suffice.

    Args:
      called: the inputs, in messages.

    Raises:
      LeafError: a leaf of the parameters or inputs is neither an array nor a `ShapeDtypeStruct`.
      TraceError: two leaves of the parameters have the same name; the model cannot be run on these inputs.
    """
    names = tuple(name for name, _ in trees.named_leaves(params))
    for name, leaf in (*trees.named_leaves(params), *trees.named_leaves(inputs)):
        known = trees.is_array(leaf) or hasattr(leaf, "shape") or isinstance(leaf, jax.core.Tracer)
        if not known or type(leaf).__name__.endswith("Ref"):
            raise LeafError(
                f"leaf {name!r} is a {type(leaf).__name__}, not an array; pass arrays or jax.ShapeDtypeStruct, "
                "and bind other arguments with functools.partial"
            )
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise TraceError(f"several leaves of the parameters are named {twice[0]!r}: rename one of them")
    with running_on(called, inputs):
        jaxpr, outputs = jax.make_jaxpr(apply_fn, return_shape=True)(params, *inputs)
    return Program(jaxpr, names, jax.tree.structure(trees.plain(params)), outputs)


@dataclasses.dataclass(frozen=True)
class Equation:
    """An equation and where it stands.

    path: index and primitive of the equations around it, outermost first, and its own, for example
    "4:scan/2:jit/0:dot_general"; a `cond` adds the branch ("3:cond/1/0:mul"), a `while` "cond" or "body".
    It identifies the equation in every trace of the same model at the same shapes. trips: how often it runs
    in one call; None inside a `while`, where no one knows.
    """

    path: str
    eqn: Any
    trips: int | None

    @property
    def primitive(self) -> str:
        return self.eqn.primitive.name

    @property
    def params(self) -> dict[str, Any]:
        return self.eqn.params

    @property
    def operand_shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the operands; () for what has none, such as a token."""
        return [tuple(getattr(v.aval, "shape", ())) for v in self.eqn.invars]

    @property
    def result_shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the results."""
        return [tuple(getattr(v.aval, "shape", ())) for v in self.eqn.outvars]

    def inside(self, part: str = "") -> str:
        """The path of what stands inside this equation."""
        return f"{self.path}/{part}" if part else self.path

    def times(self, trips: int | None) -> int | None:
        """How often the body of this equation runs, being run `trips` times each."""
        return None if trips is None or self.trips is None else self.trips * trips


def equation_path(outer: str, index: int, eqn: Any) -> str:
    """The path of equation `index` in the jaxpr that stands at `outer`."""
    own = f"{index}:{eqn.primitive.name}"
    return f"{outer}/{own}" if outer else own


def inner_jaxpr(eqn: Any) -> Jaxpr | None:
    """The jaxpr of a call that has the equation's own operands and results; None for other primitives."""
    if eqn.primitive.name not in CALLS:
        return None
    found = [eqn.params[k] for k in ("jaxpr", "call_jaxpr", "fun_jaxpr") if k in eqn.params]
    return found[0] if len(found) == 1 else None


class Scan(NamedTuple):
    """A `scan`'s operands are constants, carry and scanned arrays, in this order; results carry and stacked."""

    body: Jaxpr
    num_consts: int
    num_carry: int
    length: int

    @staticmethod
    def of(eqn: Any) -> Scan:
        """Reads an equation. jax 0.12 keeps trees of operands where earlier versions kept counts."""
        p = eqn.params
        if "ft_in" in p:
            consts, carry, _ = p["ft_in"].unpack()
            counts = len(consts), len(carry)
        else:
            counts = p["num_consts"], p["num_carry"]
        return Scan(p["jaxpr"], *counts, p["length"])


class While(NamedTuple):
    """A `while`'s operands are the constants of its condition, those of its body, and the carry."""

    cond: Jaxpr
    body: Jaxpr
    cond_consts: int
    body_consts: int

    @staticmethod
    def of(eqn: Any) -> While:
        """Reads an equation."""
        p = eqn.params
        return While(p["cond_jaxpr"], p["body_jaxpr"], p["cond_nconsts"], p["body_nconsts"])


def writes_refs(jaxpr: Jaxpr) -> bool:
    """Whether anything but `get` is done to a `Ref` anywhere in it: then what it holds changes."""
    for eqn in jaxpr.eqns:
        inner = list(jex.jaxprs_in_params(eqn.params))
        if any(map(writes_refs, inner)):
            return True
        touched = any(type(v.aval).__name__ == "AbstractRef" for v in eqn.invars)
        if touched and not inner and eqn.primitive.name != "get":
            return True
    return False


def is_literal(atom: Any) -> bool:
    """Whether an operand is a number written into the jaxpr."""
    return isinstance(atom, jex.Literal)
