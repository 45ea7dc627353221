"""ResNet-20 on CIFAR-10 (He et al. 2016, §4.2): 0.27 million parameters."""

from modelzip_jax.training.config import base


def get_config():
    """SGD with momentum for 200 epochs; `--config.model.framework=nnx` is the same network in NNX."""
    config = base()
    config.model.name = "resnet20"
    config.data.name = "cifar10"
    config.data.augment = "crop+flip"
    config.epochs = 200.0
    config.optimizer.name = "sgd"
    config.optimizer.weight_decay = 1e-4
    config.optimizer.schedule.peak = 0.1
    config.optimizer.schedule.warmup = 400
    return config
