"""Calibration: what a quantizer keeps for each product, from batches of the model's inputs."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax.errors import NonFiniteError, TraceError, TransformError
from modelzip_jax.packed import is_packed
from modelzip_jax.packing import unpack
from modelzip_jax.quantization.activations.operand import ActivationQuantizer, Seen
from modelzip_jax.quantization.activations.product_numbers import ProductNumbers, known_to_flax
from modelzip_jax.quantization.activations.sites import product_sites, site_name
from modelzip_jax.sampling import spread_places
from modelzip_jax.trace.jaxpr.model_inputs import batch_inputs, holds_nonfinite, iterated
from modelzip_jax.trace.jaxpr.programs import program
from modelzip_jax.trace.measures.channel_moments import Channels
from modelzip_jax.trace.measures.input_statistics import statistics_pass
from modelzip_jax.tree import PyTree

__all__ = ["as_patterns", "calibrate", "check_how", "unpacked_params"]

_VALUES, _BATCHES = 1 << 15, 32
"""At most so many values of a layer are sampled from a batch, and so many batches' samples kept."""


def calibrate(
    apply_fn: Callable[..., Any],
    how: ActivationQuantizer,
    params: PyTree,
    batches: Iterable[Any],
    *,
    only: str | Sequence[str] = "**",
) -> dict[str, dict[str, jax.Array]]:
    """What `static`, `pact` and `learned_step` keep for each product, chosen from data.

    Each batch is run once, in floats. Ranges see all batches' exact extremes, or a sample of the inputs: from a batch
    at most 512 rows and 32,768 values, evenly spread, of at most 32 batches, evenly thinned.

    Args:
      apply_fn, params: as for `quantize_activations`; `params` may be packed.
      how: of `mz.activations`.
      batches: each a tuple of what `apply_fn` takes after `params`, or that one array.
      only: path patterns of the leaves whose products are meant.

    Returns:
      `{leaf: {name: array}}`, float32: scalars, or, of leaves that scans take apart, with an axis for each scan. The
      second product of a tied leaf is named `leaf#1`. A plain tree, to be trained or saved beside the parameters;
      each product's dict remembers what it was made for, which `quantize_activations` holds against its `how`.

    Raises:
      TransformError: `how` keeps nothing, or stands in the place of `apply_fn` or `params`.
      PatternError: a pattern matches no leaf. TraceError: no batches, or one holds no example, or the model cannot be
        run on it; a product cannot be looked at where it stands.
      NonFiniteError: activations are NaN or infinite.

    >>> import modelzip_jax as mz
    >>> how, w = mz.activations.static(8, symmetric=False), {"w": jnp.eye(2)}
    >>> calibrate(lambda p, x: x @ p["w"], how, w, [jnp.array([[0.0, 2.55]]), jnp.array([[1.0, 1.0]])])
    {'w': {'step': Array(0.01, dtype=float32), 'zero': Array(0., dtype=float32)}}
    """
    if isinstance(params, ActivationQuantizer):
        raise TransformError("arguments swapped: calibrate(apply_fn, how, params, batches)")
    check_how(how, "calibrate", apply_fn)
    if not how.holds:
        raise TransformError(f"{how} keeps nothing for each product: use it without calibration")
    patterns, params = as_patterns(only), unpacked_params(params)
    passes: dict[str, Any] = {}
    gathered = _Inputs()
    for number, batch in enumerate(iterated(batches)):
        inputs = batch_inputs(batch, number)
        key = str(jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), inputs))
        if key not in passes:
            sites = product_sites(program(apply_fn, params, *inputs, called=f"batch {number}"), patterns)
            kinds = ("percentiles", "range")
            run = statistics_pass(apply_fn, params, *inputs, kinds=kinds, only=patterns)
            passes[key] = run, list(sites.values())
        run, uses = passes[key]
        found = run(params, *inputs)
        gathered.add({site_name(use): found[use.leaf, use.index, "inputs"] for use in uses})
        if (bad := gathered.nonfinite()) is not None:
            whose = (
                "holds NaN or infinity itself"
                if holds_nonfinite(inputs)
                else "is finite: the model makes them"
            )
            raise NonFiniteError(f"what meets {bad!r} is NaN or infinite in batch {number}, which {whose}")
    if not passes:
        raise TraceError("calibration needs at least one batch: the iterable of batches was empty")
    chosen = jax.jit(jax.vmap(how.calibrated))
    known_to_flax()
    scales: dict[str, dict[str, jax.Array]] = {}
    for name in gathered.layers:
        numbers = gathered.chosen(name, chosen)
        if broken := [key for key, x in numbers.items() if not np.isfinite(np.asarray(x)).all()]:
            raise NonFiniteError(f"{how} gives a {broken[0]!r} for {name!r} that is NaN or infinite")
        scales[name] = ProductNumbers(numbers, how.meaning)
    return scales


