"""What `mixed_precision` finds: a choice for each leaf, and how far from the best it can be."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from modelzip_jax.errors import TransformError
from modelzip_jax.given_values import as_whole
from modelzip_jax.partitioning import Partition, partition
from modelzip_jax.quantization.knapsack import Steps, best_choices, frontier
from modelzip_jax.quantization.leaf_candidates import Measurements
from modelzip_jax.transform import Transform

__all__ = ["ChoiceProblem", "LeafChoice", "MixedPrecision", "Totals"]

_TRIES = 20


class LeafChoice(NamedTuple):
    """One leaf. bits: packed, for each value, side information included. bytes: packed. error: by the sensitivity."""

    name: str
    size: int
    choice: str
    bits: float
    bytes: int
    error: float


class Totals(NamedTuple):
    """One of many ways. bytes: of the model, packed. cost: what the budget bounds. error: the leaves' together."""

    bytes: int
    cost: int
    error: float


@dataclasses.dataclass(frozen=True, eq=False)
class ChoiceProblem:
    """What is chosen from. costs: int64 `(leaves, candidates)`, in `unit`. fixed: of everything else. rest: its packed
    bytes. verify: what a transform really costs, where costs are estimates."""

    measured: Measurements
    unit: str
    costs: np.ndarray
    fixed: int
    rest: int
    verify: Callable[[Transform], int] | None = None

    @property
    def steps(self) -> Steps:
        """The relaxation's optimum for every budget."""
        return Steps.of([frontier(c, e) for c, e in zip(self.costs, self.measured.errors, strict=True)])

    def totals(self, places: tuple[int, ...]) -> Totals:
        """Bytes, cost and error of a choice for each leaf."""
        chosen = np.arange(len(places)), np.array(places, np.int64)
        nbytes, costs, errors = (
            x[chosen].sum().item() for x in (self.measured.nbytes, self.costs, self.measured.errors)
        )
        return Totals(self.rest + nbytes, self.fixed + costs, errors)

    def transform(self, places: tuple[int, ...]) -> Partition:
        """The recipe of a choice for each leaf."""
        names = list(self.measured.candidates)
        labels = {leaf: names[place] for leaf, place in zip(self.measured.leaves, places, strict=True)}
        used = [name for name in names if name in labels.values()]
        return partition({name: self.measured.candidates[name] for name in used}, labels)

    def solved(self, budget: int) -> MixedPrecision:
        """The best choices within a budget.

        Raises:
          TransformError: it is no positive integer, or below the cheapest choices.
        """
        budget = as_whole(budget, f"a budget of {self.unit}", 1)
        steps, limit = self.steps, budget - self.fixed
        found: list[tuple[int, ...]] = []
        for _ in range(_TRIES):
            if limit < steps.costs[0]:
                break
            places = tuple(best_choices(list(self.costs), list(self.measured.errors), limit))
            excess = self.verify(self.transform(places)) - budget if self.verify else 0
            if excess <= 0:
                found.append(places)
                break
            limit -= excess
        if self.verify:
            found = self._or_all_alike(found, budget, self.verify)
        if found:
            return MixedPrecision(self, budget, found[0], float(steps.relaxed(budget - self.fixed)))
        raise TransformError(
            f"a budget of {budget:,} {self.unit} is below the least possible, {self.fixed + int(steps.costs[0]):,}, of "
            f"which {self.fixed:,} are not chosen by any candidate; add smaller candidates, or leaves"
        )

    def _or_all_alike(
        self, found: list[tuple[int, ...]], budget: int, verify: Callable[[Transform], int]
    ) -> list[tuple[int, ...]]:
        """One candidate for all leaves, where that fits with a smaller error: estimates may have been too large."""
        errors = np.sum(self.measured.errors, axis=0)
        bound = self.totals(found[0]).error if found else np.inf
        for place in np.argsort(errors, kind="stable"):
            if not errors[place] < bound:
                break
            alike = (int(place),) * len(self.costs)
            if verify(self.transform(alike)) <= budget:
                return [alike]
        return found


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class MixedPrecision:
    """See `mixed_precision`; `print` shows the table.

    problem: what was chosen from. budget: in `problem.unit`. places: which candidate each leaf got. bound: no choice
    within the budget has a smaller error: the optimum of the linear relaxation.
    """

    problem: ChoiceProblem
    budget: int
    places: tuple[int, ...]
    bound: float

    @property
    def transform(self) -> Partition:
        """The recipe: each leaf's candidate, by its path."""
        return self.problem.transform(self.places)

    @property
    def choices(self) -> dict[str, str]:
        """The name of each leaf's candidate."""
        return {row.name: row.choice for row in self.rows}

    @property
    def rows(self) -> list[LeafChoice]:
        """A row for each leaf."""
        m, names = self.problem.measured, list(self.problem.measured.candidates)
        return [
            LeafChoice(
                leaf, m.sizes[i], names[j], 8.0 * int(m.nbytes[i, j]) / max(m.sizes[i], 1), int(m.nbytes[i, j]),
                float(m.errors[i, j]),
            )
            for i, (leaf, j) in enumerate(zip(m.leaves, self.places, strict=True))
        ]  # fmt: skip

    @property
    def bytes(self) -> int:
        """`mz.compress(params, transform).nbytes`: of the whole model, leaves without a choice included."""
        return self.problem.totals(self.places).bytes

    @property
    def cost(self) -> int:
        """What counts against the budget; of files an estimate, as entropy codes share tables."""
        return self.problem.totals(self.places).cost

    @property
    def error(self) -> float:
        """The sum of the leaves' errors, in the sensitivity's unit."""
        return self.problem.totals(self.places).error

    @property
    def uniform(self) -> dict[str, Totals]:
        """What each candidate is if all leaves have it; without those that cannot encode them all."""
        count, errors = len(self.places), self.problem.measured.errors
        return {
            name: self.problem.totals((j,) * count)
            for j, name in enumerate(self.problem.measured.candidates)
            if np.isfinite(errors[:, j]).all()
        }

    def at(self, budget: int) -> MixedPrecision:
        """The best choices within another budget, in the same unit; nothing is measured anew."""
        return self.problem.solved(budget)

    def table(self) -> str:
        """Markdown: a row for each leaf, and one of the model."""
        total = sum(row.size for row in self.rows)
        lines = [
            ["leaf", "values", "choice", "bits a value", "bytes", "error"],
            ["---", "---:", "---", "---:", "---:", "---:"],
        ]
        lines += [
            [r.name, f"{r.size:,}", r.choice, f"{r.bits:.2f}", f"{r.bytes:,}", f"{r.error:.4g}"]
            for r in self.rows
        ]
        chosen = sum(row.bytes for row in self.rows)
        bits = f"{8 * chosen / max(total, 1):.2f}"
        lines.append(["all of them", f"{total:,}", "", bits, f"{chosen:,}", f"{self.error:.4g}"])
        if self.problem.rest:
            lines.append(["everything else", "", "", "", f"{self.problem.rest:,}", ""])
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def figure(self) -> Any:
        """A matplotlib figure: bits of each leaf, and error over cost beside the uniform choices.

        Raises:
          MissingExtraError: matplotlib is not installed.
        """
        from modelzip_jax.quantization.precision_figure import drawn

        return drawn(self)

    def __repr__(self) -> str:
        return (
            f"MixedPrecision({len(self.places)} leaves, {self.bytes:,} bytes packed, {self.cost:,} of {self.budget:,} "
            f"{self.problem.unit}, error {self.error:.4g}, at least {self.bound:.4g})"
        )

    def __str__(self) -> str:
        return f"{self.table()}\n\n{self!r}"
