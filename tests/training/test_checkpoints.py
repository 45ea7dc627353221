import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import modelzip_jax as mz
from modelzip_jax.errors import CheckpointError
from modelzip_jax.training.snapshots import Checkpoints, CheckpointWarning
from modelzip_jax.training.state import begin


def state(step=0, width=4, tx=None):
    params = {
        "dense": {
            "kernel": jnp.asarray(np.linspace(-1, 1, 3 * width, dtype="f4").reshape(3, width)),
            "bias": jnp.ones(width),
        }
    }
    tx = tx or mz.wrap(optax.adam(0.1), mz.only("**/kernel", mz.prune(sparsity=0.5)))
    params, opt_state = mz.start(tx, params)
    return begin(params, {"batch_stats": {"mean": jnp.full(2, step)}}, opt_state, jax.random.key(3), step)


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)


def test_everything_comes_back(tmp_path):
    with Checkpoints(tmp_path) as keep:
        keep.save(state(7), {"batches": {"position": 7}}, {})
    with Checkpoints(tmp_path) as keep:
        restored, rest = keep.restore(state(0))
    same(restored, state(7))
    assert rest["batches"] == {"position": 7}


def test_the_saved_state_is_a_copy_that_donation_cannot_reach(tmp_path):
    step = jax.jit(
        lambda s: jax.tree.map(lambda x: x + 1 if x.dtype == jnp.float32 else x, s), donate_argnums=0
    )
    now = state(1)
    with Checkpoints(tmp_path) as keep:
        keep.save(now, {}, {})
        for _ in range(20):
            now = step(now)
        jax.block_until_ready(now)
    with Checkpoints(tmp_path) as keep:
        same(keep.restore(state(0))[0], state(1))


@pytest.mark.parametrize(("mode", "best"), [("max", 2), ("min", 1)])
def test_the_best_and_the_last_two_are_kept(tmp_path, mode, best):
    with Checkpoints(tmp_path, "score", mode) as keep:
        for step, score in ((1, 0.1), (2, 0.9), (3, 0.4), (4, 0.5)):
            keep.save(state(step), {}, {"score": score})
        keep.save(state(5), {}, {})
    with Checkpoints(tmp_path, "score", mode) as keep:
        assert keep.steps() == [best, 4, 5]
        assert keep.best_step() == best
        same(keep.restore(state(0), best)[0], state(best))


def test_a_checkpoint_of_another_network_or_optimizer_is_refused_by_leaf(tmp_path):
    with Checkpoints(tmp_path) as keep:
        keep.save(state(1), {}, {})
        keep.close()
    with Checkpoints(tmp_path) as keep:
        with pytest.raises(CheckpointError, match=r"another network.*'opt_state.*dense/bias' has the shape"):
            keep.restore(state(0, width=5))
        with pytest.raises(CheckpointError, match="another network or optimizer"):
            keep.restore(state(0, tx=mz.wrap(optax.sgd(0.1), mz.identity())))


def test_a_step_that_there_is_not(tmp_path):
    with Checkpoints(tmp_path) as keep:
        keep.save(state(1), {}, {})
    with Checkpoints(tmp_path) as keep, pytest.raises(CheckpointError, match=r"step 5; there are \[1\]"):
        keep.restore(state(0), 5)


