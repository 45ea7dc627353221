"""A run from its config: data, network, optimizer, loop, checkpoints, and the final evaluation."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training.early_stopping import EarlyStopping

from modelzip_jax import packing
from modelzip_jax.atomic import atomic_file
from modelzip_jax.coding.writer import save
from modelzip_jax.errors import ConfigError
from modelzip_jax.loop.reading import averaged, pack, start
from modelzip_jax.loop.wrapping import wrap
from modelzip_jax.training import data, frameworks, objectives, optimizers, records, train_loop
from modelzip_jax.training.distilling import Distilling, distilling_of
from modelzip_jax.training.distributed import Placement, initialize
from modelzip_jax.training.measuring import make_evaluate, quality_name
from modelzip_jax.training.run_folder import claimed_folder
from modelzip_jax.training.snapshots import Checkpoints
from modelzip_jax.training.starting import check_kind, network_of, preparation_of, starting_weights
from modelzip_jax.training.state import TrainState, begin
from modelzip_jax.transform import Transform, identity
from modelzip_jax.tree import PyTree

__all__ = ["Experiment", "build", "run", "split_numbers"]

Arrays = dict[str, np.ndarray]


class Experiment(NamedTuple):
    """What a config describes, built.

    network: as pure functions. tx: the optimizer, wrapped if there is a transform. train, validation,
    test: arrays. steps: of the whole run. prepare: `(batch, key) -> batch` for training (key None: for
    evaluation). kind: of the data, "images", "text" or "scenes". distilling: what a teacher adds, if there is one.
    """

    config: Any
    transform: Transform | None
    network: frameworks.Network
    tx: optax.GradientTransformation
    train: Arrays
    validation: Arrays
    test: Arrays
    steps: int
    prepare: Callable[[PyTree, jax.Array | None], PyTree]
    place: Placement
    kind: str = "images"
    distilling: Distilling | None = None


def build(config: Any, transform: Transform | None = None) -> Experiment:
    """Loads the data and makes the network and the optimizer.

    Raises:
      ConfigError, ModelError, DataError: a field that cannot work; the message names it.
    """
    chosen = config.data
    spec = data.spec(chosen.name)
    check_kind(config, spec.kind)
    options = {**chosen.options, "data_dir": chosen.dir or None}
    load_split = lambda split: data.load_split(chosen.name, split, **options)  # noqa: E731
    train = load_split("train+validation" if chosen.final else "train")
    if chosen.subset < 1.0:
        train = data.subset(train, chosen.subset, seed=config.seed)
    if len(train["labels"]) < chosen.batch_size:
        raise ConfigError(
            f"data.batch_size is {chosen.batch_size}, but there are {len(train['labels'])} training examples"
        )
    batches = len(train["labels"]) // chosen.batch_size
    steps = config.steps or max(round(config.epochs * batches), 1)
    network = network_of(config, train["inputs"])
    prepare = preparation_of(spec, chosen.augment)
    beside_tx = _optimizer(config, None, steps)
    return Experiment(
        config, transform, network, _optimizer(config, transform, steps), train, load_split("validation"),
        load_split("test"), steps, prepare, Placement(chosen.batch_size), spec.kind,
        distilling_of(config, network, train["inputs"], prepare, beside_tx, batches),
    )  # fmt: skip


def _optimizer(
    config: Any, transform: Transform | None, steps: int, resume: packing.Packed | None = None
) -> optax.GradientTransformation:
    accumulate = config.optimizer.accumulate
    tx = optimizers.optimizer(config.optimizer, max(steps // accumulate, 1))
    if transform is not None:
        tx = wrap(tx, transform, resume=resume)
    return optax.MultiSteps(tx, accumulate).gradient_transformation() if accumulate > 1 else tx


def initial_state(experiment: Experiment, train: Arrays | None = None, resuming: bool = False) -> TrainState:
    """The state before the first step, on the devices.

    Args:
      train: the training set as the steps see it, by default as it is.
      resuming: whether a checkpoint is restored next, which has what files that are gone had.
    """
    params, variables, packed = _weights(experiment)
    key = jax.random.key(experiment.config.seed)
    if experiment.transform is not None:
        tx = _optimizer(experiment.config, experiment.transform, experiment.steps, packed)
        first, opt_state = start(tx, params)
    else:
        first, opt_state = params, experiment.tx.init(params)
    beside: PyTree = ()
    if experiment.distilling is not None:
        arrays = experiment.train if train is None else train
        rows = {name: jnp.asarray(x[: experiment.config.data.batch_size]) for name, x in arrays.items()}
        beside = experiment.distilling.init(
            params, variables, experiment.prepare(rows, None), jax.random.fold_in(key, 2), first,
            resuming=resuming,
        )  # fmt: skip
    return experiment.place.replicate(begin(first, variables, opt_state, key, beside=beside))


def _weights(experiment: Experiment) -> tuple[PyTree, PyTree, packing.Packed | None]:
    """Float weights and variables that training starts from, and the packed model that it resumes."""
    config, network = experiment.config, experiment.network
    sample = jax.tree.map(lambda x: jnp.asarray(x[:1]), experiment.train)
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    params, variables = jax.jit(network.init)(key, experiment.prepare(sample, None)["inputs"])
    return starting_weights(config.start, params, variables) if config.start else (params, variables, None)


def _examples(experiment: Experiment, folder: Path) -> Arrays:
    """The training set, with what a teacher says of it if that is cached in the run's folder."""
    if experiment.distilling is None or not experiment.config.distill.cache:
        return experiment.train
    params, variables, _ = _weights(experiment)
    inputs = experiment.train["inputs"]
    return {**experiment.train, **experiment.distilling.cached(folder / "teacher", params, variables, inputs)}


