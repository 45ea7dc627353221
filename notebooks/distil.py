# %% [markdown]
# # Distil
#
# A small network learns more from a large one than from labels alone: the teacher's outputs say which wrong
# answers are nearly right. All of it is functions of arrays, for any loop. We teach a student that is small
# *and* has two bits a weight.

# %%
import glob
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("modelzip_jax") is None:
    wheels = glob.glob("modelzip_jax-*.whl")  # one that you uploaded, else the package of this name
    subprocess.check_call([sys.executable, "-m", "pip", "install", "--quiet", *(wheels or ["modelzip_jax"])])

# %% [markdown]
# The data and the network are those of the quickstart. To leave something to learn, the student sees labels
# for 100 pictures only; the others it may look at, but nobody tells it what they show.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import modelzip_jax as mz
from modelzip_jax import distillation

pictures, labels = load_digits(return_X_y=True)
pictures, labels = jnp.float32(pictures / 16), jnp.int32(labels)
held_out = np.arange(len(labels)) % 5 == 0
x, y = pictures[~held_out], labels[~held_out]
x_test, y_test = pictures[held_out], labels[held_out]
few = 100


def draw(key, widths):
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


def accuracy(params):
    return float((network(params, x_test).argmax(-1) == y_test).mean())


def train(tx, params, state, loss, examples, steps=600):
    @jax.jit
    def step(params, state, i):
        rows = jax.random.randint(jax.random.fold_in(jax.random.key(7), i), (128,), 0, examples)
        updates, state = tx.update(jax.grad(loss)(params, rows), state, params)
        return optax.apply_updates(params, updates), state

    for i in range(steps):
        params, state = step(params, state, i)
    return params, state


def hard(params, rows):
    logits = network(params, x[rows])
    return optax.softmax_cross_entropy_with_integer_labels(logits, y[rows]).mean()


# %% [markdown]
# ## The teacher
#
# It has seen all labels.

# %%
teacher = draw(jax.random.key(0), (64, 256, 128, 10))
tx = optax.adamw(2e-3)
teacher, _ = train(tx, teacher, tx.init(teacher), hard, len(x))
print(f"teacher: {accuracy(teacher):.1%} right")

# %% [markdown]
# ## The student alone
#
# A sixth of the width, two bits a weight, a hundred labels.

# %%
zipper = mz.only("**/kernel", mz.quantize(2, learned=True))
student = draw(jax.random.key(1), (64, 40, 10))


def learn(loss, examples):
    tx = mz.wrap(optax.adamw(3e-3), zipper)
    return train(tx, *mz.start(tx, student), loss, examples)


results = {}
params, _ = learn(hard, few)
results["100 labels alone"] = accuracy(params)
print(f"alone: {results['100 labels alone']:.1%} right")

# %% [markdown]
# ## What a teacher says
#
# At a temperature above 1 its answers become softer, and show what it holds of the other classes.

# %%
picture = int(np.argsort(np.sort(jax.nn.softmax(network(teacher, x)), axis=-1)[:, -1])[20])
figure, axes = plt.subplots(1, 3, figsize=(9, 2))
axes[0].imshow(x[picture].reshape(8, 8), cmap="gray_r")
axes[0].set(title=f"labelled {y[picture]}", xticks=[], yticks=[])
for axis, temperature in zip(axes[1:], (1.0, 4.0), strict=True):
    axis.bar(range(10), jax.nn.softmax(network(teacher, x[picture]) / temperature))
    axis.set(title=f"temperature {temperature:.0f}", xticks=range(10), ylim=(0, 1))

# %% [markdown]
# ## Learning from it
#
# One more term of the loss. It needs no labels, so all pictures can be used. The teacher's outputs are
# computed once.

# %%
taught = network(teacher, x)


def soft(params, rows):
    return distillation.soft_targets(network(params, x[rows]), taught[rows], temperature=4.0)


params, state = learn(soft, len(x))
results["the teacher's outputs"] = accuracy(params)
print(f"taught: {accuracy(params):.1%} right")

# %% [markdown]
# ## Features, too
#
# `distillation.features` reads what a layer gives, by the name of its weights, without a change of the model.
# `similarity` asks that pictures which the teacher finds alike be alike to the student; the widths may
# differ.

# %%
_, seen = distillation.features(network, teacher, x, layers=["layer0/kernel"])
teacher_features = seen["layer0/kernel"]


def with_features(params, rows):
    logits, seen = distillation.features(network, params, x[rows], layers=["layer0/kernel"])
    soft = distillation.soft_targets(logits, taught[rows], temperature=4.0)
    return soft + 100.0 * distillation.similarity(seen["layer0/kernel"], teacher_features[rows])


params, state = learn(with_features, len(x))
results["outputs and features"] = accuracy(params)

# %%
figure, axis = plt.subplots(figsize=(6, 2))
axis.barh(list(results), [100 * value for value in results.values()])
axis.axvline(100 * accuracy(teacher), color="k", linestyle="--", label="teacher, float, 17 times larger")
axis.set(xlabel="right on held-out digits, %", xlim=(80, 100))
axis.legend(loc="lower left")
figure.tight_layout()

# %% [markdown]
# Most of the way comes from the outputs. Whether features add to it depends on the task; on digits they add next to
# nothing, which is worth knowing before one pays for them.
#
# What ships is the student's file:

# %%
packed = mz.pack(state, params)
before = sum(leaf.nbytes for leaf in jax.tree.leaves(teacher))
print(f"teacher {before:,} bytes, student {mz.save('student.mz', packed).total:,} bytes")
packed
