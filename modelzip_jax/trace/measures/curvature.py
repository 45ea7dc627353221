"""Fisher information of the parameters: its diagonal, and Kronecker factors of its blocks."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from modelzip_jax import tree as trees
from modelzip_jax.errors import TraceError
from modelzip_jax.float_params import check_float_params
from modelzip_jax.leaf_checks import check_arrays
from modelzip_jax.patterns import matches, require_matches
from modelzip_jax.trace.jaxpr.model_inputs import batch_inputs, iterated, running_on, shapes_in
from modelzip_jax.trace.measures.kronecker import Factors, KroneckerPass
from modelzip_jax.trace.measures.likelihood import Likelihood, Loss, losses
from modelzip_jax.tree import PyTree

__all__ = ["FisherInformation", "fisher_information"]

_KINDS = ("diagonal", "kronecker", "outputs")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FisherInformation:
    """The Fisher information of a leaf.

    diagonal: E[g²], float32, the leaf's shape; None if not asked for or the leaf is not floating-point.
    factors: one for each product that the leaf takes part in, in the order of its uses.
    columns: E[Mᵀ M], float32 `(n, n)`, M being the gradient as a matrix of the leaf's last axis; None if not asked for.

    >>> batch = (jnp.array([[2.0]]), jnp.array([[3.0]]))  # an input and a target
    >>> w = jnp.ones((1, 1))
    >>> fisher_information(lambda p, x: x @ p, w, [batch], likelihood="gaussian", labels="given").diagonal
    Array([[4.]], dtype=float32)
    """

    diagonal: Any
    factors: tuple[Factors, ...] = ()
    columns: Any = None


def fisher_information(
    apply_fn: Callable[..., Any],
    params: PyTree,
    batches: Iterable[Any],
    kinds: Sequence[Literal["diagonal", "kronecker", "outputs"]] = ("diagonal",),
    likelihood: Likelihood = "categorical",
    labels: Literal["sampled", "given"] = "sampled",
    key: jax.Array | None = None,
    only: str | Sequence[str] = "**",
    examples_at_once: int = 1,
    gradients: Literal["examples", "batches"] = "examples",
    columns: str | Sequence[str] = (),
) -> PyTree:
    """The Fisher information of the parameters, averaged over examples.

    With g the gradient of one example's negative log-likelihood, the diagonal is E[g²]. The factors are
    K-FAC's (Martens & Grosse 2015, https://arxiv.org/abs/1503.05671, and for convolutions and sequences
    Grosse & Martens 2016, https://arxiv.org/abs/1602.01407): the block of a weight matrix is about A ⊗ G,
    with A = E[a aᵀ] over its input rows (patches, positions) and G = E[Σ g gᵀ], the sum being over the
    positions of an example. Labels sampled from the model give the Fisher, given ones the empirical Fisher.

    Examples are told apart by the first axis of every input, which must not mix them (batch normalisation
    has to run on its averages).

    Args:
      apply_fn, params: as for `uses`.
      batches: each a tuple of what `apply_fn` takes after `params`, or that one array; where labels are
        given, a pair of that and the labels.
      kinds: of "diagonal", "kronecker", and "outputs" for the factors G without A.
      likelihood: "categorical" (logits), "gaussian" (outputs that are no classes: a pseudo-loss of unit
        variance, see `likelihood.losses`) or a function from outputs and labels to losses `(batch,)`.
      labels: "sampled" or "given".
      key: to sample with; `jax.random.key(0)` unless given.
      only: path patterns of the leaves to look at. G of a vocabulary is as large as its square.
      examples_at_once: how many gradients the diagonal holds in memory at a time, rounded down to a
        divisor of the batch; more is faster.
      gradients: "examples" squares each example's gradient. "batches" squares the sum of a batch's gradients and
        divides by its examples, for the diagonal: one gradient a batch. Where labels are sampled, gradients of
        different examples are independent and zero on average, so that both have the same mean; this one has more
        noise, which sums over rows and columns take away.
      columns: path patterns of leaves of two axes and more of which `FisherInformation.columns` is wanted, too; with
        `gradients="batches"`.

    Returns:
      The structure of `params` with a `FisherInformation` for each leaf.

    Raises:
      TraceError: there are no batches, or one holds no example, or the model cannot be run on it; an unknown
        kind, inputs without a common first axis, a function as likelihood without labels, or a use where
        derivatives cannot be followed (`while`, `shard_map`, inside a function with custom derivatives).
      PatternError: a pattern matches no leaf. LeafError: a leaf of the parameters is no array, or is packed.

    >>> w = jnp.array([[1.0, 0.0]])
    >>> batch = (jnp.array([[2.0], [1.0]]), jnp.array([[0.0, 0.0], [1.0, 3.0]]))  # inputs, targets
    >>> found = fisher_information(lambda p, x: x @ p, w, [batch], likelihood="gaussian", labels="given")
    >>> found.diagonal  # The mean of (x (x w - t))².
    Array([[8. , 4.5]], dtype=float32)
    """
    unknown = [k for k in kinds if k not in _KINDS]
    if unknown or isinstance(kinds, str):
        raise TraceError(f"kinds must be a sequence of 'diagonal', 'kronecker' and 'outputs', not {kinds!r}")
    if callable(likelihood) and labels != "given":
        raise TraceError("a function as likelihood needs labels='given' and batches of (inputs, labels)")
    if gradients not in ("examples", "batches") or (gradients == "batches" and labels != "sampled"):
        raise TraceError(f"gradients={gradients!r}: of 'examples', or of 'batches' where labels are sampled")
    wide = (columns,) if isinstance(columns, str) else tuple(columns)
    if wide and (gradients != "batches" or "diagonal" not in kinds):
        raise TraceError("columns= are gathered beside the diagonal, with gradients='batches'")
    check_float_params(params, "fisher_information()")
    check_arrays(params)
    loss, key = losses(likelihood), jax.random.key(0) if key is None else key
    names = [name for name, _ in trees.named_leaves(params)]
    patterns = [only] if isinstance(only, str) else list(only)
    require_matches([*patterns, *wide], names)
    chosen = _Chosen.of(params, patterns)
    sides = [
        jnp.ndim(x) > 1 and any(matches(p, name) for p in wide)
        for name, x in zip(chosen.names, chosen.leaves, strict=True)
    ]
    diagonal = _Mean() if "diagonal" in kinds else None
    both = "kronecker" in kinds
    kronecker = KroneckerPass(apply_fn, params, loss, patterns, both) if both or "outputs" in kinds else None
    by_example = gradients == "examples"
    squares = _diagonal_step(apply_fn, chosen, loss, examples_at_once) if by_example else None
    step = jax.jit(squares or _batch_step(apply_fn, chosen, loss, sides))
    count = 0
    for number, batch in enumerate(iterated(batches)):
        if labels == "given" and not (isinstance(batch, tuple | list) and len(batch) == 2):
            raise TraceError(
                f"with labels='given' a batch is a pair (inputs, labels); batch {number} has the shapes "
                f"{shapes_in(batch)}"
            )
        inputs, given = batch if labels == "given" else (batch, None)
        inputs = batch_inputs(inputs, number)
        count += _examples(inputs)
        own = jax.random.fold_in(key, number)
        with running_on(f"batch {number}", inputs):
            if diagonal:
                diagonal.add(step(chosen.leaves, inputs, given, own), _examples(inputs))
            if kronecker:
                kronecker.add(inputs, given, own, _examples(inputs), f"batch {number}")
    if not count:
        raise TraceError("Fisher information needs at least one batch: the iterable of batches was empty")
    values = list(diagonal.value) if diagonal else []
    found = dict(zip(chosen.names, values[: len(chosen.names)], strict=True)) if diagonal else {}
    asked = [name for name, side in zip(chosen.names, sides, strict=True) if side]
    across = dict(zip(asked, values[len(chosen.names) :], strict=True))
    factors = kronecker.factors() if kronecker else collections.defaultdict(tuple)
    structure = jax.tree.structure(trees.plain(params))
    return structure.unflatten(
        [FisherInformation(found.get(name), factors.get(name, ()), across.get(name)) for name in names]
    )


def _examples(inputs: tuple[Any, ...]) -> int:
    """The length of the inputs' common first axis."""
    shapes = [jnp.shape(x) for x in jax.tree.leaves(inputs)]
    lengths = {shape[0] if shape else 0 for shape in shapes}
    if len(lengths) != 1 or 0 in lengths:
        raise TraceError(f"inputs of shapes {shapes} have no common first axis that counts examples")
    return lengths.pop()


