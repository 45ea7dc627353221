"""A distilled data set: a few synthetic examples whose gradients are those of all."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from modelzip_jax.distillation.argument_checks import check_function, check_optimizer, check_trainable
from modelzip_jax.distillation.array_checks import as_numbers, check_key
from modelzip_jax.distillation.finite_numbers import check_count
from modelzip_jax.errors import DistillationError, NonFiniteError
from modelzip_jax.trace.jaxpr.model_inputs import running_on
from modelzip_jax.tree import PyTree

__all__ = ["SyntheticSet", "condense", "gradient_distance"]

ClassLoss = Callable[[PyTree, jax.Array, jax.Array], jax.Array]

_IMAGES = optax.sgd(0.1, momentum=0.5)
_NETWORK = optax.sgd(0.01)
"""The paper's optimizers."""


class SyntheticSet(NamedTuple):
    """What `condense` makes. inputs: float32 `(classes * per_class, ...)`, class after class. labels: int32.

    distances: float32 `(networks,)`, of the gradients, the mean over the steps on each network.

    >>> SyntheticSet(jnp.zeros((2, 3)), jnp.arange(2), jnp.zeros(1)).inputs.shape
    (2, 3)
    """

    inputs: jax.Array
    labels: jax.Array
    distances: jax.Array


def condense(
    key: jax.Array,
    init: Callable[[jax.Array], PyTree],
    apply: Callable[[PyTree, jax.Array], jax.Array],
    inputs: Any,
    labels: Any,
    *,
    per_class: int = 1,
    networks: int = 100,
    steps: int = 1,
    network_steps: int = 1,
    batch_size: int = 256,
    tx: optax.GradientTransformation = _IMAGES,
    network_tx: optax.GradientTransformation = _NETWORK,
) -> SyntheticSet:
    """Dataset condensation by gradient matching: trains the examples, where training usually trains the weights.

    Zhao et al. 2021 (https://arxiv.org/abs/2006.05929). With S the synthetic and T the real examples,

        min_S  E_{θ_0}  Σ_t Σ_c  D(∇_θ L(S_c; θ_t), ∇_θ L(B_c; θ_t)),     B_c a batch of class c in T

    where D is `gradient_distance`, θ_0 a fresh network, and θ_{t+1} comes from training θ_t on S. The paper draws 1,000
    networks, and takes 1 step on each and 1 of the network for 1 example a class, 10 and 50 for 10. The
    authors' code can start S from noise, too; here it starts from real examples.

    Args:
      key: draws the networks, the batches and the real examples from which S starts.
      init: `key -> params` of a network; apply: `(params, inputs) -> logits (batch, classes)`, twice differentiable.
        Both jittable.
      inputs: floats `(n, ...)`, standardised. labels: integers `(n,)`, from 0; each class must occur.
      per_class: synthetic examples of each class.
      networks: how many θ_0 are drawn. steps: t runs over so many. network_steps: steps of training on S between them.
      batch_size: real examples of each class at a step.
      tx: trains S. network_tx: trains the networks on S.

    Returns:
      A `SyntheticSet`. Train on it as on any data, for many epochs.

    Raises:
      DistillationError: shapes or dtypes do not fit, no examples, a class without examples or beyond the network's
        outputs, a number below 1, a key, function or optimizer that is none. NonFiniteError: an input is NaN or
        infinite; the message names the example. TraceError: init or apply cannot be called so.

    >>> inputs = jax.random.normal(jax.random.key(0), (64, 5))
    >>> found = condense(
    ...     jax.random.key(1), lambda key: {"w": 0.1 * jax.random.normal(key, (5, 2))}, lambda p, x: x @ p["w"],
    ...     inputs, (inputs[:, 0] > 0).astype(jnp.int32), networks=50, steps=2)
    >>> found.inputs.shape, found.labels.tolist(), bool(found.distances[-5:].mean() < found.distances[:5].mean())
    ((2, 5), [0, 1], True)
    """
    check_function(init, _CALL, "init", "key -> params")
    check_function(apply, _CALL, "apply", "(params, inputs) -> logits")
    for name, optimizer in (("tx", tx), ("network_tx", network_tx)):
        check_optimizer(optimizer, "condense", name)
    for name, number in (
        ("per_class", per_class), ("networks", networks), ("steps", steps), ("batch_size", batch_size),
    ):  # fmt: skip
        check_count(number, f"condense: {name}")
    if not isinstance(network_steps, int) or network_steps != 0:
        check_count(network_steps, "condense: network_steps")
    check_key(key, "condense")
    examples = _by_class(inputs, labels)
    _check_network(init, apply, key, examples)
    own = jnp.repeat(jnp.arange(len(examples.counts), dtype=jnp.int32), per_class)
    matching = _Matching(init, _cross_entropy(apply), own, steps, network_steps, batch_size, tx, network_tx)
    on_one_network = jax.jit(matching.on_one_network)
    first, key = jax.random.split(key)
    synthetic = examples.draw(first, per_class).reshape(-1, *examples.inputs.shape[1:])
    state, distances = tx.init(synthetic), []
    for k in jax.random.split(key, networks):
        synthetic, state, value = on_one_network(examples, synthetic, state, k)
        distances.append(value)
    return SyntheticSet(synthetic, own, jnp.stack(distances))


