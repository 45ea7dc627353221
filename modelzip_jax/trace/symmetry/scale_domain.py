"""How scales of a model's variables follow from those of its parameters, equation by equation.

A variable's element is multiplied by the exponential of the sum of its labels (see `ScaleFacts`). Additions need
equal scales, products add labels, a sum over an axis needs scales that cancel along it, and functions that are
not positively homogeneous need the scale 1. What has no rule needs it, too, so that nothing is guessed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from modelzip_jax.trace.coupling.labels import Reason
from modelzip_jax.trace.jaxpr.interpreter import Domain
from modelzip_jax.trace.jaxpr.programs import Equation
from modelzip_jax.trace.symmetry.broadcasts import aligned_lead, scan_depth, varying
from modelzip_jax.trace.symmetry.scale_facts import ScaleFacts

__all__ = ["ScaleDomain", "ScaleRule", "Scaled"]

_MOST = 1 << 20
"""Elements over which the scales of several axes are summed; more stay as they are."""


class Scaled(NamedTuple):
    """terms: labels that are summed, each broadcast over the axes where it has length 1; none for scale 1.

    lead: how many axes of scans stand in front. zero: whether the variable is zero throughout, which any scale fits.
    fixed: why there are no terms, where an equation is the reason.
    """

    terms: tuple[np.ndarray, ...] = ()
    lead: int = 0
    zero: bool = False
    fixed: Reason | None = None


class ScaleDomain(Domain[Scaled]):
    """Records facts.

    rule_of: the rule for an equation, if there is one. linear: factors may be negative, so that relu and maxima need
    the scale 1, too.
    """

    def __init__(
        self, facts: ScaleFacts, rule_of: Callable[[Equation, bool], ScaleRule | None], linear: bool
    ) -> None:
        self.facts, self.rule_of, self.linear = facts, rule_of, linear

    def literal(self, number: object, shape: tuple[int, ...]) -> Scaled:
        return Scaled(zero=bool(np.all(np.asarray(number) == 0)))

    def constant(self, shape: tuple[int, ...]) -> Scaled:
        return Scaled()

    def primitive(self, equation: Equation, values: list[Scaled]) -> list[Scaled]:
        lead = max((v.lead for v in values), default=0)
        values = [self.deeper(v, lead) for v in values]
        rule = self.rule_of(equation, self.linear)
        found = rule(self, equation, values) if rule else None
        if found is None:
            why = f"goes through {equation.primitive}, which does not commute with scales"
            self.hold(values, equation, why)
            first = (
                next((v.fixed for v in values if v.fixed), None) if not any(v.terms for v in values) else None
            )
            fixed = first or Reason(equation.path, equation.primitive, why)
            found = [Scaled(lead=lead, fixed=fixed)] * len(equation.eqn.outvars)
        return found

    def deeper(self, value: Scaled, lead: int) -> Scaled:
        terms = tuple(aligned_lead(t, value.lead, lead) for t in value.terms)
        return value._replace(terms=terms, lead=max(lead, value.lead))

    def hold(self, values: Sequence[Scaled], equation: Equation, why: str) -> None:
        """These keep the scale 1."""
        for term in (term for value in values for term in value.terms):
            self.facts.zero(term, Reason(equation.path, equation.primitive, why))

    def held_along(self, value: Scaled, axes: Sequence[int], equation: Equation, why: str) -> Scaled:
        """The value with scale 1 along some axes."""
        free = []
        for term in value.terms:
            if set(varying(term, value.lead)) & set(axes):
                self.facts.zero(term, Reason(equation.path, equation.primitive, why))
            else:
                free.append(term)
        return value._replace(terms=tuple(free))

    def product(self, terms: Sequence[np.ndarray], lead: int) -> tuple[np.ndarray, ...]:
        """The sum of labels, with one term for each set of axes."""
        found: dict[tuple[int, ...], np.ndarray] = {}
        for term in terms:
            key = varying(term, lead)
            found[key] = self.facts.add(found[key], term) if key in found else term
        return tuple(found.values())

    def single(self, value: Scaled) -> np.ndarray | None:
        """All terms as one; None if that would be too large."""
        shape = np.broadcast_shapes(*(t.shape for t in value.terms))
        if np.prod(shape) > _MOST:
            return None
        return functools.reduce(self.facts.add, value.terms)

    def same(self, values: Sequence[Scaled], equation: Equation, why: str) -> Scaled:
        """One scale for all of these."""
        some = [v for v in values if not v.zero]
        if not some:
            return values[0]
        reason = Reason(equation.path, equation.primitive, why)
        first = min(some, key=lambda v: (len(v.terms), sum(t.size for t in v.terms)))
        for other in some:
            if other is first:
                continue
            keys = [[varying(t, v.lead) for t in v.terms] for v in (first, other)]
            if keys[0] == keys[1]:
                for a, b in zip(first.terms, other.terms, strict=True):
                    self.facts.equate(a, b, reason)
                continue
            one, two = (self.single(v) if v.terms else np.zeros((), int) for v in (first, other))
            if one is None or two is None:
                self.hold([first, other], equation, why)
                continue
            self.facts.equate(one, two, reason)
        return first._replace(zero=False)

    def join(self, old: Scaled, new: Scaled, equation: Equation) -> Scaled:
        lead = max(old.lead, new.lead)
        both = [self.deeper(v, lead) for v in (old, new)]
        if not (old.zero and new.zero):  # Zero at first is not zero later.
            both = [v._replace(zero=False) for v in both]
        self.same(both, equation, "passes a loop or branch in two scales")
        return old._replace(zero=False) if old.zero and not new.zero else old

    def layer(self, value: Scaled, equation: Equation) -> Scaled:
        depth = scan_depth(equation.path)
        value = self.deeper(value, depth)
        return value._replace(lead=depth + 1)

    def stack(self, value: Scaled, length: int, equation: Equation) -> Scaled:
        depth = scan_depth(equation.path)
        return self.deeper(value, depth + 1)._replace(lead=depth)

    def shard(self, value: Scaled, parts: Sequence[int], equation: Equation) -> Scaled:
        self.hold([value], equation, "is sharded")
        return Scaled(zero=value.zero)

    unshard = shard


ScaleRule = Callable[[ScaleDomain, Equation, "list[Scaled]"], "list[Scaled] | None"]
"""From an equation and its operands to its results; None where it does not apply."""
