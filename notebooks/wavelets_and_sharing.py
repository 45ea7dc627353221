# %% [markdown]
# # Wavelets and sharing
#
# Pruning and rounding treat each weight by itself. Here weights are taken together. First we look at them as
# a signal, and store what a picture codec would store: a few coefficients. Then many weights share one value,
# and many neurons one vector.

# %%
import glob
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("modelzip_jax") is None:
    wheels = glob.glob("modelzip_jax-*.whl")  # one that you uploaded, else the package of this name
    subprocess.check_call([sys.executable, "-m", "pip", "install", "--quiet", *(wheels or ["modelzip_jax"])])

# %% [markdown]
# The data, the network and the loop are those of the quickstart: 8×8 pictures of digits, three dense layers,
# adamw. One thing differs: the float network is trained with strong weight decay, which takes away the noise
# that the weights were drawn with. That costs some accuracy; without it there is no picture in these weights,
# and nothing for a wavelet to find.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import modelzip_jax as mz

pictures, labels = load_digits(return_X_y=True)
pictures, labels = jnp.float32(pictures / 16), jnp.int32(labels)
held_out = np.arange(len(labels)) % 5 == 0
x, y = pictures[~held_out], labels[~held_out]
x_test, y_test = pictures[held_out], labels[held_out]


def draw(key, widths=(64, 256, 128, 10)):
    keys = jax.random.split(key, len(widths) - 1)
    shapes = zip(keys, widths[:-1], widths[1:], strict=True)
    return {
        f"layer{i}": {"kernel": jax.random.normal(k, (m, n)) * (2 / m) ** 0.5, "bias": jnp.zeros(n)}
        for i, (k, m, n) in enumerate(shapes)
    }


def network(params, x):
    for i in range(len(params)):
        x = x @ params[f"layer{i}"]["kernel"] + params[f"layer{i}"]["bias"]
        x = jax.nn.relu(x) if i < len(params) - 1 else x
    return x


