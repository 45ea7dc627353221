"""A small detector of ten kinds of clothes, on scenes made of Fashion-MNIST: 216,478 parameters."""

from modelzip_jax.training.config import base


def get_config():
    """Adamw with a cosine schedule; `--config.data.name=digit_scenes` is a small one for any machine."""
    config = base()
    config.model.name = "center_detector"
    config.data.name = "fashion_scenes"
    config.data.batch_size = 64
    config.epochs = 10.0
    config.optimizer.clip = 10.0
    config.optimizer.schedule.peak = 2e-3
    config.optimizer.schedule.warmup = 300
    config.optimizer.weight_decay = 5e-2
    return config
