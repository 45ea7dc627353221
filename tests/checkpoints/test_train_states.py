"""Of a whole train state the weights are found, and an optimizer's memory is never taken for them."""

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from checkpoint_trees import assert_same
from flax import linen, nnx, serialization
from flax.training.train_state import TrainState

from modelzip_jax import checkpoints
from modelzip_jax.checkpoints.contents import Contents
from modelzip_jax.checkpoints.train_states import choose
from modelzip_jax.errors import CheckpointError

PARAMS = {"Dense_0": {"kernel": np.ones((8, 4), np.float32), "bias": np.zeros(4, np.float32)}}
STATS = {"BatchNorm_0": {"mean": np.ones(4, np.float32)}}
MOMENTS = jax.tree.map(np.zeros_like, PARAMS)
ADAM = [{"count": np.int32(3).reshape(()), "mu": MOMENTS, "nu": MOMENTS}, None]
STEP = np.int32(3).reshape(())

OPTIMIZERS = {
    "adamw": optax.adamw(1e-3),
    "momentum": optax.sgd(0.1, momentum=0.9),
    "adafactor": optax.adafactor(1e-3, min_dim_size_to_factor=2),
    "lion": optax.lion(1e-3),
    "masked": optax.masked(optax.adam(1e-3), jax.tree.map(lambda x: x.ndim > 1, PARAMS)),
    "several steps": optax.MultiSteps(optax.adam(1e-3), 4),
    "plain": optax.sgd(0.1),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("writer", ["msgpack", "orbax", "bare"])
def test_train_states_of_flax(tmp_path, optimizer, writer):
    state = TrainState.create(apply_fn=linen.Dense(4).apply, params=PARAMS, tx=OPTIMIZERS[optimizer])
    path = tmp_path / ("m.msgpack" if writer == "msgpack" else "m")
    if writer == "msgpack":
        path.write_bytes(serialization.to_bytes(state))
    else:
        tree = state if writer == "orbax" else {"params": PARAMS, "opt_state": state.opt_state, "step": 3}
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path, tree)
    contents, others = checkpoints.read_weights(path)
    assert_same(contents.tree, PARAMS)
    assert others == {}
    assert "opt_state" in contents.notes[-1]
    assert_same(checkpoints.read_weights(path, "params")[0].tree, PARAMS)
    with pytest.raises(CheckpointError, match="holds"):
        checkpoints.read_weights(path, "weights")


def test_an_optimizer_of_nnx(tmp_path):
    model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
    both = {"model": nnx.to_pure_dict(nnx.state(model)), "optimizer": nnx.to_pure_dict(nnx.state(optimizer))}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "m", both)
    contents, _ = checkpoints.read_weights(tmp_path / "m")
    assert_same(contents.tree, jax.tree.map(np.asarray, both["model"]))


@pytest.mark.parametrize(
    "tree",
    [
        {"params": PARAMS, "opt_state": ADAM, "step": STEP},
        {"params": PARAMS, "adam": {"m": MOMENTS, "v": MOMENTS}},
        {"params": PARAMS, "inner": {"slow": MOMENTS}},
        {"state": {"params": PARAMS, "opt_state": ADAM}, "epoch": STEP},
        {"model": PARAMS, "opt_state": ADAM},
        {"weights": PARAMS, "whatever": ADAM},
        {"network": PARAMS, "exp_avg": MOMENTS, "exp_avg_sq": MOMENTS} | {"opt_state": []},
        [PARAMS, ADAM],
        {"params": PARAMS, "ema": MOMENTS, "opt_state": ADAM},
        {"params/Dense_0/kernel": PARAMS["Dense_0"]["kernel"], "params/Dense_0/bias": PARAMS["Dense_0"]["bias"],
         "opt_state/0/mu/Dense_0/kernel": MOMENTS["Dense_0"]["kernel"], "step": STEP},
    ],
)  # fmt: skip
def test_weights_are_found_in(tree):
    if "exp_avg" in tree:
        with pytest.raises(CheckpointError, match="--key"):
            choose(Contents(tree))
        return
    contents, others = choose(Contents(tree, jax.tree.map(lambda _: 0, tree)))
    assert_same(contents.tree, PARAMS)
    assert others == {}


def test_batch_statistics_travel_along():
    tree = {"params": PARAMS, "batch_stats": STATS, "opt_state": ADAM, "rng": np.zeros(2, np.uint32)}
    contents, others = choose(Contents(tree))
    assert_same(contents.tree, PARAMS)
    assert_same(others, {"batch_stats": STATS})
    assert contents.notes == (
        "'params' is compressed; kept as they are: batch_stats; left out: opt_state, rng",
    )
    assert choose(Contents(tree), "params")[1] == {}


@pytest.mark.parametrize(
    "tree",
    [
        {"params": PARAMS, "batch_stats": STATS},
        PARAMS,
        {"encoder": PARAMS, "decoder": PARAMS},
        {"params": PARAMS, "ema": MOMENTS},
        {"vae": {"mu": PARAMS["Dense_0"], "logvar": PARAMS["Dense_0"]}},
        {"params": {"mu": {"kernel": np.ones((3, 2))}, "nu": {"kernel": np.ones((4, 2))}}},
    ],
)
def test_a_tree_without_an_optimizers_memory_is_taken_whole(tree):
    contents, others = choose(Contents(tree))
    assert contents.tree is tree
    assert (others, contents.notes) == ({}, ())


@pytest.mark.parametrize(
    "tree",
    [
        {"mu": MOMENTS, "nu": MOMENTS, "count": STEP},
        [{"mu": MOMENTS, "nu": MOMENTS}],
        {"opt_state": ADAM, "step": STEP},
        {"encoder": PARAMS, "decoder": MOMENTS, "opt_state": ADAM},
        {"gan": {"params": PARAMS, "opt_state": ADAM}, "critic": {"params": PARAMS, "opt_state": ADAM}},
    ],
)
def test_the_user_is_told_to_choose(tree):
    with pytest.raises(CheckpointError, match="--key"):
        choose(Contents(tree))


def test_a_key_leads_to_one_of_several():
    tree = {"gan": {"params": PARAMS, "opt_state": ADAM}, "critic": {"params": MOMENTS, "opt_state": ADAM}}
    with pytest.raises(CheckpointError, match="critic/params, gan/params"):
        choose(Contents(tree))
    for key in ("gan", "gan/params", "gan/params/"):
        assert_same(choose(Contents(tree), key)[0].tree, PARAMS)
    assert_same(choose(Contents([PARAMS, ADAM]), "0")[0].tree, PARAMS)
    for key in ("gan/opt_state", "gan/opt_state/0", "gan/opt_state/0/mu"):
        with pytest.raises(CheckpointError, match="no weights"):
            choose(Contents(tree), key)
    with pytest.raises(CheckpointError, match="no weights"):
        choose(Contents({"whatever": ADAM, "a": PARAMS, "b": PARAMS}), "whatever/0/nu")
