"""Files that the official libraries write are read, and theirs read ours."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import safetensors.flax
import safetensors.numpy
from checkpoint_trees import assert_same, values
from flax import linen, serialization
from flax.training import checkpoints as flax_checkpoints
from flax.training.train_state import TrainState

from modelzip_jax import checkpoints
from modelzip_jax.errors import CheckpointError

FLAT = {
    "bert.embed.weight": values("float32", (4, 3)),
    "bert.0.scale": values("float16", (5,)),
    "bert.0.ids": values("int64", (2, 2)),
    "flag": values("bool", (3,)),
    "none": values("float32", (0, 2)),
}
NESTED = {
    "bert": {
        "embed": {"weight": FLAT["bert.embed.weight"]},
        "0": {"scale": FLAT["bert.0.scale"], "ids": FLAT["bert.0.ids"]},
    },
    "flag": FLAT["flag"],
    "none": FLAT["none"],
}


def test_reads_safetensors(tmp_path):
    safetensors.numpy.save_file(FLAT, tmp_path / "m.safetensors", metadata={"format": "pt"})
    assert_same(checkpoints.read(tmp_path / "m.safetensors"), NESTED)


def test_safetensors_reads_ours(tmp_path):
    tree = NESTED | {"half": jnp.ones((3, 2), jnp.bfloat16)}
    checkpoints.write(tmp_path / "m.safetensors", tree)
    loaded = safetensors.numpy.load_file(tmp_path / "m.safetensors")
    assert_same({n: loaded[n] for n in FLAT}, FLAT)
    half = safetensors.flax.load_file(tmp_path / "m.safetensors")["half"]
    assert half.dtype == jnp.bfloat16
    assert (half == 1).all()


def test_reads_bfloat16_safetensors(tmp_path):
    tree = {"w": jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3)}
    safetensors.flax.save_file(tree, tmp_path / "m.safetensors")
    assert_same(checkpoints.read(tmp_path / "m.safetensors"), tree)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_reads_npz(tmp_path, save):
    arrays = {
        "a/w": values("float32"),
        "a/b": np.asfortranarray(values("float64")),
        "c": np.int8(3),
    }
    save(tmp_path / "m.npz", **arrays, big=values(">i4"))
    expected = {
        "a": {"w": arrays["a/w"], "b": arrays["a/b"]},
        "big": values("<i4"),
        "c": np.asarray(np.int8(3)),
    }
    assert_same(checkpoints.read(tmp_path / "m.npz"), expected)


def test_reads_nameless_bfloat16_npz(tmp_path):
    tree = {"w": np.asarray(jnp.arange(6, dtype=jnp.bfloat16))}
    np.savez(tmp_path / "m.npz", **tree)
    assert_same(checkpoints.read(tmp_path / "m.npz"), tree)


def test_numpy_reads_ours(tmp_path):
    checkpoints.write(tmp_path / "m.npz", NESTED)
    with np.load(tmp_path / "m.npz") as archive:
        for name, array in FLAT.items():
            assert_same(archive[name.replace(".", "/")], array)


def flax_tree():
    return {
        "params": {"w": np.asarray(values("float32", (200, 200))), "b": jnp.ones(3, jnp.bfloat16)},
        "list": [values("int8"), (values("float16"), None)],
        "step": 3,
        "scale": np.float32(0.5),
        "rate": 1e-3,
        "name": "encoder",
        "root": 1 + 2j,
        "scalar": values("float32", ()),
    }


def test_msgpack_equals_flax_byte_for_byte(tmp_path):
    checkpoints.write(tmp_path / "m.msgpack", flax_tree())
    assert (tmp_path / "m.msgpack").read_bytes() == serialization.to_bytes(flax_tree())


def test_msgpack_reads_what_flax_restores(tmp_path):
    data = serialization.to_bytes(flax_tree())
    (tmp_path / "m.msgpack").write_bytes(data)
    actual, expected = checkpoints.read(tmp_path / "m.msgpack"), serialization.msgpack_restore(data)
    assert actual.keys() == expected.keys()
    assert type(actual["scale"]) is np.float32
    for key in ("step", "rate", "name", "root"):
        assert actual.pop(key) == expected.pop(key)
    assert_same(actual, expected)


def test_msgpack_train_state(tmp_path):
    model = linen.Dense(3)
    params = model.init(jax.random.key(0), jnp.ones((1, 2)))["params"]
    state = TrainState.create(apply_fn=model.apply, params=params, tx=optax.adam(1e-3))
    (tmp_path / "m.msgpack").write_bytes(serialization.to_bytes(state))
    assert_same(checkpoints.read(tmp_path / "m.msgpack")["params"], params)
    checkpoints.write(tmp_path / "n.msgpack", state)
    restored = serialization.from_bytes(state, (tmp_path / "n.msgpack").read_bytes())
    assert_same(restored.params, params)


@pytest.mark.parametrize("writer", ["flax", "ours"])
def test_msgpack_pieces_both_ways(tmp_path, monkeypatch, writer):
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 64)
    monkeypatch.setattr(checkpoints.msgpack_file, "MAX_CHUNK", 64)
    tree = {"a": {"big": values("float32", (9, 11))}, "half": values("bfloat16", (70,))}
    ours = tmp_path / "m.msgpack"
    if writer == "flax":
        ours.write_bytes(serialization.to_bytes(tree))
        assert_same(checkpoints.read(ours), tree)
    else:
        checkpoints.write(ours, tree)
        assert_same(serialization.msgpack_restore(ours.read_bytes()), tree)


ORBAX_TREE = {"a": {"w": values("float32"), "b": values("bfloat16", (3,))}, "l": [values("int32")]}


def test_orbax_reads_ours(tmp_path):
    checkpoints.write(tmp_path / "m", ORBAX_TREE)
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(tmp_path / "m", jax.tree.map(jnp.zeros_like, ORBAX_TREE))
    assert_same(jax.tree.map(np.asarray, restored), ORBAX_TREE)
    assert [child.name for child in tmp_path.iterdir()] == ["m"]


def test_reads_checkpointers(tmp_path):
    on_device = jax.tree.map(jnp.asarray, ORBAX_TREE)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "standard", on_device)
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "pytree", ORBAX_TREE)
    assert_same(checkpoints.read(tmp_path / "standard"), ORBAX_TREE)
    assert_same(checkpoints.read(tmp_path / "pytree"), ORBAX_TREE)


def stepwise(root, tree, **options):
    with ocp.CheckpointManager(root, options=ocp.CheckpointManagerOptions(**options)) as manager:
        for step in (2, 10):
            saved = jax.tree.map(lambda x, s=step: x * np.asarray(s == 10, x.dtype), tree)
            manager.save(step, args=ocp.args.StandardSave(saved), metrics={"loss": 1.0})


def composite(root, **items):
    save = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(root, args=ocp.args.Composite(**save, about=ocp.args.JsonSave({"a": 1})))


def pytree(root, tree, **options):
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)) as checkpointer:
        checkpointer.save(root, args=ocp.args.PyTreeSave(tree))


def legacy_flax(root, tree):
    for step in (2, 10):
        saved = jax.tree.map(lambda x, s=step: x * np.asarray(s == 10, x.dtype), tree)
        flax_checkpoints.save_checkpoint(str(root), saved, step, keep=2)


def first_version(root, tree):
    try:
        from orbax.checkpoint import v1  # an attribute in some versions, a module in others
    except ImportError:
        pytest.skip("this Orbax has no second interface")
    with v1.training.Checkpointer(root) as checkpointer:
        checkpointer.save_pytree(7, tree)


def old_files(folder, tree):
    """A tree as Orbax wrote it before it had `_METADATA`: the names are in a msgpack file with placeholders."""
    (folder / "_METADATA").unlink()
    (folder / "_CHECKPOINT_METADATA").unlink(missing_ok=True)
    named = jax.tree_util.tree_map_with_path(
        lambda path, _: ocp.utils.leaf_placeholder(".".join(ocp.utils.tuple_path_from_keypath(path))), tree
    )
    (folder / "checkpoint").write_bytes(ocp.msgpack_utils.msgpack_serialize(named))


def old(root, tree, **options):
    pytree(root, tree, **options)
    old_files(root, tree)


def old_manager(root, tree):
    stepwise(root, tree)
    for step in (2, 10):
        (root / str(step) / "_CHECKPOINT_METADATA").unlink()
        old_files(root / str(step) / "default", tree)


LAYOUTS = {
    "old": lambda root, tree: old(root, tree, use_ocdbt=False),
    "old with ocdbt": lambda root, tree: old(root, tree, use_ocdbt=True),
    "old manager": old_manager,
    "ocdbt": lambda root, tree: pytree(root, tree, use_ocdbt=True),
    "no ocdbt": lambda root, tree: pytree(root, tree, use_ocdbt=False),
    "zarr3": lambda root, tree: pytree(root, tree, use_ocdbt=False, use_zarr3=True),
    "manager": stepwise,
    "manager with a prefix": lambda root, tree: stepwise(
        root, tree, step_prefix="ckpt", step_format_fixed_length=6
    ),
    "params item": lambda root, tree: composite(root, params=tree, opt_state={"mu": tree}),
    "state item": lambda root, tree: composite(root, state=tree),
    "any item": lambda root, tree: composite(root, whatever=tree),
    "flax": legacy_flax,
    "orbax v1": first_version,
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("relative", [False, True])
def test_reads_every_layout_of_orbax(tmp_path, monkeypatch, layout, relative):
    LAYOUTS[layout](tmp_path / "run", ORBAX_TREE)
    monkeypatch.chdir(tmp_path)
    unfinished = tmp_path / "run" / "99.orbax-checkpoint-tmp-1"
    if layout.startswith("manager"):
        unfinished.mkdir()
        (unfinished / "_METADATA").write_text("{}")
    assert_same(checkpoints.read("run" if relative else tmp_path / "run"), ORBAX_TREE)


@pytest.mark.parametrize("ocdbt", [False, True])
def test_arrays_that_nothing_names(tmp_path, ocdbt):
    pytree(tmp_path / "run" / "7", ORBAX_TREE, use_ocdbt=ocdbt)
    (tmp_path / "run" / "7" / "_METADATA").unlink()
    for path in (tmp_path / "run", tmp_path / "run" / "7"):
        with pytest.raises(
            CheckpointError, match=r"is missing: _METADATA, or the file 'checkpoint'.*copy the folder"
        ):
            checkpoints.read(path)


def test_a_folder_of_tensorflow_is_none_of_orbax(tmp_path):
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-1"')
    (tmp_path / "model.ckpt-1.index").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="no Orbax checkpoint"):
        checkpoints.read(tmp_path)


def test_writes_orbax_to_a_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoints.write("model", ORBAX_TREE)
    assert_same(checkpoints.read("model"), ORBAX_TREE)


def test_several_items_without_a_usual_name(tmp_path):
    composite(tmp_path / "run", one=ORBAX_TREE, two=ORBAX_TREE)
    with pytest.raises(CheckpointError, match=r"name one of them, as in .*/run/one: one, two"):
        checkpoints.read(tmp_path / "run")
    assert_same(checkpoints.read(tmp_path / "run" / "two"), ORBAX_TREE)


def test_reads_manager_steps(tmp_path):
    with ocp.CheckpointManager(tmp_path / "one") as manager:
        for step in (2, 10):
            manager.save(step, args=ocp.args.StandardSave(ORBAX_TREE))
    with ocp.CheckpointManager(tmp_path / "two", item_names=("params", "other")) as manager:
        other = ocp.args.StandardSave({"x": values("int8")})
        save = ocp.args.Composite(params=ocp.args.StandardSave(ORBAX_TREE), other=other)
        manager.save(1, args=save)
    assert_same(checkpoints.read(tmp_path / "one" / "2"), ORBAX_TREE)
    assert_same(checkpoints.read(tmp_path / "two" / "1"), ORBAX_TREE)
    assert_same(checkpoints.read(tmp_path / "two" / "1" / "other"), {"x": values("int8")})
    latest = checkpoints.read_contents(tmp_path / "one")
    assert_same(latest.tree, ORBAX_TREE)
    assert latest.notes[0].startswith("10 is the latest of 2, 10;")
    assert checkpoints.read_contents(tmp_path / "two").notes == (
        f"the item 'params' is read, not other: name another as {tmp_path / 'two' / '1' / 'other'}",
    )
