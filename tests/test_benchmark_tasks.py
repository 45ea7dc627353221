"""The networks that rate and distortion are measured on: new forward passes beside others, and what may not mix."""

from __future__ import annotations

import importlib
import pathlib

import jax
import numpy as np
import pytest

from modelzip_jax import models
from modelzip_jax.errors import ConfigError, EvaluationError
from modelzip_jax.models.resnet import CifarResNet
from modelzip_jax.training import frameworks

ROOT = pathlib.Path(__file__).parents[1]
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def module():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        yield lambda name: importlib.import_module(f"benchmarks.tasks{name}")


def randomized(tree):
    return jax.tree.map(lambda x: RNG.normal(size=x.shape).astype(np.float32), tree)


def test_a_task_is_known_by_its_name(module):
    with pytest.raises(ConfigError, match="did you mean 'lenet5-mnist-"):
        module("").load("lenet5-mnist-3")
    assert len(set(module("").NAMES)) == len(module("").NAMES)


def test_quality_is_the_first_measure_of_a_part_that_there_is(module):
    task = module(".task").Task(
        name="a",
        params={"w": np.zeros((2, 3))},
        apply=lambda params, x: x,
        likelihood="gaussian",
        calibration=lambda count, seed=0: [],
        scores=lambda params, part: {"other": np.zeros(3), "cosine": np.ones(3)},
        measures=(module("").Measure("cosine"), module("").Measure("other")),
    )
    assert task.quality(task.params, "test").tolist() == [1, 1, 1]
    assert task.weights == 6
    with pytest.raises(EvaluationError, match=r"'train'.*validation, test"):
        task.quality(task.params, "train")


def test_lenet5_by_patches_is_the_model(module):
    net, images = models.create("lenet5"), RNG.normal(size=(3, 28, 28, 1)).astype(np.float32)
    params = randomized(jax.eval_shape(net.init, jax.random.key(0), images)["params"])
    by_patches = module(".lenets").lenet5_by_patches

    def loss(apply, params):
        logits = apply(params, images)
        return jax.numpy.sum(jax.nn.log_softmax(logits * 1e-4)[:, 1]), logits

    ours, theirs = (
        jax.jit(jax.grad(lambda params, f=f: loss(f, params), has_aux=True))(params)
        for f in (by_patches, lambda params, x: net.apply({"params": params}, x))
    )
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max())


def test_movie_reviews_that_are_reported_calibrate_nothing(module, tmp_path, monkeypatch):
    reviews = module(".movie_reviews")
    monkeypatch.setattr(reviews, "KEPT", tmp_path)
    rows = [f"{i}\t0.5\tA film about {i % 5}" for i in range(10)]
    (tmp_path / "movie_reviews.txt").write_text("\n".join(rows), "utf-8")
    reviews._sentences.cache_clear()
    known, reported = reviews.sentences_for_calibration(), reviews.reported()
    reviews._sentences.cache_clear()
    assert not set(known) & set(reported)
    assert sorted([*known, *reported]) == [f"A film about {i}" for i in range(5)]


def test_a_dictionary_gives_all_pronunciations_of_a_word_and_no_word_to_two_parts(
    module, tmp_path, monkeypatch
):
    g2p = module(".g2p")
    path = tmp_path / "cmudict.dict"
    path.write_text("record R EH1 K ER0 D\nrecord(2) R IH0 K AO1 R D # verb\nit's IH1 T S\nx EH1 K S\n")
    found = g2p._read(path)
    assert [" ".join(spoken) for spoken in found["record"]] == ["R EH1 K ER0 D", "R IH0 K AO1 R D"]
    many = {f"{a}{b}x": [["X"]] for a in "abcdef" for b in "abcde"}
    monkeypatch.setattr(g2p.Network, "load", lambda self: {**found, **many})
    g2p.pronunciations.cache_clear()
    parts = [g2p.words(part) for part in ("calibration", "validation", "test")]
    g2p.pronunciations.cache_clear()
    assert sorted(word for part in parts for word in part) == sorted(["record", *many])


def test_a_network_is_trained_once_and_read_afterwards(module, tmp_path, monkeypatch):
    training = module(".training")
    monkeypatch.setattr(training, "KEPT", tmp_path / "runs")
    first = training.trained("a", "digits_mlp", {"steps": 2, "block": 1})
    path = tmp_path / "runs" / "a.npz"
    assert path.exists()
    monkeypatch.setattr(training, "_train", None)
    again = training.trained("a", "digits_mlp", {"steps": 2, "block": 1})
    assert jax.tree.structure(first.params) == jax.tree.structure(again.params)
    jax.tree.map(np.testing.assert_array_equal, first.params, again.params)
    assert first.variables == again.variables == {}


def test_a_trained_network_keeps_its_batch_statistics(module, tmp_path, monkeypatch):
    training = module(".training")
    monkeypatch.setattr(training, "KEPT", tmp_path)
    network = frameworks.from_linen(CifarResNet(blocks=1, stages=(2, 4)))
    found = training.trained("a", "digits_mlp", {"steps": 1, "block": 1}, network)
    means = [x["mean"] for x in found.variables["batch_stats"].values() if "mean" in x]
    assert means
    assert all(np.abs(mean).max() > 0 for mean in means)
