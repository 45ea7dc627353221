"""Named sets: splits without overlap, the right types, and one clear line where something is missing."""

import re
import subprocess
import sys

import numpy as np
import pytest

from modelzip_jax.errors import DataError, MissingExtraError
from modelzip_jax.training import data
from modelzip_jax.training.data import prepared, text
from modelzip_jax.training.data.sets import SPLITS, tfds_split

LINES = b"".join(b"line %d of the text\n" % i for i in range(4_000))


def test_digits_are_split_once_and_for_all():
    parts = {split: data.load_split("digits", split) for split in SPLITS}
    for split, part in parts.items():
        assert part["inputs"].dtype == np.uint8
        assert part["labels"].dtype == np.int32
        assert part["inputs"].shape[1:] == data.spec("digits").shape
        size = data.spec("digits").sizes._asdict().get(split, 1_437)
        assert len(part["inputs"]) == len(part["labels"]) == size
    both = np.concatenate([parts["train"]["inputs"], parts["validation"]["inputs"]])
    np.testing.assert_array_equal(parts["train+validation"]["inputs"], both)
    assert parts["test"]["labels"][:5].tolist() == [5, 8, 6, 6, 4]  # recorded
    assert sum(len(parts[s]["labels"]) for s in ("train", "validation", "test")) == 1797


def test_images_in_a_frame_of_zeros():
    plain, framed = (data.load_split("digits", "test", image_size=size) for size in (0, 11))
    assert framed["inputs"].shape == (360, 11, 11, 1)
    assert framed["inputs"].dtype == np.uint8
    np.testing.assert_array_equal(framed["inputs"][:, 1:9, 1:9], plain["inputs"])
    assert framed["inputs"].sum() == plain["inputs"].sum()
    np.testing.assert_array_equal(framed["labels"], plain["labels"])
    with pytest.raises(DataError, match="image_size=7 cannot hold"):
        data.load_split("digits", "test", image_size=7)


def test_recorded_means_are_those_of_the_training_split():
    images = data.load_split("digits", "train")["inputs"]
    np.testing.assert_allclose(data.spec("digits").mean, images.mean(), rtol=1e-3)
    np.testing.assert_allclose(data.spec("digits").std, images.std(), rtol=1e-3)


@pytest.mark.parametrize("name", ["tiny_gray", "tiny_color"])
def test_what_tfds_wrote_is_read_back(tiny, name):
    root, images = tiny
    arrays = prepared.read_images(name, "train[:15]", root)
    np.testing.assert_array_equal(arrays["inputs"], images[name][:15])
    assert arrays["labels"].tolist() == list(range(15))
    assert arrays["labels"].dtype == np.int32


@pytest.mark.parametrize("split", ["train[20:]", "dev"])
def test_a_split_that_is_not_there(tiny, split):
    with pytest.raises(DataError, match=rf"tiny_gray has no examples in the split '{re.escape(split)}'"):
        prepared.read_images("tiny_gray", split, tiny[0])


def test_validation_is_the_end_of_training():
    assert tfds_split("cifar10", "train") == "train[:45000]"
    assert tfds_split("cifar10", "validation") == "train[45000:]"
    assert tfds_split("cifar10", "train+validation") == "train"
    assert tfds_split("cifar10", "test") == "test"


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_prepared_sets(name):
    try:
        part = data.load_split(name, "validation")
    except DataError as error:
        pytest.skip(str(error))
    assert part["inputs"].shape == (data.spec(name).sizes.validation, *data.spec(name).shape)
    assert part["inputs"].dtype == np.uint8
    assert sorted(set(part["labels"].tolist())) == list(range(10))
    mean = part["inputs"].mean(axis=(0, 1, 2))
    np.testing.assert_allclose(mean, data.spec(name).mean, rtol=0.03)


