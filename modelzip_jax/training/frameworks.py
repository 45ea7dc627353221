"""Linen and NNX modules behind one pair of pure functions."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx

from modelzip_jax import tree as trees
from modelzip_jax.tree import PyTree

__all__ = ["Network", "from_linen", "from_nnx"]


@dataclasses.dataclass(frozen=True)
class Network:
    """A network as pure functions.

    init: `(key, inputs) -> (params, variables)`.
    apply: `(params, variables, inputs, train, key) -> (outputs, variables)`. `variables` come back
    changed only if `train` (a Python bool) is true; `key` feeds dropout and may be None.
    """

    init: Callable[[jax.Array, jax.Array], tuple[PyTree, PyTree]]
    apply: Callable[..., tuple[jax.Array, PyTree]]

    def predict(self, params: PyTree, variables: PyTree, inputs: jax.Array) -> jax.Array:
        """Outputs in evaluation mode."""
        return self.apply(params, variables, inputs, False, None)[0]


def from_linen(module: linen.Module) -> Network:
    """A Linen module whose `__call__` takes `(inputs, train=)`.

    >>> import flax.linen as nn, jax.numpy as jnp
    >>> class Net(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, x, train=False):
    ...         return nn.BatchNorm(use_running_average=not train)(nn.Dense(2)(x))
    >>> params, variables = from_linen(Net()).init(jax.random.key(0), jnp.ones((1, 3)))
    >>> sorted(params), sorted(variables)
    (['BatchNorm_0', 'Dense_0'], ['batch_stats'])
    """

    def init(key: jax.Array, inputs: jax.Array) -> tuple[PyTree, PyTree]:
        variables = dict(module.init(key, inputs, train=False))
        return variables.pop("params"), variables

    def apply(
        params: PyTree, variables: PyTree, inputs: jax.Array, train: bool, key: jax.Array | None
    ) -> tuple[jax.Array, PyTree]:
        everything = {"params": params, **variables}
        rngs = None if key is None else {"dropout": key}
        if not train or not variables:
            return module.apply(everything, inputs, train=train, rngs=rngs), variables
        outputs, changed = module.apply(everything, inputs, train=True, rngs=rngs, mutable=list(variables))
        return outputs, {**variables, **changed}

    return Network(init, apply)


def from_nnx(build: Callable[[nnx.Rngs], nnx.Module]) -> Network:
    """An NNX module, by the function that builds it from `nnx.Rngs`.

    It is called with `(inputs, train=)` if its `__call__` has such a parameter; otherwise with the inputs
    alone, after `train()` or `eval()`. Its parameters become plain nested dicts, so that paths, files and
    optimizer states look as they do for Linen. Dropout takes its randomness from the step's key.

    >>> import jax.numpy as jnp
    >>> network = from_nnx(lambda rngs: nnx.Linear(3, 2, rngs=rngs))
    >>> params, variables = network.init(jax.random.key(0), jnp.ones((1, 3)))
    >>> params["kernel"].shape, network.predict(params, variables, jnp.ones((1, 3))).shape
    ((3, 2), (1, 2))
    """
    structure, params_like, rngs_like, variables_like = nnx.split(
        nnx.eval_shape(lambda: build(nnx.Rngs(0))), nnx.Param, nnx.RngState, ...
    )

    kind = type(nnx.merge(structure, params_like, rngs_like, variables_like))
    takes_train = "train" in inspect.signature(kind.__call__).parameters

    def init(key: jax.Array, inputs: jax.Array) -> tuple[PyTree, PyTree]:
        del inputs  # NNX modules know their input's size
        _, params, _, variables = nnx.split(build(nnx.Rngs(key)), nnx.Param, nnx.RngState, ...)
        return _nested(params), _nested(variables)

    def apply(
        params: PyTree, variables: PyTree, inputs: jax.Array, train: bool, key: jax.Array | None
    ) -> tuple[jax.Array, PyTree]:
        rngs = _random(rngs_like, jax.random.key(0) if key is None else key)
        module = nnx.merge(structure, _fill(params_like, params), rngs, _fill(variables_like, variables))
        if train:
            module.train()
        else:
            module.eval()
        outputs = module(inputs, train=train) if takes_train else module(inputs)
        if not train:
            return outputs, variables
        return outputs, _nested(nnx.split(module, nnx.Param, nnx.RngState, ...)[3])

    return Network(init, apply)


def _nested(state: nnx.State) -> PyTree:
    """An NNX state as nested dicts of arrays with names for keys."""

    def walk(node: Any) -> Any:
        return {str(k): walk(v) for k, v in node.items()} if isinstance(node, dict) else node

    return walk(nnx.to_pure_dict(state))


def _fill(like: nnx.State, nested: PyTree) -> nnx.State:
    """The inverse of `_nested`, given a state of the same structure."""
    leaves = dict(trees.named_leaves(nested))
    return trees.map_named(lambda name, _: leaves[name], like)


def _random(like: nnx.State, key: jax.Array) -> nnx.State:
    """Fresh random streams, each from a key of its own."""
    leaves, treedef = jax.tree.flatten(like)

    def fresh(index: int, leaf: Any) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.fold_in(key, index)
        return jnp.zeros(leaf.shape, leaf.dtype)

    return treedef.unflatten([fresh(i, leaf) for i, leaf in enumerate(leaves)])
