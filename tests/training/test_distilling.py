"""Runs with a teacher: from a config, with every family of transforms, killed and resumed, cached or not."""

import contextlib
import json
import shutil

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

import modelzip_jax as mz
from modelzip_jax import checkpoints as files
from modelzip_jax.errors import ConfigError, DistillationError, ModelzipError
from modelzip_jax.training import config as configs
from modelzip_jax.training import experiment, frameworks, records
from modelzip_jax.training.calibrating_runs import run_calibration
from modelzip_jax.training.distilling import distilling_of
from modelzip_jax.training.state import begin
from modelzip_jax.training.teacher_files import TeacherWarning

RNG = np.random.default_rng(0)
pytest.importorskip("sklearn")


def small(**distill):
    config = configs.base()
    config.model.options = {"widths": (16,)}
    config.steps, config.block, config.record_every, config.save_every = 18, 6, 6, 6
    config.optimizer.schedule.peak = 1e-2
    config.distill.update(distill)
    return config


def logged(folder, name="loss"):
    return [r[name] for r in records.read_records(folder / "log.jsonl") if name in r]


@pytest.fixture(scope="module")
def floats(tmp_path_factory):
    """A run without a teacher, of another width."""
    folder = tmp_path_factory.mktemp("floats") / "run"
    config = small()
    config.steps, config.model.options = 90, {"widths": (24,)}
    assert experiment.run(config, folder, quiet=True)["test"]["accuracy"] > 0.9
    return folder


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A float network to begin from."""
    folder = tmp_path_factory.mktemp("start") / "run"
    config = small()
    config.steps = 90
    assert experiment.run(config, folder, quiet=True)["test"]["accuracy"] > 0.9
    return folder / "model.mz"


def from_start(start, **distill):
    config = small(teacher="self", **distill)
    config.start = str(start)
    return config


FAMILIES = {
    "pruned": mz.only("**/kernel", mz.prune(sparsity=0.6)),
    "quantized": mz.only("**/kernel", mz.quantize(2)),
    "clustered": mz.only("Dense_0/kernel", mz.cluster(4)),
    "wavelet-coded": mz.only("Dense_0/kernel", mz.chain(mz.wavelet(), mz.prune(sparsity=0.8))),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_of_each_family_comes_nearer_to_its_float_self(tmp_path, start, family):
    transform = FAMILIES[family]
    config = from_start(start, label_weight=0.0)
    result = experiment.run(config, tmp_path / "run", transform, quiet=True)
    packed = mz.load(tmp_path / "run" / "model.mz")
    assert packed.transform == transform
    assert result["test"]["accuracy"] > 0.85
    losses = logged(tmp_path / "run", "loss/soft_targets")
    assert losses[-1] < losses[0]
    np.testing.assert_allclose(logged(tmp_path / "run"), losses, rtol=1e-6)


def test_the_gradients_are_those_of_a_sum_written_out(start):
    """One step from a config is one step of the sum of both losses."""
    config = from_start(start, temperature=3.0, weight=0.5, label_weight=2.0)
    built = experiment.build(config, FAMILIES["quantized"])
    state = experiment.initial_state(built)
    batch = {name: x[:32] for name, x in built.train.items()}
    batch = built.prepare(batch, None)
    teacher = built.network.predict(mz.unpack(mz.load(start)), {}, batch["inputs"])

    def written(params):
        logits = built.network.predict(params, {}, batch["inputs"])
        own, theirs = jax.nn.log_softmax(logits / 3.0), jax.nn.log_softmax(teacher / 3.0)
        divergence = (jax.numpy.exp(theirs) * (theirs - own)).sum(-1).mean()
        labels = -jax.nn.log_softmax(logits)[np.arange(32), batch["labels"]].mean()
        return 2.0 * labels + 0.5 * 9.0 * divergence

    grads, _, metrics = built.distilling.gradients(
        built.network, built.distilling.objective, state, batch, jax.random.key(0)
    )
    assert float(metrics["loss"]) == pytest.approx(float(written(state.params)), rel=1e-5)
    expected = jax.grad(written)(state.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), grads, expected)


@pytest.mark.parametrize("cache", ["float32", "float16"])
def test_a_cached_teacher_is_the_one_on_the_fly(tmp_path, floats, cache):
    runs = {}
    for name, kind in {"fly": "", "cached": cache}.items():
        config = small(teacher=str(floats), cache=kind)
        experiment.run(config, tmp_path / name, quiet=True)
        runs[name] = logged(tmp_path / name)
    np.testing.assert_allclose(runs["cached"], runs["fly"], rtol=1e-5 if cache == "float32" else 1e-3)
    assert (tmp_path / "cached" / "teacher" / "teacher_logits.npy").is_file()
    assert not (tmp_path / "fly" / "teacher").exists()


def test_all_logits_kept_as_the_largest_are_soft_targets(tmp_path, floats):
    whole = small(teacher=str(floats), cache="float32")
    largest = small(teacher=str(floats), cache="float32", top_k=10)
    for name, config in {"whole": whole, "largest": largest}.items():
        experiment.run(config, tmp_path / name, quiet=True)
    np.testing.assert_allclose(logged(tmp_path / "largest"), logged(tmp_path / "whole"), rtol=1e-4)
    assert (tmp_path / "largest" / "teacher" / "teacher_values.npy").is_file()


FEATURES = {"loss": "hint", "layers": ("Dense_1",), "projector": "orthogonal"}
KINDS = {
    "projector": {"features": FEATURES, "balance": "grad_norm"},
    "average": {"teacher": "average", "decay": 0.9},
    "cached": {"cache": "float16", "balance": "uncertainty"},
}


def interrupt(monkeypatch, config, folder, transform):
    """Runs until step 12 is recorded, the checkpoint of step 6 behind it."""

    def interrupted(self, record, write=records.JsonLines.__call__):
        write(self, record)
        if record["step"] == 12 and "loss" in record:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(records.JsonLines, "__call__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            experiment.run(config, folder, transform, quiet=True)


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_run_with_a_teacher_ends_with_the_same_bytes(tmp_path, floats, kind, monkeypatch):
    config = small(**{"teacher": str(floats), **KINDS[kind]})
    config.optimizer.average = 0.8
    int4 = mz.only("**/kernel", mz.quantize(bits=4))
    interrupt(monkeypatch, config, tmp_path / "run", int4)
    for name in ("run", "whole"):
        experiment.run(config, tmp_path / name, int4, quiet=True)
    assert (tmp_path / "run" / "model.mz").read_bytes() == (tmp_path / "whole" / "model.mz").read_bytes()
    assert logged(tmp_path / "run") == logged(tmp_path / "whole")
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("run", "whole")]
    assert results[0] == results[1]


def test_what_is_trained_beside_the_network_is_not_shipped(tmp_path, floats):
    config = small(teacher=str(floats), features=FEATURES)
    experiment.run(config, tmp_path / "run", quiet=True)
    assert sorted(mz.unpack(mz.load(tmp_path / "run" / "model.mz"))) == ["Dense_0", "Dense_1"]
    assert logged(tmp_path / "run", "loss/hint")[-1] < logged(tmp_path / "run", "loss/hint")[0]
    # And a distilled run's network and inputs are found again without its teacher.
    apply_fn, batches = run_calibration(tmp_path / "run", count=64)
    assert apply_fn(mz.unpack(mz.load(tmp_path / "run" / "model.mz")), batches[0]).shape == (64, 10)


class Normalized(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(nn.Dense(8)(x.reshape(len(x), -1)))
        return nn.Dense(10)(nn.relu(x))


def taught(network, batch, **distill):
    """Gradients of a network with batch statistics, and its state."""
    config = small(**distill)
    built = distilling_of(config, network, batch["inputs"], lambda batch, key: batch, optax.sgd(0.1), 1)
    params, variables = network.init(jax.random.key(0), batch["inputs"])
    beside = built.init(params, variables, batch, jax.random.key(1))
    state = begin(params, variables, (), jax.random.key(2), beside=beside)
    return jax.jit(lambda s: built.gradients(network, built.objective, s, batch, s.key)), state


def test_batch_statistics_of_student_and_teacher_stay_their_own():
    network = frameworks.from_linen(Normalized())
    batch = {"inputs": RNG.normal(size=(16, 8, 8, 1)).astype(np.float32), "labels": np.arange(16) % 10}
    gradients, state = taught(network, batch, teacher="average", decay=0.5)
    _, after, _ = gradients(state)
    first, second = (jax.tree.leaves(s.variables) for s in (state, after))
    assert all(np.any(a != b) for a, b in zip(first, second, strict=True))
    jax.tree.map(np.testing.assert_array_equal, after.beside.teacher.params["variables"], state.variables)
    # The next step averages what the student has become: of one student, it is that one.
    _, later, _ = gradients(after._replace(step=after.step + 1))
    moved = later.beside.teacher.params["variables"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), moved, after.variables)
    with pytest.raises(ConfigError, match="take its 'inputs'"):
        taught(
            network,
            batch,
            teacher="average",
            features={"loss": "hint", "layers": ("Dense_0",), "place": "activations"},
        )


@pytest.mark.parametrize(
    ("distill", "message"),
    [
        ({"teacher": "self"}, "without config.start is a random one"),
        ({"temperature": 2.0}, "distill.temperature is set, but there is no teacher"),
        ({"teacher": "average", "loss": "soft_target"}, "did you mean 'soft_targets'"),
        ({"teacher": "average", "loss": "decoupled", "options": {"alfa": 1.0}}, "did you mean 'alpha'"),
        ({"teacher": "average", "balance": "gradnorm"}, "did you mean 'grad_norm'"),
        ({"teacher": "average", "temperature": 0.0}, "temperature must be a positive finite number"),
        ({"teacher": "average", "weight": -1.0}, "weight of soft_targets must be a finite number"),
        ({"teacher": "average", "weight": 0.0}, "teaches nothing"),
        ({"teacher": "average", "decay": 1.0}, "decay must be at least 0 and below 1"),
        ({"teacher": "average", "cache": "float16"}, "not the average of the student"),
        ({"teacher": "x", "cache": "flaot16"}, "did you mean 'float16'"),
        ({"teacher": "x", "cache": "float16", "features": FEATURES}, "not features"),
        ({"teacher": "x", "top_k": 3}, "goes with distill.cache"),
        ({"teacher": "x", "features": {"loss": "hints"}}, "did you mean 'hint'"),
        ({"teacher": "x", "features": {"loss": "hint"}}, "name the student's layers"),
        ({"teacher": "x", "features": {"layers": ("Dense_1",)}}, "set distill.features.loss, or leave"),
        ({"teacher": "x", "features": {**FEATURES, "projector": "linaer"}}, "did you mean 'linear'"),
        ({"teacher": "x", "features": {**FEATURES, "place": "input"}}, "did you mean 'inputs'"),
        ({"teacher": "nowhere.mz"}, "there is no nowhere.mz, of which the weights"),
        ({"teacher": "selff"}, "did you mean 'self'"),
        (
            {"teacher": "x", "decay": 0.9},
            "distill.decay is set, but nothing reads it: set distill.teacher to",
        ),
        (
            {"teacher": "x", "loss": "", "temperature": 2.0, "features": FEATURES},
            "temperature is set, but no",
        ),
        ({"teacher": "x", "features": {"weight": 2.0}}, "distill.features.weight is set, but nothing reads"),
        ({"teacher": "x", "features": {**FEATURES, "weight": 0.0}}, "so that 'hint' teaches nothing"),
        (
            {"teacher": "x", "features": {**FEATURES, "layers": ("Dense_1", "Dense_1")}},
            "has 'Dense_1' twice for one layer",
        ),
    ],
)
def test_a_group_that_cannot_work_is_named(tmp_path, distill, message):
    with pytest.raises(ModelzipError, match=message):
        experiment.run(small(**distill), tmp_path / "run", quiet=True)


def test_a_misspelt_field_is_named():
    with pytest.raises(ConfigError, match="did you mean 'temperature'"):
        configs.override(configs.base(), ["--config.distill.temprature=2"])
    config = small()
    config.distill = {"teachers": "average"}
    with pytest.raises(ConfigError, match="a field of distill is 'teachers'; did you mean 'teacher'"):
        experiment.build(config)


def test_what_does_not_fit_the_teacher_is_named(tmp_path, floats):
    augmented = small(teacher=str(floats), cache="float16")
    augmented.data.augment = "crop"
    with pytest.raises(ConfigError, match=r"data\.augment is 'crop'"):
        experiment.run(augmented, tmp_path / "a", quiet=True)
    unprojected = small(teacher=str(floats), features={**FEATURES, "projector": ""})
    with pytest.raises(ConfigError, match=r"hint.*set distill\.features\.projector to 'linear'"):
        experiment.run(unprojected, tmp_path / "b", quiet=True)
    wider = small(teacher=str(floats), features=FEATURES)
    wider.model.options = {"widths": (32,)}
    with pytest.raises(ConfigError, match=r"distill\.features\.projector 'orthogonal'.*set it to 'linear'"):
        experiment.run(wider, tmp_path / "b", quiet=True)
    with pytest.raises(
        ConfigError, match=r"of shape \(24,\), the model needs \(16,\): give the folder of the run"
    ):
        experiment.run(small(teacher=str(floats / "model.mz")), tmp_path / "b", quiet=True)
    misnamed = small(teacher=str(floats), features={**FEATURES, "layers": ("Dense_7",)})
    with pytest.raises(ModelzipError, match="Dense_7"):
        experiment.run(misnamed, tmp_path / "c", quiet=True)
    other = small(teacher=str(floats))
    other.data.name = "kjv"
    with pytest.raises(ConfigError, match="was trained on 'digits'"):
        distilling_of(other, None, np.zeros((1, 2)), None, None, 1)


def test_a_run_from_before_there_were_teachers_goes_on(tmp_path, floats):
    folder = shutil.copytree(floats, tmp_path / "run")
    written = json.loads((folder / "config.json").read_text())
    config = small()
    config.steps, config.model.options = 90, {"widths": (24,)}
    assert written.pop("distill") == json.loads(json.dumps(config.distill.to_dict()))
    (folder / "config.json").write_text(json.dumps(written))
    experiment.run(config, folder, quiet=True)
    assert (folder / "model.mz").read_bytes() == (floats / "model.mz").read_bytes()
    config.distill.teacher = "average"
    with pytest.raises(ConfigError, match="distill differ"):
        experiment.run(config, folder, quiet=True)


def test_names_of_layers_from_the_command_line():
    arguments = ["--config.distill.features.layers=Dense_0,Dense_1", "--config.distill.options.alpha=2"]
    config = configs.override(configs.base(), arguments)
    assert config.distill.features.layers == ("Dense_0", "Dense_1")
    assert config.distill.options.alpha == 2


@pytest.mark.parametrize("balance", ["grad_norm", "uncertainty", "dynamic_weight_average"])
def test_a_balance_begins_with_the_losses_of_the_compressed_student(start, balance):
    """Before compression a network's own float self has nothing to teach it."""
    for loss in ("soft_targets", "decoupled"):
        built = experiment.build(from_start(start, balance=balance, loss=loss), FAMILIES["quantized"])
        state = experiment.initial_state(built)
        if balance == "grad_norm":
            assert float(state.beside.balance.first[loss]) > 0.1
    with pytest.raises(DistillationError, match=f"'{loss}' is .*above zero"):
        experiment.initial_state(experiment.build(from_start(start, balance=balance, loss=loss)))


