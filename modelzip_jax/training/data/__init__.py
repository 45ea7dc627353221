"""Data for training: named sets in memory, batches whose position is a number, and streams.

    arrays = data.load_split("fashion_mnist", "train")
    batches = data.Batches(arrays, batch_size=128, seed=0)

Sets come through tfds and are read without TensorFlow; what memory cannot hold goes through grain
(`stream`). `python scripts/offline_datasets.py NAME` prepares a set where there is no internet.
"""

from modelzip_jax.training.data.augment import normalize, random_crop, random_flip
from modelzip_jax.training.data.batches import Batches
from modelzip_jax.training.data.scenes import make_scenes
from modelzip_jax.training.data.sets import DataSpec, load_split, names, spec
from modelzip_jax.training.data.streaming import stream
from modelzip_jax.training.data.subsets import subset

__all__ = [
    "Batches",
    "DataSpec",
    "load_split",
    "make_scenes",
    "names",
    "normalize",
    "random_crop",
    "random_flip",
    "spec",
    "stream",
    "subset",
]
