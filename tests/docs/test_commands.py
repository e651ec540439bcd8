"""The commands of the documents, pinned here:

- every command of a block that is not marked `not run` is carried out, in small and in the document's order, and ends with 0;
- what a block shows below `$ COMMAND` is what the command prints, where the block is marked `prints`;
- an example at the end of a `--help` can be pasted as it is shown, also on a narrow terminal;
- (slow) the examples at the end of each `--help` run too, but for those that need what is not here;
- what a command names is there, or was made by a command before it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from tau2rl.cli import app
from tests.docs.blocks import DOCUMENTS, ROOT, Block, Command, blocks
from tests.docs.small import World


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_commands_of_a_document_run(document: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a clone"
    folder.mkdir()
    world = World(folder)
    failed: list[str] = []
    with world.server, world.user:
        for block in blocks(document):
            for command in block.commands if block.mark == "" else []:
                try:
                    world.run(command)
                except AssertionError as error:
                    failed.append(f"{block.place}: {error}")
    assert not failed, "\n\n".join(failed)


def examples(command: Any, *path: str) -> Iterator[tuple[str, list[str]]]:
    """The examples at the end of each help, in order: `("tau2rl top", ["tau2rl top outputs/grpo/default", ...])`."""
    yield " ".join(("tau2rl", *path)), str(command.epilog or "").splitlines()
    for name, inner in getattr(command, "commands", {}).items():
        yield from examples(inner, *path, name)


NOT_RUN = {
    "a server, a hub, a terminal, or another program": (
        *("tau2rl view", "tau2rl serve", "tau2rl push", "tau2rl convert", "AReaL", "--judge-model"),
        "tau2rl top outputs/grpo/default",
    ),
    "minutes": ("tau2rl bench", "calibrate", "recipe.json"),
    "the reader's own": ("my_pkg", "at-20", "chat.thinking=keep", "val.parquet"),
    "a model that solves some of the tasks, tests/unit/cli/test_profile.py": ("profile", "--from-failures", "--name rates"),
    "run by docs/local.md": ("configs/laptop/sft.yaml", "configs/laptop/grpo.yaml"),
}
SHOWN_IN_HELP = dict(examples(typer.main.get_command(app)))
EXAMPLES = {
    name: [line for line in lines if not any(word in line for words in NOT_RUN.values() for word in words)]
    for name, lines in SHOWN_IN_HELP.items()
}


@pytest.mark.parametrize("columns", [60, 80, 200])
@pytest.mark.parametrize(("name", "lines"), [(name, lines) for name, lines in SHOWN_IN_HELP.items() if lines])
def test_an_example_of_a_help_can_be_pasted(name: str, lines: list[str], columns: int) -> None:
    result = CliRunner().invoke(app, [*name.split()[1:], "--help"], env={"COLUMNS": str(columns)})
    shown = result.stdout.partition("\n Examples:\n\n")[2]
    assert max(map(len, shown.splitlines())) < columns
    assert [shlex.split(line) for line in shown.replace("\\\n", "").strip().splitlines()] == [shlex.split(line) for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, lines in EXAMPLES.items() if lines])
def test_the_examples_of_a_help_run(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "a clone"
    folder.mkdir()
    world = World(folder)
    failed: list[str] = []
    with world.server, world.user:
        for line in EXAMPLES[name]:
            world.forget()
            try:
                world.run(Command(variables={}, words=tuple(shlex.split(line.partition(" > ")[0])), printed=()))
            except AssertionError as error:
                failed.append(f"{line}: {error}")
    assert not failed, "\n\n".join(failed)


SHOWN = [block for document in DOCUMENTS for block in blocks(document) if block.mark in ("prints", "printed by")]


@pytest.mark.parametrize("block", SHOWN, ids=lambda block: block.place)
def test_what_a_document_shows_is_what_is_printed(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("TAU2RL_OUTPUTS", str(tmp_path / "outputs"))
    if block.mark == "printed by":
        commands = [(shlex.split(block.said)[1:], list(block.text))]
    else:
        commands = [(list(command.words[1:]), list(command.printed)) for command in block.commands]
    for words, told in commands:
        if words[:2] in (["tasks", "index"],):
            words = [*words[:-1], str(tmp_path / "prompts")]
        result = CliRunner().invoke(app, words, env={"COLUMNS": "400"})
        printed = [
            text.replace(str(tmp_path / "prompts"), "data/prompts").splitlines() for text in (result.stdout, result.output)
        ]
        assert plain(told) in map(plain, printed), f"`tau2rl {shlex.join(words)}`: {result.output}"


def plain(lines: list[str]) -> list[str]:
    """Lines that are not empty and no progress, without blanks at their ends; what a run cost differs each time."""
    kept = [line.rstrip() for line in lines if line.strip() and not re.match(r"\d+/\d+ ", line)]
    return ["cost: ..." if line.startswith("cost: ") else line for line in kept]
