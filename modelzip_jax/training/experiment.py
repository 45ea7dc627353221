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

from modelzip_jax import checkpoints as files
from modelzip_jax import models, packing
from modelzip_jax import tree as trees
from modelzip_jax.atomic import atomic_file
from modelzip_jax.coding.loading import load
from modelzip_jax.coding.writer import save
from modelzip_jax.errors import ConfigError
from modelzip_jax.loop.reading import averaged, pack, start
from modelzip_jax.loop.wrapping import wrap
from modelzip_jax.naming import require_known
from modelzip_jax.training import data, frameworks, objectives, optimizers, records, train_loop
from modelzip_jax.training.distributed import Placement, initialize
from modelzip_jax.training.measuring import make_evaluate
from modelzip_jax.training.snapshots import Checkpoints
from modelzip_jax.training.state import TrainState, begin
from modelzip_jax.transform import Transform, identity
from modelzip_jax.tree import PyTree

__all__ = ["Experiment", "build", "run"]

Arrays = dict[str, np.ndarray]
AUGMENTATIONS = ("none", "crop", "crop+flip")


class Experiment(NamedTuple):
    """What a config describes, built.

    network: as pure functions. tx: the optimizer, wrapped if there is a transform. train, validation,
    test: arrays. steps: of the whole run. prepare: `(batch, key) -> batch` for training (key None: for
    evaluation).
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


def build(config: Any, transform: Transform | None = None) -> Experiment:
    """Loads the data and makes the network and the optimizer.

    Raises:
      ConfigError, ModelError, DataError: a field that cannot work; the message names it.
    """
    chosen = config.data
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
    return Experiment(
        config, transform, _network(config, train), _optimizer(config, transform, steps), train,
        load_split("validation"), load_split("test"),
        steps, _preparation(data.spec(chosen.name), chosen.augment), Placement(chosen.batch_size),
    )  # fmt: skip


def _optimizer(
    config: Any, transform: Transform | None, steps: int, resume: packing.Packed | None = None
) -> optax.GradientTransformation:
    accumulate = config.optimizer.accumulate
    tx = optimizers.optimizer(config.optimizer, max(steps // accumulate, 1))
    if transform is not None:
        tx = wrap(tx, transform, resume=resume)
    return optax.MultiSteps(tx, accumulate).gradient_transformation() if accumulate > 1 else tx


def _network(config: Any, train: Arrays) -> frameworks.Network:
    chosen, inputs = config.model, train["inputs"]
    options = {"dtype": config.precision, **chosen.options}
    created = models.create(chosen.name, framework=chosen.framework, **options)
    if chosen.framework == "nnx":
        return frameworks.from_nnx(lambda rngs: created(inputs.shape[1:], rngs=rngs))
    return frameworks.from_linen(created)


def _preparation(spec: data.DataSpec, augment: str) -> Callable[[PyTree, jax.Array | None], PyTree]:
    """Standardises images by the training set's mean and deviation in each channel; tokens pass."""
    require_known("data.augment", augment, AUGMENTATIONS)
    if spec.kind != "images":
        return lambda batch, key: batch

    def prepare(batch: PyTree, key: jax.Array | None) -> PyTree:
        images = batch["inputs"]
        if key is not None and augment != "none":
            crop_key, flip_key = jax.random.split(key)
            # The paper's 4 of 32 pixels (He et al. 2016, §4.2), for any size.
            padding, fill = images.shape[1] // 8, tuple(round(m) for m in spec.mean)
            images = data.random_crop(crop_key, images, padding, fill)
            images = data.random_flip(flip_key, images) if augment == "crop+flip" else images
        return {**batch, "inputs": data.normalize(images, spec.mean, spec.std)}

    return prepare


def initial_state(experiment: Experiment) -> TrainState:
    """The state before the first step, on the devices."""
    config, network = experiment.config, experiment.network
    key = jax.random.key(config.seed)
    sample = jax.tree.map(lambda x: jnp.asarray(x[:1]), experiment.train)
    inputs = experiment.prepare(sample, None)["inputs"]
    params, variables = jax.jit(network.init)(jax.random.fold_in(key, 1), inputs)
    packed = None
    if config.start:
        params, variables, packed = _read(config.start, params, variables)
    if experiment.transform is not None:
        tx = _optimizer(config, experiment.transform, experiment.steps, packed)
        params, opt_state = start(tx, params)
    else:
        opt_state = experiment.tx.init(params)
    return experiment.place.replicate(begin(params, variables, opt_state, key))


