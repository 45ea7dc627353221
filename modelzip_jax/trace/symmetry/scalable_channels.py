"""Groups of channels that can be scaled without changing what a model computes, from its jaxpr."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from modelzip_jax.trace.coupling.labels import Reason
from modelzip_jax.trace.jaxpr.interpreter import equations_at, interpret
from modelzip_jax.trace.jaxpr.programs import Program, program
from modelzip_jax.trace.symmetry.scale_domain import Scaled, ScaleDomain
from modelzip_jax.trace.symmetry.scale_facts import ScaleFacts, Solved
from modelzip_jax.trace.symmetry.scale_rules import scale_rule_of
from modelzip_jax.trace.usage.use import Use, uses_of
from modelzip_jax.tree import PyTree

__all__ = ["ScaleBlock", "ScaleGroup", "ScaleMember", "Scales", "scale_groups", "scales_of"]

_MOST = 1 << 22
Side = Literal["in", "out", ""]


class ScaleBlock(NamedTuple):
    """Axes of a leaf whose elements are scaled together, each by a factor of its own.

    side: "in" for what a product sums over, "out" for what it gives, "" for biases, scales and the rest.
    layers: those of the axes that count layers of a scan.
    """

    leaf: str
    axes: tuple[int, ...]
    side: Side
    shape: tuple[int, ...]
    layers: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class ScaleMember:
    """What a factor does to one leaf: elements `indices[u]` of the block are multiplied by factor[u]**power.

    indices: int64 `(units, m)`, flat in the block's shape.
    """

    block: ScaleBlock
    indices: np.ndarray
    power: float


@dataclasses.dataclass(frozen=True, eq=False)
class ScaleGroup:
    """Units with a free factor each. name: of the leaf that makes the channels, with "[i]" in layer i of a scan.

    >>> member = ScaleMember(ScaleBlock("up", (1,), "out", (2,)), np.array([[0], [1]]), 1.0)
    >>> ScaleGroup("up", 2, (member,))
    ScaleGroup('up', units=2, up(out)^1)
    """

    name: str
    units: int
    members: tuple[ScaleMember, ...]

    def __repr__(self) -> str:
        shown = ", ".join(f"{m.block.leaf}({m.block.side})^{m.power:g}" for m in self.members)
        return f"ScaleGroup({self.name!r}, units={self.units}, {shown})"


class Scales(NamedTuple):
    """groups: in the order of the jaxpr. held: blocks of kernels of which some channel cannot be scaled, and why.

    uses: of the leaves in products. program: the model.
    """

    groups: tuple[ScaleGroup, ...]
    held: dict[ScaleBlock, Reason]
    uses: dict[str, list[Use]]
    program: Program


def scale_groups(
    apply_fn: Callable[..., Any],
    params: PyTree,
    *inputs: Any,
    linear: bool = False,
    fixed: Callable[[Use], bool] = lambda use: False,
) -> Scales:
    """Which channels of a model can be scaled, and what has to be scaled with them for it to compute the same.

    Followed element by element through everything that commutes with positive factors: additions of alike scales
    (residual streams), biases, relu, pooling, gates, attention values, depthwise convolution, reshapes, scans.

    Args:
      apply_fn, params, *inputs: as for `trace.uses`; shapes suffice.
      linear: only what commutes with factors of either sign.
      fixed: uses of leaves that must stay as they are.

    >>> import jax
    >>> params = {"up": jnp.ones((3, 8)), "bias": jnp.ones(8), "down": jnp.ones((8, 2))}
    >>> model = lambda p, x: jax.nn.relu(x @ p["up"] + p["bias"]) @ p["down"]
    >>> scale_groups(model, params, jnp.ones((1, 3))).groups
    (ScaleGroup('up', units=8, bias()^1, down(in)^-1, up(out)^1),)
    """
    return scales_of(program(apply_fn, params, *inputs), linear, fixed)


def scales_of(traced: Program, linear: bool, fixed: Callable[[Use], bool]) -> Scales:
    """`scale_groups` of a model that is traced already."""
    facts = ScaleFacts()
    uses = uses_of(traced)
    held = {use.leaf for use in uses if fixed(use)}
    blocks = _blocks(traced, uses)
    labels: dict[ScaleBlock, np.ndarray] = {}
    arguments = []
    for name, shape in zip(traced.names, traced.shapes, strict=True):
        terms = []
        for block in blocks[name]:
            term = labels[block] = facts.fresh(block.shape)
            if name in held:
                facts.zero(term, Reason("", "", f"{name!r} is to stay as it is"))
            terms.append(term.reshape([n if i in block.axes else 1 for i, n in enumerate(shape)]))
        arguments.append(Scaled(tuple(terms)))
    others = len(traced.jaxpr.jaxpr.invars) - len(arguments)
    for i, output in enumerate(
        interpret(
            ScaleDomain(facts, scale_rule_of, linear),
            traced,
            [*arguments, *[Scaled(fixed=Reason("", "", "is an input of the model"))] * others],
        )
    ):
        for term in output.terms:
            facts.zero(term, Reason(f"output:{i}", "", "is an output of the model"))
    solved = facts.solve()
    products: dict[str, list[Use]] = collections.defaultdict(list)
    order: dict[str, int] = {}
    for use in uses:
        order.setdefault(use.leaf, len(order))
        if use.kind in ("dot", "conv"):
            products[use.leaf].append(use)
    groups = _groups(labels, solved, order)
    return Scales(groups, _held(labels, solved), dict(products), traced)


def _blocks(traced: Program, uses: list[Use]) -> dict[str, list[ScaleBlock]]:
    by_leaf: dict[str, list[Use]] = collections.defaultdict(list)
    for use in uses:
        by_leaf[use.leaf].append(use)
    equations = equations_at(traced, {u.path for u in uses if u.kind == "conv"})
    found = {}
    for name, shape in zip(traced.names, traced.shapes, strict=True):
        own = by_leaf[name]
        roles = {_roles(use, equations.get(use.path)) for use in own if use.kind in ("dot", "conv")}
        layers = tuple(sorted({a for use in own for a in use.layers}))
        floating = jnp.issubdtype(traced.parameters[traced.names.index(name)].aval.dtype, jnp.floating)
        sides: list[tuple[set[int], Side]]
        if not floating or not shape:
            sides = []
        elif len(roles) == 1 and all(use.kind in ("dot", "conv") for use in own):
            read, made, window = next(iter(roles))
            axes = set(range(len(shape))) - set(window)
            sides = [(axes - (set(made) - set(read)), "in"), (axes - (set(read) - set(made)), "out")]
        elif all(use.kind in ("elementwise", "copy") for use in own):
            sides = [(set(range(len(shape))), "")]
        else:
            sides = [({a} | set(layers), "") for a in range(len(shape)) if a not in layers]
        found[name] = [b for b in (_block(name, shape, axes, side, layers) for axes, side in sides) if b]
    return found


def _block(
    name: str, shape: tuple[int, ...], axes: set[int], side: Side, layers: tuple[int, ...]
) -> ScaleBlock | None:
    own = tuple(a for a in sorted(axes) if shape[a] != 1)
    if not set(own) - set(layers) or np.prod([shape[a] for a in own]) > _MOST:
        return None
    return ScaleBlock(name, own, side, tuple(shape[a] for a in own), tuple(a for a in own if a in layers))


def _roles(use: Use, conv: Any) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """The axes of a kernel that a product sums over and gives, and a convolution's window."""
    if conv is None:
        return use.contracted, use.output, ()
    spec = conv.params["dimension_numbers"].rhs_spec
    return (
        use.view.axes_of([spec[1]]),
        use.view.axes_of([spec[0]]),
        use.view.axes_of(spec[2:]),
    )


