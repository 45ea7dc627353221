"""A leaf as the matrices that its products multiply by, and the Gram matrix of each one's inputs."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax.concrete import host_view
from modelzip_jax.errors import LeafError, NonFiniteError, SilentLayerError
from modelzip_jax.trace.usage.use import Use
from modelzip_jax.trace.usage.views import along

__all__ = ["Layout", "Products", "output_curvature", "products"]


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a leaf is a stack of matrices `(layers, outputs, inputs)`; hashable.

    Layers are those of scans, experts, and groups of a convolution. split: the leaf's shape, an axis that holds groups
    and what is in each as two. order: of these axes. sizes: (layers, outputs, inputs). inner: length of the last axis
    that is summed over.

    >>> layout = Layout((2, 3, 4), (0, 2, 1), (2, 4, 3), 3)
    >>> layout.stack(jnp.ones((2, 3, 4))).shape, layout.leaf(jnp.ones((2, 4, 3)), (2, 3, 4)).shape
    ((2, 4, 3), (2, 3, 4))
    """

    split: tuple[int, ...]
    order: tuple[int, ...]
    sizes: tuple[int, int, int]
    inner: int

    def stack(self, x: jax.Array) -> jax.Array:
        """A leaf, or what has its shape, as `(layers, outputs, inputs)`."""
        return jnp.transpose(x.reshape(self.split), self.order).reshape(self.sizes)

    def leaf(self, x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """The inverse of `stack`."""
        back = tuple(map(int, np.argsort(self.order)))
        return jnp.transpose(x.reshape([self.split[a] for a in self.order]), back).reshape(shape)

    def of_outputs(self, x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """`(layers, outputs)` in a shape that broadcasts against the leaf: 1 along the axes of inputs."""
        return self._spread(x, shape, self.places(0, 2))

    def of_inputs(self, x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """`(layers, inputs)` likewise; 1 along those of outputs. Of groups, whose inputs differ, the geometric mean."""
        if len(self.split) == len(shape):
            own = (*self.places(0, 1), *self.places(2, 3))
        else:
            x, own = jnp.exp(jnp.mean(jnp.log(x), axis=0)), self.places(2, 3)
        return self._spread(x, shape, own)

    def places(self, first: int, end: int) -> tuple[int, ...]:
        """The split axes of these of `sizes`."""
        bounds, at = [0], 0
        for size in self.sizes[:2]:
            held = 1
            while held < size:
                held, at = held * self.split[self.order[at]], at + 1
            bounds.append(at)
        bounds.append(len(self.order))
        return self.order[bounds[first] : bounds[end]]

    def _spread(self, x: jax.Array, shape: tuple[int, ...], own: tuple[int, ...]) -> jax.Array:
        lengths = [n if a in own else 1 for a, n in enumerate(self.split)]
        back = tuple(map(int, np.argsort(self.order)))
        x = jnp.transpose(x.reshape([lengths[a] for a in self.order]), back)
        merged, at = [], 0
        for n in shape:
            width = 1
            held = self.split[at]
            while held < n:
                held, width = held * self.split[at + width], width + 1
            merged.append(math.prod(lengths[at : at + width]))
            at += width
        return x.reshape(merged)


class Products(NamedTuple):
    """What a leaf multiplies. layout: the leaf as matrices. gram: float32 `(layers, inputs, inputs)`, E[x xᵀ].

    uses: how many products there are. batched: whether layers are experts or groups, of one product.
    """

    layout: Layout
    gram: jax.Array
    uses: int
    batched: bool


def products(name: str, shape: tuple[int, ...], measured: Any, asks: str) -> Products:
    """The matrices of a leaf, and the Gram matrices of what they are multiplied by.

    Several uses, as of tied weights, count by how much each has seen, if all sum over the same axes.

    Args:
      name, shape: of the leaf. measured: its `Measured`. asks: who needs it, for messages.

    Raises:
      LeafError: no product of the leaf was measured, or one of a part of it, or of something derived from it, or
        products sum over different axes; a Gram matrix of zeros.
      NonFiniteError: a Gram matrix of NaN, infinite or negative squares.

    >>> from modelzip_jax import trace
    >>> x = jnp.array([[1.0, 2.0, 0.0]])
    >>> stats = trace.statistics(lambda p, x: x @ p, jnp.ones((3, 4)), [x], kinds=("gram",))
    >>> products("w", (3, 4), stats, "this").layout.sizes
    (1, 4, 3)
    """
    measured = measured if isinstance(measured, tuple) else ()
    if not measured or any(m.inputs is None or m.inputs.gram is None for m in measured):
        held = sum(m.inputs is not None and m.inputs.gram is not None for m in measured)
        raise LeafError(
            f"{asks} needs the Gram matrix of the inputs of leaf {name!r}; stats have {len(measured)} products of it, "
            f"{held} with one: select kernels with mz.only('**/kernel', ...) or mz.partition, and pass "
            "stats=trace.statistics(apply_fn, params, batches, kinds=('gram',))"
        )
    found = [_product(name, shape, m.use, m.inputs.gram, asks) for m in measured]
    if len({each.layout for each in found}) > 1:
        sums = " and ".join(str(m.use.contracted) for m in measured)
        raise LeafError(
            f"the products of leaf {name!r} sum over different axes, {sums}, so that no one Gram matrix tells "
            f"{asks} what an error costs: leave the leaf out with mz.only or mz.partition"
        )
    gram = found[0].gram if len(found) == 1 else _pooled_grams(found, [m.inputs.count for m in measured])
    _check_seen(name, gram, _groups(found[0].layout, shape), asks)
    return Products(found[0].layout, gram, len(found), found[0].batched)


def _product(name: str, shape: tuple[int, ...], use: Use, gram: jax.Array, asks: str) -> Products:
    inputs, axes = tuple(sorted(use.contracted)), _scanned(use)
    batch = tuple(sorted(use.batch))
    own = () if axes is None else axes
    count, outer = math.prod(shape[a] for a in inputs), (*own, *batch)
    order = (*outer, *use.output, *inputs)
    lead = tuple(shape[a] for a in outer)
    split, groups = tuple(shape), 1
    if use.kind == "conv" and len(use.output) == 1 and gram.ndim == len(lead) + 3:
        # The outputs of a grouped convolution run group by group.
        groups, out = gram.shape[-3], use.output[0]
        if shape[out] % groups == 0:
            split = (*shape[:out], groups, shape[out] // groups, *shape[out + 1 :])
            moved = {a: a + (a > out) for a in range(len(shape))}
            order = (*(moved[a] for a in outer), out, out + 1, *(moved[a] for a in inputs))
            lead = (*lead, groups)
    plain = axes is not None and not use.derived and use.view.complete
    if not plain or sorted(order) != list(range(len(split))) or gram.shape != (*lead, count, count):
        raise LeafError(
            f"leaf {name!r} of shape {shape} is no kernel that {asks} can take as matrices: it is used by "
            f"{use.primitive} with inputs {use.contracted}, outputs {use.output}, layers {use.layers}, batched axes "
            f"{use.batch}{', and derived' if use.derived else ''}{'' if use.view.complete else ', in part'}, with a "
            f"Gram matrix of {gram.shape}"
        )
    layers = math.prod(lead)
    gram = _forwards(use, gram).reshape(layers, count, count)
    sizes = layers, math.prod(shape) // max(layers * count, 1), count
    return Products(Layout(split, order, sizes, shape[inputs[-1]]), gram, 1, bool(batch) or groups > 1)


def output_curvature(name: str, found: Products, curvature: Any) -> jax.Array | None:
    """G of a leaf's products, float32 `(layers, outputs, outputs)`: what errors of its outputs cost, up to a factor.

    Args:
      name: of the leaf. found: its products. curvature: its `FisherInformation`, or None.

    Returns:
      None where nothing is known: without Kronecker factors.

    Raises:
      LeafError: factors of other products than these. NonFiniteError: factors of NaN or infinite values.
    """
    factors = getattr(curvature, "factors", ())
    if not factors:
        return None
    layers, outputs, _ = found.layout.sizes
    total = sum(_by_layer(name, each, layers, outputs) for each in factors)
    seen = host_view(total)
    if seen is not None and not np.isfinite(seen).all():
        raise NonFiniteError(f"the Kronecker factors of leaf {name!r} have NaN or infinite values")
    return total  # type: ignore[return-value]


def _by_layer(name: str, factors: Any, layers: int, outputs: int) -> jax.Array:
    g = jnp.asarray(factors.outputs, jnp.float32)
    if math.prod(g.shape[:-1]) == layers * outputs and g.shape[-1] == outputs:
        return _forwards(factors.use, g).reshape(layers, outputs, outputs)
    groups = g.shape[-1] // max(outputs, 1)
    if groups * outputs != g.shape[-1] or math.prod(g.shape[:-2]) * groups != layers:
        raise LeafError(
            f"the Kronecker factors of leaf {name!r} are of {g.shape} outputs, its products of {layers} layers and "
            f"{outputs} outputs: curvature= takes trace.fisher_information(..., kinds=('outputs',)) of these params"
        )
    # The outputs of a grouped convolution run group by group.
    blocks = _forwards(factors.use, g).reshape(-1, groups, outputs, groups, outputs)
    own = jnp.arange(groups)
    return jnp.moveaxis(blocks[:, own, :, own], 0, 1).reshape(layers, outputs, outputs)


def _scanned(use: Use) -> tuple[int, ...] | None:
    """The leaf's axes that scans take apart, outermost scan first; None where one takes only a part of an axis."""
    each = [along([layer.axis]) for layer in use.view.layers]
    if any(len(axes) != 1 for axes in each) or sorted(a for (a,) in each) != list(use.layers):
        return None
    return tuple(a for (a,) in each)


def _forwards(use: Use, gram: jax.Array) -> jax.Array:
    """With layers in the leaf's order where a scan runs over them backwards."""
    backwards = [i for i, layer in enumerate(use.view.layers) if layer.axis.factors[0].step < 0]
    return jnp.flip(gram, backwards) if backwards else gram


def _pooled_grams(found: list[Products], counts: list[jax.Array]) -> jax.Array:
    """The mean of Gram matrices, by how much each has seen; a count is one number, or one for each scanned layer."""
    layers = found[0].layout.sizes[0]
    each = [jnp.repeat(jnp.ravel(c), layers // max(jnp.size(c), 1)) for c in counts]
    total = jnp.maximum(sum(each), 1.0)
    return sum(p.gram * (c / total)[:, None, None] for p, c in zip(found, each, strict=True))  # type: ignore[return-value]


def _groups(layout: Layout, shape: tuple[int, ...]) -> int:
    """Groups of a convolution that the layers count, the fastest of them."""
    counted = layout.places(0, 1) if len(layout.split) > len(shape) else ()
    return layout.split[counted[-1]] if counted else 1


def _check_seen(name: str, gram: jax.Array, groups: int, asks: str) -> None:
    """Raises where the inputs of a layer were all zero, or no numbers; under `jit` nobody can look.

    A group of a convolution may have none: channels that a network has let die are no lack of data.
    """
    seen = host_view(gram)
    if seen is None and not isinstance(gram, jax.core.Tracer):
        seen = np.asarray(gram)
    if seen is None or seen.shape[-1] == 0:
        return
    power = np.diagonal(seen, axis1=1, axis2=2)
    if not np.isfinite(seen).all() or power.min() < 0:
        raise NonFiniteError(
            f"the Gram matrix of the inputs of leaf {name!r} has NaN, infinite or negative values, so that {asks} "
            "cannot go by it: look for a batch that overflows (half precision does beyond 65504), or leave the leaf out"
        )
    each = np.max(power.reshape(len(power) // groups, -1), axis=1)
    empty = np.flatnonzero(each == 0)
    if empty.size:
        which = f", layer or expert {empty[0]} of {len(each)}" if len(each) > 1 else ""
        raise SilentLayerError(
            f"the statistics of leaf {name!r} are all zero{which}: no input has reached it, so that {asks} knows "
            "nothing of it; gather them from more batches, or leave the leaf out with mz.only or mz.partition"
        )
