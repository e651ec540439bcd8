"""The blocks of commands in the documents, and what an HTML comment in the line above says of one.

    <!-- not run: REASON -->        its commands are only looked at: could they be typed, are the files that they name there
    <!-- prints -->                 its commands are carried out as they stand, and what is below `$ COMMAND` is what they print
    <!-- printed by: COMMAND -->    (a block without a command) what this command prints

Without a comment every command is carried out in small (`small.py`).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "tau2rl" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = {
    *("tau2rl", "python", "python3", "pip", "pytest", "git", "hf", "ray", "export", "ruff", "lint-imports", ".", "cd"),
    *("docker/build.sh", "docker/run.sh"),
}
ASSIGNED = re.compile(r"[A-Z_]+=\S*")
MARK = re.compile(r"<!-- (not run|prints|printed by)(?:: (.*))? -->")


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One command: `Command(variables={"GPUS": "0"}, words=("scripts/start_policy.sh", "DIR"), printed=())`."""

    variables: dict[str, str]
    words: tuple[str, ...]
    printed: tuple[str, ...]  # the lines below `$ COMMAND`


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """An indented block of a document."""

    document: Path
    line: int  # of the document, from 1
    mark: str  # "", "not run", "prints", "printed by"
    said: str  # the reason, or the command
    text: tuple[str, ...]  # its lines, without the indent

    @property
    def place(self) -> str:
        return f"{self.document.relative_to(ROOT)}:{self.line}"

    @property
    def commands(self) -> list[Command]:
        """The commands of the block, in order; none where its first line is not one."""
        found: list[Command] = []
        lines = "\n".join(self.text).replace("\\\n", " ").split("\n")
        shown = any(line.startswith("$ ") for line in lines)
        for line in lines:
            if shown and not line.startswith("$ "):
                if found:
                    found[-1] = Command(
                        variables=found[-1].variables, words=found[-1].words, printed=(*found[-1].printed, line.rstrip())
                    )
            else:
                found += _commands(line.removeprefix("$ "))
        return found


def blocks(document: Path) -> Iterator[Block]:
    """The indented blocks of a document, in order."""
    lines = document.read_text("utf-8").split("\n")
    at = 0
    while at < len(lines):
        above = lines[at - 1].strip() if at else ""
        mark = MARK.fullmatch(above)
        if not lines[at].startswith("    ") or (above and not mark):
            at += 1
            continue
        end = at
        while end < len(lines) and (lines[end].startswith("    ") or _blank_within(lines, end)):
            end += 1
        kind, said = (mark[1], mark[2] or "") if mark else ("", "")
        text = tuple(line[4:] for line in lines[at:end])
        yield Block(document=document, line=at + 1, mark=kind, said=said, text=text)
        at = end


def _blank_within(lines: list[str], at: int) -> bool:
    return lines[at] == "" and at + 1 < len(lines) and lines[at + 1].startswith("    ")


def _commands(line: str) -> Iterator[Command]:
    """The commands of a line of shell, `&&` between them."""
    try:
        every = shlex.split(line, comments=True)
    except ValueError:  # no line of shell
        return
    while every:
        end = every.index("&&") if "&&" in every else len(every)
        words, every = every[:end], every[end + 1 :]
        variables: dict[str, str] = {}
        while words and ASSIGNED.fullmatch(words[0]):
            name, _, variables[name] = words.pop(0).partition("=")
        if not words:
            return
        program = words[0].removeprefix(".venv/bin/").removeprefix("./")
        if program not in PROGRAMS and not program.startswith("scripts/"):
            return
        yield Command(variables=variables, words=(program, *words[1:]), printed=())
