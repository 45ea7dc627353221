"""A flipped bit anywhere in a run's checkpoints is noticed, or changes nothing."""

import shutil
import warnings

import numpy as np
import pytest
from test_checkpoints import same, state

from modelzip_jax.errors import CheckpointError
from modelzip_jax.training.snapshots import Checkpoints, CheckpointWarning

WIDTH = 400  # Storage has no checksum of its own over what is not small.
SAVED = {4: {"score": 0.25}, 8: {"score": 0.5}}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Two checkpoints of a run."""
    folder = tmp_path_factory.mktemp("saved")
    with Checkpoints(folder, "score") as keep:
        for step, numbers in SAVED.items():
            keep.save(state(step, WIDTH), {"position": step}, numbers)
    return folder


def flip(folder, draw):
    """Flips a bit: each byte is as likely as another, or each file, so that small ones are not left out."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    sizes = np.asarray([path.stat().st_size for path in files], float)
    shares = sizes / sizes.sum() if draw.integers(2) else np.full(len(files), 1 / len(files))
    path = files[draw.choice(len(files), p=shares)]
    content = bytearray(path.read_bytes())
    content[draw.integers(len(content))] ^= 1 << draw.integers(8)
    path.write_bytes(content)
    return path.relative_to(folder)


def outcome(folder):
    """What a run that goes on from the folder sees: "noticed" or "harmless". Anything else fails."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", CheckpointWarning)
        try:
            with Checkpoints(folder, "score") as keep:
                restored, rest = keep.restore(state(0, WIDTH))
                best = keep.best_step()
                same(keep.restore(state(0, WIDTH), best)[0], state(best, WIDTH))
        except CheckpointError:
            return "noticed"
    told = [str(w.message) for w in told if w.category is CheckpointWarning]
    step = 4 if told else 8
    same(restored, state(step, WIDTH))
    assert (rest, best) == ({"position": step}, step)
    return "noticed" if told else "harmless"


def check_flips(saved, tmp_path, count, seed):
    draw = np.random.default_rng(seed)
    found = {"noticed": 0, "harmless": 0}
    for index in range(count):
        folder = tmp_path / str(index)
        shutil.copytree(saved, folder)
        place = flip(folder, draw)
        try:
            found[outcome(folder)] += 1
        except BaseException as error:
            raise AssertionError(f"flip {index}, in {place}") from error
        shutil.rmtree(folder)
    return found


# Threads of Orbax's report to an event loop that the restore they belonged to has closed when it failed.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def test_a_handful_of_flips(saved, tmp_path):
    found = check_flips(saved, tmp_path, 12, seed=0)
    assert found["noticed"] >= 1


def test_a_flip_that_the_storage_does_not_notice_is_found_by_the_digests(saved, tmp_path):
    source = max((saved / "8" / "state").rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    messages = []
    for index in range(4):
        shutil.copytree(saved, folder := tmp_path / str(index))
        path = folder / source.relative_to(saved)
        content = bytearray(path.read_bytes())
        content[len(content) * (index + 1) // 6] ^= 16
        path.write_bytes(content)
        with Checkpoints(folder) as keep, pytest.warns(CheckpointWarning, match="8 is damaged") as told:
            keep.restore(state(0, WIDTH))
        messages += [str(warning.message) for warning in told]
    assert any(" is not what was written" in message for message in messages), messages


@pytest.mark.slow
def test_200_flips(saved, tmp_path):
    found = check_flips(saved, tmp_path, 200, seed=1)
    print(found)  # pytest -s
    assert found["noticed"] >= 40
