"""How axes turn with those of the parameters: which of them one orthogonal matrix Q can rotate together.

Along an axis a variable is a *vector* that becomes v Q, *flat* (the same for each element), *zero*, or a *square*,
whose sum over the axis does not change. What is linear along an axis keeps it a vector; a sum of squares (an RMS or
layer norm's) is flat; a mean is flat, and a flat value can be added, if Q keeps the vector of ones. Everything else
blocks the axis, for a reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from modelzip_jax.trace.coupling.labels import Reason
from modelzip_jax.trace.jaxpr.interpreter import Domain
from modelzip_jax.trace.jaxpr.primitives import ELEMENTWISE
from modelzip_jax.trace.jaxpr.programs import Equation

__all__ = ["FLAT", "ZERO", "Mark", "TurnDomain", "TurnRule", "Turned", "Turns", "gains_of"]


class Mark(NamedTuple):
    """What a variable is along one axis.

    form: "vector", "flat", "zero" or "square". node: of `Turns`, for vectors and squares. gains: leaves that have to
    be ones for a flat axis to be flat.
    """

    form: str
    node: int = -1
    gains: frozenset[str] = frozenset()


FLAT, ZERO = Mark("flat"), Mark("zero")


class Turned(NamedTuple):
    """A variable's marks, axis by axis; zero: whether it is a scalar 0."""

    marks: tuple[Mark, ...]
    zero: bool = False


