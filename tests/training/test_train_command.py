import json

import pytest
from typer.testing import CliRunner

import modelzip_jax as mz
from modelzip_jax import cli
from modelzip_jax.recipe import to_plain

pytest.importorskip("sklearn")
QUICK = ["--config.model.options.widths=(16,)", "--config.steps=18", "--config.block=9"]


def invoke(*arguments):
    return CliRunner().invoke(cli.app, ["train", *arguments])


def test_train_and_inspect(tmp_path):
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(to_plain(mz.only("**/kernel", mz.quantize(4, axis=-1)))))
    done = invoke(
        "--config", "configs/digits_mlp.py", "--out", str(tmp_path / "run"), "--json", *QUICK,
        f"--config.recipe={recipe}",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout.strip().splitlines()[-1])
    assert result["steps"] == 18
    assert result["file_bytes"] < result["dense_bytes"] / 5
    assert mz.load(tmp_path / "run" / "model.mz").step == 18


@pytest.mark.filterwarnings("default::modelzip_jax.training.snapshots.CheckpointWarning")
def test_a_damaged_checkpoint_is_a_note(tmp_path, monkeypatch, capsys):
    command = ["train", "--config", "configs/digits_mlp.py", "--out", str(tmp_path), "--json", *QUICK]
    monkeypatch.setattr("sys.argv", ["modelzip", *command, "--config.save_every=9"])
    for damage in (False, True):
        if damage:
            (tmp_path / "checkpoints" / "18" / "rest" / "record.json").write_text("{}")
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert stopped.value.code == 0
    note = f"note: checkpoint {tmp_path}/checkpoints/18 is damaged: its record record.json cannot be read: "
    error = capsys.readouterr().err
    assert error.startswith(note)
    assert error.endswith("; it is renamed to 18.damaged, and step 9 taken\n")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "configs/digit_mlp.py"], "did you mean 'digits_mlp'"),
        (["--config", "configs/digits_mlp.py", "--config.epoch=3"], "did you mean 'epochs'"),
        (["--config", "configs/digits_mlp.py", "--config.model.framework=torch"], "framework"),
        (["--config", "configs/digits_mlp.py", "--config.recipe=nowhere.json"], "nowhere.json"),
    ],
)
def test_mistakes_are_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["modelzip", "train", *arguments, "--out", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