class _Mean:
    """The mean of lists of arrays, weighted by examples."""

    def __init__(self) -> None:
        self.value: list[jax.Array] = []
        self.count = 0

    def add(self, batch: list[jax.Array], examples: int) -> None:
        """`batch` is emptied: of a large model no more than one array is held twice."""
        self.count += examples
        if not self.value:
            self.value = batch
            return
        for i in reversed(range(len(batch))):
            self.value[i] = _nearer(self.value[i], batch.pop(), examples / self.count)


@functools.partial(jax.jit, donate_argnums=0)
def _nearer(a: jax.Array, b: jax.Array, share: float) -> jax.Array:
    return a + (b - a) * share


@dataclasses.dataclass(frozen=True)
class _Chosen:
    """The leaves that gradients are taken of, and how to put them back."""

    names: list[str]
    leaves: list[Any]
    positions: list[int]
    others: list[Any]
    structure: Any

    @staticmethod
    def of(params: PyTree, patterns: Sequence[str]) -> _Chosen:
        leaves = jax.tree.leaves(params)
        named = [name for name, _ in trees.named_leaves(params)]
        positions = [
            i
            for i, (name, x) in enumerate(zip(named, leaves, strict=True))
            if any(matches(p, name) for p in patterns) and jnp.issubdtype(jnp.result_type(x), jnp.floating)
        ]
        return _Chosen(
            [named[i] for i in positions], [leaves[i] for i in positions], positions, leaves,
            jax.tree.structure(params),
        )  # fmt: skip

    def params(self, leaves: Sequence[Any]) -> PyTree:
        """The parameters with these in place of the chosen leaves."""
        every = list(self.others)
        for i, leaf in zip(self.positions, leaves, strict=True):
            every[i] = leaf
        return jax.tree.unflatten(self.structure, every)


