"""Writes a data set in tfds' format from local copies of its files; offline_datasets.py runs it.

    python scripts/write_tfds.py NAME FILES DIR

It needs TensorFlow. The builder is tfds' own, so that the records are those that it would write from
the internet; only where it would download, it finds the files that are already there.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from offline_datasets import SourceError, check
from PIL import Image

# Published by MXNet (gluon.data.vision.CIFAR10) for the files of cifar-10-binary.tar.gz.
CIFAR10_SHA1 = {
    "data_batch_1.bin": "aadd24acce27caa71bf4b10992e9e7b2d74c2540",
    "data_batch_2.bin": "c0ba65cce70568cd57b4e03e9ac8d2a5367c1795",
    "data_batch_3.bin": "1dd00a74ab1d17a6e7d73e185b69dbf31242f295",
    "data_batch_4.bin": "aab85764eb3584312d3c7f65fd2fd016e36a258e",
    "data_batch_5.bin": "26e2849e66a845b7f1e4614ae70f4889ae604628",
    "test_batch.bin": "67eb016db431130d61cd03c7ad570b013799c88c",
}
CIFAR10_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


class LocalFiles:
    """Stands in for tfds' download manager where archives could not be rebuilt byte for byte.

    Answers with the verified files that downloading and extracting would give.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def download_and_extract(self, urls: Any) -> Any:
        if isinstance(urls, dict):
            return {key: self.download_and_extract(url) for key, url in urls.items()}
        path = self.folder / urls.rpartition("/")[2].removesuffix(".gz").removesuffix(".tar")
        return str(path)


def rebuild_cifar10(files: Path) -> Path:
    """Writes the binary version of CIFAR-10 from the package's PNGs, and verifies it.

    A PNG is uint8 (10000, 1024, 3): an image a row. A batch is 10,000 records of 1 byte label and
    3,072 bytes image, channels first.
    """
    folder = files / "cifar-10-binary" / "cifar-10-batches-bin"
    folder.mkdir(parents=True, exist_ok=True)
    labels = [*json.loads((files / "train_lables.json").read_bytes()),
              *json.loads((files / "test_lables.json").read_bytes())]  # fmt: skip
    Image.MAX_IMAGE_PIXELS = None  # Ten million pixels look like a decompression bomb to Pillow.
    for name, column in zip(CIFAR10_SHA1, np.uint8(labels).reshape(-1, 10_000, 1), strict=True):
        pixels = np.asarray(Image.open(files / name.replace(".bin", ".png")))[..., :3]
        records = np.concatenate([column, pixels.transpose(0, 2, 1).reshape(10_000, -1)], axis=1)
        (folder / name).write_bytes(records.tobytes())
    check(folder, "sha1", CIFAR10_SHA1)
    (folder / "batches.meta.txt").write_text("\n".join(CIFAR10_CLASSES) + "\n")
    return folder.parent.parent


def main(name: str, files: Path, data_dir: Path) -> None:
    """Writes `data_dir/name/<version>`, which appears whole; an older one stays as it is."""
    builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    if name != "fashion_mnist":  # The files of Fashion-MNIST pass tfds' own verification.
        local = LocalFiles(rebuild_cifar10(files) if name == "cifar10" else files)
        generators = builder._split_generators
        builder._split_generators = lambda dl_manager: generators(local)
    with tempfile.TemporaryDirectory() as downloads:
        builder.download_and_prepare(
            download_dir=downloads, download_config=tfds.download.DownloadConfig(manual_dir=files)
        )


if __name__ == "__main__":
    try:
        main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
    except SourceError as error:
        sys.exit(str(error))
