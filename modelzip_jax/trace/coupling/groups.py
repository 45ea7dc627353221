"""Channel couplings: which slices of which parameters must be removed together, and what cannot shrink."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from modelzip_jax.trace.coupling.interchange import numbered, standings
from modelzip_jax.trace.coupling.labels import AxisLabels, Labels, Reason, Solution, expand
from modelzip_jax.trace.coupling.layout import Labelled
from modelzip_jax.trace.coupling.propagation import Couple
from modelzip_jax.trace.jaxpr.interpreter import interpret
from modelzip_jax.trace.jaxpr.programs import Program, program
from modelzip_jax.tree import PyTree

__all__ = ["Couplings", "Frozen", "Group", "Member", "Reason", "couplings", "couplings_of"]


@dataclasses.dataclass(frozen=True, eq=False)
class Member:
    """What a group removes of one axis of one leaf.

    leaf: its name. axis: which of its axes. indices: int64 `(units, m)`: unit u of the group removes
    `indices[u]`.

    >>> member = Member("up", axis=1, indices=np.array([[0, 1], [2, 3]]))  # heads of two channels each
    >>> member.removed([1])
    array([2, 3])
    """

    leaf: str
    axis: int
    indices: np.ndarray

    def removed(self, units: Any) -> np.ndarray:
        """All indices that go with these units (indices or a mask), sorted."""
        return np.unique(self.indices[units])


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Units of one kind, each of which can be removed by itself: channels, hidden units, heads.

    Removing a unit means removing what every member says. The smaller model computes what the
    larger one computes with those slices set to zero. name: of the member that names it best.
    kinds: int64 `(units,)`: units of equal kind are interchangeable. Permuting them, in all members alike, leaves
    what the model computes as it is, to rounding; most groups have one kind.

    >>> members = Member("up", 1, np.arange(2)[:, None]), Member("down", 0, np.arange(2)[:, None])
    >>> group = Group("up[1]", 2, members, kinds=np.zeros(2, int))
    >>> group, group.leaves
    (Group('up[1]', units=2, up[1]×1, down[0]×1), ('up', 'down'))
    """

    name: str
    units: int
    members: tuple[Member, ...]
    kinds: np.ndarray

    @property
    def leaves(self) -> tuple[str, ...]:
        """The leaves that shrink, each once."""
        return tuple(dict.fromkeys(m.leaf for m in self.members))

    def __repr__(self) -> str:
        axes = ", ".join(f"{m.leaf}[{m.axis}]×{m.indices.shape[1]}" for m in self.members)
        return f"Group({self.name!r}, units={self.units}, {axes})"


@dataclasses.dataclass(frozen=True)
class Frozen:
    """An axis of a leaf that cannot shrink: how many of its elements, and why (at most three reasons).

    >>> import jax.numpy as jnp
    >>> frozen = couplings(lambda p, x: x @ p["w"], {"w": jnp.ones((3, 2))}, jnp.ones((1, 3))).frozen
    >>> [(one.leaf, one.axis, one.elements, one.reasons[0].why) for one in frozen]
    [('w', 0, 3, 'an axis of an input'), ('w', 1, 2, 'an axis of an output')]
    """

    leaf: str
    axis: int
    elements: int
    reasons: tuple[Reason, ...]


@dataclasses.dataclass(frozen=True)
class Couplings:
    """What `couplings` found.

    groups: what can be removed. frozen: what cannot, axis by axis. uncovered: equations whose primitive has
    no rule; the axes they meet are frozen.

    >>> import jax.numpy as jnp
    >>> params = {"up": jnp.ones((3, 8)), "down": jnp.ones((8, 2))}
    >>> couplings(lambda p, x: x @ p["up"] @ p["down"], params, jnp.ones((1, 3)))["up[1]"].units
    8
    """

    groups: tuple[Group, ...]
    frozen: tuple[Frozen, ...]
    uncovered: tuple[Reason, ...]

    def __getitem__(self, name: str) -> Group:
        """The group of this name."""
        return {group.name: group for group in self.groups}[name]


def couplings(apply_fn: Callable[..., Any], params: PyTree, *inputs: Any) -> Couplings:
    """Which channels of a model must be removed together, from its jaxpr (DepGraph, Fang et al. 2023,
    https://arxiv.org/abs/2301.12900, without tracing modules or guessing).

    Axes are followed element by element through residual additions, concatenation, flattening, grouped and
    depthwise convolution, batch normalisation, attention, scans and branches. Axes of inputs and outputs are
    frozen, and those that something mixes: reductions (layer normalisation, softmax), windows, products of
    two activations (q·k), computed indices. A reshape that splits channels, as into heads, makes two groups
    of them: whole heads, and one place in all heads.

    Constants that a model computes from its sizes (a division by √d, a split into equal thirds) stand in the
    jaxpr as numbers: whoever rebuilds the model smaller has to keep them.

    Args:
      apply_fn: the model, called with all collections as `params` where it has several, so that batch
        statistics shrink, too: `functools.partial(model.apply, train=False)`.
      params, *inputs: as for `uses`; shapes suffice.

    Raises:
      LeafError: a leaf is no array.

    >>> import jax, jax.numpy as jnp
    >>> params = {"up": jnp.ones((3, 8)), "bias": jnp.ones(8), "down": jnp.ones((8, 2))}
    >>> model = lambda p, x: jax.nn.relu(x @ p["up"] + p["bias"]) @ p["down"]
    >>> couplings(model, params, jnp.ones((1, 3))).groups
    (Group('up[1]', units=8, bias[0]×1, down[0]×1, up[1]×1),)
    """
    return couplings_of(program(apply_fn, params, *inputs))


