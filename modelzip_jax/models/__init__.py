"""Networks to compress: reference architectures with conventional Linen parameter names."""
