"""Image search on Fashion-MNIST by ResNet-20: images of the query's class, nearest by cosine first."""

from modelzip_jax.training.config import base
from modelzip_jax.training.judging import search_quality


def get_config():
    """A classifier, whose pooled features are the embedding: what two cores train in a while."""
    config = base()
    config.model.name = "resnet20"
    config.data.name = "fashion_mnist"
    config.epochs = 3.0
    config.optimizer.name = "sgd"
    config.optimizer.weight_decay = 5e-4
    config.optimizer.schedule.peak = 0.1
    config.optimizer.schedule.warmup = 100
    return config


def quality(weights):
    """For `modelzip evaluate --task configs.image_search:quality`: 2,000 test images, each among all the others."""
    return search_quality(get_config(), weights, "Dense_0", count=2_000)
