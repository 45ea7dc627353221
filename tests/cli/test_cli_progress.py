"""Progress is shown on a terminal, and nowhere else."""

import io
import re

import numpy as np
import pytest
from command import run
from rich.console import Console

from modelzip_jax import checkpoints
from modelzip_jax.cli import terminal


@pytest.fixture
def screen(monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr(terminal, "err", Console(file=shown, force_terminal=True, width=150))
    return shown


@pytest.fixture
def model(tmp_path):
    params = {
        f"layer{i}": np.random.default_rng(i).normal(size=(64, 32)).astype(np.float32) for i in range(5)
    }
    checkpoints.write(tmp_path / "a.npz", params)
    (tmp_path / "my_norm.py").write_text(
        "def norm(params): return {'n': sum((w**2).sum() for w in params.values())}"
    )
    return tmp_path / "a.npz"


def commands(model):
    folder = model.parent
    return [
        ["compress", model, folder / "m.mz"],
        ["inspect", folder / "m.mz"],
        ["decompress", folder / "m.mz", folder / "b.safetensors"],
        ["evaluate", folder / "m.mz", "--task", "my_norm:norm"],
    ]


def test_every_phase_is_shown_on_a_terminal(monkeypatch, capsys, model, screen):
    monkeypatch.syspath_prepend(model.parent)
    for command in commands(model):
        assert run(monkeypatch, capsys, *command)[0] == 0
    said = screen.getvalue()
    for phase in (
        "reading a.npz", "compressing a.npz", "writing m.mz", "reading m.mz", "decoding m.mz",
        "writing b.safetensors", "evaluating m.mz",
    ):  # fmt: skip
        assert phase in said
    assert "5 of 5 tensors" in said
    assert " kB of " in said


def test_nothing_is_shown_elsewhere(monkeypatch, capsys, model, screen):
    monkeypatch.syspath_prepend(model.parent)
    for command in commands(model):
        code, _, err = run(monkeypatch, capsys, *command, "--json")
        assert (code, err) == (0, "")
    assert screen.getvalue() == ""
    monkeypatch.setattr(terminal, "err", Console(file=screen, force_terminal=False))
    code, _, err = run(monkeypatch, capsys, *commands(model)[0], "-f")
    assert (code, err, screen.getvalue().strip()) == (0, "", "")


def plain(screen):
    """What was shown, without the terminal's commands. Of tries that are over at once only the last is shown."""
    return re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", screen.getvalue())


def test_a_search_tells_of_its_tries(monkeypatch, capsys, model, screen):
    folder = model.parent
    command = ("compress", model, folder / "m.mz", "--target-bytes", 6_000)
    assert run(monkeypatch, capsys, *command)[0] == 0
    said = plain(screen)
    assert re.search(r"compressing a.npz \(try \d: [\d.]+ kB of [\d.]+ kB\)", said), said
    assert "5 of 5 tensors" in said
    (folder / "my_model.py").write_text(
        "import numpy as np\n"
        "def data():\n"
        "    x = np.random.default_rng(9).normal(size=(16, 64)).astype('f4')\n"
        "    return (lambda p, x: x @ p['layer0']), [x[:8], x[8:]]\n"
    )
    monkeypatch.chdir(folder)
    command = (*command[:3], "-f", "--max-drop", 0.01, "--calibrate", "my_model:data")
    code, _, err = run(monkeypatch, capsys, *command)
    assert code == 0, err
    assert re.search(r"try \d+: drop [\d.e-]+", plain(screen))


def test_a_phase_starts_anew(screen):
    with terminal.phase("working", quiet=False, total_bytes=3000, tensors=2) as tell:
        tell("a", 1000)
        tell("b", 2000)
        tell.restart("first")
        tell("a", 1000)
    assert "working (first)" in screen.getvalue()
    assert "1 of 2 tensors, 1.0 kB of 3.0 kB" in screen.getvalue()


def test_a_phase_counts_tensors_and_bytes(screen):
    with terminal.phase("working", quiet=False, total_bytes=4000, tensors=2) as tell:
        tell("a", 1000)
        tell("b", 2000)
        tell("b", 1000)
    assert "2 of 2 tensors, 4.0 kB of 4.0 kB" in screen.getvalue()
