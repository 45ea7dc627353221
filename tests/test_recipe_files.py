"""Every recipe in configs/recipes compresses LeNet-5 and trains it, by the command and by a config."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from typer.testing import CliRunner

import modelzip_jax as mz
from modelzip_jax import checkpoints, cli
from modelzip_jax.cli.named_objects import recipe_of
from modelzip_jax.models.lenet import LeNet5
from modelzip_jax.recipe import from_plain, opaque_fields, to_plain

FOLDER = Path(__file__).parents[1] / "configs" / "recipes"
FILES = sorted(FOLDER.glob("*.json"))
ALWAYS = (
    "cut_quantize", "cut_two_of_four", "factorize", "prune_farthest", "quantize_4", "quantize_offset", "share_neurons",
    "share_weights", "sparse_dense", "wavelet_quantize",
)  # fmt: skip
"""The others in the slow run."""
LENET = LeNet5(widths=(4, 8, 64))


def params():
    return jax.tree.map(np.asarray, LENET.init(jax.random.key(0), jnp.ones((1, 28, 28, 1)))["params"])


PARAMS = params()


def test_there_is_one_of_each_family():
    families = {name.stem.split("_")[0] for name in FILES}
    assert families == {"cut", "prune", "quantize", "factorize", "wavelet", "cosines", "share", "sparse"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_recipe_is_read_whole(path):
    transform = recipe_of(str(path))
    assert opaque_fields(transform) == []
    assert to_plain(from_plain(json.loads(path.read_text()))) == json.loads(path.read_text())


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=[] if path.stem in ALWAYS else [pytest.mark.slow])
        for path in FILES
    ],
)
def test_a_recipe_compresses_and_trains_lenet5(path, tmp_path):
    transform = recipe_of(str(path))
    packed = mz.compress(PARAMS, transform)
    smaller = path.stem != "sparse_dense"  # It begins dense, and ends so.
    assert (packed.nbytes < packed.dense_bytes) == smaller
    size = mz.save(tmp_path / "model.mz", packed).total
    assert size < packed.dense_bytes
    jax.tree.map(np.testing.assert_array_equal, mz.unpack(mz.load(tmp_path / "model.mz")), mz.unpack(packed))
    tx = mz.wrap(optax.adamw(1e-3), transform)
    state = jax.eval_shape(tx.init, PARAMS)
    updates, _ = jax.eval_shape(tx.update, PARAMS, state, PARAMS)
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, PARAMS)


def test_the_command_takes_one(tmp_path):
    checkpoints.write(tmp_path / "lenet5.npz", PARAMS)
    arguments = ["compress", str(tmp_path / "lenet5.npz"), str(tmp_path / "lenet5.mz")]
    done = CliRunner().invoke(cli.app, [*arguments, "--recipe", str(FOLDER / "cut_quantize.json"), "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout.strip().splitlines()[-1])
    assert report["ratio"] > 8


def test_a_config_takes_one(tmp_path):
    pytest.importorskip("sklearn")
    done = CliRunner().invoke(
        cli.app,
        [
            "train", "--config", "configs/digits_mlp.py", "--out", str(tmp_path / "run"), "--json",
            "--config.model.options.widths=(16,)", "--config.steps=18", "--config.block=9",
            f"--config.recipe={FOLDER / 'cut_quantize.json'}",
        ],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    kernel = np.asarray(mz.unpack(mz.load(tmp_path / "run" / "model.mz"))["Dense_0"]["kernel"])
    assert np.mean(kernel == 0) > 0.8
