"""The laws that every transform obeys, as one call for ours and for a user's own."""

from modelzip_jax.testing.laws import SUMS_ULP, check_laws

__all__ = ["SUMS_ULP", "check_laws"]