def test_a_start_that_was_refused_is_not_in_the_way_of_its_correction(tmp_path, floats):
    wrong = {
        "misnamed": small(teacher=str(floats), features={**FEATURES, "layers": ("Dense_9",)}),
        "options": small(teacher=str(floats), loss="decoupled", options={"alpha": "x"}),
        "start": small(),
    }
    wrong["start"].start = "nowhere.mz"
    for config in wrong.values():
        with pytest.raises(ModelzipError):
            experiment.run(config, tmp_path / "run", quiet=True)
    right = small(teacher=str(floats), features=FEATURES)
    experiment.run(right, tmp_path / "run", quiet=True)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["distill"]["features"]["layers"] == [
        "Dense_1"
    ]
    with pytest.raises(ConfigError, match="another config: distill differ"):
        experiment.run(small(), tmp_path / "run", quiet=True)


@pytest.mark.parametrize(
    "loss", ["correlation_congruence", "relational_angle", "relational_distance", "similarity"]
)
def test_one_example_has_nothing_to_be_compared_with(tmp_path, loss):
    config = small(teacher="average", features={"loss": loss, "layers": ("Dense_1",)})
    config.data.batch_size = 1
    with pytest.raises(ConfigError, match=r"teaches nothing while data\.batch_size is 1"):
        experiment.run(config, tmp_path / "run", quiet=True)