class Turns:
    """Classes of axes that turn together."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._reasons: dict[int, list[Reason]] = {}
        self._ones: set[int] = set()
        self._gains: dict[int, set[str]] = {}

    def fresh(self) -> Mark:
        """A new vector."""
        self._parent.append(len(self._parent))
        return Mark("vector", len(self._parent) - 1)

    def root(self, node: int) -> int:
        """The class of a node."""
        while self._parent[node] != node:
            self._parent[node] = self._parent[self._parent[node]]
            node = self._parent[node]
        return node

    def unite(self, nodes: Sequence[int]) -> None:
        """These turn together."""
        for node in nodes[1:]:
            self._parent[self.root(node)] = self.root(nodes[0])

    def block(self, mark: Mark, reason: Reason) -> None:
        """An axis that cannot turn."""
        if mark.node >= 0:
            self._reasons.setdefault(mark.node, []).append(reason)

    def meet(self, node: int, flats: Sequence[Mark], ones: bool) -> None:
        """A vector meets flat values; ones: Q has to keep the vector of ones."""
        self._gains.setdefault(node, set()).update(*(f.gains for f in flats))
        if ones:
            self._ones.add(node)

    def facts(self, root: int) -> tuple[list[Reason], bool, set[str]]:
        """Of a class: why it cannot turn, whether Q keeps ones, and which leaves must be ones."""
        own = [n for n in range(len(self._parent)) if self.root(n) == root]
        reasons = [r for n in own for r in self._reasons.get(n, [])]
        gains = set().union(*(self._gains.get(n, set()) for n in own))
        return list(dict.fromkeys(reasons)), bool(self._ones & set(own)), gains


class TurnDomain(Domain[Turned]):
    """Records in `turns` what each equation says. rule_of: the rule for an equation, if there is one."""

    def __init__(self, turns: Turns, rule_of: Callable[[Equation], TurnRule | None]) -> None:
        self.turns, self.rule_of = turns, rule_of

    def literal(self, number: Any, shape: tuple[int, ...]) -> Turned:
        return Turned((FLAT,) * len(shape), not shape and bool(number == 0))

    def constant(self, shape: tuple[int, ...]) -> Turned:
        return Turned(self.stuck(shape, Reason("", "", "a constant of the model")))

    def stuck(self, shape: Sequence[int], reason: Reason) -> tuple[Mark, ...]:
        """Axes that cannot turn."""
        marks = tuple(self.turns.fresh() if size != 1 else FLAT for size in shape)
        for mark in marks:
            self.turns.block(mark, reason)
        return marks

    def primitive(self, equation: Equation, values: list[Turned]) -> list[Turned]:
        rule = self.rule_of(equation)
        found = rule(self, equation, values) if rule else None
        return found if found is not None else self.opaque(equation, values)

    def opaque(self, e: Equation, values: list[Turned]) -> list[Turned]:
        """What is not linear: flat axes stay flat where it is elementwise, all others are stuck."""
        reason = Reason(e.path, e.primitive, "is not linear in it")
        for value in values:
            for mark in value.marks:
                self.turns.block(mark, reason)
        found = []
        for shape in e.result_shapes:
            same = [v for v in values if len(v.marks) == len(shape)]
            marks = list(self.stuck(shape, reason))
            if same and e.primitive in ELEMENTWISE:
                for i in range(len(shape)):
                    if all(v.marks[i].form in ("flat", "zero") for v in same):
                        marks[i] = Mark("flat", gains=gains_of(v.marks[i] for v in same))
            found.append(Turned(tuple(marks)))
        return found

    def same(self, marks: Sequence[Mark], reason: Reason) -> Mark:
        """The sum of values, along one axis."""
        some = [m for m in marks if m.form != "zero"]
        vectors = [m for m in some if m.form == "vector"]
        flats = [m for m in some if m.form == "flat"]
        squares = [m for m in some if m.form == "square"]
        if not some:
            return ZERO
        if vectors and squares:
            for mark in some:
                self.turns.block(mark, reason)
        nodes = [m.node for m in vectors + squares]
        self.turns.unite(nodes)
        if nodes and flats:
            self.turns.meet(nodes[0], flats, ones=bool(vectors))
        return (vectors or squares or [Mark("flat", gains=gains_of(flats))])[0]

    def times(self, a: Mark, b: Mark, reason: Reason) -> Mark:
        """The product of two values, along one axis."""
        if ZERO.form in (a.form, b.form):
            return ZERO
        if a.form == "flat" and b.form == "flat":
            return Mark("flat", gains=a.gains | b.gains)
        if "flat" in (a.form, b.form):
            vector, flat = (b, a) if a.form == "flat" else (a, b)
            self.turns.meet(vector.node, [flat], ones=False)
            return vector
        self.turns.block(a, reason)
        self.turns.block(b, reason)
        return a

    def gone(self, mark: Mark) -> None:
        """The sum over an axis."""
        if mark.form == "vector":
            self.turns.meet(mark.node, [], ones=True)

    def join(self, old: Turned, new: Turned, equation: Equation) -> Turned:
        reason = Reason(equation.path, equation.primitive, "passes a loop or branch in two forms")
        marks = tuple(self.same([a, b], reason) for a, b in zip(old.marks, new.marks, strict=True))
        # Of vectors the old one, so that a loop becomes stable; a flat one gains what the other has.
        kept = tuple(a if a.form == m.form != "flat" else m for a, m in zip(old.marks, marks, strict=True))
        return Turned(kept, old.zero and new.zero)

    def layer(self, value: Turned, equation: Equation) -> Turned:
        self.turns.block(value.marks[0], Reason(equation.path, equation.primitive, "is scanned over"))
        return Turned(value.marks[1:])

    def stack(self, value: Turned, length: int, equation: Equation) -> Turned:
        reason = Reason(equation.path, equation.primitive, "is scanned over")
        return Turned((*self.stuck([length], reason), *value.marks))

    def shard(self, value: Turned, parts: Sequence[int], equation: Equation) -> Turned:
        for mark in value.marks:
            self.turns.block(mark, Reason(equation.path, equation.primitive, "is sharded"))
        return value

    unshard = shard


TurnRule = Callable[[TurnDomain, Equation, "list[Turned]"], "list[Turned] | None"]
"""From an equation and its operands to its results; None where it does not apply."""


def gains_of(marks: Iterable[Mark]) -> frozenset[str]:
    """The leaves that have to be ones for all of these to be flat."""
    return frozenset().union(*(m.gains for m in marks))