def _read(path: str, params: PyTree, variables: PyTree) -> tuple[PyTree, PyTree, packing.Packed | None]:
    """The weights of a checkpoint, or of a `.mz` file with the packed model from which training resumes."""
    if Path(path).suffix == ".mz":
        packed = load(path, like=params)
        return packing.unpack(packed), packed.variables or variables, packed
    tree = files.read(Path(path))
    found = tree.get("params", tree) if isinstance(tree, dict) else tree
    rest = {name: tree[name] for name in variables if name in tree} if isinstance(tree, dict) else {}
    return trees.restructured(found, params), {**variables, **rest}, None


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
      many examples as test has), "gap" (train accuracy less test accuracy), "file_bytes", "steps", "seconds"...

    Raises:
      ConfigError, ModelError, DataError: the config cannot work.
      CheckpointError: a checkpoint is damaged or belongs to another config, or the disk is full.
      NonFiniteError: training diverged.
    """
    initialize(**config.distributed)
    folder = Path(folder)
    _claim(folder, config)
    experiment = build(config, transform)
    with ExitStack() as stack:
        state = _train(experiment, folder, stack, quiet)
        result = _finish(experiment, state, folder)
    return result


def _train(experiment: Experiment, folder: Path, stack: ExitStack, quiet: bool) -> TrainState:
    """Runs the loop from the last checkpoint on; gives the state that is to be kept."""
    config, place = experiment.config, experiment.place
    state, batches = initial_state(experiment), _batches(experiment)
    stopper = EarlyStopping(config.min_delta, config.patience)
    keep = stack.enter_context(Checkpoints(folder / "checkpoints", best="validation_loss", mode="min"))
    if keep.steps():
        state, rest = keep.restore(state)
        batches.set_state(rest["batches"])
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
        keep.save(state, {"batches": position, "stopper": dataclasses.asdict(stopper)}, numbers)

    epoch = batches.steps_per_epoch
    cadence = train_loop.Cadence(
        experiment.steps, config.block, config.record_every, config.evaluate_every or epoch,
        config.save_every or config.evaluate_every or epoch,
    )  # fmt: skip
    if not (config.patience and stopper.should_stop):
        step = train_loop.make_step(
            experiment.network, objectives.softmax_cross_entropy(config.label_smoothing), experiment.tx,
            experiment.prepare,
        )  # fmt: skip
        run = train_loop.Run(place.split, record, evaluate, stop, store)
        arrays = place.replicate(experiment.train)
        state = train_loop.train_until(state, train_loop.make_block(step), arrays, batches, cadence, run)
    best = keep.best_step() if config.patience else None
    return state if best is None else keep.restore(state, best)[0]


def _batches(experiment: Experiment) -> data.Batches:
    shard = jax.process_index(), jax.process_count()
    size, seed = experiment.config.data.batch_size, experiment.config.seed
    return data.Batches(experiment.train, size, seed=seed, shard=shard)


def _evaluator(experiment: Experiment, name: str, arrays: Arrays) -> Callable[[TrainState], dict[str, float]]:
    """Numbers about the (averaged) weights of a state, their names beginning with `name`."""
    size, place = experiment.config.data.batch_size, experiment.place
    evaluate = make_evaluate(experiment.network, arrays, size, place, experiment.prepare)
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
    weights, variables = experiment.place.replicate((packing.unpack(packed), local.variables))
    count = len(experiment.test["labels"])
    splits = {
        "train": {name: x[:count] for name, x in experiment.train.items()},
        "validation": experiment.validation,
        "test": experiment.test,
    }
    for name, arrays in splits.items():
        evaluate = make_evaluate(
            experiment.network,
            arrays,
            experiment.config.data.batch_size,
            experiment.place,
            experiment.prepare,
        )
        result[name] = evaluate(weights, variables)
    result["gap"] = result["train"]["accuracy"] - result["test"]["accuracy"]
    if main:
        with atomic_file(folder / "result.json") as file:
            file.write((json.dumps(result, indent=1) + "\n").encode())
    return result


def _claim(folder: Path, config: Any) -> None:
    """Writes the config into the folder, or checks that it is the one there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"the folder {folder} cannot be made: {error.strerror}") from error
    path = folder / "config.json"
    ours = json.loads(json.dumps({k: v for k, v in config.to_dict().items() if k != "distributed"}))
    if not path.exists():
        if jax.process_index() == 0:
            with atomic_file(path) as file:
                file.write((json.dumps(ours, indent=1) + "\n").encode())
        return
    theirs = json.loads(path.read_text())
    changed = sorted(k for k in {*ours, *theirs} if ours.get(k) != theirs.get(k))
    if changed:
        raise ConfigError(
            f"{folder} holds a run of another config: {', '.join(changed)} differ; choose another folder, or "
            "remove it to begin anew"
        )
