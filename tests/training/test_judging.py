"""What a config's weights are worth is what the run itself has measured, and foreign weights are refused."""

import runpy
from pathlib import Path

import jax
import numpy as np
import pytest

import modelzip_jax as mz
from modelzip_jax import checkpoints
from modelzip_jax.errors import ConfigError
from modelzip_jax.evaluation.task_scores import summary
from modelzip_jax.training import config as configs
from modelzip_jax.training import data, experiment
from modelzip_jax.training.judging import config_quality, search_quality
from modelzip_jax.training.starting import network_of

pytest.importorskip("sklearn")


def small(name, **fields):
    arguments = [f"--config.{field}={value}" for field, value in {"steps": 20, **fields}.items()]
    return configs.override(configs.load_config(f"configs/{name}.py"), arguments)


DETECTOR = {
    "data.name": "digit_scenes", "model.options.widths": "(4,8)", "model.options.depths": "(1,1)",
    "optimizer.schedule.warmup": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A small run: its config, what it has measured, and its folder."""
    config, folder = small("digits_mlp", steps=100), tmp_path_factory.mktemp("digits")
    return config, experiment.run(config, folder, quiet=True), folder


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    config, folder = small("detection", **DETECTOR), tmp_path_factory.mktemp("scenes")
    return config, experiment.run(config, folder, quiet=True), folder


@pytest.mark.parametrize(("run", "measure"), [("digits", "accuracy"), ("scenes", "map_50")])
def test_as_the_run_has_measured(request, tmp_path, run, measure):
    config, result, folder = request.getfixturevalue(run)
    packed = mz.load(folder / "model.mz")
    weights = {"params": mz.unpack(packed), **packed.variables}
    for split in ("validation", "test"):
        found = summary(config_quality(config, weights, split=split)[measure])
        assert float(found) == pytest.approx(result[split][measure], abs=1e-6)
    assert len(np.atleast_1d(config_quality(config, weights, count=50)[measure])) in (1, 50)
    # As `modelzip decompress` and `compress` hand them on.
    checkpoints.write(tmp_path / "w.safetensors", weights)
    again = config_quality(config, checkpoints.read(tmp_path / "w.safetensors"))
    assert float(summary(again[measure])) == pytest.approx(result["test"][measure], abs=1e-6)


def test_weights_of_another_network():
    config = small("digits_mlp")
    with pytest.raises(ConfigError, match="not those of the config's network"):
        config_quality(config, {"Dense_0": {"kernel": np.zeros((64, 10), np.float32)}})


def test_search_by_what_a_layer_is_given(digits):
    config, _, folder = digits
    weights = mz.unpack(mz.load(folder / "model.mz"))
    found = search_quality(config, weights, "Dense_2", count=200)
    assert {name: x.shape for name, x in found.items()} == {
        "recall_at_1": (200,), "average_precision": (200,)
    }  # fmt: skip
    assert found["recall_at_1"].mean() > 0.8
    # Pixels themselves are further from being sorted by class.
    pixels = search_quality(config, weights, "Dense_0", count=200)
    assert found["average_precision"].mean() > pixels["average_precision"].mean() + 0.1


@pytest.mark.parametrize("path", sorted(Path("configs").glob("*.py")), ids=lambda path: path.stem)
def test_configs_make_networks_of_their_data(path):
    module = runpy.run_path(str(path))
    if "get_config" not in module:
        assert "quality" in module
        return
    config = configs.override(configs.load_config(path), [])
    spec = data.spec(config.data.name)
    shape = [n or config.data.options.get("sequence_length", 16) for n in spec.shape]
    if size := config.data.options.get("image_size"):
        shape[:2] = size, size
    text = spec.kind == "text"
    inputs = np.zeros((1, *shape), np.int32 if text else np.float32)
    network = network_of(config, inputs)
    made = jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct(inputs.shape, inputs.dtype))
    assert jax.tree.leaves(made)