def run(
    config: Any, folder: str | Path, transform: Transform | None = None, *, quiet: bool = False
) -> dict[str, Any]:
    """Trains what a config describes, or goes on where the folder's last checkpoint stands.

    Into the folder go `config.json`, `log.jsonl`, `checkpoints/`, and at the end `model.mz` (the
    moving average of the weights, if there is one; the best weights, if early stopping is on) and
    `result.json`.

    Args:
      config: from `config.base` or a file in `configs/`.
      transform: compresses while training; without one, the model is stored lossless.

    Returns:
      What `result.json` holds: "test", "validation" and "train" numbers of the stored model (train: of as
      many examples as test has), "gap" (train accuracy, of scenes "map_50", less that of test), "file_bytes",
      "steps", ...

    Raises:
      ConfigError, ModelError, DataError: the config cannot work.
      CheckpointError: no checkpoint is sound, or they belong to another config, or the disk is full.
      RunError: another run is in the folder, or its log is damaged.
      NonFiniteError: training diverged.
    """
    initialize(**config.distributed)
    folder = Path(folder)
    with ExitStack() as stack:
        stack.enter_context(claimed_folder(folder, config))
        experiment = build(config, transform)
        state = _train(experiment, folder, stack, quiet)
        result = _finish(experiment, state, folder)
    return result


def _train(experiment: Experiment, folder: Path, stack: ExitStack, quiet: bool) -> TrainState:
    """Runs the loop from the last checkpoint on; gives the state that is to be kept."""
    config, place = experiment.config, experiment.place
    train = _examples(experiment, folder)
    batches = _batches(experiment)
    stopper = EarlyStopping(config.min_delta, config.patience)
    keep = stack.enter_context(Checkpoints(folder / "checkpoints", best="validation_loss", mode="min"))
    pending, resuming = None, bool(keep.steps())
    state = initial_state(experiment, train, resuming=resuming)
    if resuming:
        began = state.beside
        state, rest = keep.restore(state)
        if experiment.distilling is not None:
            experiment.distilling.require_same(began, state.beside)
        batches.set_state(rest["batches"])
        pending = rest["pending"]
        stopper = EarlyStopping(**rest["stopper"])
    evaluate = _evaluator(experiment, "validation", experiment.validation)
    main = jax.process_index() == 0
    sinks: list[Callable[[Mapping[str, float]], None]] = []
    if main:
        sinks.append(stack.enter_context(records.JsonLines(folder / "log.jsonl", int(state.step))))
        sinks.append(stack.enter_context(records.progress(experiment.steps, int(state.step), quiet)))
    if main and config.tensorboard:
        sinks.append(records.TensorBoard(folder / "tensorboard"))

    def stop(numbers: dict[str, float]) -> bool:
        nonlocal stopper
        stopper = stopper.update(numbers["validation_loss"])
        return bool(config.patience) and stopper.should_stop

    def record(numbers: Mapping[str, float]) -> None:
        for sink in sinks:
            sink(numbers)

    def store(state: TrainState, position: dict[str, Any], numbers: dict[str, float]) -> None:
        keep.save(state, {**position, "stopper": dataclasses.asdict(stopper)}, numbers)

    epoch = batches.steps_per_epoch
    cadence = train_loop.Cadence(
        experiment.steps, config.block, config.record_every, config.evaluate_every or epoch,
        config.save_every or config.evaluate_every or epoch,
    )  # fmt: skip
    if not (config.patience and stopper.should_stop):
        step = train_loop.make_step(
            experiment.network, objectives.objective_of(experiment.kind, config.label_smoothing),
            experiment.tx, experiment.prepare,
            experiment.distilling.gradients if experiment.distilling else train_loop.objective_gradients,
        )  # fmt: skip
        run = train_loop.Run(place.split, record, evaluate, stop, store)
        arrays = place.replicate(train)
        block = train_loop.make_block(step)
        state = train_loop.train_until(state, block, arrays, batches, cadence, run, pending)
    best = keep.best_step() if config.patience else None
    return state if best is None else keep.restore(state, best)[0]


