"""Small sets of images that tfds wrote, without TensorFlow."""

import io

import numpy as np
import pytest
from PIL import Image


def png(image):
    file = io.BytesIO()
    Image.fromarray(image.squeeze()).save(file, "png")
    file.seek(0)
    return file


def write(name_of_set, pixels, root):
    import tensorflow_datasets as tfds

    class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = name_of_set
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=pixels.shape[1:]),
                "label": tfds.features.ClassLabel(num_classes=len(pixels)),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i, image in enumerate(pixels):
                yield i, {"image": png(image), "label": i}

    Tiny(data_dir=root, file_format="array_record").download_and_prepare()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A data directory with two sets of 20 images, and those images by name."""
    rng = np.random.default_rng(0)
    images = {
        "tiny_gray": rng.integers(0, 256, (20, 5, 4, 1), np.uint8),
        "tiny_color": rng.integers(0, 256, (20, 5, 4, 3), np.uint8),
    }
    root = tmp_path_factory.mktemp("tfds")
    for name, pixels in images.items():
        write(name, pixels, root)
    return root, images
