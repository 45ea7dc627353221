"""The data sets that have names, their splits, and loading one into memory."""

from __future__ import annotations

import dataclasses
import os
from typing import NamedTuple

import numpy as np

from modelzip_jax.errors import DataError, MissingExtraError
from modelzip_jax.training.data import prepared, text
from modelzip_jax.training.data.batches import epoch_order

__all__ = ["DataSpec", "load_split", "names", "spec"]

SPLITS = ("train", "validation", "test", "train+validation")


class Sizes(NamedTuple):
    """Examples of each split; for text, bytes."""

    train: int
    validation: int
    test: int


@dataclasses.dataclass(frozen=True)
class DataSpec:
    """What a named set holds.

    kind: "images" or "text". shape: of one input, without the batch; for text, whatever length is
    asked for, None. classes: labels are `0 .. classes - 1`. mean, std: of the training images' levels
    (0 to 255, for digits 0 to 16), one number a channel, for `normalize`.
    """

    kind: str
    shape: tuple[int | None, ...]
    classes: int
    sizes: Sizes
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


def _images(
    shape: tuple[int, ...], sizes: tuple[int, int, int], mean: tuple[float, ...], std: tuple[float, ...]
) -> DataSpec:
    return DataSpec("images", shape, 10, Sizes(*sizes), mean, std)


SPECS = {
    "digits": _images((8, 8, 1), (1_257, 180, 360), (4.892,), (6.019,)),
    "mnist": _images((28, 28, 1), (55_000, 5_000, 10_000), (33.33,), (78.58,)),
    "fashion_mnist": _images((28, 28, 1), (55_000, 5_000, 10_000), (72.97,), (90.02,)),
    "cifar10": _images((32, 32, 3), (45_000, 5_000, 10_000), (125.4, 123.0, 113.9), (63.0, 62.1, 66.7)),
    "kjv": DataSpec("text", (None,), 256, Sizes(3_959_189, 222_944, 222_279)),
}


def names() -> tuple[str, ...]:
    """The names that `load_split` knows.

    >>> names()
    ('digits', 'mnist', 'fashion_mnist', 'cifar10', 'kjv')
    """
    return tuple(SPECS)


def spec(name: str) -> DataSpec:
    """What the set of this name holds, without loading it.

    Raises:
      DataError: no set has this name; the message lists those there are.

    >>> spec("cifar10").shape, spec("cifar10").sizes.train
    ((32, 32, 3), 45000)
    """
    if name not in SPECS:
        raise DataError(f"there is no data set {name!r}: choose among {', '.join(SPECS)}")
    return SPECS[name]


def load_split(
    name: str,
    split: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    sequence_length: int = 256,
    image_size: int = 0,
) -> dict[str, np.ndarray]:
    """Reads a whole split into memory.

    name: "digits" comes with scikit-learn; "mnist", "fashion_mnist" and "cifar10" are read by
      `tfds.data_source`; "kjv" is the King James Version, byte by byte.
    split: "train", "validation", "test" or "train+validation". tfds' sets have no validation split:
      theirs is the last 5,000 training records, in the order in which tfds shuffled them to disk.
      digits are put into an order of ours once (1,257, 180 and 360 examples). Of every 20 runs of 100
      verses, the 19th is for validation and the last one for testing.
    data_dir: where tfds keeps its data; by default $TFDS_DATA_DIR, else ~/tensorflow_datasets.
    sequence_length: bytes of a window of text; windows do not overlap. Images ignore it.
    image_size: height and width that images get by zeros around them, as many on both sides; 0 leaves them.
      Text ignores it.

    Returns `{"inputs": ..., "labels": ...}`: for images uint8 `(n, height, width, channels)` and int32
    `(n,)`; for text int32 `(n, sequence_length)` twice, the label being the byte that follows.

    A set of tfds that is not there yet is downloaded by tfds where TensorFlow is installed.

    Raises:
      DataError: unknown name or split, images larger than `image_size`, or the set is not prepared; the
        message has the command.
      MissingExtraError: a package of the extra `data` is not installed.

    >>> arrays = load_split("digits", "test")
    >>> arrays["inputs"].shape, arrays["inputs"].dtype, arrays["labels"].shape
    ((360, 8, 8, 1), dtype('uint8'), (360,))
    """
    spec(name)
    if split not in SPLITS:
        raise DataError(f"{name} has no split {split!r}: choose among {', '.join(SPLITS)}")
    if name == "kjv":
        return text.windows(text.read_text(data_dir), split, sequence_length)
    arrays = _digits(split) if name == "digits" else _prepared(name, split, data_dir)
    return {**arrays, "inputs": _framed(name, arrays["inputs"], image_size)} if image_size else arrays


def _prepared(name: str, split: str, data_dir: str | os.PathLike[str] | None) -> dict[str, np.ndarray]:
    return prepared.read_images(name, tfds_split(name, split), data_dir)


def _framed(name: str, images: np.ndarray, size: int) -> np.ndarray:
    """Images of a network that takes no smaller ones, uint8 `(n, size, size, channels)`, in a frame of zeros."""
    missing = [size - length for length in images.shape[1:3]]
    if min(missing) < 0:
        raise DataError(f"images of {name} are {images.shape[1:3]}, which image_size={size} cannot hold")
    frame = [(0, 0), *((n // 2, n - n // 2) for n in missing), (0, 0)]
    return np.pad(images, frame)


def tfds_split(name: str, split: str) -> str:
    """A split of ours as tfds writes it.

    >>> tfds_split("mnist", "train"), tfds_split("mnist", "validation")
    ('train[:55000]', 'train[55000:]')
    """
    first = spec(name).sizes.train
    return {
        "train": f"train[:{first}]",
        "validation": f"train[{first}:]",
        "train+validation": "train",
        "test": "test",
    }[split]


def _digits(split: str) -> dict[str, np.ndarray]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError("digits come with scikit-learn: pip install 'modelzip_jax[data]'") from error
    digits = load_digits()
    order = epoch_order(seed=0, epoch=0, examples=len(digits.target))
    train, validation, test = np.split(order, np.cumsum(spec("digits").sizes)[:-1])
    chosen = {
        "train": train,
        "validation": validation,
        "test": test,
        "train+validation": np.concatenate([train, validation]),
    }[split]
    return {
        "inputs": digits.images[chosen].astype(np.uint8)[..., None],
        "labels": digits.target[chosen].astype(np.int32),
    }
