"""Wavelets: transforms of arrays and of networks, and where they pay."""

from modelzip_jax.wavelets.bases import Band, Basis
from modelzip_jax.wavelets.basis_choice import best_basis, candidates, choices
from modelzip_jax.wavelets.block_cosines import dct, idct
from modelzip_jax.wavelets.filters import FILTERS
from modelzip_jax.wavelets.fixed_step import quantize_step
from modelzip_jax.wavelets.fusion import fuse, unfuse
from modelzip_jax.wavelets.multilevel import dwt, idwt
from modelzip_jax.wavelets.product import coefficient_dot, input_coefficients
from modelzip_jax.wavelets.water_filling import reverse_water_filling
from modelzip_jax.wavelets.wavelet_domain import cosines, wavelet

__all__ = [
    "FILTERS",
    "Band",
    "Basis",
    "best_basis",
    "candidates",
    "choices",
    "coefficient_dot",
    "cosines",
    "dct",
    "dwt",
    "fuse",
    "idct",
    "idwt",
    "input_coefficients",
    "quantize_step",
    "reverse_water_filling",
    "unfuse",
    "wavelet",
]
