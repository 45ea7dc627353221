"""A flipped bit anywhere in a run's checkpoints is noticed, or changes nothing."""

import shutil
import warnings

import numpy as np
import pytest
from test_checkpoints import same, state

from modelzip_jax.errors import CheckpointError
from modelzip_jax.training.snapshots import Checkpoints, CheckpointWarning

SAVED = {4: {"score": 0.25}, 8: {"score": 0.5}}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Two checkpoints of a run."""
    folder = tmp_path_factory.mktemp("saved")
    with Checkpoints(folder, "score") as keep:
        for step, numbers in SAVED.items():
            keep.save(state(step), {"position": step}, numbers)
    return folder


def flip(folder, draw):
    """Flips a bit of one file; each file is as likely as another, so that small ones are not left out."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    path = files[draw.integers(len(files))]
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
                restored, rest = keep.restore(state(0))
                best = keep.best_step()
                same(keep.restore(state(0), best)[0], state(best))
        except CheckpointError:
            return "noticed"
    told = [str(w.message) for w in told if w.category is CheckpointWarning]
    step = 4 if told else 8
    same(restored, state(step))
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


def test_a_handful_of_flips(saved, tmp_path):
    found = check_flips(saved, tmp_path, 12, seed=0)
    assert found["noticed"] >= 1


@pytest.mark.slow
def test_200_flips(saved, tmp_path):
    """The bar of the issue on trust, in files of the newest checkpoint and of the one before."""
    found = check_flips(saved, tmp_path, 200, seed=1)
    assert sum(found.values()) == 200
    print(found)
