"""VGG19 with batch normalisation on CIFAR-10 (Simonyan & Zisserman 2015)."""

from modelzip_jax.training.config import base


def get_config():
    """SGD with momentum; `--config.model.options.width=0.22` has fewer than a million parameters."""
    config = base()
    config.model.name = "vgg19"
    config.model.options = {"width": 1.0}
    config.data.name = "cifar10"
    config.data.augment = "crop+flip"
    config.epochs = 160.0
    config.optimizer.name = "sgd"
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 5e-4
    config.optimizer.schedule.peak = 0.05
    config.optimizer.schedule.warmup = 400
    return config
