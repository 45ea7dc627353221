"""What `--calibrate` knows by itself: training runs and MiniLM."""

import json

import numpy as np
import pytest
from command import run

import modelzip_jax as mz
from modelzip_jax.errors import ConfigError
from modelzip_jax.training.calibrating_runs import run_calibration

pytest.importorskip("sklearn")


@pytest.mark.parametrize("framework", ["linen", "nnx"])
def test_a_training_run_calibrates_its_own_model(framework, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    trained = run(
        monkeypatch, capsys, "train", "--config", "configs/digits_mlp.py", "--out", folder, "--json",
        "--config.model.options.widths=(16,)", "--config.steps=18", f"--config.model.framework={framework}",
    )  # fmt: skip
    assert trained[0] == 0, trained
    weights, target = tmp_path / "m.safetensors", tmp_path / "small.mz"
    assert run(monkeypatch, capsys, "decompress", folder / "model.mz", weights)[0] == 0
    code, out, err = run(
        monkeypatch,
        capsys,
        "compress",
        weights,
        target,
        "--json",
        "--target-bytes",
        1_000,
        "--calibrate",
        folder,
    )
    assert code == 0, err
    assert 980 <= json.loads(out)["file_bytes"] <= 1_000
    apply_fn, batches = run_calibration(folder, count=200)
    assert {x.shape[0] for x in batches} == {64}
    assert len(batches) == 3
    float_params, packed = mz.unpack(mz.load(folder / "model.mz")), mz.load(target)
    drop = apply_fn(float_params, batches[0]) - apply_fn(mz.unpack(packed), batches[0])
    assert 0 < abs(drop).mean() < 1


def test_no_run_no_name_and_a_file_that_is_no_config(tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    weights = tmp_path / "m.npz"
    np.savez(weights, w=np.ones((1, 2), "f4"))
    for text, said in (
        (tmp_path / "empty", "holds no finished run"),
        ("minilmm", "takes module:function, the folder of a finished"),
        ("minilm", "not the weights of a MiniLM-L6 encoder"),
    ):
        code, _, err = run(monkeypatch, capsys, "compress", weights, tmp_path / "m.mz", "--calibrate", text)
        assert code == 2, text
        assert said in err
        assert err.count("\n") == 1, err
    (tmp_path / "empty" / "model.mz").write_bytes(b"")
    (tmp_path / "empty" / "config.json").write_text('{"epochs": "many"}')
    with pytest.raises(ConfigError, match="is no config of a run"):
        run_calibration(tmp_path / "empty")
