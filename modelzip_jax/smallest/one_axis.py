"""Leaves of one axis, such as biases and scales: which of them may be rounded."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from modelzip_jax import tree as trees
from modelzip_jax.patterns import matches
from modelzip_jax.tree import PyTree

__all__ = ["KNOWN", "STACKED", "coarsest_steps"]

KNOWN = (
    "**/*bias*", "**/scale", "**/weight", "**/gamma", "**/beta", "**/offset",
    "**/b", "**/b_*", "**/*_b", "**/*_b_*",
)  # fmt: skip
"""Names of what is added to activations, or what they are multiplied with. Others may be anything: running statistics,
frequencies of positions, tables of schedules; what an error of theirs does nobody knows."""
STACKED = ("**/*bias*", "**/scale", "**/gamma", "**/beta", "**/offset")
"""Those of them that are called so with two axes, too, as a scan stacks those of its layers; no kernel is."""
_WITHIN = 16.0
"""Steps that the least of numbers of one sign has at least: none of them becomes zero, or changes by more than 3 %."""


def coarsest_steps(params: PyTree) -> dict[str, float]:
    """The largest step for each floating-point leaf of one axis and of a known name, by name: infinite, or where all
    numbers are of one sign a sixteenth of the least. Leaves of one axis for each layer of a stack are among them.

    Leaves of one number, given once or many times, are left out, as they take no bytes; so are those with NaN.

    >>> params = {"bias": np.float32([-1, 2]), "scale": np.float32([0, 1, 32]), "running_var": np.float32([1, 2])}
    >>> coarsest_steps(params)
    {'bias': inf, 'scale': 0.0625}
    """
    found: dict[str, float] = {}
    for name, leaf in trees.named_leaves(params):
        patterns = {1: KNOWN, 2: STACKED}.get(np.ndim(leaf), ())
        known = any(matches(pattern, name) for pattern in patterns)
        if known and jnp.issubdtype(jnp.result_type(leaf), jnp.floating) and np.size(leaf):
            step = _coarsest(np.asarray(leaf, np.float32))
            if step is not None:
                found[name] = step
    return found


def _coarsest(x: Any) -> float | None:
    least, most = float(x.min()), float(x.max())
    if not least < most or not math.isfinite(most - least):
        return None
    return math.inf if least < 0 < most else float(np.abs(x[x != 0]).min()) / _WITHIN