def test_a_layer_may_be_compared_with_several(tmp_path, floats):
    features = {
        "loss": "similarity",
        "layers": ("Dense_1", "Dense_1"),
        "teacher_layers": ("Dense_0", "Dense_1"),
    }
    experiment.run(small(teacher=str(floats), features=features), tmp_path / "run", quiet=True)


def of_the_same_network(start, path, change=lambda weights: weights):
    files.write(path, change(jax.tree.map(np.asarray, mz.unpack(mz.load(start)))))
    return path


def spoilt(weights):
    weights["Dense_1"]["bias"] = np.full_like(weights["Dense_1"]["bias"], np.nan)
    return weights


def of_torch(weights):
    return {name: {"bias": x["bias"], "weight": x["kernel"].T} for name, x in weights.items()}


def turned(weights):
    return {name: {**x, "kernel": x["kernel"].T} for name, x in weights.items()}


FOREIGN = {
    spoilt: "t.safetensors: Dense_1/bias holds NaN or infinity",
    of_torch: "t.safetensors .*it has Dense_0/weight, Dense_1/weight, the model needs Dense_0/kernel, Dense_1/kernel",
    turned: r"it has Dense_0/kernel of shape \(16, 64\), the model needs \(64, 16\), its transpose",
    lambda weights: {"x": np.ones(2)}: "it has x, the model needs Dense_0/bias",
}


