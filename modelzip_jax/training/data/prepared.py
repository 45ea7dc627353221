"""Sets that tfds has prepared, read without TensorFlow."""

from __future__ import annotations

import importlib
import importlib.util
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from modelzip_jax.errors import DataError, MissingExtraError

__all__ = ["data_directory", "decode_image", "missing", "read_images", "source"]

CHUNK = 4_096  # records read at once: large enough for the reader, small next to the arrays


class Records(Protocol):
    """Records by number; several at once are read faster."""

    def __len__(self) -> int: ...
    def __getitem__(self, number: int, /) -> dict[str, Any]: ...
    def __getitems__(self, numbers: Sequence[int], /) -> Sequence[dict[str, Any]]: ...


def data_directory(data_dir: str | os.PathLike[str] | None) -> Path:
    """Where data is kept: `data_dir`, or what tfds takes by default."""
    chosen = data_dir or os.environ.get("TFDS_DATA_DIR") or Path.home() / "tensorflow_datasets"
    return Path(chosen).expanduser()


def missing(name: str, data_dir: str | os.PathLike[str] | None, *, why: str = "") -> DataError:
    """The error for a set that is not there, with the command that gets it."""
    option = f" --data-dir {os.fspath(data_dir)}" if data_dir else ""
    return DataError(
        f"{name} is not prepared in {data_directory(data_dir)}{why}: run "
        f"`python scripts/offline_datasets.py {name}{option}`"
    )


def source(name: str, split: str, data_dir: str | os.PathLike[str] | None) -> Records:
    """The records of a split, by number, their images still PNG bytes.

    name, split: as tfds writes them, such as `"train[:55000]"`. What is not there yet is downloaded and
    prepared by tfds, if TensorFlow is installed: reading needs none, writing does.

    Raises:
      DataError: the set is not prepared, is prepared in a format that cannot be read by number, or
        cannot be downloaded; or it has no such split.
      MissingExtraError: tfds or array_record is not installed.
    """
    tfds = _tfds()
    root = data_directory(data_dir)
    if not any(root.glob(f"{name}/*/dataset_info.json")):
        _download(tfds, name, data_dir)
    decoders = {"image": tfds.decode.SkipDecoding()}
    try:
        return tfds.data_source(name, split=split, data_dir=root, decoders=decoders, download=False)
    except NotImplementedError as error:  # prepared as tfrecord
        raise missing(name, data_dir, why=" as array_record") from error
    except ValueError as error:  # no such split, or an empty part of one
        raise DataError(f"{name} has no examples in the split {split!r}: {error}") from error


def read_images(name: str, split: str, data_dir: str | os.PathLike[str] | None) -> dict[str, np.ndarray]:
    """All images of a split, uint8 `(n, height, width, channels)`, and labels, int32 `(n,)`."""
    records = source(name, split, data_dir)
    inputs = np.empty((len(records), *decode_image(records[0]["image"]).shape), np.uint8)
    labels = np.empty(len(records), np.int32)
    for start in range(0, len(records), CHUNK):
        numbers = range(start, min(start + CHUNK, len(records)))
        for number, record in zip(numbers, records.__getitems__(numbers), strict=True):
            inputs[number], labels[number] = decode_image(record["image"]), record["label"]
    return {"inputs": inputs, "labels": labels}


def decode_image(png: bytes) -> np.ndarray:
    """An image file as uint8 `(height, width, channels)`."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("decoding images needs Pillow: pip install 'modelzip_jax[data]'") from error
    pixels = np.asarray(Image.open(io.BytesIO(png)))
    return pixels.reshape(*pixels.shape[:2], -1)


def _tfds() -> Any:
    for module in ("array_record", "tensorflow_datasets"):
        if importlib.util.find_spec(module) is None:
            raise MissingExtraError(f"prepared sets need {module}: pip install 'modelzip_jax[data]'")
    return importlib.import_module("tensorflow_datasets")


def _download(tfds: Any, name: str, data_dir: str | os.PathLike[str] | None) -> None:
    if importlib.util.find_spec("tensorflow") is None:
        raise missing(name, data_dir, why=", and tfds needs tensorflow-cpu to download it")
    builder = tfds.builder(name, data_dir=data_directory(data_dir), file_format="array_record")
    try:
        builder.download_and_prepare()
    except Exception as error:  # tfds passes on whatever its libraries raise: network, disk, checksums
        raise missing(name, data_dir, why=f", and tfds cannot download it ({error})") from error
