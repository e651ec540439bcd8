"""What the commands' options have in common: their help comes from the config's own field docs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from pydantic import BaseModel

from tau2rl.config import DOMAINS, EvalConfig, TasksConfig, build

WHAT, AGENT, CUSTOMER, RUN, WHERE, OUTPUT = "What to run", "The agent", "The customer", "The run", "Where it runs", "Output"


def setting(
    name: str, *flags: str, panel: str, metavar: str | None = None, config: type[BaseModel] = EvalConfig, note: str = ""
) -> Any:
    """The option of one dotted setting: help and default are the setting's, so they cannot drift apart.

    The option's own default is None, which means "not given": the config file's value holds.
    """
    text, default = describe(config, name)
    words = [note or text, f"(`{name}`" + ("" if default in (None, (), "") else f", default `{_shown(default)}`") + ")"]
    return typer.Option(
        *flags, help=escape(" ".join(filter(None, words))), rich_help_panel=panel, metavar=metavar, show_default=False
    )


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


def escape(text: str) -> str:
    """Square brackets as they are: Typer would read them as rich's markup.

    >>> escape("[a, b]")
    '\\\\[a, b]'
    """
    return text.replace("[", "\\[")


def examples(*lines: str) -> str:
    """The epilog of a command: one example a line.

    >>> examples("tau2rl doctor", "tau2rl doctor --json")
    'Examples:\\n\\n  tau2rl doctor\\n\\n  tau2rl doctor --json'
    """
    return "\n\n".join(["Examples:", *(f"  {escape(line)}" for line in lines)])


def split_list(values: Iterable[str] | None) -> list[str] | None:
    """Values given by commas or by repeating the option; None when the option was not given.

    >>> split_list(["airline,retail", "telecom"]), split_list([]), split_list(None)
    (['airline', 'retail', 'telecom'], None, None)
    """
    parts = [part.strip() for value in values or () for part in value.split(",")]
    return [part for part in parts if part] or None


def tasks_config(domains: list[str] | None, split: str | None, limit: int | None) -> TasksConfig:
    """The tasks that `--domains --task-split --limit` name. Raises UserError."""
    given = {"domains": split_list(domains), "split": split, "limit": limit}
    return build(TasksConfig, {name: value for name, value in given.items() if value is not None})


def user_overrides(user_model: str | None) -> dict[str, Any]:
    """The settings behind `--user-model`.

    >>> user_overrides("scripted"), user_overrides("gpt-4.1")
    ({'user.kind': 'scripted'}, {'user.kind': 'llm', 'user.model': 'gpt-4.1'})
    """
    if user_model is None:
        return {}
    return {"user.kind": "scripted"} if user_model == "scripted" else {"user.kind": "llm", "user.model": user_model}


def _shown(default: Any) -> str:
    if isinstance(default, bool):
        return "on" if default else "off"
    return ",".join(map(str, cast("tuple[object, ...]", default))) if isinstance(default, tuple) else str(default)


ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "-c", "--config", help="YAML or JSON file of settings.", metavar="FILE", rich_help_panel=RUN, show_default=False
    ),
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Any setting by its dotted name; repeat for more. `tau2rl config show` lists them.",
        metavar="NAME=VALUE",
        rich_help_panel=RUN,
        show_default=False,
    ),
]
Domains = Annotated[
    list[str] | None,
    setting(
        "tasks.domains",
        "--domains",
        panel=WHAT,
        metavar="NAMES",
        note=f"Of {', '.join(DOMAINS)}; separated by commas or repeated.",
    ),
]
Split = Annotated[str | None, setting("tasks.split", "--task-split", panel=WHAT, metavar="NAME")]
Limit = Annotated[int | None, setting("tasks.limit", "--limit", panel=WHAT, metavar="N")]
Json = Annotated[
    bool,
    typer.Option(
        "--json", help="Machine-readable: JSON on stdout, and nothing else there.", rich_help_panel=OUTPUT, show_default=False
    ),
]
