"""A teacher's outputs on disk: beside their examples, whole after a kill, and never another teacher's."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_teacher import INPUTS, OPTIONS, WEIGHTS, logits, teacher

from modelzip_jax.digests import tree_digest
from modelzip_jax.distillation import Teacher, cache_outputs, cached_outputs, cached_top_k
from modelzip_jax.distillation.block_files import BlockFiles
from modelzip_jax.errors import DistillationError, NonFiniteError
from modelzip_jax.training.data import Batches, subset

HERE = Path(__file__).parent


def contents(folder):
    """The bytes of all files but the journal, whose lines come as blocks were written."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "journal.jsonl"}


def blocks_written(monkeypatch):
    written, write = [], BlockFiles.write

    def noted(files, block, arrays):
        written.append(block)
        write(files, block, arrays)

    monkeypatch.setattr(BlockFiles, "write", noted)
    return written


def test_the_outputs_are_the_teachers(tmp_path):
    expected = np.asarray(teacher()(INPUTS))
    full = cache_outputs(tmp_path / "full", teacher(), INPUTS, batch_size=8, dtype="float32")
    np.testing.assert_allclose(full["teacher_logits"], expected, rtol=1e-5, atol=1e-6)
    half = cache_outputs(tmp_path / "half", teacher(), INPUTS, batch_size=8)["teacher_logits"]
    assert half.dtype == np.float16
    np.testing.assert_allclose(half, expected, rtol=2**-10, atol=1e-4)
    assert not half.flags.writeable
    assert isinstance(half, np.memmap)


@pytest.mark.parametrize("k", [1, 4, 9])
def test_the_largest_logits_and_the_rest(tmp_path, k):
    data = cache_outputs(tmp_path / "top", teacher(), INPUTS, dtype="float32", top_k=k)
    kept = cached_top_k(data)
    expected = np.asarray(teacher()(INPUTS), np.float64)
    order = np.argsort(-expected, axis=-1)
    assert data["teacher_indices"].dtype == np.uint8
    np.testing.assert_array_equal(kept.indices, order[:, :k])
    np.testing.assert_allclose(
        kept.values, np.take_along_axis(expected, order[:, :k], -1), rtol=1e-5, atol=1e-6
    )
    with np.errstate(divide="ignore"):
        rest = np.log(np.exp(np.take_along_axis(expected, order[:, k:], -1)).sum(axis=-1))
    np.testing.assert_allclose(kept.log_rest, rest, rtol=1e-5, atol=1e-5)


def test_a_batch_has_the_logits_of_its_examples(tmp_path):
    arrays = {"inputs": INPUTS, "labels": np.arange(50, dtype=np.int32) % 5}
    data = {**arrays, **cache_outputs(tmp_path / "cache", teacher(), INPUTS, dtype="float32")}
    for source in (data, subset(data, 0.6, seed=1)):
        batches = Batches(source, batch_size=16, seed=4)
        for _ in range(2 * batches.steps_per_epoch):
            batch = next(batches)
            np.testing.assert_allclose(
                batch["teacher_logits"], teacher()(batch["inputs"]), rtol=1e-5, atol=1e-5
            )


def test_sequences_and_several_inputs(tmp_path):
    inputs = {"tokens": np.arange(24).reshape(4, 6) % 7, "mask": np.ones((4, 6), bool)}
    table = jax.random.normal(jax.random.key(0), (7, 300))
    language = Teacher(lambda params, x: params[x["tokens"]] * x["mask"][..., None], table)
    kept = cache_outputs(tmp_path / "cache", language, inputs, batch_size=3, top_k=2)
    assert kept["teacher_values"].shape == (4, 6, 2)
    assert kept["teacher_indices"].dtype == np.uint16
    assert kept["teacher_log_rest"].shape == (4, 6)
    np.testing.assert_array_equal(kept["teacher_indices"][..., 0], np.argmax(table, -1)[inputs["tokens"]])


