"""The training loop.

    state ──step──> state          one batch: gradients, optimizer, batch statistics
    state ──block─> state          many steps in one compiled call: lax.scan
    fit                            blocks until the end; evaluates, logs and saves in between

Compression enters through the optimizer alone (`mz.wrap`), a teacher through the gradients alone
(`training.distilling`); nothing here knows of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
import optax

from modelzip_jax.errors import NonFiniteError
from modelzip_jax.training.frameworks import Network
from modelzip_jax.training.objectives import Objective
from modelzip_jax.training.state import TrainState
from modelzip_jax.tree import PyTree

__all__ = [
    "BatchSource",
    "Cadence",
    "Gradients",
    "Run",
    "Step",
    "make_block",
    "make_step",
    "objective_gradients",
    "train_until",
]

Metrics = dict[str, jax.Array]
Step = Callable[[TrainState, PyTree], tuple[TrainState, Metrics]]
CompiledBlock = Callable[[TrainState, PyTree, PyTree], tuple[TrainState, Metrics]]


class Gradients(Protocol):
    """How the gradients of a step are made: `objective_gradients`, or what has other terms beside the objective."""

    def __call__(
        self, network: Network, objective: Objective, state: TrainState, batch: PyTree, key: jax.Array
    ) -> tuple[PyTree, TrainState, Metrics]:
        """`(gradients, state, metrics)`: of the state nothing but `variables` and `beside` has moved."""


def objective_gradients(
    network: Network, objective: Objective, state: TrainState, batch: PyTree, key: jax.Array
) -> tuple[PyTree, TrainState, Metrics]:
    """Gradients of the objective, and of nothing else."""

    def loss_of(params: PyTree) -> tuple[jax.Array, tuple[PyTree, Metrics]]:
        outputs, variables = network.apply(params, state.variables, batch["inputs"], True, key)
        loss, metrics = objective(outputs, batch)
        return loss, (variables, {"loss": loss, **metrics})

    grads, (variables, metrics) = jax.grad(loss_of, has_aux=True)(state.params)
    return grads, state._replace(variables=variables), metrics


def make_step(
    network: Network,
    objective: Objective,
    tx: optax.GradientTransformation,
    prepare: Callable[..., PyTree],
    gradients: Gradients = objective_gradients,
) -> Step:
    """One step on one batch: pure, ready for `jit` and `scan`.

    Args:
      network: the network as pure functions.
      objective: what to minimise.
      tx: any optax optimizer, wrapped by `mz.wrap` or not.
      prepare: `(batch, key) -> batch` before the network: normalisation, augmentation.
      gradients: how the objective's gradients are made.
    """

    def step(state: TrainState, batch: PyTree) -> tuple[TrainState, Metrics]:
        prepare_key, network_key = jax.random.split(jax.random.fold_in(state.key, state.step))
        batch = prepare(batch, prepare_key)
        grads, state, metrics = gradients(network, objective, state, batch, network_key)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return state._replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

    return step


def make_block(step: Step) -> CompiledBlock:
    """Many steps in one compiled call: `(state, data, items) -> (state, metrics of each step)`.

    items: indices into `data`, int32 `(steps, batch)`, which gathers each batch on the device; or, where
    `data` is None, the batches themselves, stacked. The state is donated.
    """

    def one(data: PyTree, state: TrainState, item: PyTree) -> tuple[TrainState, Metrics]:
        batch = item if data is None else jax.tree.map(lambda array: array[item], data)
        return step(state, batch)

    def block(state: TrainState, data: PyTree, items: PyTree) -> tuple[TrainState, Metrics]:
        # XLA:CPU runs convolutions inside a loop seven times slower, also in a loop of one turn.
        if len(jax.tree.leaves(items)[0]) == 1:
            return one(data, state, jax.tree.map(lambda x: x[0], items))
        return jax.lax.scan(lambda s, item: one(data, s, item), state, items)

    return jax.jit(block, donate_argnums=0)


class BatchSource(Protocol):
    """Where the loop takes its batches from; `training.data.Batches` is one."""

    def take(self, count: int) -> PyTree:
        """The next `count` batches, stacked: the items of a block."""

    def get_state(self) -> dict[str, Any]:
        """The position, as plain data."""

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a position."""


