# %% [markdown]
# # Compress a checkpoint to a size
#
# You have a checkpoint, and a number of bytes that it may take. `mz.smallest` finds the rest: how coarse each
# tensor may be, and with that its sparsity and bits. We do it in Python first, then from the command line.

# %%
import glob
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("modelzip_jax") is None:
    wheels = glob.glob("modelzip_jax-*.whl")  # one that you uploaded, else the package of this name
    subprocess.check_call([sys.executable, "-m", "pip", "install", "--quiet", *(wheels or ["modelzip_jax"])])

# %% [markdown]
# The checkpoint is the float network of the quickstart, in a `.safetensors` file.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import modelzip_jax as mz
from modelzip_jax import checkpoints, evaluation

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
tx = optax.adamw(2e-3)
dense, _ = train(tx, start, tx.init(start))
print(f"float weights: {accuracy(dense):.1%} right")

# %%
checkpoints.write("digits.safetensors", dense)
params = checkpoints.read("digits.safetensors")
before = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
print(f"{before:,} bytes of weights, {accuracy(params):.1%} right")

# %% [markdown]
# ## A number of bytes
#
# The file is met within 1 %, and is never larger.

# %%
packed = mz.compress(params, mz.smallest(bytes=20_000))
print(f"{mz.save('digits.mz', packed).total:,} bytes, {accuracy(mz.unpack(packed)):.1%} right")

# %%
packed

# %% [markdown]
# ## With some inputs
#
# How much an error of each weight matters can be measured. `calibrate=` takes the model and a few batches,
# without labels. The smaller the file, the more that helps.

# %%
batches = [x[i : i + 128] for i in range(0, 512, 128)]
sizes = (4_000, 6_000, 10_000)
curves = {"from the weights alone": [], "with 512 inputs": []}
for size in sizes:
    alone = mz.compress(params, mz.smallest(bytes=size))
    known = mz.compress(
        params, mz.smallest(bytes=size, likelihood="categorical"), calibrate=(network, batches)
    )
    for line, model in zip(curves.values(), (alone, known), strict=True):
        line.append((mz.inspect(model).file_bytes, accuracy(mz.unpack(model))))

# %%
figure, axis = plt.subplots(figsize=(6, 3))
for name, line in curves.items():
    taken, right = np.array(line).T
    axis.plot(taken / 1000, 100 * right, marker="o", label=name)
axis.axhline(100 * accuracy(params), color="k", linestyle="--", label=f"float, {before / 1000:.0f} kB")
axis.set(xlabel="file, kB", ylabel="right on held-out digits, %")
axis.legend()
figure.tight_layout()

# %% [markdown]
# ## A drop instead of a size
#
# Or say how much worse it may become, and get the smallest file that keeps to it. The measure is yours: a
# score for each of some held-out examples, higher is better.

# %%
x_held, y_held = x[512:], y[512:]


def measure(params):
    return network(params, x_held).argmax(-1) == y_held


near = mz.compress(params, mz.smallest(max_drop=0.01, measure=measure))
print(f"{mz.inspect(near).file_bytes:,} bytes, {accuracy(mz.unpack(near)):.1%} right on other pictures")

# %% [markdown]
# ## Recipes side by side
#
# `evaluation.compare_recipes` runs several recipes on the same weights; `pareto` tells which of them no other
# beats.

# %%
recipes = {
    "8 bits": mz.only("**/kernel", mz.quantize(8)),
    "4 bits": mz.only("**/kernel", mz.quantize(4)),
    "80 % zeros, 4 bits": mz.only("**/kernel", mz.chain(mz.prune(sparsity=0.8), mz.quantize(4))),
    "16 shared values": mz.only("**/kernel", mz.cluster(16)),
    "smallest, 14 kB": mz.smallest(bytes=14_000),
}
rows = evaluation.compare_recipes(params, recipes, lambda p: {"accuracy": accuracy(p)})
front = evaluation.pareto([row.file_bytes for row in rows], [row.value("accuracy") for row in rows])
for row, best in zip(rows, front, strict=True):
    print(
        f"{row.name:20} {row.file_bytes:8,} bytes  {row.value('accuracy'):.1%}",
        "← on the front" if best else "",
    )

# %% [markdown]
# ## From a shell
#
# The same on any checkpoint, without Python. `inspect` shows what a file holds, `report` writes a page that
# says where the bytes go and what each layer lost.


# %%
def shell(command):
    done = subprocess.run(
        [sys.executable, "-m", "modelzip_jax.cli", *command.split()], capture_output=True, text=True
    )
    print("$ modelzip", command)
    print(done.stdout, done.stderr if done.returncode else "")


shell("compress digits.safetensors small.mz --target-bytes 14000")
shell("inspect small.mz")
shell("report small.mz --against digits.safetensors --output report.html")
