"""A byte-wise language model of the King James Version that two cores can train: 1.3 million parameters."""

from modelzip_jax.training.config import base
from modelzip_jax.training.judging import config_quality


def get_config():
    """Four layers of 160 units on windows of 128 bytes; otherwise as `configs/language_model.py`."""
    config = base()
    config.model.name = "language_model"
    config.model.options = {
        "num_layers": 4, "num_heads": 4, "embed_dim": 160, "max_length": 128, "scan": False,
    }  # fmt: skip
    config.data.name = "kjv"
    config.data.options = {"sequence_length": 128}
    config.data.batch_size = 32
    config.steps = 1200
    config.optimizer.b2 = 0.95
    config.optimizer.clip = 1.0
    config.optimizer.weight_decay = 0.1
    config.optimizer.schedule.peak = 2e-3
    config.optimizer.schedule.warmup = 100
    config.optimizer.schedule.floor = 0.1
    return config


def quality(weights):
    """For `modelzip evaluate --task configs.text_generation:quality`: bits a byte of 1,000 windows not seen."""
    return config_quality(get_config(), weights, count=1_000)
