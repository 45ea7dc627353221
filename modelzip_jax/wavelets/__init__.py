"""Wavelets: filters, transforms of arrays and of networks, and where they pay."""

from modelzip_jax.wavelets.permutation import permute, similarity_order

__all__ = ["permute", "similarity_order"]
