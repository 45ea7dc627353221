"""LeNet-5 in Caffe's variant on MNIST or Fashion-MNIST: 431,080 parameters."""

from modelzip_jax.training.config import base


def get_config():
    """Adamw with a cosine schedule, random shifts; `--config.data.name=fashion_mnist` is the other set."""
    config = base()
    config.model.name = "lenet5"
    config.data.name = "mnist"
    config.data.augment = "crop"
    config.epochs = 8.0
    config.optimizer.schedule.peak = 1e-3
    config.optimizer.weight_decay = 1e-2
    return config