class Cadence(NamedTuple):
    """How many steps there are, and how often something happens, in steps; 0 is never.

    Everything happens between blocks, at the first block's end at or past its time.
    """

    steps: int
    block: int = 1
    record: int = 100
    evaluate: int = 0
    save: int = 0


class Run(NamedTuple):
    """What `train_until` calls in between; each may be left out.

    put: places a block's items on the devices. record: takes one flat dict of numbers.
    evaluate: numbers about a state. stop: whether to stop early, from them.
    save: `(state, position, numbers)`, with the numbers of an evaluation of this very state, or none; position, plain
    data: "batches", where they are, and "pending", the metrics of each step since the last record.
    """

    put: Callable[[PyTree], PyTree] = jax.device_put
    record: Callable[[Mapping[str, float]], None] = lambda _: None
    evaluate: Callable[[TrainState], dict[str, float]] | None = None
    stop: Callable[[dict[str, float]], bool] = lambda _: False
    save: Callable[[TrainState, dict[str, Any], dict[str, float]], None] | None = None


_ALONE = Run()


def train_until(
    state: TrainState,
    block: CompiledBlock,
    data: PyTree,
    batches: BatchSource,
    cadence: Cadence,
    run: Run = _ALONE,
    pending: Mapping[str, Any] | None = None,
) -> TrainState:
    """Trains until `cadence.steps`, or until `run.stop` says so.

    Args:
      state: where to begin; its buffers are donated.
      block: from `make_block`.
      data: arrays on the devices that items index, or None.
      batches: gives the items.
      pending: of the position that was saved with `state`, so that the next record is what it would have been.

    Raises:
      NonFiniteError: the loss is NaN or infinite; what was saved before stays.
    """
    step = int(state.step)
    metrics = [_given(pending)] if pending else list[Metrics]()
    began, since = time.perf_counter(), step
    while step < cadence.steps:
        before, numbers, stopping = step, dict[str, float](), False
        items = batches.take(min(cadence.block, cadence.steps - step))
        state, measured = block(state, data, run.put(items))
        if cadence.record:
            metrics.append(measured)
        step += len(jax.tree.leaves(items)[0])
        last = step >= cadence.steps

        def due(every: int, last: bool = last, before: int = before, step: int = step) -> bool:
            return bool(every) and (last or step // every > before // every)

        if due(cadence.record):
            means = _means(metrics)
            speed = (step - since) / (time.perf_counter() - began)
            run.record({"step": step, **means, "steps_per_second": speed})
            if not np.isfinite(means["loss"]):
                raise NonFiniteError(f"the loss is {means['loss']} by step {step}: training has diverged")
            metrics, began, since = [], time.perf_counter(), step
        if run.evaluate and due(cadence.evaluate):
            numbers = run.evaluate(state)
            run.record({"step": step, **numbers})
            stopping = run.stop(numbers)
            began, since = time.perf_counter(), step
        if run.save and (due(cadence.save) or stopping):
            position = {"batches": batches.get_state(), "pending": _plain(metrics)}
            run.save(state, position, numbers)
        if stopping:
            break
    return state


def _means(metrics: list[Metrics]) -> dict[str, float]:
    """The mean of each metric over the steps of several blocks."""
    return {name: float(np.mean(values)) for name, values in _joined(metrics).items()}


def _joined(metrics: list[Metrics]) -> dict[str, np.ndarray]:
    names = metrics[0] if metrics else ()
    return {name: np.concatenate([np.atleast_1d(m[name]) for m in metrics]) for name in names}


def _plain(metrics: list[Metrics]) -> dict[str, Any]:
    """Metrics as JSON holds them, exactly: of each name the dtype, and the values as float64 or integers."""
    return {name: [x.dtype.name, x.tolist()] for name, x in _joined(metrics).items()}


def _given(plain: Mapping[str, Any]) -> Metrics:
    return {name: np.asarray(values, jax.numpy.dtype(dtype)) for name, (dtype, values) in plain.items()}
