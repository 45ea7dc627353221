"""Networks to compress: reference architectures with conventional Linen parameter names, some also in NNX.

`create("resnet20")` gives one by its name; the architectures are imported when they are asked for.
"""

from modelzip_jax.models.registry import create, model_names

__all__ = ["create", "model_names"]