def couplings_of(traced: Program) -> Couplings:
    """`couplings` of a model that is traced already."""
    labels = Labels()
    domain = Couple(labels)
    single = Reason("", "", "an axis of length 1")
    leaves = [
        Labelled(
            tuple(labels.fresh(n) if n != 1 else labels.frozen(1, single) for n in shape),
            True,
            tuple(n != 1 for n in shape),
        )
        for shape in traced.shapes
    ]
    others = traced.jaxpr.jaxpr.invars[len(leaves) :]
    inputs = [
        domain.new(v.aval.shape, Reason(f"input:{i}", "", "an axis of an input"), False)
        for i, v in enumerate(others)
    ]
    for i, output in enumerate(interpret(domain, traced, [*leaves, *inputs])):
        for axis in output.axes:
            labels.freeze(axis, Reason(f"output:{i}", "", "an axis of an output"))
    axes = [
        (name, i, axis[:, 0])
        for name, leaf in zip(traced.names, leaves, strict=True)
        for i, axis in enumerate(leaf.axes)
    ]
    solution = labels.solve()
    met = [*(axis for leaf in leaves for axis in leaf.axes), *domain.axes.values()]
    groups = _groups(axes, met, labels, solution, dict(zip(traced.names, traced.shapes, strict=True)))
    return Couplings(groups, _frozen(axes, labels, solution, groups), tuple(domain.uncovered.values()))


_LeafAxis = tuple[str, int, np.ndarray]
"""Leaf, axis, and the label of each element."""


def _groups(
    axes: list[_LeafAxis],
    met: list[AxisLabels],
    labels: Labels,
    solution: Solution,
    shapes: dict[str, tuple[int, ...]],
) -> tuple[Group, ...]:
    """Units with the same members, made by the same equations, are one group. met: axes of all variables."""
    touched: dict[int, dict[tuple[str, int], list[int]]] = collections.defaultdict(
        lambda: collections.defaultdict(list)
    )
    sizes = np.bincount(solution.of, minlength=solution.frozen.size)
    for leaf, axis, own in axes:
        for index, label in enumerate(own.tolist()):
            which = int(solution.of[label])
            # What nothing else touches belongs to a leaf that the model does not use.
            alone = which not in solution.combined and sizes[which] == 1
            if label >= 0 and not solution.frozen[which] and not alone:
                for each in expand(solution.combined, which):
                    touched[each][leaf, axis].append(index)
    sources = _sources(labels, solution, list(touched))
    alike: dict[Any, list[int]] = collections.defaultdict(list)
    for each, places in touched.items():
        counts = tuple((place, len(indices)) for place, indices in places.items())
        alike[sources[each], counts].append(each)
    standing = standings(met, solution, touched)
    made = [
        _group([touched[each] for each in units], numbered(standing[each] for each in units), shapes)
        for units in alike.values()
        if len(units) > 1
    ]
    return tuple(_named(made))


def _sources(labels: Labels, solution: Solution, classes: list[int]) -> dict[int, frozenset[int]]:
    """Which axes of variables the labels of each class were made for."""
    starts = np.array([first for first, _ in labels.sources])
    wanted = np.flatnonzero(np.isin(solution.of, classes))
    number = np.searchsorted(starts, wanted, side="right") - 1
    pairs = np.unique(np.stack([solution.of[wanted], number]), axis=1).T
    found: dict[int, set[int]] = collections.defaultdict(set)
    for each, source in pairs.tolist():
        found[each].add(source)
    return {each: frozenset(some) for each, some in found.items()}


def _group(
    units: list[dict[tuple[str, int], list[int]]], kinds: np.ndarray, shapes: dict[str, tuple[int, ...]]
) -> Group:
    members = tuple(
        Member(leaf, axis, np.array([unit[leaf, axis] for unit in units])) for leaf, axis in units[0]
    )

    def weight(member: Member) -> tuple[int, int]:
        return len(shapes[member.leaf]), member.axis

    best = max(members, key=weight)
    return Group(f"{best.leaf}[{best.axis}]", len(units), members, kinds)


def _named(groups: list[Group]) -> list[Group]:
    """With "#1" and so on where several groups share an axis, such as heads and places in them."""
    seen: collections.Counter[str] = collections.Counter()
    found = []
    for group in groups:
        number = seen[group.name]
        seen[group.name] += 1
        found.append(dataclasses.replace(group, name=f"{group.name}#{number}") if number else group)
    return found


def _frozen(
    axes: list[_LeafAxis], labels: Labels, solution: Solution, groups: tuple[Group, ...]
) -> tuple[Frozen, ...]:
    reasons = list(labels.reasons)
    free: dict[tuple[str, int], set[int]] = collections.defaultdict(set)
    for group in groups:
        for member in group.members:
            free[member.leaf, member.axis].update(member.indices.ravel().tolist())
    found = []
    for leaf, axis, own in axes:
        held = np.array([i for i in range(own.size) if i not in free[leaf, axis]], int)
        if held.size:
            found.append(Frozen(leaf, axis, held.size, _reasons(own[held], solution, reasons)))
    return tuple(found)


def _reasons(own: np.ndarray, solution: Solution, reasons: list[Reason]) -> tuple[Reason, ...]:
    classes = solution.of[own[own >= 0]]
    numbers = solution.reasons[np.isin(solution.reasons[:, 0], classes), 1]
    known = [reasons[i] for i in np.unique(np.concatenate([numbers, -1 - own[own < 0]])).tolist()]
    shared = np.isin(solution.of, classes).sum() > np.unique(classes).size
    used = shared or any(c in solution.combined for c in classes.tolist())
    return tuple(known[:3]) or (Reason("", "", "could only go as a whole" if used else "not used"),)
