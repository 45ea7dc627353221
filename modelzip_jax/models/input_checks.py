"""What the models check of their inputs, at trace time and so at no cost in the compiled program."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from modelzip_jax.errors import ModelError

__all__ = ["check_float_input", "check_images", "check_tokens"]


def check_float_input(x: jax.Array, model: str) -> None:
    """Refuses integers: raw bytes 0..255 would be promoted silently and train badly.

    Raises:
      ModelError: `x` is not of a floating dtype.

    >>> check_float_input(jnp.zeros((1, 8), jnp.uint8), "MLP")
    Traceback (most recent call last):
    modelzip_jax.errors.ModelError: MLP takes floats, got uint8 (1, 8): normalise the inputs first
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ModelError(f"{model} takes floats, got {x.dtype} {x.shape}: normalise the inputs first")


def check_images(x: jax.Array, model: str, smallest: int) -> None:
    """Refuses what is not a batch of images, floating (n, height, width, channels), of a size that fits.

    Args:
      x: the input.
      model: how the message names the model.
      smallest: least height and width in pixels; below it a strided or unpadded layer has no output.

    Raises:
      ModelError: wrong rank, too small, or not of a floating dtype.

    >>> check_images(jnp.zeros((1, 8, 8, 1)), "LeNet5", smallest=16)
    Traceback (most recent call last):
    modelzip_jax.errors.ModelError: LeNet5 takes images (n, height, width, channels) of at least 16×16
    pixels, got (1, 8, 8, 1)
    """
    check_float_input(x, model)
    if x.ndim != 4 or min(x.shape[1:3]) < smallest:
        raise ModelError(
            f"{model} takes images (n, height, width, channels) of at least {smallest}×{smallest} pixels, "
            f"got {x.shape}"
        )


def check_tokens(ids: jax.Array, model: str, longest: int) -> None:
    """Refuses what is not a batch of token sequences, integer (n, length), that the positions hold.

    Raises:
      ModelError: wrong rank or dtype, or more than `longest` tokens, for which a gather of
        positions would clamp and return plausible nonsense.

    >>> check_tokens(jnp.zeros((1, 9), jnp.int32), "LanguageModel", longest=8)
    Traceback (most recent call last):
    modelzip_jax.errors.ModelError: LanguageModel takes integer tokens (n, length) of at most 8 positions,
    got int32 (1, 9)
    """
    if not jnp.issubdtype(ids.dtype, jnp.integer) or ids.ndim != 2 or ids.shape[1] > longest:
        raise ModelError(
            f"{model} takes integer tokens (n, length) of at most {longest} positions, "
            f"got {ids.dtype} {ids.shape}"
        )
