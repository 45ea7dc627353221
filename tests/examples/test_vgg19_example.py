"""The worked example on five convolutions: what each stage leaves, and that a stopped one leaves the same."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import modelzip_jax as mz
from modelzip_jax import cli
from modelzip_jax.errors import ConfigError
from modelzip_jax.examples.stage_records import ExampleStage, run_stages, write_json

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
STAGES = ("dense", "active", "shrunk", "recovered", "sparse", "quantized", "tuned", "table")
SMALL = [
    "--size=tiny", "--config.model.name=vgg", "--config.model.options.depths=(1, 1, 1, 1, 1)",
    "--config.steps=6", "--config.save_every=3", "--config.evaluate_every=3",
    *(f"--config.compress.{part}.steps=4" for part in ("recovering", "thinning", "tuning")),
    # Of a network of 17,000 parameters.
    "--config.compress.parameters=10_000_000",
]  # fmt: skip


def arguments(folder, *more):
    return ["example", "vgg19", f"--out={folder}", *SMALL, *more]


def command(folder, *more):
    """The exit code."""
    before, sys.argv = sys.argv, ["modelzip", *arguments(folder, *more)]
    try:
        cli.main()
    except SystemExit as stop:
        return stop.code or 0
    finally:
        sys.argv = before
    return 0


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("example") / "run"
    assert command(folder, "--json") == 0
    return folder


def left(folder):
    """The bytes of all that stages leave for others."""
    names = [*(f"{stage}/model.mz" for stage in STAGES if (folder / stage / "model.mz").exists())]
    names += ["active/activity.json", "shrunk/visits.json", "quantized/result.json", "table/table.json"]
    return {name: (folder / name).read_bytes() for name in names}


def rows(folder):
    return {row["stage"]: row for row in json.loads((folder / "table/table.json").read_text())["rows"]}


def packed(folder, stage):
    return mz.load(folder / stage / "model.mz")


def kernels(folder, stage):
    named = mz.tree.named_leaves(mz.unpack(packed(folder, stage)))
    return {name: np.asarray(x) for name, x in named if name.endswith("kernel")}


def test_filters_leave_until_the_parameters_are_within_the_budget(finished):
    found, visits = rows(finished), json.loads((finished / "shrunk/visits.json").read_text())
    budget = 10_000_000 * found["dense"]["parameters"] // 20_035_018
    assert 0.9 * budget < found["recovered"]["parameters"] <= budget
    assert [v["active"] for v in visits] == sorted(v["active"] for v in visits)
    assert visits[-1]["parameters"] == found["recovered"]["parameters"]
    assert [v["parameters"] for v in visits] == sorted((v["parameters"] for v in visits), reverse=True)
    shapes = {name: x.shape[-1] for name, x in kernels(finished, "shrunk").items()}
    assert {v["leaf"]: v["kept"] for v in visits} == {n: w for n, w in shapes.items() if "Conv" in n}


def test_layers_of_sparse_activations_become_sparse_and_stay_so(finished):
    recovered, sparse = kernels(finished, "recovered"), kernels(finished, "sparse")
    share = {name: float(np.mean(x == 0)) for name, x in sparse.items()}
    thinned = [name for name, zeros in share.items() if zeros > 0.25]
    assert "Dense_0/kernel" not in thinned
    assert thinned
    assert all(share[name] < 0.1 for name in share if name not in thinned)
    assert all(np.mean(x == 0) < 0.1 for x in recovered.values())
    for stage in ("quantized", "tuned"):
        later = kernels(finished, stage)
        assert all((later[name][sparse[name] == 0] == 0).all() for name in thinned)


def test_weights_are_within_their_reach_on_one_grid(finished):
    for stage in ("quantized", "tuned"):
        for name, x in kernels(finished, stage).items():
            assert np.abs(x).max() <= 0.5 + 1e-3, name  # an offset keeps the mean
            assert len(np.unique(x)) <= 256
    found = rows(finished)
    assert found["quantized"]["file_bytes"] < found["sparse"]["file_bytes"] / 2
    assert found["tuned"]["file_bytes"] < found["dense"]["file_bytes"] / 5


def test_the_file_is_trained_further_and_its_page_needs_no_network(finished):
    before, after = kernels(finished, "quantized"), kernels(finished, "tuned")
    assert any((before[name] != after[name]).any() for name in before)
    assert packed(finished, "tuned").transform == packed(finished, "quantized").transform
    page = (finished / "table/report.html").read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert "Conv_0/kernel" in page


def test_a_second_run_does_nothing_and_a_damaged_stage_is_made_again(finished, capsys, tmp_path):
    expected, folder = left(finished), tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "active/activity.json").write_text("[]")
    assert command(folder) == 0
    said = capsys.readouterr().err
    assert said.count("was done before") == len(STAGES) - 1
    assert "active: its activations" in said
    assert left(folder) == expected


def test_other_settings_are_refused_by_name(finished, capsys):
    assert command(finished, "--config.compress.bits=4") == 2
    assert "compress differ" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--until=quantised"], "quantized"),
        (["--config.compress.bit=4"], "'bits'"),
        (["--config=configs/vgg19_budget.py"], "--size and --config"),
        (["--config.compress.order=fastest"], "order"),
        (["--config.compress.parameters=100"], "the bound cannot be reached"),
    ],
)
def test_mistakes_are_one_line(finished, capsys, tmp_path, more, said):
    folder = tmp_path / "run"
    if "order" in more[0] or "parameters" in more[0]:
        shutil.copytree(
            finished, folder, ignore=shutil.ignore_patterns("settings.json", "stage.json", "shrunk")
        )
        more = [*more, "--until=shrunk"]
    assert command(folder, *more) == 2
    error = capsys.readouterr().err.splitlines()
    assert said in error[-1]
    assert error[-1].startswith("modelzip: ")


@pytest.mark.slow
def test_killed_in_each_stage_and_started_again_it_leaves_the_same(finished, tmp_path):
    folder, root = tmp_path / "run", Path(__file__).parents[2]
    code = "from modelzip_jax import cli; cli.main()"
    for number, stage in enumerate(STAGES):
        with open(tmp_path / "log", "wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", code, *arguments(folder)], cwd=root, stderr=log, stdout=log,
                env={**os.environ, "PYTHONPATH": str(root)},
            )  # fmt: skip
        # A training is killed behind its first checkpoint, others as soon as they have begun.
        trained = number in (0, 3, 4, 6)
        sign = folder / stage / "checkpoints/3" if trained else folder / stage
        until = time.monotonic() + 120
        while not sign.exists() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        assert sign.exists(), (tmp_path / "log").read_text()
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert command(folder) == 0
    assert left(folder) == left(finished)


def test_stages_that_are_done_are_known_by_what_they_were_made_from(tmp_path):
    ran = []

    def stages(value):
        def first():
            ran.append("first")
            write_json(tmp_path / "first/n.json", value)

        def second():
            ran.append("second")
            write_json(tmp_path / "second/n.json", json.loads((tmp_path / "first/n.json").read_text()) + 1)

        return [
            ExampleStage("first", "", first, (), ("n.json",)),
            ExampleStage("second", "", second, ("first/n.json",), ("n.json",)),
        ]

    run_stages(stages(1), tmp_path, {"a": 1})
    run_stages(stages(1), tmp_path, {"a": 1})
    assert ran == ["first", "second"]
    (tmp_path / "first/stage.json").write_text(
        "{"
    )  # made again, with other bytes, so that the second is, too
    run_stages(stages(5), tmp_path, {"a": 1})
    assert ran == ["first", "second"] * 2
    assert (tmp_path / "second/n.json").read_text() == "6\n"
    run_stages(stages(5), tmp_path, {"a": 2})
    assert ran == ["first", "second"] * 3
    (tmp_path / "second/n.json").unlink()
    assert run_stages(stages(5), tmp_path, {"a": 2})["first"] == 0.0
    assert ran[-1] == "second"
    with pytest.raises(ConfigError, match="did you mean 'second'"):
        run_stages(stages(5), tmp_path, {"a": 2}, until="secnd")


def test_a_stage_that_was_stopped_finds_what_it_left_unless_it_was_of_other_settings(tmp_path):
    seen = []

    def work():
        half = tmp_path / "one/half.json"
        seen.append(half.exists())
        write_json(half, 1)
        if len(seen) == 1:
            raise KeyboardInterrupt
        write_json(tmp_path / "one/n.json", 2)

    stage = ExampleStage("one", "", work, (), ("n.json",))
    with pytest.raises(KeyboardInterrupt):
        run_stages([stage], tmp_path, {"a": 1})
    assert run_stages([stage], tmp_path, {"a": 1})["one"] > 0.0
    assert run_stages([stage], tmp_path, {"a": 1})["one"] == 0.0
    run_stages([stage], tmp_path, {"a": 2})
    assert seen == [False, True, False]
