"""What running a function costs: compile time, latency, memory, FLOPs."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax.errors import EvaluationError

__all__ = ["Latency", "measure_latency"]


@dataclasses.dataclass(frozen=True)
class Latency:
    """What `measure_latency` found.

    Attributes:
      device: the kind of device it ran on, as JAX names it.
      compile_seconds: tracing, lowering and compiling, once; little if a persistent cache had it.
      seconds: median over the repeats of one call, from dispatch until its outputs are there.
      lower_seconds: first quartile.
      upper_seconds: third quartile.
      repeats: timed calls.
      flops: floating-point operations of one call by XLA's `cost_analysis`, None where it gives none.
        XLA counts the body of a loop (`scan`, `while`) once, however often it runs.
      peak_bytes: most device memory in use, None where neither source knows.
      peak_source: where `peak_bytes` is from. "memory_stats": high-water mark of the whole process on the
        device, taken only if this function raised it; "memory_analysis": XLA's plan for this function,
        arguments + outputs + temporaries - aliased.
    """

    device: str
    compile_seconds: float
    seconds: float
    lower_seconds: float
    upper_seconds: float
    repeats: int
    flops: float | None
    peak_bytes: int | None
    peak_source: str

    @property
    def interquartile_seconds(self) -> float:
        """Third minus first quartile: the spread of the middle half of the calls."""
        return self.upper_seconds - self.lower_seconds

    def numbers(self) -> dict[str, float]:
        """The numbers that are known, by name, for a table or a task of `modelzip evaluate`."""
        fields = dataclasses.asdict(self)
        return {name: value for name, value in fields.items() if isinstance(value, int | float)}


def measure_latency(
    function: Callable[..., Any], *args: Any, repeats: int = 20, warmup: int = 3, donate: Sequence[int] = ()
) -> Latency:
    """Compiles a function ahead of time for these arguments and measures calls of it.

    Args:
      function: jittable, or jitted already; static arguments are bound beforehand, with `partial`.
      *args: pytrees of arrays, on the device where it is to run.
      repeats: timed calls, at least 1.
      warmup: calls before those, which are not timed.
      donate: positions of arguments that calls may overwrite. Each call gets a copy, made while the clock
        stands. For a function that is jitted already, those that it donates.

    Raises:
      EvaluationError: `repeats` below 1 or `warmup` below 0.

    >>> cost = measure_latency(lambda a, b: a @ b, jnp.ones((64, 64)), jnp.ones((64, 64)), repeats=3)
    >>> cost.flops, cost.peak_bytes, cost.peak_source
    (524288.0, 49152, 'memory_analysis')
    """
    if repeats < 1 or warmup < 0:
        raise EvaluationError(f"expected repeats ≥ 1 and warmup ≥ 0, got {repeats} and {warmup}")
    jitted: Any = function if hasattr(function, "lower") else jax.jit(function, donate_argnums=donate)
    device = _device(args)
    started = time.perf_counter()
    compiled = jitted.lower(*args).compile()
    compile_seconds = time.perf_counter() - started
    before = _high_water_mark(device)
    seconds = [_call(compiled, args, donate) for _ in range(warmup + repeats)][warmup:]
    lower, median, upper = (float(q) for q in np.quantile(seconds, (0.25, 0.5, 0.75)))
    peak_bytes, peak_source = _peak(before, _high_water_mark(device), compiled)
    return Latency(
        device.device_kind, compile_seconds, median, lower, upper, repeats,
        _flops(compiled), peak_bytes, peak_source,
    )  # fmt: skip


def _call(compiled: Callable[..., Any], args: Sequence[Any], donate: Sequence[int]) -> float:
    """Seconds of one call, with fresh copies of what it may overwrite."""
    copied = jax.block_until_ready(
        [jax.tree.map(jnp.copy, arg) if i in donate else arg for i, arg in enumerate(args)]
    )
    started = time.perf_counter()
    jax.block_until_ready(compiled(*copied))
    return time.perf_counter() - started


def _device(args: Any) -> Any:
    """The device that holds the arguments; JAX's default where they are NumPy's."""
    for leaf in jax.tree.leaves(args):
        if isinstance(leaf, jax.Array):
            return min(leaf.devices(), key=lambda device: device.id)
    return jnp.zeros(()).devices().pop()


def _high_water_mark(device: Any) -> int | None:
    return (device.memory_stats() or {}).get("peak_bytes_in_use")


def _peak(before: int | None, after: int | None, compiled: Any) -> tuple[int | None, str]:
    # A mark that did not move was set by something else, before: it says nothing of this function.
    if before is not None and after is not None and after > before:
        return after, "memory_stats"
    plan = compiled.memory_analysis()
    if plan is None:
        return None, "none"
    total = plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes
    return total - plan.alias_size_in_bytes, "memory_analysis"


def _flops(compiled: Any) -> float | None:
    flops = (compiled.cost_analysis() or {}).get("flops")
    # XLA answers -1 where it cannot count, as in custom calls.
    return float(flops) if flops is not None and flops >= 0 else None