class _Inputs:
    """What all batches so far have shown of each product: layers first, in C order."""

    def __init__(self) -> None:
        self.layers: dict[str, tuple[int, ...]] = {}
        self.samples: dict[str, list[np.ndarray]] = collections.defaultdict(list)
        self.edges: dict[str, list[tuple[np.ndarray, np.ndarray]]] = collections.defaultdict(list)
        self.every, self.seen = 1, 0

    def add(self, batch: dict[str, Channels]) -> None:
        keep = self.seen % self.every == 0
        self.seen += 1
        for name, channels in batch.items():
            layers = tuple(channels.count.shape)
            self.layers[name] = layers
            rows = int(np.prod(layers, dtype=int))
            low, high = (np.asarray(x).reshape(rows, -1) for x in (channels.minimum, channels.maximum))
            self.edges[name].append((low.min(axis=1), high.max(axis=1)))
            if keep:
                values = np.asarray(channels.sample).reshape(rows, -1)
                self.samples[name].append(values[:, spread_places(values.shape[1], _VALUES)])
        if keep and max(map(len, self.samples.values())) > _BATCHES:
            # Every second one is dropped, before and from now on: what is kept stays evenly spread.
            self.every *= 2
            self.samples = collections.defaultdict(list, {k: v[::2] for k, v in self.samples.items()})

    def nonfinite(self) -> str | None:
        """A product whose inputs were NaN or infinite in the last batch."""
        return next((n for n, edges in self.edges.items() if not np.isfinite(edges[-1]).all()), None)

    def chosen(self, name: str, how: Callable[..., Any]) -> dict[str, jax.Array]:
        lows, highs = (np.stack(edge, axis=1) for edge in zip(*self.edges[name], strict=True))
        seen = Seen(*map(jnp.asarray, (np.concatenate(self.samples[name], axis=1), lows, highs)))
        return {key: x.reshape(self.layers[name]) for key, x in how(seen).items()}


def check_how(how: Any, what: str, apply_fn: Any) -> None:
    """Raises `TransformError` for what is no quantizer of activations, or has changed places with the model."""
    if isinstance(apply_fn, ActivationQuantizer) or not callable(apply_fn):
        given = f"a {type(apply_fn).__name__}"
        raise TransformError(f"{what}() takes the model first, {what}(apply_fn, how, ...), not {given}")
    if not isinstance(how, ActivationQuantizer):
        ours = str(getattr(how, "__module__", "")).startswith("modelzip_jax.") and hasattr(how, "__name__")
        call = f"call it, {how.__name__}()" if ours else "such as mz.activations.dynamic()"
        raise TransformError(f"{what}() takes one of mz.activations: {call}, not a {type(how).__name__}")


def as_patterns(only: str | Sequence[str]) -> list[str]:
    """Path patterns, as a list."""
    return [only] if isinstance(only, str) else list(only)


def unpacked_params(params: PyTree) -> PyTree:
    """The parameters as arrays, packed ones unpacked."""
    held = any(map(is_packed, jax.tree.leaves(params, is_leaf=is_packed)))
    return unpack(params) if held else params
