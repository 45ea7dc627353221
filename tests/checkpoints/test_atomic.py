"""Files and directories appear whole or not at all."""

import os
import subprocess
import sys

import pytest
from checkpoint_trees import values

from modelzip_jax import checkpoints
from modelzip_jax.atomic import atomic_directory, atomic_file
from modelzip_jax.errors import CheckpointError


def write_and_fail(write, failure, beside=None):
    write(b"new")
    if beside is not None:
        beside.mkdir()
    raise failure


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_the_old_file(tmp_path, failure):
    target = tmp_path / "f"
    target.write_bytes(b"old")
    with pytest.raises(failure), atomic_file(target) as file:
        write_and_fail(file.write, failure)
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["f"]


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_no_directory(tmp_path, failure):
    with pytest.raises(failure), atomic_directory(tmp_path / "d") as directory:
        write_and_fail((directory / "x").write_bytes, failure, directory.parent / "beside")
    assert os.listdir(tmp_path) == []


def test_nothing_is_there_before_the_end(tmp_path):
    with atomic_file(tmp_path / "f") as file:
        file.write(b"new")
        assert not (tmp_path / "f").exists()
    with atomic_directory(tmp_path / "d") as directory:
        (directory / "x").write_bytes(b"1")
        assert not (tmp_path / "d").exists()
    assert (tmp_path / "f").read_bytes() == b"new"
    assert (tmp_path / "d" / "x").read_bytes() == b"1"
    assert sorted(os.listdir(tmp_path)) == ["d", "f"]


def test_modes_links_and_long_names(tmp_path):
    target = tmp_path / ("n" * 250)
    with atomic_file(target) as file:
        file.write(b"1")
    umask = os.umask(0)
    os.umask(umask)
    assert target.stat().st_mode & 0o777 == 0o666 & ~umask
    target.chmod(0o640)
    (tmp_path / "link").symlink_to(target)
    with atomic_file(tmp_path / "link") as file:
        file.write(b"2")
    assert (tmp_path / "link").is_symlink()
    assert target.read_bytes() == b"2"
    assert target.stat().st_mode & 0o777 == 0o640


def test_what_is_never_replaced(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "f").write_bytes(b"x")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(IsADirectoryError), atomic_file(tmp_path / "d"):
        pass
    with pytest.raises(FileExistsError), atomic_file(tmp_path / "pipe"):
        pass
    with pytest.raises(FileExistsError), atomic_directory(tmp_path / "f"):
        pass
    with atomic_directory(tmp_path / "d") as directory:
        (directory / "x").write_bytes(b"1")
    with pytest.raises(FileExistsError, match="not empty"), atomic_directory(tmp_path / "d"):
        pass
    with pytest.raises(FileNotFoundError), atomic_file(tmp_path / "absent" / "f"):
        pass


class Interrupting:
    """Counts as a float32 array until its values are asked for."""

    dtype, shape = values("float32").dtype, (3, 5)

    def __array__(self, *args, **kwargs):
        raise KeyboardInterrupt


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".msgpack"])
def test_an_interrupted_write_leaves_nothing(tmp_path, suffix):
    with pytest.raises(KeyboardInterrupt):
        checkpoints.write(tmp_path / f"m{suffix}", {"a": values("int8"), "b": Interrupting()})
    assert os.listdir(tmp_path) == []


def test_places_that_cannot_be_written_are_named(tmp_path):
    (tmp_path / "m.npz").mkdir()
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "x").write_bytes(b"1")
    for path in (tmp_path / "m.npz", tmp_path / "m", tmp_path / "absent" / "m.npz"):
        with pytest.raises(CheckpointError, match=str(path)):
            checkpoints.write(path, {"a": values("int8")})
    assert sorted(os.listdir(tmp_path)) == ["m", "m.npz"]


def test_errors_of_the_system_name_the_target(tmp_path, monkeypatch):
    for make in (atomic_file, atomic_directory):
        with pytest.raises(FileNotFoundError) as caught, make(tmp_path / "no" / "m.mz"):
            pass
        assert caught.value.filename == str(tmp_path / "no" / "m.mz")
    with pytest.raises(OSError, match=r"m\.mz") as caught, atomic_file(tmp_path / "m.mz"):
        raise OSError(28, "No space left on device")
    with pytest.raises(OSError, match="other") as caught, atomic_file(tmp_path / "m.mz"):
        raise OSError(2, "No such file", "other")


KILLED = """
import os, sys
from modelzip_jax.atomic import atomic_directory, atomic_file
with {writer}({path!r}) as held:
    print("writing", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("writer", ["atomic_file", "atomic_directory"])
def test_what_a_killed_writer_left_is_swept_by_the_next(tmp_path, writer):
    target = tmp_path / "f"
    code = KILLED.format(writer=writer, path=str(target))
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"writing\n"
        with atomic_file(target) as file:  # One that lives keeps what it writes to.
            file.write(b"new")
        target.unlink()
        assert len(os.listdir(tmp_path)) == 1
        process.kill()
    (tmp_path / ".other.0123456789ab.tmp").write_bytes(b"")
    with atomic_file(target) as file:
        file.write(b"newer")
    assert sorted(os.listdir(tmp_path)) == [".other.0123456789ab.tmp", "f"]
