"""A setting as an option of a command: its help and its default are the setting's own, so they cannot drift apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import typer
from pydantic import BaseModel

from tau2rl.commands.markup import escape
from tau2rl.config import EvalConfig

WHAT, AGENT, CUSTOMER, RUN, WHERE, OUTPUT = "What to run", "The agent", "The customer", "The run", "Where it runs", "Output"
MODEL, TRAINING = "The model", "The training"


def setting(
    name: str, *flags: str, panel: str, metavar: str | None = None, config: type[BaseModel] = EvalConfig, note: str = ""
) -> Any:
    """The option of one dotted setting; `note` says what it is in place of the setting's own words.

    The option's own default is None, which means "not given": the config file's value holds.
    """
    text, default = describe(config, name)
    words = [note or text, f"(`{name}`" + ("" if default in (None, (), "") else f", default `{_shown(default)}`") + ")"]
    return typer.Option(
        *flags, help=escape(" ".join(filter(None, words))), rich_help_panel=panel, metavar=metavar, show_default=False
    )


def options_of(config: type[BaseModel]) -> Callable[..., Any]:
    """`setting` for the settings of one stage, in short: `option(NAME, FLAG, PANEL, METAVAR, NOTE)`."""

    def option(name: str, flag: str, panel: str, metavar: str | None = None, note: str = "") -> Any:
        return setting(name, flag, panel=panel, metavar=metavar, note=note, config=config)

    return option


def describe(config: type[BaseModel], name: str) -> tuple[str, Any]:
    """The documentation and the default of a dotted setting.

    >>> describe(EvalConfig, "policy.sampling.temperature")
    ('0 = greedy.', 0.7)
    """
    head, _, rest = name.partition(".")
    info = config.model_fields[head]
    if rest:
        assert isinstance(info.annotation, type)
        assert issubclass(info.annotation, BaseModel)
        return describe(info.annotation, rest)
    return " ".join((info.description or "").split()), info.default


def _shown(default: Any) -> str:
    if isinstance(default, bool):
        return "on" if default else "off"
    return ",".join(map(str, cast("tuple[object, ...]", default))) if isinstance(default, tuple) else str(default)
