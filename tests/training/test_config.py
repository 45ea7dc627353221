from pathlib import Path

import pytest

from modelzip_jax.errors import ConfigError
from modelzip_jax.training import config as configs

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda p: p.stem)
def test_every_config_loads_and_has_only_the_fields_of_base(path):
    if "def get_config" not in path.read_text():
        pytest.skip("a quality without a training run")
    config = configs.load_config(path)
    # What an example does beside training is its own.
    assert set(config.keys()) - {"compress"} == set(configs.base().keys())
    assert set(config.optimizer.keys()) == set(configs.base().optimizer.keys())


def test_values_take_the_fields_type():
    config = configs.override(
        configs.base(),
        ["--config.optimizer.schedule.peak=1", "--config.tensorboard=true", "--config.model.name=lenet5",
         "--config.model.options.widths=(64,)", "--config.optimizer.schedule.drops=0.5", "--config.steps=7"],
    )  # fmt: skip
    assert isinstance(config.optimizer.schedule.peak, float)
    assert config.tensorboard is True
    assert config.model.options.widths == (64,)
    assert config.optimizer.schedule.drops == (0.5,)
    assert config.steps == 7


def test_the_config_given_is_not_changed():
    config = configs.base()
    configs.override(config, ["--config.steps=7"])
    assert config.steps == 0


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.optimizer.schedul.peak=1", "did you mean 'schedule'"),
        ("--config.optimiser.name=sgd", "did you mean 'optimizer'"),
        ("--config.sead=1", "did you mean 'seed'"),
        ("--config.seed=fast", "seed is of type int"),
        ("--config.seed=1.5", "cannot be '1.5'"),
        ("--config.optimizer=sgd", "group of fields"),
        ("--config.seed.x=1", "has no 'seed'|no field"),
        ("--conf.seed=1", "expected --config.field=value"),
        ("--config.seed", "expected --config.field=value"),
    ],
)
def test_a_mistake_is_named(argument, message):
    with pytest.raises(ConfigError, match=message):
        configs.override(configs.base(), [argument])


def test_a_missing_file_names_its_neighbour():
    with pytest.raises(ConfigError, match="did you mean 'digits_mlp'"):
        configs.load_config(CONFIGS / "digits_mpl.py")


def test_a_file_without_get_config(tmp_path):
    (tmp_path / "x.py").write_text("a = 1\n")
    with pytest.raises(ConfigError, match="get_config"):
        configs.load_config(tmp_path / "x.py")


@pytest.mark.parametrize(
    "argument",
    [
        "steps=-1",
        "epochs=-2",
        "data.batch_size=0",
        "block=0",
        "data.subset=2.0",
        "data.subset=0.0",
        "optimizer.accumulate=0",
    ],
)
def test_counts_and_shares_out_of_range(argument):
    name = argument.partition("=")[0]
    with pytest.raises(ConfigError, match=rf"{name} must be"):
        configs.override(configs.base(), [f"--config.{argument}"])


def test_a_folder_is_no_config(tmp_path):
    (tmp_path / "small.py").write_text("")
    with pytest.raises(ConfigError, match=r"is a folder, and a config is a Python file .*small\.py"):
        configs.load_config(tmp_path)
