"""Mean errors of layers behind batch normalisation, without data: channels are clipped normals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax.trace.jaxpr.evaluator import bind
from modelzip_jax.trace.jaxpr.interpreter import Domain, interpret
from modelzip_jax.trace.jaxpr.primitives import IDENTITY
from modelzip_jax.trace.jaxpr.programs import Equation, Program
from modelzip_jax.trace.measures.layer_outputs import PRODUCTS
from modelzip_jax.trace.symmetry.broadcasts import moved
from modelzip_jax.tree import PyTree

__all__ = ["clipped_normal_mean", "expected_errors"]


def clipped_normal_mean(mean: Any, std: Any, low: float = 0.0, high: float = math.inf) -> np.ndarray:
    """E[min(max(X, low), high)] of X normal, float64 (Nagel et al. 2019, arXiv:1906.04721, eq. 19 and appendix C).

    >>> clipped_normal_mean(0.0, 1.0).round(4), clipped_normal_mean(1.0, 0.0, 0.0, 6.0)
    (np.float64(0.3989), np.float64(1.0))
    """
    mean, std = np.broadcast_arrays(np.asarray(mean, np.float64), np.asarray(std, np.float64))
    safe = np.where(std > 0, std, 1.0)
    total = mean.copy()
    for bound, sign in ((low, -1.0), (high, 1.0)):
        if not math.isfinite(bound):
            continue
        # E[max(X, a)] = a + σ (z Φ(z) + φ(z)) with z = (μ - a) / σ, and min is its mirror image.
        z = sign * (bound - mean) / safe
        excess = safe * (np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi) - z * _upper(z))
        total = total - sign * np.where(std > 0, excess, np.maximum(sign * (mean - bound), 0.0))
    return total


def _upper(z: np.ndarray) -> np.ndarray:
    """The probability that a standard normal exceeds z."""
    from scipy.special import ndtr  # Slow to import, and needed here alone.

    return np.asarray(ndtr(-z), np.float64)


class _Known(NamedTuple):
    """What is known of a variable.

    fixed: its value with float and with quantized weights, where it is made of parameters and constants. variance:
    the variances whose inverse root is in it, and whether that root has been taken. mean, std: of an activation;
    std None where it is not normal any more. bounds: what it was clipped to. centred: a running mean was subtracted.
    error: the mean error of a product, and its path.
    """

    fixed: tuple[Any, Any] | None = None
    variance: tuple[Any, bool] | None = None
    mean: np.ndarray | None = None
    std: np.ndarray | None = None
    bounds: tuple[float, float] = (-math.inf, math.inf)
    centred: bool = False
    error: tuple[np.ndarray, str] | None = None

    @property
    def expected(self) -> np.ndarray | None:
        """E[x]."""
        if self.mean is None or self.std is None:
            return self.mean
        return clipped_normal_mean(self.mean, self.std, *self.bounds)


_NOTHING = _Known()


def expected_errors(
    traced: Program, params: PyTree, quantized: PyTree, biases: Mapping[str, str]
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """E[y_quantized] - E[y] of products, where their biases are added; and why there is none for others.

    biases: from the path of each product to that of the equation that adds its bias.
    """
    domain = _Expect(biases)
    leaves = zip(jax.tree.leaves(params), jax.tree.leaves(quantized), strict=True)
    values = [_Known((np.asarray(a), np.asarray(b)), (np.asarray(a), False)) for a, b in leaves]
    interpret(domain, traced, [*values, *[_NOTHING] * (len(traced.jaxpr.jaxpr.invars) - len(values))])
    why = "its inputs are not known to come from a batch normalisation, through relu or relu6 at most"
    return domain.errors, {path: why for path in biases if path not in domain.errors}


class _Expect(Domain[_Known]):
    def __init__(self, biases: Mapping[str, str]) -> None:
        self.biases = biases
        self.errors: dict[str, np.ndarray] = {}

    def literal(self, number: Any, shape: tuple[int, ...]) -> _Known:
        return _Known((np.asarray(number), np.asarray(number)))

    def constant(self, shape: tuple[int, ...]) -> _Known:
        return _NOTHING

    def primitive(self, equation: Equation, values: list[_Known]) -> list[_Known]:
        if all(v.fixed is not None for v in values):
            return _fixed(equation, values)
        rule = _RULES.get(equation.primitive)
        found = rule(self, equation, values) if rule else None
        return [found or _NOTHING] * len(equation.eqn.outvars)

    def join(self, old: _Known, new: _Known, equation: Equation) -> _Known:
        return old if old is new else _NOTHING

    def layer(self, value: _Known, equation: Equation) -> _Known:
        return _NOTHING

    def stack(self, value: _Known, length: int, equation: Equation) -> _Known:
        return _NOTHING

    def shard(self, value: _Known, parts: Any, equation: Equation) -> _Known:
        return _NOTHING

    unshard = shard


_Rule = Callable[[_Expect, Equation, "list[_Known]"], "_Known | None"]


def _fixed(e: Equation, values: list[_Known]) -> list[_Known]:
    """Parameters and constants are computed with. Variances are those of which an inverse root is taken."""
    pairs = [v.fixed for v in values if v.fixed is not None]
    sides = [bind(e.eqn, [jnp.asarray(p[i]) for p in pairs]) for i in range(2)]
    tagged = [v.variance for v in values if v.variance is not None]
    variance = None
    if len(tagged) == 1 and e.primitive in ("add", "max") and not tagged[0][1]:
        variance = tagged[0]  # A small number is added.
    elif e.primitive in ("rsqrt", "sqrt") and tagged and not tagged[0][1]:
        variance = (tagged[0][0], True)
    elif e.primitive in ("mul", "div"):
        rooted = [t for t in tagged if t[1]]
        variance = rooted[0] if len(rooted) == 1 else None
    elif len(tagged) == len(values) == 1:
        one = np.asarray(tagged[0][0])
        same = one.shape == e.operand_shapes[0]
        changed = one if e.primitive in IDENTITY else moved(e, one, 0) if same else None
        variance = None if changed is None else (changed, tagged[0][1])
    return [_Known((a, b), variance) for a, b in zip(*sides, strict=True)]


def _like(x: Any, e: Equation) -> np.ndarray:
    """With as many axes as the result has."""
    x = np.asarray(x, np.float64)
    return x if x.ndim else x.reshape([1] * len(e.result_shapes[0]))


def _add(d: _Expect, e: Equation, values: list[_Known]) -> _Known | None:
    for value in values:
        if value.error is not None and d.biases.get(value.error[1]) == e.path:
            full = np.broadcast_to(value.error[0], e.result_shapes[0])
            d.errors[value.error[1]] = np.asarray(full, np.float32)
    a, b = values
    sign = -1.0 if e.primitive == "sub" else 1.0
    if a.fixed is None and b.fixed is None:
        if a.expected is None or b.expected is None:
            return None
        return _Known(mean=a.expected + sign * b.expected)
    act, other = (a, b) if b.fixed is not None else (b, a)
    assert other.fixed is not None
    shift = _like(other.fixed[0], e)
    if act.mean is None:
        # What a running mean is subtracted from is followed by its variance.
        return _Known(centred=True) if e.primitive == "sub" and act is a else None
    if act is b and sign < 0:
        return None
    act = _plain(act)
    assert act.mean is not None
    return act._replace(mean=act.mean + sign * shift)


def _plain(act: _Known) -> _Known:
    """A clipped normal has a mean only."""
    return act if act.bounds == (-math.inf, math.inf) else _Known(mean=act.expected)


def _mul(d: _Expect, e: Equation, values: list[_Known]) -> _Known | None:
    a, b = values
    if a.fixed is not None and e.primitive == "div":
        return None
    act, other = (a, b) if b.fixed is not None else (b, a)
    if other.fixed is None:
        return None
    factor = _like(other.fixed[0], e)
    factor = 1.0 / factor if e.primitive == "div" else factor
    if act.centred and act.mean is None:
        if other.variance is None or not other.variance[1]:
            return None
        std = np.abs(factor) * np.sqrt(_like(other.variance[0], e))
        return _Known(mean=np.zeros_like(std), std=std)
    if act.mean is None:
        return None
    act = _plain(act)
    assert act.mean is not None
    return _Known(mean=act.mean * factor, std=None if act.std is None else act.std * np.abs(factor))


def _clip(d: _Expect, e: Equation, values: list[_Known]) -> _Known | None:
    if e.primitive == "clamp":
        low, act, high = values
        bounds = [(low, 0), (high, 1)]
    else:
        act, number = values if values[1].fixed is not None else values[::-1]
        bounds = [(number, 0 if e.primitive == "max" else 1)]
    if act.fixed is not None or act.std is None:
        return None
    found = list(act.bounds)
    for number, side in bounds:
        if number.fixed is None or np.ndim(number.fixed[0]):
            return None
        value = float(number.fixed[0])
        found[side] = max(found[0], value) if side == 0 else min(found[1], value)
    return act._replace(bounds=(found[0], found[1])) if found[0] <= found[1] else None


def _move(d: _Expect, e: Equation, values: list[_Known]) -> _Known | None:
    if len(values) != 1:
        return None
    (value,) = values

    def change(x: np.ndarray | None) -> np.ndarray | None:
        return x if x is None or e.primitive in IDENTITY else moved(e, x, 0)

    found = value._replace(mean=change(value.mean), std=change(value.std))
    if value.error is not None:
        error = change(value.error[0])
        found = found._replace(error=None if error is None else (error, value.error[1]))
    return found


def _reduce_sum(d: _Expect, e: Equation, values: list[_Known]) -> _Known | None:
    mean, gone = values[0].expected, e.params["axes"]
    if mean is None:
        return None
    full = np.broadcast_to(
        mean,
        [n if i in gone else m for i, (n, m) in enumerate(zip(e.operand_shapes[0], mean.shape, strict=True))],
    )
    return _Known(mean=full.sum(axis=tuple(gone)))


def _product(d: _Expect, e: Equation, values: list[_Known]) -> _Known | None:
    places = [i for i, v in enumerate(values) if v.fixed is not None]
    if len(places) != 1:
        return None
    (place,) = places
    mean, weights = values[1 - place].expected, values[place].fixed
    if mean is None or weights is None:
        return None
    dtype = e.eqn.invars[1 - place].aval.dtype
    x = jnp.asarray(np.broadcast_to(mean, e.operand_shapes[1 - place]), dtype)
    outs = [bind(e.eqn, [x, w] if place else [w, x])[0] for w in weights]
    return _Known(error=(np.asarray(outs[1], np.float64) - np.asarray(outs[0], np.float64), e.path))


_RULES: dict[str, _Rule] = {
    **dict.fromkeys(IDENTITY, _move),
    **dict.fromkeys(["reshape", "transpose", "squeeze", "broadcast_in_dim", "slice", "rev"], _move),
    **dict.fromkeys(PRODUCTS, _product),
    **dict.fromkeys(["add", "sub"], _add),
    **dict.fromkeys(["mul", "div"], _mul),
    **dict.fromkeys(["max", "min", "clamp"], _clip),
    "reduce_sum": _reduce_sum,
}
