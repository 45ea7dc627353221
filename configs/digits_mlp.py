"""A small perceptron on scikit-learn's digits: seconds on any machine."""

from modelzip_jax.training.config import base


def get_config():
    """300 and 100 hidden units, adamw, a cosine schedule."""
    config = base()
    config.model.options = {"widths": (300, 100)}
    config.epochs = 30.0
    config.block = 9
    config.optimizer.schedule.peak = 2e-3
    config.optimizer.weight_decay = 1e-2
    return config
