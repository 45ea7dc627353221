"""What a config's weights are worth is what the run itself has measured, and foreign weights are refused."""

import numpy as np
import pytest

import modelzip_jax as mz
from modelzip_jax.errors import ConfigError
from modelzip_jax.evaluation.task_scores import summary
from modelzip_jax.training import config as configs
from modelzip_jax.training import experiment
from modelzip_jax.training.judging import config_quality

pytest.importorskip("sklearn")


def small(name, **fields):
    arguments = [f"--config.{field}={value}" for field, value in {"steps": 20, **fields}.items()]
    return configs.override(configs.load_config(f"configs/{name}.py"), arguments)


DETECTOR = {
    "data.name": "digit_scenes", "model.options.widths": "(4,8)", "model.options.depths": "(1,1)",
    "optimizer.schedule.warmup": 2,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "measure"), [(("digits_mlp", {}), "accuracy"), (("detection", DETECTOR), "map_50")]
)
def test_as_the_run_has_measured(tmp_path, config, measure):
    name, fields = config
    config = small(name, **fields)
    result = experiment.run(config, tmp_path, quiet=True)
    packed = mz.load(tmp_path / "model.mz")
    weights = {"params": mz.unpack(packed), **packed.variables}
    for split in ("validation", "test"):
        found = summary(config_quality(config, weights, split=split)[measure])
        assert float(found) == pytest.approx(result[split][measure], abs=1e-6)
    assert len(np.atleast_1d(config_quality(config, weights, count=50)[measure])) in (1, 50)


def test_weights_of_another_network():
    config = small("digits_mlp")
    with pytest.raises(ConfigError, match="not those of the config's network"):
        config_quality(config, {"Dense_0": {"kernel": np.zeros((64, 10), np.float32)}})
