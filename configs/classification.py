"""Classification of Fashion-MNIST by LeNet-5 in Caffe's variant: 431,080 parameters."""

from modelzip_jax.training.config import base
from modelzip_jax.training.judging import config_quality


def get_config():
    """Adamw with a cosine schedule."""
    config = base()
    config.model.name = "lenet5"
    config.data.name = "fashion_mnist"
    config.epochs = 8.0
    config.optimizer.schedule.peak = 1e-3
    config.optimizer.weight_decay = 5e-2
    return config


def quality(weights):
    """For `modelzip evaluate --task configs.classification:quality`: accuracy on 10,000 test images."""
    return config_quality(get_config(), weights)
