"""Models by name, for configurations and command lines; a model's file is imported when it is asked for."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Iterable
from typing import Any

from modelzip_jax.errors import ModelError
from modelzip_jax.naming import nearest_name

__all__ = ["create", "model_names"]

_CONSTRUCTORS: dict[str, dict[str, str]] = {
    "linen": {
        "efficientnet_lite0": "efficientnet:efficientnet_lite0",
        "language_model": "language_model:LanguageModel",
        "lenet5": "lenet:LeNet5",
        "lenet_300_100": "lenet:lenet_300_100",
        "mlp": "mlp:MLP",
        "resnet20": "resnet:resnet20",
        "resnet50": "resnet:resnet50",
        "vgg": "vgg:VGG",
        "vgg16": "vgg:vgg16",
        "vgg19": "vgg:vgg19",
    },
    "nnx": {
        "lenet_300_100": "nnx_mlp:lenet_300_100",
        "mlp": "nnx_mlp:MLP",
        "resnet20": "nnx_resnet:resnet20",
    },
}
# What the frameworks themselves add to a constructor, and what the caller of an NNX constructor gives.
_NOT_OPTIONS = frozenset({"self", "parent", "name", "input_shape", "rngs"})


def model_names(framework: str = "linen") -> tuple[str, ...]:
    """The names that `create` knows, sorted.

    Raises:
      ModelError: the framework is neither "linen" nor "nnx".

    >>> model_names("nnx")
    ('lenet_300_100', 'mlp', 'resnet20')
    """
    return tuple(sorted(_known("framework", framework, _CONSTRUCTORS)))


def create(name: str, *, framework: str = "linen", **options: Any) -> Any:
    """A model by its name.

    Args:
      name: one of `model_names(framework)`.
      framework: "linen" or "nnx".
      **options: fields of the model, such as `num_classes`, `dtype` and `param_dtype` (dtypes may be
        names, "bfloat16").

    Returns:
      A Linen module, called as `module.apply(variables, x, train=False)`; or, for NNX, a constructor,
      called as `constructor(input_shape, rngs=nnx.Rngs(0))` with the shape of one input, without the
      batch, since NNX makes its parameters at once. The NNX model is called as `model(x, train=False)`.

    Raises:
      ModelError: an unknown framework, name or option; its nearest neighbour is named.

    >>> create("mlp", widths=(32,)).widths
    (32,)
    >>> create("resnet21")
    Traceback (most recent call last):
    modelzip_jax.errors.ModelError: no model is called 'resnet21'; did you mean 'resnet20'?
    """
    models = _known("framework", framework, _CONSTRUCTORS)
    others = [other for other in _CONSTRUCTORS if other != framework and name in _CONSTRUCTORS[other]]
    if name not in models and others:
        raise ModelError(f"{name!r} exists for {others[0]} only; {framework} has {', '.join(sorted(models))}")
    module, _, attribute = _known("model", name, models).partition(":")
    constructor = getattr(importlib.import_module(f"modelzip_jax.models.{module}"), attribute)
    known = dict.fromkeys(_options(constructor))
    for option in options:
        _known(f"option of {name}", option, known)
    return functools.partial(constructor, **options) if framework == "nnx" else constructor(**options)


def _options(constructor: Callable[..., Any]) -> Iterable[str]:
    # The metaclass of an NNX module hides the signature of its constructor.
    function = constructor.__init__ if inspect.isclass(constructor) else constructor
    return [name for name in inspect.signature(function).parameters if name not in _NOT_OPTIONS]


def _known(kind: str, name: str, known: dict[str, Any]) -> Any:
    """`known[name]`, or an error that names the nearest neighbour."""
    if name in known:
        return known[name]
    raise ModelError(f"no {kind} is called {name!r}; {nearest_name(name, known)}")
