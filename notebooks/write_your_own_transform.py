# %% [markdown]
# # Write your own transform
#
# A transform says how weights become what is trained and stored, and how they come back. The library knows no
# difference between its own and yours: yours trains, chains, goes into files and is resumed from them, once
# it keeps the same laws. We write three, from ten to twenty lines each, and let `mz.testing.check_laws` judge
# them.

# %%
import glob
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("modelzip_jax") is None:
    wheels = glob.glob("modelzip_jax-*.whl")  # one that you uploaded, else the package of this name
    subprocess.check_call([sys.executable, "-m", "pip", "install", "--quiet", *(wheels or ["modelzip_jax"])])

# %%
import dataclasses

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import modelzip_jax as mz

# %% [markdown]
# ## A score
#
# The smallest thing to write is a *score*: what `mz.prune` ranks weights by. This one takes a weight for
# important if it is large, or if its neighbours in the same row are. `weights` is a tree; `context` holds
# gradients, statistics and what else the caller has.


# %%
@mz.recordable  # a file can name it
@dataclasses.dataclass(frozen=True)
class WithNeighbours(mz.scores.Score):
    share: float = 0.25

    def __call__(self, weights, context=mz.Context(), memory=()):
        def one(w):
            size = jnp.abs(w)
            return size + self.share * (jnp.roll(size, 1, axis=-1) + jnp.roll(size, -1, axis=-1))

        return jax.tree.map(one, weights)


small = {"kernel": jax.random.normal(jax.random.key(0), (4, 8)), "bias": jnp.zeros(8)}
zipper = mz.only("kernel", mz.prune(WithNeighbours(), sparsity=0.5))
mz.decoded(small, zipper)["kernel"].round(1)

# %% [markdown]
# The laws, on a small tree: what is trained is what is stored, what is stored is what is read, training
# resumes, chains compose, a step is traced once. Nothing is printed: they hold.

# %%
mz.testing.check_laws(mz.prune(WithNeighbours(), sparsity=0.5), {"kernel": small["kernel"]})

# %% [markdown]
# ## A grid
#
# What `mz.quantize` rounds to is a table of levels between -1 and 1; scales, training and storage follow from
# it. Cubes lie densely around zero, where most weights are.


# %%
@mz.recordable
@dataclasses.dataclass(frozen=True)
class Cubes(mz.grids.Grid):
    def levels(self, bits):
        return np.linspace(-1, 1, 2**bits - 1) ** 3


mz.testing.check_laws(mz.quantize(4, grid=Cubes(), learned=True), {"kernel": small["kernel"]})

# %%
weights = {"kernel": jax.random.laplace(jax.random.key(1), (256, 256))}
ways = {
    "even": mz.quantize(4, granularity="tensor"),
    "cubes": mz.quantize(4, granularity="tensor", grid=Cubes()),
}
figure, axes = plt.subplots(1, 2, figsize=(9, 2.6), sharey=True)
for axis, (name, way) in zip(axes, ways.items(), strict=True):
    rounded = mz.decoded(weights, way)["kernel"]
    error = float(((rounded - weights["kernel"]) ** 2).mean() / (weights["kernel"] ** 2).mean())
    axis.hist(np.ravel(weights["kernel"]), bins=200, color="0.7")
    for level in np.unique(rounded):
        axis.axvline(level, color="C3", linewidth=0.8)
    axis.set(title=f"{name}: error {error:.1%} of the power", xlabel="weight")
figure.tight_layout()

# %% [markdown]
# ## A linear transform
#
# Now the weights themselves become something else. A linear transform is a map of each leaf and its inverse.
# This one turns each pair of neighbouring rows into their mean and difference. If rows resemble each other,
# differences are small, and cheap.


# %%
@mz.recordable
@dataclasses.dataclass(frozen=True)
class Pairs(mz.Linear):
    def analysis(self, w, leaf):
        if w.ndim < 2 or w.shape[0] % 2:
            return w
        first, second = w[0::2], w[1::2]
        return jnp.concatenate([first + second, first - second]) * 0.5**0.5

    def synthesis(self, z, leaf):
        if z.ndim < 2 or z.shape[0] % 2:
            return z
        total, difference = jnp.split(z, 2)
        return jnp.stack([total + difference, total - difference], axis=1).reshape(z.shape) * 0.5**0.5


# %% [markdown]
# Sums are rounded as a program happens to order them. So we allow a few units in the last place, and zero
# where no sum is made.

# %%
mz.testing.check_laws(Pairs(), {"kernel": small["kernel"]}, ulp=4)

# %% [markdown]
# A mistake is found. This one forgets half of the scale:


# %%
@mz.recordable
@dataclasses.dataclass(frozen=True)
class Wrong(Pairs):
    def synthesis(self, z, leaf):
        return super().synthesis(z, leaf) * 0.5**0.5


try:
    mz.testing.check_laws(Wrong(), {"kernel": small["kernel"]}, ulp=4)
except AssertionError as error:
    print(error)

# %% [markdown]
# ## In a training loop
#
# Yours stands where ours stand: in a chain, before a mask and a quantizer, inside `mz.wrap`.

# %%
pictures, labels = load_digits(return_X_y=True)
x, y = jnp.float32(pictures / 16), jnp.int32(labels)
keys = jax.random.split(jax.random.key(0))
params = {
    "hidden": {"kernel": jax.random.normal(keys[0], (64, 128)) / 6, "bias": jnp.zeros(128)},
    "out": {"kernel": jax.random.normal(keys[1], (128, 10)) / 10, "bias": jnp.zeros(10)},
}


def network(params, x):
    hidden = jax.nn.relu(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return hidden @ params["out"]["kernel"] + params["out"]["bias"]


def loss(params):
    return optax.softmax_cross_entropy_with_integer_labels(network(params, x), y).mean()


zipper = mz.only(
    "hidden/kernel", mz.chain(Pairs(), mz.prune(sparsity=0.5), mz.quantize(4, granularity="tensor"))
)
tx = mz.wrap(optax.adamw(5e-3), zipper)
params, state = mz.start(tx, params)


@jax.jit
def step(params, state):
    value, grads = jax.value_and_grad(loss)(params)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state, value


values = []
for _ in range(150):
    params, state, value = step(params, state)
    values.append(float(value))
figure, axis = plt.subplots(figsize=(6, 2.4))
axis.plot(values)
axis.set(xlabel="step", ylabel="loss", yscale="log")
figure.tight_layout()

# %% [markdown]
# ## In a file
#
# The file records the transform by its name and fields, because of `@mz.recordable`. To train on, a reader
# needs your class.

# %%
packed = mz.pack(state, params)
mz.save("pairs.mz", packed)
loaded = mz.load("pairs.mz")
print(loaded.transform)
same = jax.tree.map(lambda a, b: bool(jnp.allclose(a, b, atol=1e-6)), mz.unpack(loaded), params)
print(same)

# %% [markdown]
# What else can be written (structures, ranges, rounding, stored forms of your own) is in CONTRIBUTING.md,
# each with an example that runs.