class _Network(NamedTuple):
    """A network that is trained on synthetic examples, and its optimizer's state."""

    params: PyTree
    opt_state: optax.OptState


class _Progress(NamedTuple):
    """synthetic: the examples as they are now. opt_state: their optimizer's. network: at which they are compared."""

    synthetic: jax.Array
    opt_state: optax.OptState
    network: _Network


@dataclasses.dataclass(frozen=True, eq=False)
class _Matching:
    """How synthetic examples are trained; `condense` says what each argument is. labels: of the synthetic ones."""

    init: Callable[[jax.Array], PyTree]
    loss: ClassLoss
    labels: jax.Array
    steps: int
    network_steps: int
    batch_size: int
    tx: optax.GradientTransformation
    network_tx: optax.GradientTransformation

    def on_one_network(
        self, examples: _Examples, synthetic: jax.Array, opt_state: optax.OptState, key: jax.Array
    ) -> tuple[jax.Array, optax.OptState, jax.Array]:
        """The synthetic examples after all steps on a fresh network, their optimizer's state, and the mean distance."""
        first, second = jax.random.split(key)
        params = self.init(first)
        progress = _Progress(synthetic, opt_state, _Network(params, self.network_tx.init(params)))
        progress, values = jax.lax.scan(
            functools.partial(self.step, examples), progress, jax.random.split(second, self.steps)
        )
        return progress.synthetic, progress.opt_state, jnp.mean(values)

    def step(self, examples: _Examples, progress: _Progress, key: jax.Array) -> tuple[_Progress, jax.Array]:
        """One step of the examples towards the gradients of real ones, and then those of the network on them."""
        synthetic, opt_state, network = progress
        real = examples.draw(key, self.batch_size)
        distance = _matching(self.loss)
        value, grads = jax.value_and_grad(distance)(synthetic, real, network.params)
        updates, opt_state = self.tx.update(grads, opt_state, synthetic)
        synthetic = optax.apply_updates(synthetic, updates)
        trained = functools.partial(self.network_step, synthetic)
        network = jax.lax.fori_loop(0, self.network_steps, lambda _, n: trained(n), network)
        return _Progress(synthetic, opt_state, network), value

    def network_step(self, synthetic: jax.Array, network: _Network) -> _Network:
        """One step of the network on the synthetic examples."""
        grads = jax.grad(self.loss)(network.params, synthetic, self.labels)
        updates, opt_state = self.network_tx.update(grads, network.opt_state, network.params)
        return _Network(optax.apply_updates(network.params, updates), opt_state)


def gradient_distance(grads: PyTree, targets: PyTree) -> jax.Array:
    """D(A, B) = Σ_layers Σ_i (1 - A_i · B_i / |A_i| |B_i|), i over the outputs of a layer.

    Zhao et al. 2021 (https://arxiv.org/abs/2006.05929). Outputs are the last axis, as in Flax's kernels; biases
    and other vectors are left out, as in the paper. An output without any gradient on one side counts 1.
    Differentiable in both, also where gradients are 0.

    Args:
      grads, targets: trees of floats, of one structure and the same shapes.

    Raises:
      DistillationError: shapes differ, or no leaf has two axes.

    >>> a = {"kernel": jnp.array([[1.0, 0.0], [0.0, 1.0]]), "bias": jnp.ones(2)}
    >>> b = {"kernel": jnp.array([[2.0, 0.0], [0.0, -1.0]]), "bias": jnp.zeros(2)}
    >>> float(gradient_distance(a, b))
    2.0
    """
    shapes = jax.tree.map(jnp.shape, grads), jax.tree.map(jnp.shape, targets)
    if shapes[0] != shapes[1]:
        raise DistillationError(
            f"gradients to compare must have the same shapes, not {shapes[0]} and {shapes[1]}"
        )
    pairs = zip(jax.tree.leaves(grads), jax.tree.leaves(targets), strict=True)
    found = [
        jnp.sum(1.0 - jnp.sum(_directions(a) * _directions(b), axis=0)) for a, b in pairs if jnp.ndim(a) > 1
    ]
    if not found:
        raise DistillationError("gradients are compared by layers with two axes or more, and there is none")
    return sum(found[1:], found[0])