def test_windows_of_text():
    parts = {split: text.windows(LINES, split, 50) for split in SPLITS}
    for part in parts.values():
        assert part["inputs"].dtype == part["labels"].dtype == np.int32
        assert part["inputs"].shape == part["labels"].shape
        np.testing.assert_array_equal(part["inputs"].ravel()[1:], part["labels"].ravel()[:-1])
    train, validation, test = (
        set(bytes(parts[s]["inputs"].ravel().tolist()).split(b"\n")[:-1])
        for s in ("train", "validation", "test")
    )
    assert not train & validation
    assert not train & test
    assert not validation & test
    assert len(validation) in range(196, 201)


def test_kjv_is_read_from_the_data_directory(tmp_path):
    (tmp_path / "kjv").mkdir()
    (tmp_path / "kjv" / "kjv.txt").write_bytes(LINES)
    part = data.load_split("kjv", "test", data_dir=tmp_path, sequence_length=16)
    assert bytes(part["inputs"][0].tolist()) == b"line 1900 of the"


@pytest.mark.parametrize("length", [0, -1, 10**6])
def test_windows_longer_than_the_text(length):
    with pytest.raises(DataError, match=f"sequence_length={length}: the split 'test' has"):
        text.windows(LINES, "test", length)


def test_unknown_names_and_splits():
    with pytest.raises(DataError, match="no data set 'mnsit': choose among digits, mnist"):
        data.load_split("mnsit", "train")
    with pytest.raises(DataError, match="digits has no split 'training': choose among train"):
        data.load_split("digits", "training")


@pytest.mark.parametrize("name", ["mnist", "kjv"])
def test_a_set_that_is_not_there_names_the_command(tmp_path, monkeypatch, name):
    hide(monkeypatch, "tensorflow")
    command = f"`python scripts/offline_datasets.py {name} --data-dir {tmp_path}`"
    with pytest.raises(DataError) as error:
        data.load_split(name, "train", data_dir=tmp_path)
    assert command in str(error.value)
    assert "\n" not in str(error.value)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(DataError, match=f"is not prepared in {tmp_path}.*datasets.py {name}`$"):
        data.load_split(name, "train")


def test_a_failed_download_says_why(tmp_path, monkeypatch):
    class Builder:
        def download_and_prepare(self):
            raise OSError("no route")

    class Tfds:
        builder = staticmethod(lambda *_, **__: Builder())

    monkeypatch.setattr(prepared.importlib.util, "find_spec", lambda _: True)
    with pytest.raises(DataError, match=r"cannot download it \(no route\): run `python scripts"):
        prepared._download(Tfds, "mnist", tmp_path)


@pytest.mark.parametrize("package", ["tensorflow_datasets", "array_record"])
def test_missing_packages_name_the_extra(tmp_path, monkeypatch, package):
    hide(monkeypatch, package)
    with pytest.raises(MissingExtraError, match=rf"{package}: pip install 'modelzip_jax\[data\]'"):
        data.load_split("mnist", "train", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("module", "call"),
    [
        ("sklearn.datasets", lambda: data.load_split("digits", "train")),
        ("PIL", lambda: prepared.decode_image(b"")),
        ("grain", lambda: data.stream("digits", "train", 4)),
    ],
)
def test_missing_imports_name_the_extra(monkeypatch, module, call):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'modelzip_jax\[data\]'"):
        call()


def test_importing_is_light_and_reading_needs_no_tensorflow(tiny):
    program = f"""
import sys
from modelzip_jax.training.data import prepared
heavy = {{"tensorflow", "tensorflow_datasets", "grain", "sklearn", "PIL"}}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
assert len(prepared.read_images("tiny_color", "train", {str(tiny[0])!r})["labels"]) == 20
assert "tensorflow" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_names_are_those_with_a_spec():
    assert [data.spec(name).classes for name in data.names()] == [10, 10, 10, 10, 256]
    assert len({data.spec(name) for name in data.names()}) == 5  # hashable: static arguments of a jit


def hide(monkeypatch, package):
    """Makes a package look as if it were not installed."""
    find_spec = prepared.importlib.util.find_spec
    monkeypatch.setattr(
        prepared.importlib.util, "find_spec", lambda name: None if name == package else find_spec(name)
    )