@pytest.mark.parametrize(("blocks", "where"), [(0, "before"), (3, "before"), (3, "inside"), (6, "inside")])
def test_a_killed_process_is_taken_up_where_it_was(tmp_path, monkeypatch, blocks, where):
    folder = tmp_path / "cache"
    script = [sys.executable, str(HERE / "killed_cache.py"), str(folder), str(blocks), where]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
    killed = subprocess.run(script, env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not folder.exists()
    written = blocks_written(monkeypatch)
    data = cache_outputs(folder, teacher(), INPUTS, **OPTIONS)
    assert written == list(range(blocks, 7))
    whole = cache_outputs(tmp_path / "whole", teacher(), INPUTS, **OPTIONS)
    assert contents(folder) == contents(tmp_path / "whole")
    assert all(np.array_equal(data[name], whole[name]) for name in whole)
    assert sorted(os.listdir(tmp_path)) == ["cache", "whole"]


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_whatever_was_cut_or_overwritten_is_made_again(tmp_path_factory, data):
    base = tmp_path_factory.mktemp("caches")
    cache_outputs(base / "whole", teacher(), INPUTS, **OPTIONS)
    expected = contents(base / "whole")
    cut = base / "cache.partial"
    os.rename(base / "whole", cut)
    name = data.draw(st.sampled_from(sorted(path.name for path in cut.iterdir() if path.suffix != ".json")))
    content = bytearray((cut / name).read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    match data.draw(st.sampled_from(["cut", "flip", "remove"])):
        case "cut":
            del content[place:]
        case "flip":
            content[place] ^= 1 << data.draw(st.integers(0, 7))
    if content:
        (cut / name).write_bytes(content)
    else:
        (cut / name).unlink()
    cache_outputs(base / "cache", teacher(), INPUTS, **OPTIONS)
    assert contents(base / "cache") == expected


def test_a_failure_keeps_what_was_written(tmp_path, monkeypatch):
    def full(files, block, arrays):
        raise OSError(28, "No space left on device")

    folder = tmp_path / "cache"
    with monkeypatch.context() as patched:
        patched.setattr(BlockFiles, "write", full)
        with pytest.raises(OSError, match="No space"):
            cache_outputs(folder, teacher(), INPUTS, **OPTIONS)
    assert os.listdir(tmp_path) == ["cache.partial"]
    assert cache_outputs(folder, teacher(), INPUTS, **OPTIONS)["teacher_values"].shape == (50, 4)


def test_what_is_there_is_not_computed_again(tmp_path, monkeypatch):
    first = cache_outputs(tmp_path / "cache", teacher(), INPUTS, **OPTIONS)
    written = blocks_written(monkeypatch)
    again = cache_outputs(tmp_path / "cache", teacher(), INPUTS, **{**OPTIONS, "batch_size": 13})
    alone = cached_outputs(tmp_path / "cache", INPUTS)
    assert written == []
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
        np.testing.assert_array_equal(first[name], alone[name])


def changed(weights):
    weights = weights.copy()
    weights[2, 3] += 1e-6
    return weights


@pytest.mark.parametrize("state", ["whole", "partial"])
@pytest.mark.parametrize(
    ("call", "match"),
    [
        (
            lambda folder: cache_outputs(folder, teacher(changed(WEIGHTS)), INPUTS, **OPTIONS),
            "a teacher with other weights",
        ),
        (
            lambda folder: cache_outputs(folder, teacher(), INPUTS[::-1], **OPTIONS),
            "a teacher says of other data",
        ),
        (
            lambda folder: cache_outputs(folder, teacher(), INPUTS[:-1], **OPTIONS),
            "a teacher says of other data",
        ),
        (
            lambda folder: cache_outputs(folder, teacher(), changed(INPUTS), **OPTIONS),
            "a teacher says of other data",
        ),
        (
            lambda folder: cache_outputs(folder, teacher(), INPUTS, batch_size=8, top_k=3),
            "another top_k: 4 there, 3 here",
        ),
        (
            lambda folder: cache_outputs(folder, teacher(), INPUTS, dtype="float32", **OPTIONS),
            "another dtype: float16 there, float32 here",
        ),
    ],
)
def test_another_teacher_or_data_or_order_is_refused(tmp_path, state, call, match):
    cache_outputs(tmp_path / "cache", teacher(), INPUTS, **OPTIONS)
    if state == "partial":
        os.rename(tmp_path / "cache", tmp_path / "cache.partial")
    with pytest.raises(DistillationError, match=match):
        call(tmp_path / "cache")


@pytest.mark.parametrize("k", [None, 4, 9])
def test_the_same_weights_with_other_inputs_before_them_are_refused(tmp_path, k):
    options = {"batch_size": 8, "top_k": k}
    cache_outputs(tmp_path / "cache", teacher(), INPUTS, **options)
    for apply in (lambda params, x: logits(params, 1.3 * x), lambda params, x: logits(params, x)[:, ::-1]):
        with pytest.raises(DistillationError, match="computed something else"):
            cache_outputs(tmp_path / "cache", Teacher(apply, teacher().params), INPUTS, **options)
    rounded = Teacher(lambda params, x: logits(params, x.astype(jnp.bfloat16)), teacher().params)
    cache_outputs(tmp_path / "cache", rounded, INPUTS, **options)


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_damage_of_a_whole_cache_is_named(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("caches") / "cache"
    cache_outputs(folder, teacher(), INPUTS, **OPTIONS)
    name = data.draw(st.sampled_from(["teacher_indices.npy", "teacher_values.npy", "teacher_log_rest.npy"]))
    content = bytearray((folder / name).read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        del content[place:]
    else:
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    (folder / name).write_bytes(content)
    with pytest.raises(DistillationError, match="damaged"):
        cached_outputs(folder, INPUTS)


def test_foreign_folders_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DistillationError, match=r"no manifest\.json"):
        cache_outputs(tmp_path / "empty", teacher(), INPUTS)
    with pytest.raises(DistillationError, match=r"no manifest\.json"):
        cached_outputs(tmp_path / "absent", INPUTS)
    (tmp_path / "empty" / "manifest.json").write_text('{"version": 2}')
    with pytest.raises(DistillationError, match="version 2"):
        cached_outputs(tmp_path / "empty", INPUTS)
    cache_outputs(tmp_path / "whole", teacher(), INPUTS, **OPTIONS)
    manifest = json.loads((tmp_path / "whole" / "manifest.json").read_text())
    damaged = [
        [1],
        {"version": 1},
        {**manifest, "rows": 0},
        {**manifest, "examples": "50"},
        {**manifest, "fields": {"../whole/teacher_values": ["float16", [4]]}},
        {**manifest, "fields": {"teacher_values": ["object", [4]], "teacher_indices": 3}},
    ]
    for content in (json.dumps(damaged[0])[:-1], *map(json.dumps, damaged)):
        (tmp_path / "empty" / "manifest.json").write_text(content)
        with pytest.raises(DistillationError, match="damaged"):
            cached_outputs(tmp_path / "empty", INPUTS)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda f: cache_outputs(f, teacher(1e5 * WEIGHTS), INPUTS), NonFiniteError, "example 0 .*float16"),
        (
            lambda f: cache_outputs(f, teacher(), with_nan(INPUTS, 33), **OPTIONS),
            NonFiniteError,
            "example 33 ",
        ),
        (lambda f: cache_outputs(f, teacher(), INPUTS, top_k=10), DistillationError, "from 1 to 9"),
        (lambda f: cache_outputs(f, teacher(), INPUTS, dtype="int8"), DistillationError, "int8"),
        (
            lambda f: cache_outputs(f, teacher(), INPUTS, batch_size=0),
            DistillationError,
            "batch_size must be an integer",
        ),
        (lambda f: cache_outputs(f, teacher(), INPUTS[:0]), DistillationError, "above 0"),
        (
            lambda f: cache_outputs(f, Teacher(lambda p, x: x.astype(int), {}), INPUTS),
            DistillationError,
            "floating-point",
        ),
        (
            lambda f: cache_outputs(f, Teacher(lambda p, x: x.sum(0), {}), INPUTS),
            DistillationError,
            "batch of",
        ),
        (lambda f: cached_top_k({"teacher_logits": 0}), DistillationError, "no 'teacher_indices'"),
    ],
)
def test_bad_calls_are_named(tmp_path, call, error, match):
    with pytest.raises(error, match=match):
        call(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def with_nan(inputs, example):
    inputs = inputs.copy()
    inputs[example] = np.nan
    return inputs


def fill(folder):
    sys.path.insert(0, str(HERE))
    cache_outputs(folder, teacher(), INPUTS, **OPTIONS)


def test_processes_that_fill_one_folder_do_not_disturb_each_other(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    both = [spawn.Process(target=fill, args=(tmp_path / "cache",)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert os.listdir(tmp_path) == ["cache"]
    cache_outputs(tmp_path / "whole", teacher(), INPUTS, **OPTIONS)
    assert contents(tmp_path / "cache") == contents(tmp_path / "whole")


def test_digests_see_names_shapes_dtypes_and_bytes():
    x = np.arange(6, dtype=np.float32)
    trees = [
        {"a": x}, {"b": x}, {"a": x.reshape(2, 3)}, {"a": x.view(np.int32)}, {"a": x[::-1]}, {"a": x, "b": x},
        {"a": jnp.asarray(x, jnp.bfloat16)}, {"a": {"b": x}},
    ]  # fmt: skip
    assert len({tree_digest(tree) for tree in trees}) == len(trees)
    assert tree_digest({"a": jnp.asarray(x)}) == tree_digest({"a": x})