def _cross_entropy(apply: Callable[[PyTree, jax.Array], jax.Array]) -> ClassLoss:
    def loss(params: PyTree, inputs: jax.Array, labels: jax.Array) -> jax.Array:
        logits = apply(params, inputs).astype(jnp.float32)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    return loss


def _matching(loss: ClassLoss) -> Callable[[jax.Array, jax.Array, PyTree], jax.Array]:
    """The sum over classes of the distance between gradients at synthetic and at real examples."""

    def of_class(params: PyTree, inputs: jax.Array, label: jax.Array) -> PyTree:
        return jax.grad(loss)(params, inputs, jnp.full(len(inputs), label))

    by_class = jax.vmap(of_class, in_axes=(None, 0, 0))

    def distance(synthetic: jax.Array, real: jax.Array, params: PyTree) -> jax.Array:
        labels = jnp.arange(len(real))
        grads = by_class(params, synthetic.reshape(len(real), -1, *synthetic.shape[1:]), labels)
        return jnp.sum(jax.vmap(gradient_distance)(grads, by_class(params, real, labels)))

    return distance


def _directions(x: jax.Array) -> jax.Array:
    """Columns of length 1; those of length 0 stay, with the gradient 0."""
    columns = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
    squares = jnp.sum(jnp.square(columns), axis=0)
    none = squares <= jnp.finfo(jnp.float32).tiny  # Not of NaN, which stays NaN.
    return columns * jnp.where(none, 0.0, jax.lax.rsqrt(jnp.where(none, 1.0, squares)))


class _Examples(NamedTuple):
    """inputs: `(n, ...)`. order: int32 `(n,)`, indices class after class. counts: int32 `(classes, 1)`."""

    inputs: jax.Array
    order: jax.Array
    counts: jax.Array

    def draw(self, key: jax.Array, size: int) -> jax.Array:
        """So many random examples of each class, with replacement: `(classes, size, ...)`."""
        places = jax.random.randint(key, (len(self.counts), size), 0, self.counts)
        starts = jnp.cumsum(self.counts, axis=0) - self.counts
        return self.inputs[self.order[starts + places]]


def _by_class(inputs: Any, labels: Any) -> _Examples:
    inputs = jnp.asarray(as_numbers(inputs, "condense: inputs"))
    labels = np.asarray(as_numbers(labels, "condense: labels"))
    if inputs.ndim < 2 or not inputs.size or not jnp.issubdtype(inputs.dtype, jnp.floating):
        raise DistillationError(
            f"condense: inputs must be floats (n, ...), standardised, at least one example, not {inputs.dtype} "
            f"{inputs.shape}"
        )
    finite = np.isfinite(np.asarray(inputs, np.float32)).reshape(len(inputs), -1).all(axis=1)
    if not finite.all():
        raise NonFiniteError(f"example {int(np.argmin(finite))} has inputs that are NaN or infinite")
    if (
        labels.shape != inputs.shape[:1]
        or not np.issubdtype(labels.dtype, np.integer)
        or labels.min(initial=0) < 0
    ):
        raise DistillationError(
            f"labels must be integers {inputs.shape[:1]} of at least 0, not {labels.dtype} {labels.shape}"
        )
    counts = np.bincount(labels)
    if not counts.all() or not len(counts):
        raise DistillationError(f"class {np.argmin([*counts, 0])} has no examples: number the classes from 0")
    order = np.argsort(labels, kind="stable")
    return _Examples(inputs, jnp.asarray(order, jnp.int32), jnp.asarray(counts[:, None], jnp.int32))


_CALL = "condense(key, init, apply, inputs, labels)"


def _check_network(
    init: Callable[..., PyTree], apply: Callable[..., Any], key: jax.Array, examples: _Examples
) -> None:
    one = examples.inputs[:1]
    with running_on("one key", (key,), f"{_CALL}: init(key)"):
        params = jax.eval_shape(init, key)
    check_trainable(params, "condense", "the params of init")
    with running_on("the params of init and one example", (params, one), f"{_CALL}: apply(params, inputs)"):
        outputs = jax.eval_shape(apply, params, one)
    shape: tuple[int, ...] = getattr(outputs, "shape", ())
    classes = len(examples.counts)
    if len(shape) != 2 or shape[0] != 1 or shape[1] < classes:
        raise DistillationError(
            f"there are labels from 0 to {classes - 1}, and the network gives {outputs} for one example; it must give "
            "logits (batch, classes), as many as there are classes"
        )