@pytest.mark.parametrize("field", ["teacher", "start"])
@pytest.mark.parametrize("change", FOREIGN)
def test_weights_that_do_not_fit_are_named(tmp_path, start, change, field):
    path = str(of_the_same_network(start, tmp_path / "t.safetensors", change))
    config = small(**({"teacher": path} if field == "teacher" else {}))
    config.start = path if field == "start" else ""
    with pytest.raises(ModelzipError, match=FOREIGN[change]) as told:
        experiment.initial_state(experiment.build(config))
    assert "\n" not in str(told.value)
    assert str(told.value).startswith("the teacher file" if field == "teacher" else "start")


def test_the_folder_of_a_run_is_as_good_as_its_model(tmp_path, start):
    states = []
    for path in (start, start.parent):
        config = small(teacher="self")
        config.start = str(path)
        states.append(experiment.initial_state(experiment.build(config)))
    jax.tree.map(np.testing.assert_array_equal, states[0].params, states[1].params)
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(start, bare / "model.mz")
    found = experiment.initial_state(experiment.build(small(teacher=str(bare))))
    jax.tree.map(np.testing.assert_array_equal, found.beside.teacher["params"], states[0].params)
    (tmp_path / "config.json").write_text("{}")
    config.start = str(tmp_path)
    with pytest.raises(ConfigError, match=r"holds no finished run"):
        experiment.initial_state(experiment.build(config))


