"""A decoder-only language model of the King James Version, byte by byte."""

from modelzip_jax.training.config import base


def get_config():
    """Adamw with warm-up, a cosine schedule and clipping."""
    config = base()
    config.model.name = "language_model"
    config.data.name = "kjv"
    config.data.options = {"sequence_length": 256}
    config.data.batch_size = 32
    config.epochs = 3.0
    config.optimizer.b2 = 0.95
    config.optimizer.clip = 1.0
    config.optimizer.weight_decay = 0.1
    config.optimizer.schedule.peak = 2e-3
    config.optimizer.schedule.warmup = 100
    config.optimizer.schedule.floor = 0.1
    return config