def _groups(
    labels: dict[ScaleBlock, np.ndarray], solved: Solved, order: dict[str, int]
) -> tuple[ScaleGroup, ...]:
    """Units with the same members are one group, in each layer of a scan one of its own."""
    touched: dict[int, dict[tuple[ScaleBlock, tuple[int, ...], float], list[int]]] = collections.defaultdict(
        lambda: collections.defaultdict(list)
    )
    for block, own in labels.items():
        layered = [block.axes.index(a) for a in block.layers]
        places = np.stack(np.unravel_index(np.arange(own.size), block.shape), axis=1)[:, layered].tolist()
        of = solved.of[own.ravel()]
        for flat in np.flatnonzero(of).tolist():
            for free, power in solved.form(int(own.ravel()[flat])).items():
                touched[free][block, tuple(places[flat]), power].append(flat)
    alike: dict[Any, list[int]] = collections.defaultdict(list)
    for free, members in touched.items():
        alike[tuple((key, len(flat)) for key, flat in members.items())].append(free)
    made = [
        ScaleGroup(
            "", len(units),
            tuple(
                ScaleMember(key[0], np.array([touched[u][key] for u in units]), key[2]) for key, _ in keys
            ),
        )
        for keys, units in alike.items()
    ]  # fmt: skip
    named = [_named(group) for group in made]
    seen: collections.Counter[str] = collections.Counter()
    found = []
    for group in sorted(named, key=lambda g: min(order.get(m.block.leaf, 0) for m in g.members)):
        number = seen[group.name]
        seen[group.name] += 1
        found.append(dataclasses.replace(group, name=f"{group.name}#{number}") if number else group)
    return tuple(found)


def _named(group: ScaleGroup) -> ScaleGroup:
    sides: Sequence[Side] = ("out", "", "in")
    best = min(group.members, key=lambda m: sides.index(m.block.side))
    place = np.unravel_index(int(best.indices[0, 0]), best.block.shape)
    layer = [str(place[best.block.axes.index(a)]) for a in best.block.layers]
    return dataclasses.replace(group, name=best.block.leaf + (f"[{', '.join(layer)}]" if layer else ""))


def _held(labels: dict[ScaleBlock, np.ndarray], solved: Solved) -> dict[ScaleBlock, Reason]:
    found = {}
    for block, own in labels.items():
        zero = own.ravel()[solved.of[own.ravel()] == 0]
        if zero.size and block.side:
            reasons = (solved.why(label) for label in zero.tolist())
            found[block] = next((r for r in reasons if r), Reason("", "", "is fixed by the scales of others"))
    return found