def loss(params, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(network(params, x), y).mean()


def accuracy(params):
    return float((network(params, x_test).argmax(-1) == y_test).mean())


def train(tx, params, state, steps=600):
    @jax.jit
    def step(params, state, i):
        rows = jax.random.randint(jax.random.fold_in(jax.random.key(7), i), (128,), 0, len(x))
        updates, state = tx.update(jax.grad(loss)(params, x[rows], y[rows]), state, params)
        return optax.apply_updates(params, updates), state

    for i in range(steps):
        params, state = step(params, state, i)
    return params, state


start = draw(jax.random.key(0))
tx = optax.adamw(2e-3, weight_decay=3.0)
dense, _ = train(tx, start, tx.init(start))
print(f"float weights: {accuracy(dense):.1%} right")

# %% [markdown]
# ## Weights as pictures
#
# Each of the 256 neurons of the first layer has a weight for each pixel: its weights are a picture.

# %%
kernel = dense["layer0"]["kernel"]
figure, axes = plt.subplots(2, 8, figsize=(8, 2.2))
strongest = np.argsort(-np.linalg.norm(kernel, axis=0))[:16]
for axis, neuron in zip(axes.ravel(), strongest, strict=True):
    axis.imshow(kernel[:, neuron].reshape(8, 8), cmap="RdBu")
    axis.axis("off")

# %% [markdown]
# `view=(8, 8, -1)` says so to the transform: the 64 inputs are 8×8 pixels, the rest are neurons. The cosines
# of the first two axes are what JPEG uses. `mz.chain` prunes *their* coefficients; the network computes with
# the weights that they give back.

# %%
cosines = mz.cosines(8, axes=(0, 1), view=(8, 8, -1))
haar = mz.wavelet("haar", levels=3, axes=(0, 1), view=(8, 8, -1))
shares = np.array([0.0, 0.5, 0.7, 0.8, 0.9])
errors = {}
for name, first in {"weights": mz.identity(), "Haar wavelet": haar, "cosines": cosines}.items():
    errors[name] = []
    for share in shares:
        back = mz.decoded({"kernel": kernel}, mz.chain(first, mz.prune(sparsity=float(share))))["kernel"]
        errors[name].append(float(((back - kernel) ** 2).sum() / (kernel**2).sum()))

figure, axis = plt.subplots(figsize=(6, 3))
for name, line in errors.items():
    axis.plot(100 * shares, 100 * np.array(line), marker="o", label=name)
axis.set(xlabel="coefficients set to zero, %", ylabel="squared error, % of the power")
axis.legend()
figure.tight_layout()

# %% [markdown]
# A lower line means that fewer coefficients carry more of the weights. How much lower it is depends on the
# network: weights that are noise have no picture in them. `mz.best_basis` looks tensor by tensor, counts the
# bits that a file takes in each basis at equal squared error, and keeps plain weights where no basis saves any.

# %%
best = mz.best_basis(dense, distortion=0.01, pattern="**/kernel", views={"layer0/kernel": (8, 8, -1)})
for pattern, part in best.parts:
    print(pattern, "→", part.parts[0] if hasattr(part, "parts") else "plain weights")

# %%
plain = mz.best_basis(dense, distortion=0.01, pattern="**/kernel", bases=[])
for name, transform in {"plain weights": plain, "best basis": best}.items():
    packed = mz.compress(dense, transform)
    print(f"{name:14} {mz.save('basis.mz', packed).total:,} bytes, {accuracy(mz.unpack(packed)):.1%} right")

# %% [markdown]
# Here it keeps the plain weights of all three layers. The cosines gather the first layer's power, as the
# figure shows; but a file counts the codes of strong and of weak neurons apart, and that saves more. In
# [larger networks](../docs/wavelets.md) a basis does pay: kernels of 3×3, embeddings of positions.

# %% [markdown]
# ## Training the coefficients
#
# The latents of this transform are coefficients, and they are what the optimizer trains. The loop does not
# know.

# %%
zipper = mz.only(
    "layer0/kernel", mz.chain(cosines, mz.prune(sparsity=0.9), mz.quantize(4, granularity="tensor"))
)
tx = mz.wrap(optax.adamw(1e-3), zipper)
params, state = train(tx, *mz.start(tx, dense), steps=300)
print(f"first layer in a tenth of its coefficients: {accuracy(params):.1%} right")
mz.pack(state, params)

# %% [markdown]
# ## Weights that share a value
#
# `mz.cluster(k)` finds k values for each leaf by k-means; a weight is then an index. In training the values
# are trained, the indices stay.

# %%
for k in (16, 8, 4):
    tx = mz.wrap(optax.adamw(1e-3), mz.only("**/kernel", mz.cluster(k)))
    params, state = mz.start(tx, dense)
    before = accuracy(params)
    params, state = train(tx, params, state, steps=200)
    size = mz.save("shared.mz", mz.pack(state, params)).total
    print(f"{k:2} values: {before:.1%} at once, {accuracy(params):.1%} trained, {size:,} bytes")

# %%
print("the four values of layer1:", np.unique(params["layer1"]["kernel"]))

# %% [markdown]
# ## Blocks that share a vector
#
# With `block=4` four weights share one index: two bits a weight with 256 vectors.

# %%
packed = mz.compress(
    dense, mz.only("**/kernel", mz.cluster(256, block=4, axis=0), min_ndim=2), key=jax.random.key(0)
)
print(f"{accuracy(mz.unpack(packed)):.1%} right")
packed

# %% [markdown]
# ## Neurons that share their weights
#
# `mz.share_neurons(2)` gives two neurons one weight vector, so that half as many are stored. Chain it with a
# quantizer as usual.

# %%
tx = mz.wrap(optax.adamw(1e-3), mz.only("layer1/kernel", mz.chain(mz.share_neurons(2), mz.quantize(4))))
params, state = train(tx, *mz.start(tx, dense), steps=300)
print(f"{accuracy(params):.1%} right")
mz.pack(state, params)