def _batch_step(
    apply_fn: Callable[..., Any], chosen: _Chosen, loss: Loss, sides: Sequence[bool]
) -> Callable[..., list[jax.Array]]:
    """From leaves, inputs, no labels and key to (Σ g)² over the number of examples; then MᵀM of leaves of `sides`."""

    def step(leaves: list[Any], inputs: Any, labels: None, key: jax.Array) -> list[jax.Array]:
        examples = jax.tree.leaves(inputs)[0].shape[0]
        summed = jax.grad(lambda leaves: jnp.sum(loss(apply_fn(chosen.params(leaves), *inputs), key, labels)))
        found = [g.astype(jnp.float32) for g in summed(leaves)]
        rows = [g.reshape(-1, g.shape[-1]) for g, side in zip(found, sides, strict=True) if side]
        products = [jnp.matmul(m.T, m, precision=jax.lax.Precision.HIGHEST) for m in rows]
        return [*(jnp.square(g) / examples for g in found), *(m / examples for m in products)]

    return step


def _diagonal_step(
    apply_fn: Callable[..., Any], chosen: _Chosen, loss: Loss, at_once: int
) -> Callable[..., list[jax.Array]]:
    """From leaves, inputs, labels and key to E[g²] of a batch; a scan over its examples."""

    def of_example(leaves: list[Any], example: tuple[Any, Any, Any]) -> list[jax.Array]:
        inputs, labels, key = example

        def negative_log_likelihood(leaves: list[Any]) -> jax.Array:
            one = jax.tree.map(lambda x: x[None], (inputs, labels))
            return loss(apply_fn(chosen.params(leaves), *one[0]), key, one[1])[0]

        gradients = jax.grad(negative_log_likelihood)(leaves)
        return [jnp.square(g.astype(jnp.float32)) for g in gradients]

    def step(leaves: list[Any], inputs: Any, labels: Any, key: jax.Array) -> list[jax.Array]:
        examples = jax.tree.leaves(inputs)[0].shape[0]
        size = next(n for n in range(min(at_once, examples), 0, -1) if examples % n == 0)
        batch = (inputs, labels, jax.random.split(key, examples) if labels is None else None)
        chunks = jax.tree.map(lambda x: x.reshape(examples // size, size, *x.shape[1:]), batch)

        def add(total: list[jax.Array], chunk: Any) -> tuple[list[jax.Array], None]:
            squares = jax.vmap(of_example, (None, 0))(leaves, chunk)
            return [t + jnp.sum(s, axis=0) for t, s in zip(total, squares, strict=True)], None

        zeros = [jnp.zeros(x.shape, jnp.float32) for x in leaves]
        total, _ = jax.lax.scan(add, zeros, chunks)
        return [t / examples for t in total]

    return step
