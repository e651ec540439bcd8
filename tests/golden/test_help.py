"""The help texts, pinned here word by word: a change in what a command takes or says shows as a diff in `help/*.txt`.

- every command, at any depth, has a golden file, and every golden file has a command;
- the words are compared, not the boxes and line breaks around them, which differ between versions of Typer and rich.

To accept a change: `GOLDEN=write pytest tests/golden/test_help.py`, then read the diff.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from tau2rl.cli import app

GOLDEN = Path(__file__).parent / "help"
WRITE = os.environ.get("GOLDEN") == "write"
PLAIN = {"COLUMNS": "100", "TERMINAL_WIDTH": "100", "NO_COLOR": "1", "TERM": "dumb", "LINES": "50"}
# What Typer says in its own words, and how it names the type of a flag.
OF_TYPER = re.compile(r"--install-completion .* (?=--help)|<\w+> ")


def commands(command: Any, *path: str) -> Iterator[tuple[str, ...]]:
    """The command and every one below it, by their words."""
    yield path
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, *path, name)


COMMANDS = list(commands(typer.main.get_command(app)))


def file_of(path: tuple[str, ...]) -> Path:
    return GOLDEN / f"{'_'.join(('tau2rl', *path))}.txt"


def words(text: str) -> list[str]:
    """The text without frames, colours and line breaks."""
    return OF_TYPER.sub("", " ".join(re.sub(r"[\u2500-\u257f]", " ", text).split())).split()


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_says_what_it_said(path: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, [*path, "--help"], env=PLAIN, prog_name="tau2rl")
    assert result.exit_code == 0
    assert result.stderr == ""
    shown = "".join(f"{line.rstrip()}\n" for line in result.stdout.splitlines())
    if WRITE:
        file_of(path).write_text(shown, "utf-8")
    assert words(shown) == words(file_of(path).read_text("utf-8"))


def test_every_golden_file_has_its_command() -> None:
    assert {file.name for file in GOLDEN.iterdir()} == {file_of(path).name for path in COMMANDS}


def test_the_order_and_the_choice_of_words_count() -> None:
    assert words("╭─ The run ─╮\n│ --seed  N │") == ["The", "run", "--seed", "N"]
    assert words("--seed N") != words("--speed N")
    assert words("a b") != words("b a")