@pytest.mark.parametrize("cache", ["", "float32"])
def test_a_killed_run_goes_on_without_the_file_of_its_teacher(tmp_path, start, cache, monkeypatch):
    path = of_the_same_network(start, tmp_path / "t.safetensors")
    config = small(teacher=str(path), cache=cache)
    experiment.run(config, tmp_path / "whole", quiet=True)
    interrupt(monkeypatch, config, tmp_path / "run", None)
    kept = path.rename(tmp_path / "kept.safetensors")
    of_the_same_network(start, path, lambda weights: jax.tree.map(lambda x: x + 1, weights))
    with pytest.raises(ModelzipError, match=r"has changed; put the old|a teacher with other weights says"):
        experiment.run(config, tmp_path / "run", quiet=True)
    path.unlink()
    assert kept.exists()
    with (
        contextlib.nullcontext() if cache else pytest.warns(TeacherWarning, match="is gone: the run goes on")
    ):
        experiment.run(config, tmp_path / "run", quiet=True)
    assert (tmp_path / "run" / "model.mz").read_bytes() == (tmp_path / "whole" / "model.mz").read_bytes()
    with pytest.raises(ConfigError, match=r"there is no .*t\.safetensors, of which"):
        experiment.run(config, tmp_path / "new", quiet=True)