def halve(folder):
    """Cuts every file below a folder in half."""
    for path in folder.rglob("*"):
        if path.is_file():
            os.truncate(path, path.stat().st_size // 2)


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_taken(tmp_path):
    with Checkpoints(tmp_path, "score") as keep:
        for step in (1, 2):
            keep.save(state(step), {"position": step}, {"score": 1.0})
    halve(tmp_path / "2" / "state")
    with Checkpoints(tmp_path, "score") as keep:
        with pytest.warns(
            CheckpointWarning, match=r"2 is damaged: .*renamed to 2.damaged, and step 1"
        ) as told:
            restored, rest = keep.restore(state(0))
        assert "\n" not in str(told[0].message)
        same(restored, state(1))
        assert rest == {"position": 1}
        keep.save(state(2), {"position": 2}, {"score": 2.0})
    with Checkpoints(tmp_path, "score") as keep:
        assert keep.steps() == [1, 2]
        same(keep.restore(state(0))[0], state(2))


def test_where_no_checkpoint_is_sound_each_is_named(tmp_path):
    with Checkpoints(tmp_path) as keep:
        keep.save(state(1), {}, {})
        keep.save(state(2), {}, {})
    halve(tmp_path / "1" / "rest")
    halve(tmp_path / "2" / "state")
    with Checkpoints(tmp_path) as keep:
        with pytest.raises(
            CheckpointError, match=r"2: .*; checkpoint .*1: its record .* to begin anew"
        ) as told:
            keep.restore(state(0))
        assert "\n" not in str(told.value)
        with pytest.raises(CheckpointError, match=r"2: .*other checkpoints: \[1\]"):
            keep.restore(state(0), 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


def test_a_damaged_checkpoint_that_may_be_the_best_is_kept_and_named(tmp_path):
    with Checkpoints(tmp_path, "score") as keep:
        for step, score in ((1, 0.9), (2, 0.1), (3, 0.2)):
            keep.save(state(step), {}, {"score": score})
    halve(tmp_path / "1" / "rest")
    with Checkpoints(tmp_path, "score") as keep:
        same(keep.restore(state(0))[0], state(3))
        keep.save(state(4), {}, {"score": 0.3})
        assert keep.steps() == [1, 3, 4]
        with pytest.raises(CheckpointError, match="1 is damaged, and may have been the best"):
            keep.best_step()


def test_another_dtype_is_another_network_and_no_damage(tmp_path):
    with Checkpoints(tmp_path) as keep:
        keep.save(state(1), {}, {})
    like = state(0)
    like = like._replace(params=jax.tree.map(lambda x: x.astype(jnp.bfloat16), like.params))
    with (
        Checkpoints(tmp_path) as keep,
        pytest.raises(CheckpointError, match=r"is float32 in .* bfloat16 in this"),
    ):
        keep.restore(like)


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path):
    """In a process of its own, whose files may not grow."""
    script = f"""
import resource, signal, sys
sys.path[:0] = {[os.path.dirname(__file__), os.getcwd()]!r}
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from test_checkpoints import Checkpoints, CheckpointError, state
with Checkpoints({str(tmp_path)!r}) as keep:
    keep.save(state(1), {{}}, {{}})
try:
    with Checkpoints({str(tmp_path)!r}) as keep:
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))
        keep.save(state(2, width=2000), {{}}, {{}})
except CheckpointError as error:
    print("refused:", error)
    sys.exit(3)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 3, done.stderr[-2000:]
    assert "refused: checkpoint" in done.stdout
    with Checkpoints(tmp_path) as keep:
        same(keep.restore(state(0))[0], state(1))


def test_a_sharded_state_is_restored_onto_another_mesh(tmp_path):
    """In a process with eight devices: saved from a mesh of 8, restored onto meshes of 2 by 4 and of 1."""
    script = f"""
import os, sys
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
sys.path[:0] = {[os.path.dirname(__file__), os.getcwd()]!r}
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from test_checkpoints import Checkpoints, same, state

def placed(s, mesh, kernel):
    def put(path, x):
        spec = kernel if "kernel" in str(path) and x.ndim == 2 and x.dtype == np.float32 else P()
        return jax.device_put(x, NamedSharding(mesh, spec))
    return jax.tree_util.tree_map_with_path(put, s)

devices = np.asarray(jax.devices())
eight = placed(state(4, width=16), Mesh(devices, ("a",)), P(None, "a"))
with Checkpoints({str(tmp_path)!r}) as keep:
    keep.save(eight, {{}}, {{}})
for shape, spec in (((2, 4), P(None, "b")), ((1, 1), P())):
    mesh = Mesh(devices[: np.prod(shape)].reshape(shape), ("a", "b"))
    like = placed(state(0, width=16), mesh, spec)
    with Checkpoints({str(tmp_path)!r}) as keep:
        restored, _ = keep.restore(like)
    same(restored, eight)
    assert restored.params["dense"]["kernel"].sharding == like.params["dense"]["kernel"].sharding
print("restored")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.strip() == "restored", done.stderr[-3000:]
