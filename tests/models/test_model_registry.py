"""Models by name, and what misspelt names are told."""

from __future__ import annotations

import subprocess
import sys

import pytest

from modelzip_jax import models
from modelzip_jax.errors import ModelError
from modelzip_jax.models.mlp import MLP


@pytest.mark.parametrize("name", models.model_names("linen"))
def test_every_linen_name_makes_a_hashable_module(name):
    assert hash(models.create(name)) == hash(models.create(name))


def test_options_are_the_fields():
    assert models.create("mlp", widths=(8, 4), num_classes=3) == MLP((8, 4), 3)
    assert models.create("lenet_300_100") == MLP((300, 100))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnt20", {}, "did you mean 'resnet20'"),
        ("lenet", {}, "did you mean 'lenet5'"),
        ("zzz", {}, "no model is called 'zzz'; known are center_detector, efficientnet_lite0"),
        ("vgg19", {"widht": 0.5}, "no option of vgg19 is called 'widht'; did you mean 'width'"),
        ("mlp", {"framework": "torch"}, "no framework is called 'torch'; known are linen, nnx"),
        (
            "vgg19",
            {"framework": "nnx"},
            "'vgg19' exists for linen only; nnx has lenet_300_100, mlp, resnet20",
        ),
        ("mlp", {"framework": "nnx", "rngs": 0}, "no option of mlp is called 'rngs'"),
        ("mlp", {"parent": None}, "no option of mlp is called 'parent'"),
    ],
)
def test_misspelt_names_are_told_their_neighbour(name, options, message):
    with pytest.raises(ModelError, match=message):
        models.create(name, **options)


def test_importing_is_light():
    code = (
        "import sys, modelzip_jax; assert 'modelzip_jax.models' not in sys.modules;"
        "import modelzip_jax.models as m; assert not any('models.mlp' in n or 'models.bert' in n for n in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
