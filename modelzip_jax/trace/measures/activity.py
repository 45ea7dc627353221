"""How sparse a model's activations are: per neuron, per layer and for the whole model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from modelzip_jax.errors import MissingExtraError
from modelzip_jax.trace.measures.channel_moments import Channels
from modelzip_jax.trace.measures.input_statistics import Measured, statistics
from modelzip_jax.tree import PyTree

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["LayerSparsity", "Sparsity", "activation_sparsity"]


@dataclasses.dataclass(frozen=True)
class LayerSparsity:
    """The activations of one layer.

    name: of the leaf that makes them; in a scan over layers with "[i]", of a second use with "#1".
    total: the sum of |activation| of each neuron over everything seen, float64 `(neurons,)`.
    zeros: the fraction of its activations that are exactly 0, float64 `(neurons,)`: the average percentage
    of zeros (APoZ) of Hu et al. 2016. count: how many activations of each neuron were seen.

    >>> layer = LayerSparsity("up", total=np.array([4.0, 0.0]), zeros=np.array([0.5, 1.0]), count=2.0)
    >>> layer.dead
    1
    """

    name: str
    total: np.ndarray
    zeros: np.ndarray
    count: float

    @property
    def dead(self) -> int:
        """The number of neurons that never were anything but 0."""
        return int(np.sum(self.total == 0))


@dataclasses.dataclass(frozen=True)
class Sparsity:
    """What `activation_sparsity` found, layer by layer.

    >>> layer = LayerSparsity("up", total=np.array([4.0, 0.0]), zeros=np.array([0.5, 1.0]), count=2.0)
    >>> Sparsity((layer,)).zeros, Sparsity((layer,)).total
    (0.75, 4.0)
    """

    layers: tuple[LayerSparsity, ...]

    @property
    def zeros(self) -> float:
        """The fraction of all activations that are 0."""
        seen = [layer.count * layer.zeros.size for layer in self.layers]
        zeros = [layer.count * float(np.sum(layer.zeros)) for layer in self.layers]
        return sum(zeros) / max(sum(seen), 1.0)

    @property
    def total(self) -> float:
        """The sum of |activation| over all layers."""
        return float(sum(np.sum(layer.total) for layer in self.layers))

    def table(self) -> Table:
        """A table for the terminal: a row a layer, and one for the whole model."""
        from rich.table import Table  # As long to import as all of this room.

        table = Table(title="Activation sparsity")
        table.add_column("layer")
        for column in ("neurons", "dead", "zeros", "Σ|a| a neuron: least", "median", "most"):
            table.add_column(column, justify="right")
        for layer in self.layers:
            table.add_row(
                layer.name, str(layer.total.size), str(layer.dead), f"{np.mean(layer.zeros):.1%}",
                *(f"{x:.4g}" for x in np.percentile(layer.total, (0, 50, 100))),
            )  # fmt: skip
        table.add_section()
        totals = np.concatenate([layer.total for layer in self.layers] or [np.zeros(1)])
        table.add_row(
            "model", str(sum(layer.total.size for layer in self.layers)),
            str(sum(layer.dead for layer in self.layers)), f"{self.zeros:.1%}",
            *(f"{x:.4g}" for x in np.percentile(totals, (0, 50, 100))),
        )  # fmt: skip
        return table

    def figure(self) -> Any:
        """A matplotlib figure: zeros of each layer's neurons, and their sums of |activation|, sorted.

        Raises:
          MissingExtraError: matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise MissingExtraError(
                "figures need matplotlib: pip install 'modelzip_jax[notebooks]'"
            ) from error
        figure = Figure(figsize=(10, 1.5 + 0.3 * len(self.layers)), layout="constrained")
        left, right = figure.subplots(1, 2)
        names = [layer.name for layer in self.layers]
        left.boxplot([layer.zeros for layer in self.layers], orientation="horizontal", widths=0.6)
        left.set_yticks(range(1, len(names) + 1), names)
        left.invert_yaxis()
        left.set(xlim=(-0.02, 1.02), xlabel="fraction of zeros, one value a neuron")
        for layer in self.layers:
            share = np.arange(1, layer.total.size + 1) / layer.total.size
            right.plot(share, np.sort(layer.total)[::-1] / max(layer.count, 1.0), label=layer.name)
        right.set(xlabel="neurons, most active first", ylabel="mean |activation|", yscale="symlog")
        right.legend(fontsize="x-small")
        return figure


def activation_sparsity(
    apply_fn: Callable[..., Any],
    params: PyTree,
    batches: Iterable[Any],
    only: str | Sequence[str] = "**",
) -> Sparsity:
    """The sum of |activation| and the fraction of zeros of every neuron, over all batches.

    A neuron is an output channel of a dense layer or convolution, and its activation what that has become
    when other layers read it: after bias, batch normalisation and nonlinearity (see
    `UseStatistics.activations`). Layers without a nonlinearity are listed, too.

    Args:
      apply_fn, params, batches, only: as for `statistics`.

    Raises:
      TraceError, PatternError: as `statistics`.

    >>> import jax.numpy as jnp
    >>> model = lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"]
    >>> params = {"a": jnp.array([[1.0, -1.0, -2.0]]), "b": jnp.ones((3, 1))}
    >>> found = activation_sparsity(model, params, [jnp.array([[1.0], [3.0], [-1.0], [0.0]])])
    >>> found.layers[0].total, found.layers[0].zeros, found.layers[0].dead
    (array([4., 1., 2.]), array([0.5 , 0.75, 0.75]), 0)
    """
    stats = statistics(apply_fn, params, batches, ("mean_abs", "zeros"), ("activations",), only)
    found: list[LayerSparsity] = []
    for measured in jax.tree.leaves(stats, is_leaf=lambda x: isinstance(x, Measured)):
        for each in measured:
            name = each.use.leaf + (f"#{each.use.index}" if len(measured) > 1 else "")
            found += _layers(name, each.activations)
    return Sparsity(tuple(found))


def _layers(name: str, channels: Channels) -> list[LayerSparsity]:
    count = np.asarray(channels.count, np.float64)
    number = math.prod(count.shape)
    mean = np.asarray(channels.mean_abs, np.float64).reshape(number, -1)
    zeros = np.asarray(channels.zeros, np.float64).reshape(number, -1)
    index = [f"[{', '.join(map(str, i))}]" if i else "" for i in np.ndindex(count.shape)]
    return [
        LayerSparsity(name + index[i], mean[i] * n, zeros[i], float(n))
        for i, n in enumerate(count.reshape(number))
    ]
