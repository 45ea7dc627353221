"""Models with their cost, three small and three of real sizes, for tests of budgets."""

import functools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np

import modelzip_jax as mz
from modelzip_jax import trace
from modelzip_jax.models.language_model import LanguageModel
from modelzip_jax.models.lenet import LeNet5, lenet_300_100
from modelzip_jax.models.mlp import MLP
from modelzip_jax.models.resnet import resnet20

SMALL = {
    "mlp": (MLP((40, 24)), jnp.zeros((1, 16))),
    "lenet5": (LeNet5(widths=(6, 12, 50)), jnp.zeros((1, 28, 28, 1))),
    "language_model": (
        LanguageModel(vocab_size=32, num_layers=2, num_heads=2, embed_dim=16, max_length=8),
        jnp.zeros((1, 8), jnp.int32),
    ),
}


REAL = {
    "lenet_300_100": (lenet_300_100(), jnp.zeros((1, 28, 28, 1))),
    "lenet5_caffe": (LeNet5(), jnp.zeros((1, 28, 28, 1))),
    "resnet20": (resnet20(), jnp.zeros((1, 32, 32, 3))),
}


@functools.cache
def case(name):
    """`(params, cost)`: random weights and the cost of one input."""
    model, x = (SMALL | REAL)[name]
    variables = jax.jit(model.init)(jax.random.key(1), x)
    params, rest = variables["params"], {k: v for k, v in variables.items() if k != "params"}
    return params, trace.cost(lambda p, x: model.apply({"params": p, **rest}, x), params, x)


def kernels(leaves):
    return [x for name, x in mz.tree.named_leaves(leaves) if name.endswith("kernel")]


def kept(packed):
    """Weights kept of each kernel, by name."""
    found = jax.tree_util.tree_leaves_with_path(packed.params, is_leaf=lambda x: hasattr(x, "unpack"))
    return {mz.tree.leaf_name(path): leaf.kept for path, leaf in found if hasattr(leaf, "kept")}


def size(params):
    return sum(int(np.size(x)) for x in jax.tree.leaves(params))


def params_left(packed, params):
    """Kept weights and all others, exactly."""
    return sum(kept(packed).values()) + size(params) - sum(x.size for x in kernels(params))


def flops_left(packed, params, cost):
    """FLOPs of the kept weights and of everything else, exactly."""
    sizes, stays, total = dict(mz.tree.named_leaves(params)), kept(packed), Fraction(0)
    for equation in cost.equations:
        (leaf,) = equation.leaves if equation.leaves else (None,)
        share = Fraction(stays[leaf], sizes[leaf].size) if leaf in stays else 1
        total += equation.flops * share
    return total


def bounds(total, frozen, count, seed):
    """Random budgets between what is not pruned and everything, and some that lie outside."""
    drawn = np.random.default_rng(seed).integers(frozen + 1, total + 1, count)
    return [*map(int, drawn), frozen + 1, total, total + 12345]
