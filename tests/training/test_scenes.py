"""Scenes are what their labels say; a detector that says just that is perfect; a small one learns from them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modelzip_jax import models
from modelzip_jax.errors import ConfigError, DataError
from modelzip_jax.evaluation import detection
from modelzip_jax.models.detector import detections
from modelzip_jax.training import config as configs
from modelzip_jax.training import data, experiment
from modelzip_jax.training.center_objective import center_losses, center_targets
from modelzip_jax.training.measuring import make_evaluate

pytest.importorskip("sklearn")
PLAIN = np.zeros((3, 12, 12, 1), np.uint8)
for level, (rows, columns) in zip((100, 150, 200), ((4, 10), (12, 3), (8, 8)), strict=True):
    PLAIN[level // 50 - 2, :rows, :columns] = level


def plain_scenes(count=50, **options):
    chosen = {"seed": 1, "size": 48, "lengths": (8, 16), "most": 4, **options}
    return data.make_scenes(PLAIN, [0, 1, 2], count, **chosen)


def test_boxes_are_tight_around_what_is_seen():
    scenes = plain_scenes()
    seen = 0
    for image, boxes in zip(scenes["inputs"][..., 0], scenes["labels"], strict=True):
        for left, top, right, bottom, kind in boxes[boxes[:, 4] >= 0]:
            part = image[top:bottom, left:right]
            assert part.shape == (bottom - top, right - left)
            assert (part >= 100).mean() > 0.85  # another object may hide a tenth
            assert 8 <= max(part.shape) <= 16
            wide = (right - left) / (bottom - top)
            assert [wide > 1.5, wide < 0.5, 0.8 < wide < 1.25][kind]
            seen += 1
        hidden = image.copy()
        for left, top, right, bottom, _ in boxes[boxes[:, 4] >= 0]:
            hidden[top:bottom, left:right] = 0
        assert hidden.max() < 96  # background alone
    assert seen > 80


def test_objects_keep_apart():
    labels = plain_scenes(200)["labels"]
    for boxes in labels:
        boxes = boxes[boxes[:, 4] >= 0]
        centres = (boxes[:, :2] + boxes[:, 2:4]) / 2
        between = np.linalg.norm(centres[:, None] - centres[None], axis=-1) + 99 * np.eye(len(boxes))
        overlaps = detection.box_overlaps(boxes[:, :4], boxes[:, :4]) * (1 - np.eye(len(boxes)))
        assert between.min() >= 8
        assert overlaps.max() < 0.1
    assert set(np.sum(labels[..., 4] >= 0, axis=1).tolist()) == {1, 2, 3, 4}


def test_scenes_are_those_of_their_seed():
    again, other = plain_scenes(20), plain_scenes(20, seed=2)
    np.testing.assert_array_equal(plain_scenes(20)["inputs"], again["inputs"])
    assert (again["inputs"] != other["inputs"]).mean() > 0.5
    recorded = [[22, 3, 30, 11, 2], [13, 15, 27, 21, 0], [43, 32, 47, 47, 1], [-1, -1, -1, -1, -1]]
    assert plain_scenes(2)["labels"][0].tolist() == recorded


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lengths": (8, 49)}, "to the size 48"),
        ({"lengths": (9, 8)}, r"lengths \(9, 8\)"),
        ({"most": 0}, "most 0"),
    ],
)
def test_scenes_that_cannot_be(options, message):
    with pytest.raises(DataError, match=message):
        plain_scenes(**options)


def test_pictures_of_another_form():
    with pytest.raises(DataError, match="float32"):
        data.make_scenes(np.zeros((1, 8, 8, 1), np.float32), [0], 1, seed=0)


def test_named_sets_are_made_of_their_own_split():
    sizes = data.spec("digit_scenes").sizes
    parts = {split: data.load_split("digit_scenes", split) for split in ("train", "validation", "test")}
    for split, part in parts.items():
        assert part["inputs"].shape == (getattr(sizes, split), 32, 32, 1)
        assert part["labels"].shape == (getattr(sizes, split), 4, 5)
        assert part["labels"].dtype == np.int32
    assert not np.array_equal(parts["validation"]["inputs"], parts["test"]["inputs"])
    levels = parts["train"]["inputs"].astype(float)
    np.testing.assert_allclose(data.spec("digit_scenes").mean, levels.mean(), rtol=1e-3)
    np.testing.assert_allclose(data.spec("digit_scenes").std, levels.std(), rtol=1e-3)


def perfect_maps(labels, stride=8, cells=6, classes=3):
    heat, cell, box, present = center_targets(jnp.asarray(labels), cells, cells, stride)
    # As sure as a logit of 20: at centres alone, a little less so around them.
    centres = jnp.where(heat == 1, 20.0, -20.0 + heat)
    rows = jnp.arange(len(labels))[:, None]
    own = jnp.concatenate([20.0 * jax.nn.one_hot(labels[..., 4], classes), box], axis=-1)
    rest = jnp.zeros((len(labels), cells * cells, classes + 4))
    rest = rest.at[rows, jnp.where(present, cell, cells * cells)].set(own, mode="drop")
    return jnp.concatenate([centres[..., None], rest.reshape(len(labels), cells, cells, -1)], axis=-1)


def test_what_the_targets_say_is_read_back():
    scenes = plain_scenes(30)
    maps = perfect_maps(scenes["labels"])
    found = np.asarray(detections(maps, stride=8, count=8))
    surely = found[..., 4] > 0.5
    for rows, boxes in zip([f[s] for f, s in zip(found, surely, strict=True)], scenes["labels"], strict=True):
        boxes = boxes[boxes[:, 4] >= 0]
        order, own = np.lexsort(boxes.T), np.lexsort(np.round(rows[:, [0, 1, 2, 3, 5]]).T)
        np.testing.assert_allclose(rows[own][:, :4], boxes[order][:, :4], atol=1e-3)
        np.testing.assert_array_equal(rows[own][:, 5], boxes[order][:, 4])
    assert detection.detection_precision(detection.score(found, scenes["labels"])).value == 1.0
    losses = center_losses(maps, {k: jnp.asarray(v) for k, v in scenes.items()})
    assert losses.shape == (30,)
    assert float(losses.max()) < 1e-4


def test_the_loss_falls_where_maps_come_nearer():
    scenes = {k: jnp.asarray(v) for k, v in plain_scenes(8).items()}
    perfect = perfect_maps(scenes["labels"], stride=2, cells=24)
    start = jnp.zeros_like(perfect).at[..., 0].set(-2.19)
    along = [float(center_losses(start + t * (perfect - start), scenes).sum()) for t in (0.0, 0.25, 0.5, 0.9)]
    assert along == sorted(along, reverse=True)
    grads = jax.grad(lambda maps: center_losses(maps, scenes).sum())(start)
    assert float(jnp.vdot(grads, perfect - start)) < 0
    # Around a centre, where the target is nearly 1, an object costs less than far away from all.
    heat = center_targets(scenes["labels"], 24, 24, 2)[0]
    near, far = (jnp.where(m, grads[..., 0], 0).max() for m in ((heat > 0.2) & (heat < 1), heat < 1e-3))
    assert 0 < float(near) < 0.5 * float(far)


def test_scenes_without_an_object_have_a_loss():
    batch = {"inputs": jnp.zeros((1, 48, 48, 1)), "labels": -jnp.ones((1, 4, 5), jnp.int32)}
    assert float(center_losses(jnp.full((1, 6, 6, 8), -20.0), batch)[0]) == pytest.approx(0, abs=1e-6)
    assert float(center_losses(jnp.zeros((1, 6, 6, 8)), batch)[0]) > 1


def test_peaks_hide_their_neighbours():
    maps = jnp.full((1, 4, 4, 7), -9.0).at[0, 1, 1, :3].set(jnp.array([3.0, 2.0, 1.0]))
    maps = maps.at[0, 1, 2, :3].set(jnp.array([2.0, 9.0, 0.0])).at[0, 3, 3, 0].set(1.0)
    found = detections(maps, stride=8, count=6)[0]
    # One peak as either of two classes, then the other one, whose classes are alike.
    kinds = jax.nn.softmax(jnp.array([2.0, 1.0]))
    expected = jnp.concatenate([jax.nn.sigmoid(3.0) * kinds, jnp.full(2, jax.nn.sigmoid(1.0) / 2)])
    order = jnp.argsort(-expected)
    np.testing.assert_allclose(found[:4, 4], expected[order], rtol=1e-5)
    assert found[:4, 5].tolist() == jnp.array([0, 1, 0, 1])[order].tolist()
    assert found[4:, 4].max() < 1e-4


def tiny(*changes):
    fields = {
        "data.name": "digit_scenes", "data.batch_size": 32, "model.options.widths": "(16,32)",
        "model.options.depths": "(1,2)", "steps": 100, "optimizer.schedule.warmup": 20,
        "optimizer.schedule.peak": 8e-3, "evaluate_every": 100,
    }  # fmt: skip
    arguments = [f"--config.{name}={value}" for name, value in fields.items()]
    return configs.override(configs.load_config("configs/detection.py"), [*arguments, *changes])


def test_a_small_detector_learns(tmp_path):
    config = tiny()
    result = experiment.run(config, tmp_path, quiet=True)
    assert set(result["test"]) == {"loss", "loss_se", "map_50", "map_50_se"}
    built = experiment.build(config)
    evaluate = make_evaluate(built.network, built.test, 32, built.place, built.prepare, built.kind)
    start = experiment.initial_state(built)
    before = evaluate(start.params, start.variables)
    assert result["test"]["map_50"] > 0.04 > 0.01 > before["map_50"]
    assert result["test"]["loss"] < before["loss"] / 2
    assert result["gap"] == result["train"]["map_50"] - result["test"]["map_50"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.name=digits", "center_detector learns from digit_scenes"),
        ("model.name=mlp", "center_detector learns from digit_scenes"),
        ("data.augment=crop", "boxes"),
        ("distill.teacher=self", "distill.teacher cannot be used with digit_scenes"),
        ("label_smoothing=0.1", "label_smoothing cannot"),
    ],
)
def test_what_scenes_do_not_go_with(change, message):
    with pytest.raises(ConfigError, match=message):
        experiment.build(tiny(f"--config.{change}"))


def test_the_detector_is_a_model_like_the_others():
    assert models.create("center_detector", num_classes=3).num_classes == 3
