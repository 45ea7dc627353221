"""A small detector of ten kinds of clothes, on scenes made of Fashion-MNIST: 216,575 parameters."""

import modelzip_jax as mz
from modelzip_jax.training.config import base
from modelzip_jax.training.judging import config_quality


def get_config():
    """Adamw with a cosine schedule; `--config.data.name=digit_scenes` is a small one for any machine."""
    config = base()
    config.model.name = "center_detector"
    config.data.name = "fashion_scenes"
    config.data.batch_size = 64
    config.epochs = 5.0
    config.optimizer.clip = 10.0
    config.optimizer.schedule.peak = 4e-3
    config.optimizer.schedule.warmup = 100
    config.optimizer.weight_decay = 5e-2
    return config


def recipe():
    """4 bits and 80 % zeros, chosen over the first 400 steps, more of them where there are more weights."""
    sparsity = mz.schedules.cubic(0.8, begin=0, end=400)
    return mz.only("**/kernel", mz.chain(mz.prune(sparsity=sparsity, allocation="erk"), mz.quantize(4)))


def quality(weights):
    """For `modelzip evaluate --task configs.detection:quality`: "map_50" on 1,000 test scenes."""
    return config_quality(get_config(), weights)
