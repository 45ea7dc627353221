# %% [markdown]
# # Quickstart
#
# We train a small network on pictures of handwritten digits. Then we change one line of the training loop,
# and the same loop gives a network of which four weights in five are zero and the others have 4 bits. What
# the file holds is exactly what was trained.
#
# The first cell installs the library where it is missing. On Colab you may upload a wheel instead, in the
# panel at the left.

# %%
import glob
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("modelzip_jax") is None:
    wheels = glob.glob("modelzip_jax-*.whl")  # one that you uploaded, else the package of this name
    subprocess.check_call([sys.executable, "-m", "pip", "install", "--quiet", *(wheels or ["modelzip_jax"])])

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import modelzip_jax as mz

# %% [markdown]
# ## Data and a network
#
# 1,797 pictures of 8×8 pixels come with scikit-learn. Every fifth is kept for testing.

# %%
pictures, labels = load_digits(return_X_y=True)
pictures, labels = jnp.float32(pictures / 16), jnp.int32(labels)
held_out = np.arange(len(labels)) % 5 == 0
x, y = pictures[~held_out], labels[~held_out]
x_test, y_test = pictures[held_out], labels[held_out]

figure, axes = plt.subplots(1, 8, figsize=(8, 1.2))
for axis, picture in zip(axes, pictures, strict=False):
    axis.imshow(picture.reshape(8, 8), cmap="gray_r")
    axis.axis("off")

# %% [markdown]
# The network is a plain function of a tree of arrays. The library asks for nothing more: Linen's params, an
# `nnx.State` and an equinox module are such trees, too.


# %%
def draw(key, widths=(64, 256, 128, 10)):
    keys = jax.random.split(key, len(widths) - 1)
    return {
        f"layer{i}": {
            "kernel": jax.random.normal(k, (m, n)) * (2 / m) ** 0.5,
            "bias": jnp.zeros(n),
        }
        for i, (k, m, n) in enumerate(zip(keys, widths[:-1], widths[1:], strict=True))
    }


def network(params, x):
    for i in range(len(params)):
        layer = params[f"layer{i}"]
        x = x @ layer["kernel"] + layer["bias"]
        x = jax.nn.relu(x) if i < len(params) - 1 else x
    return x


def loss(params, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(network(params, x), y).mean()


def accuracy(params):
    return float((network(params, x_test).argmax(-1) == y_test).mean())


# %% [markdown]
# ## A training loop as you have one
#
# Nothing here knows of compression.


# %%
def train(tx, params, state, steps=400):
    @jax.jit
    def step(params, state, i):
        rows = jax.random.randint(jax.random.fold_in(jax.random.key(7), i), (128,), 0, len(x))
        updates, state = tx.update(jax.grad(loss)(params, x[rows], y[rows]), state, params)
        return optax.apply_updates(params, updates), state

    for i in range(steps):
        params, state = step(params, state, i)
    return params, state


start = draw(jax.random.key(0))
tx = optax.adamw(2e-3)
dense, _ = train(tx, start, tx.init(start))
print(f"float weights: {accuracy(dense):.1%} right")

# %% [markdown]
# ## The line that changes
#
# A *transform* says what is to happen to the weights. This one prunes the kernels, from 0 to 80 % over the
# first 250 steps, and rounds what stays to 4 bits, with steps that are learned. `mz.wrap` puts it around the
# optimizer. The biases are left alone, because the pattern does not match them.

# %%
zipper = mz.only(
    "**/kernel",
    mz.chain(
        mz.prune(sparsity=mz.schedules.cubic(0.8, begin=0, end=250), every=20),
        mz.quantize(bits=4, learned=True),
    ),
)
tx = mz.wrap(optax.adamw(2e-3), zipper)  # the line that changes
params, state = mz.start(tx, dense)  # instead of tx.init
params, state = train(tx, params, state)
print(f"pruned and rounded: {accuracy(params):.1%} right")

# %% [markdown]
# `params` are the decoded weights, at every step. So the accuracy above is that of the pruned and rounded
# network. Let us look at one kernel before and after.

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 2.6), sharex=True)
axes[0].hist(np.ravel(dense["layer1"]["kernel"]), bins=100)
axes[0].set(title="float32", xlabel="weight", ylabel="how many")
kernel = np.ravel(params["layer1"]["kernel"])
axes[1].hist(kernel[kernel != 0], bins=400)
axes[1].set(title=f"{(kernel == 0).mean():.0%} zeros (not drawn), a grid for each neuron", xlabel="weight")
figure.tight_layout()

# %% [markdown]
# ## The file
#
# `mz.pack` takes the stored form out of the optimizer's state. A notebook shows it as a table: a row for each
# tensor, and every byte is accounted for.

# %%
packed = mz.pack(state, params)
packed

# %%
sizes = mz.save("digits.mz", packed)
ratio = packed.dense_bytes / sizes.total
print(f"{packed.dense_bytes:,} bytes as float32, {sizes.total:,} in the file: {ratio:.0f} times smaller")

# %% [markdown]
# What you read is what you trained, bit for bit:

# %%
loaded = mz.load("digits.mz")
same = jax.tree.map(lambda a, b: bool((a == b).all()), mz.unpack(loaded), params)
print(all(jax.tree.leaves(same)))
print(f"from the file: {accuracy(mz.unpack(loaded)):.1%} right")

# %% [markdown]
# ## And on
#
# A file is not the end: training goes on from it, with the masks and steps that it had. The file stands where
# the transform stood.

# %%
tx = mz.wrap(optax.adamw(5e-4), loaded)
params, state = mz.start(tx, mz.unpack(loaded))
params, state = train(tx, params, state, steps=200)
print(f"trained on: {accuracy(params):.1%} right, {mz.metrics(state)['sparsity']:.0%} zeros")

# %% [markdown]
# ## Without training
#
# Where there is no training loop, `mz.compress` does it in one call. Six bits lose nothing here; the other
# notebooks show how to go lower.

# %%
quick = mz.compress(dense, mz.only("**/kernel", mz.quantize(bits=6)))
print(f"{accuracy(mz.unpack(quick)):.1%} right, {mz.save('quick.mz', quick).total:,} bytes")
