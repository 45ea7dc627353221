"""What is known about JAX's primitives, by name: names change less between versions than objects."""

from __future__ import annotations

__all__ = ["CALLS", "COMPARISONS", "CUMULATIVE", "ELEMENTWISE", "IDENTITY", "MOVES", "REDUCTIONS", "WINDOWS"]


def _set(names: str) -> frozenset[str]:
    return frozenset(names.split())


IDENTITY = _set(
    """
    copy copy_p convert_element_type stop_gradient reduce_precision optimization_barrier sharding_constraint
    mesh_cast reshard device_put pvary pcast name tie layout_constraint
    """
)
"""One output for each operand, of its shape; values kept (but for rounding)."""

COMPARISONS = _set("eq ne ge gt le lt eq_to le_to lt_to is_finite")
"""Elementwise, with boolean results."""

ELEMENTWISE = COMPARISONS | _set(
    """
    abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp clz complex conj cos cosh
    digamma div erf erf_inv erfc exp exp2 expm1 floor imag integer_pow lgamma log log1p logistic max min
    mul mulhi neg nextafter not or polygamma population_count pow real rem round rsqrt select_n
    shift_left shift_right_arithmetic shift_right_logical sign sin sinh sqrt square sub tan tanh xor
    bessel_i0e bessel_i1e igamma igammac psum psum_invariant pmax pmin
    """
)
"""Each output element depends on the same element of each operand (of size 1 where it is broadcast).

`psum` and its like are elementwise seen from one shard."""

REDUCTIONS = _set(
    "reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor argmax argmin reduce"
)
"""Lose the axes in `axes` (`dimensions` for `reduce`), keep the others."""

CUMULATIVE = _set("cumsum cumprod cummax cummin cumlogsumexp sort")
"""Mix one axis (`axis`, or `dimension` for `sort`), keep the shape."""

WINDOWS = _set("reduce_window reduce_window_sum reduce_window_max reduce_window_min select_and_gather_add")
"""Pooling: axes whose window is 1 are kept as they are."""

MOVES = _set(
    """
    reshape transpose squeeze broadcast_in_dim slice split rev concatenate stack unstack pad dynamic_slice
    dynamic_update_slice gather scatter iota new_ref get swap bitcast_convert_type random_seed random_wrap
    random_unwrap random_bits random_fold_in platform_index axis_index create_token after_all
    """
)
"""Move elements, make indices or random bits: no arithmetic that a count of FLOPs would have."""

CALLS = _set(
    """
    jit pjit closed_call core_call call remat remat2 checkpoint custom_jvp_call custom_vjp_call
    custom_vjp_call_jaxpr composite
    """
)
"""Evaluate an inner jaxpr of the same operands and results: transparent to every analysis."""
