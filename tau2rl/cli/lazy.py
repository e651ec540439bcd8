"""Text as Typer shows it in a help. Nothing is imported here: the list of all commands needs it."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
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
            owner.add_typer(found, name=name, rich_help_panel=self.panel)
        else:
            epilog = examples(*self.examples) if self.examples else None
            owner.command(name, cls=getattr(found, "command_class", None), rich_help_panel=self.panel, epilog=epilog)(found)
        return typer.main.get_group(owner).commands[name]


class LateGroup(TyperGroup):
    """A group whose commands are those of a subclass's `late`, in order; `commands` has them whole, a list of them does not."""

    late: Mapping[str, Late]

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands: Any = _Loaded(self.late)

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


def examples(*lines: str) -> str:
    """The epilog of a command: one example a line.

    >>> examples("tau2rl doctor", "tau2rl doctor --json")
    'Examples:\\n\\n  tau2rl doctor\\n\\n  tau2rl doctor --json'
    """
    return "\n\n".join(["Examples:", *(f"  {escape_markup(line)}" for line in lines)])


def escape_markup(text: str) -> str:
    """Square brackets as they are: Typer would read them as rich's markup.

    >>> escape_markup("[a, b]")
    '\\\\[a, b]'
    """
    return text.replace("[", "\\[")
