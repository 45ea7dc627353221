"""The examples of docs/command_line.md run and print what they say."""

import re
import shlex
from pathlib import Path

import pytest
from command import run

PAGE = (Path(__file__).parents[2] / "docs" / "command_line.md").read_text(encoding="utf-8")
NUMBER = re.compile(r"\d[\d,.]*\d|\d")
WORDS = re.compile(r"[\d,.\s]+")
BLOCK = re.compile(r"```(python|console)\n(.*?)```", re.DOTALL)


def number(text):
    return float(text.replace(",", ""))


def test_the_examples_of_the_page(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    names = {}
    for language, block in BLOCK.findall(PAGE):
        if language == "python":
            exec(compile(block, "command_line.md", "exec"), names)
            continue
        for command in block.split("$ ")[1:]:
            line, _, expected = command.partition("\n")
            arguments = shlex.split(line)
            assert arguments[0] == "modelzip"
            _, out, err = run(monkeypatch, capsys, *arguments[1:])
            assert WORDS.split(out + err) == WORDS.split(expected), line
            found, told = NUMBER.findall(out + err), NUMBER.findall(expected)
            # A coder or a step size may change a little without making the page wrong.
            for ours, theirs in zip(map(number, found), map(number, told), strict=True):
                assert ours == pytest.approx(theirs, rel=0.25), line


@pytest.mark.parametrize(
    ("command", "at_least"),
    [
        ("compress", 11), ("evaluate", 4), ("report", 5), ("compare", 6), ("inspect", 2), ("decompress", 2),
        ("example", 4),
    ],
)  # fmt: skip
def test_every_option_of_a_command_is_on_the_page(monkeypatch, capsys, command, at_least):
    monkeypatch.setenv("COLUMNS", "200")
    _, out, _ = run(monkeypatch, capsys, command, "--help")
    options = set(re.findall(r"--[a-z][a-z-]+", out)) - {"--help"}
    assert len(options) >= at_least
    assert [option for option in sorted(options) if f"`{option}`" not in PAGE] == []
