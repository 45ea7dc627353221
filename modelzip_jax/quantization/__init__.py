"""Quantization: grids, rounding with exact gradients, and the packed integers."""
