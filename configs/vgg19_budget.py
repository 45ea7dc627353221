"""The worked example, `modelzip example vgg19 --config configs/vgg19_budget.py`: VGG19 with a million parameters."""

from modelzip_jax.examples.vgg19_sizes import vgg19_settings


def get_config():
    """By an accelerator all of its width on CIFAR-10, else a quarter on Fashion-MNIST; see `vgg19_settings`."""
    return vgg19_settings()
