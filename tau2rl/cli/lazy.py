"""Text as Typer shows it in a help. Nothing is imported here: the list of all commands needs it."""

from __future__ import annotations

import copy
import importlib
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class Late:
    """What a list of commands says of one, and where it is: `Late(where="tau2rl.cli.eval:evaluate", ...)`."""

    where: str
    """MODULE:NAME of a function, or of a Typer for a group of commands."""
    panel: str
    """The heading that it stands under."""
    summary: str
    """The first paragraph of its help."""
    examples: tuple[str, ...] = ()
    """What could be typed; the end of its help."""

    def load(self, name: str) -> Any:
        """Import it and make the command, as Typer makes it for an application."""
        module, _, attribute = self.where.partition(":")
        found = getattr(importlib.import_module(module), attribute)
        owner = typer.Typer(rich_markup_mode="rich")
        if isinstance(found, typer.Typer):
            for info in found.registered_commands:
                info.cls = Command
            owner.add_typer(found, name=name, rich_help_panel=self.panel)
        else:
            epilog = examples(*self.examples) if self.examples else None
            owner.command(name, cls=getattr(found, "command_class", Command), rich_help_panel=self.panel, epilog=epilog)(found)
        return typer.main.get_group(owner).commands[name]


class Command(TyperCommand):
    """A command whose examples can be pasted; those of `Late` are of this class where they name none of their own."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write its help."""
        help_with_examples(TyperCommand.format_help, self, ctx, formatter)


class LateGroup(TyperGroup):
    """A group whose commands are those of a subclass's `late`, in order; `commands` has them whole, a list of them does not."""

    late: Mapping[str, Late]

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands: Any = _Loaded(self.late)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write its help."""
        help_with_examples(TyperGroup.format_help, self, ctx, formatter)

    def list_commands(self, ctx: Any) -> list[str]:
        """Their names."""
        return list(self.late)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command as a list shows it: Typer asks for all of them to say what they are for."""
        if cmd_name not in self.late:
            return None
        late = self.late[cmd_name]
        return TyperCommand(cmd_name, help=late.summary, rich_help_panel=late.panel)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The name, the whole command and the words behind it."""
        name, found, rest = super().resolve_command(ctx, args)
        return name, self.commands[name] if found else None, rest


class _Loaded(Mapping[str, Any]):
    """Name -> command, each imported the first time that it is looked at."""

    def __init__(self, late: Mapping[str, Late]) -> None:
        self._late = late
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._loaded:
            self._loaded[name] = self._late[name].load(name)
        return self._loaded[name]

    def __contains__(self, name: object) -> bool:
        return name in self._late

    def __iter__(self) -> Iterator[str]:
        return iter(self._late)

    def __len__(self) -> int:
        return len(self._late)


def examples(*commands: str) -> str:
    """The epilog of a command, as `help_with_examples` reads it: one example a line."""
    return "\n".join(commands)


def help_with_examples(format_help: Callable[..., None], command: Any, ctx: Any, formatter: Any) -> None:
    """Write a help as Typer does, and below it the examples in lines of our own: Typer's end anywhere, and cannot be pasted."""
    shown = copy.copy(command)
    shown.epilog = None
    format_help(shown, ctx, formatter)
    if command.epilog:
        width = shutil.get_terminal_size().columns - 1
        written = (_in_lines(line, width) for line in command.epilog.splitlines())
        formatter.write("".join(f"{line}\n" for line in ["", " Examples:", "", *written]))


def _in_lines(command: str, width: int) -> str:
    """A command that is pasted as it stands, over several lines where it is longer than `width`; options keep their values.

    >>> print(_in_lines("tau2rl eval --tokenizer DIR --domains retail --num-samples 4", 50))
     tau2rl eval --tokenizer DIR --domains retail \\
       --num-samples 4
    >>> print(_in_lines("tau2rl eval --set 'tasks.ids=[a, b]' --limit 1", 30))
     tau2rl eval \\
       --set 'tasks.ids=[a, b]' \\
       --limit 1
    """
    if len(command) < width:
        return f" {command}"
    parts: list[list[str]] = [[]]
    for word in re.findall(r"""(?:[^\s'"]|'[^']*'|"[^"]*")+""", command):  # what is quoted is not broken
        if word.startswith("--"):
            parts.append([])
        parts[-1].append(word)
    lines = [""]
    for part in parts:
        whole = " ".join(part)
        for word in [whole] if len(whole) + 5 <= width else part:  # 5: the indent, and a backslash behind a blank
            if lines[-1] and len(lines[-1]) + len(word) + 6 > width:
                lines.append("")
            lines[-1] += f" {word}" if lines[-1] else word
    return " " + " \\\n   ".join(lines)


def escape_markup(text: str) -> str:
    """Square brackets as they are: Typer would read them as rich's markup.

    >>> escape_markup("[a, b]")
    '\\\\[a, b]'
    """
    return text.replace("[", "\\[")
