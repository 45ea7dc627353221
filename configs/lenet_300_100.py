"""LeNet-300-100 on MNIST (LeCun et al. 1998): 266,610 parameters."""

from modelzip_jax.training.config import base


def get_config():
    """Adamw with a cosine schedule and label smoothing (chosen on the validation split)."""
    config = base()
    config.model.name = "lenet_300_100"
    config.data.name = "mnist"
    config.epochs = 20.0
    config.block = 50
    config.optimizer.schedule.peak = 1e-3
    config.optimizer.weight_decay = 5e-2
    config.label_smoothing = 0.1
    return config