def _batches(experiment: Experiment) -> data.Batches:
    shard = jax.process_index(), jax.process_count()
    size, seed = experiment.config.data.batch_size, experiment.config.seed
    return data.Batches(experiment.train, size, seed=seed, shard=shard)


def _evaluator(experiment: Experiment, name: str, arrays: Arrays) -> Callable[[TrainState], dict[str, float]]:
    """Numbers about the (averaged) weights of a state, their names beginning with `name`."""
    size, place = experiment.config.data.batch_size, experiment.place
    evaluate = make_evaluate(experiment.network, arrays, size, place, experiment.prepare, experiment.kind)
    weights = jax.jit(functools.partial(_shipped, experiment))

    def numbers(state: TrainState) -> dict[str, float]:
        found = evaluate(weights(state.opt_state, state.params)[0], state.variables)
        return {f"{name}_{key}": value for key, value in found.items()}

    return numbers


def _shipped(experiment: Experiment, opt_state: PyTree, params: PyTree) -> tuple[PyTree, PyTree]:
    """The weights to evaluate and store, with their optimizer's state: averaged ones, if an average is kept."""
    return averaged(opt_state, params) if experiment.config.optimizer.average else (params, opt_state)


def _finish(experiment: Experiment, state: TrainState, folder: Path) -> dict[str, Any]:
    """Stores the model and evaluates what is stored."""
    # This process's own copies: what follows is the same computation in each of them.
    local = jax.tree.map(lambda x: x.addressable_data(0), state._replace(key=None))
    params, opt_state = _shipped(experiment, local.opt_state, local.params)
    if experiment.transform is None:
        packed = packing.compress(params, identity(), variables=local.variables)
    else:
        packed = pack(opt_state, params, variables=local.variables)
    main = jax.process_index() == 0
    result: dict[str, Any] = {"steps": int(local.step), "dense_bytes": packed.dense_bytes}
    if main:
        result["file_bytes"] = save(folder / "model.mz", packed).total
    result |= split_numbers(experiment, packed)
    if main:
        with atomic_file(folder / "result.json") as file:
            file.write((json.dumps(result, indent=1) + "\n").encode())
    return result


def split_numbers(experiment: Experiment, packed: packing.Packed) -> dict[str, Any]:
    """Numbers of a packed model: "train" (as many examples as test has), "validation", "test", and the "gap" of
    accuracy, of scenes of "map_50", between the first and the last.
    """
    weights, variables = experiment.place.replicate((packing.unpack(packed), packed.variables))
    count = len(experiment.test["labels"])
    splits = {
        "train": {name: x[:count] for name, x in experiment.train.items()},
        "validation": experiment.validation,
        "test": experiment.test,
    }
    result: dict[str, Any] = {}
    for name, arrays in splits.items():
        size, place = experiment.config.data.batch_size, experiment.place
        evaluate = make_evaluate(experiment.network, arrays, size, place, experiment.prepare, experiment.kind)
        result[name] = evaluate(weights, variables)
    quality = quality_name(experiment.kind)
    result["gap"] = result["train"][quality] - result["test"][quality]
    return result
