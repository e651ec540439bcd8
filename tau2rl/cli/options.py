"""The options that more than one command has, and the settings behind them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from pydantic import BaseModel

from tau2rl.cli.lazy import escape
from tau2rl.config import DOMAINS, EvalConfig, SeedConfig, SftConfig, TasksConfig, build

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


# Where stages share a section, one of them stands for all.
_any, _learning, _training = options_of(EvalConfig), options_of(SeedConfig), options_of(SftConfig)

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
    _any("tasks.domains", "--domains", WHAT, "NAMES", f"Of {', '.join(DOMAINS)}; separated by commas or repeated."),
]
Split = Annotated[str | None, _any("tasks.split", "--task-split", WHAT, "NAME")]
TrainSplit = Annotated[str | None, _learning("tasks.split", "--task-split", WHAT, "NAME")]
Limit = Annotated[int | None, _any("tasks.limit", "--limit", WHAT, "N")]
NumSamples = Annotated[int | None, _any("rollout.num_samples", "--num-samples", WHAT, "N")]

Policy = Annotated[str | None, _any("policy.kind", "--policy", AGENT, "KIND")]
PolicyUrl = Annotated[str | None, _any("policy.url", "--url", AGENT, "URL")]
PolicyModel = Annotated[str | None, _any("policy.model", "--model", AGENT, "NAME")]
Temperature = Annotated[float | None, _any("policy.sampling.temperature", "--temperature", AGENT, "X")]
Tokenizer = Annotated[str | None, _any("chat.tokenizer", "--tokenizer", AGENT, "DIR")]
Protocol = Annotated[str | None, _any("chat.protocol", "--protocol", AGENT, "NAME")]
UserModel = Annotated[
    str | None,
    _any("user.model", "--user-model", CUSTOMER, "NAME", "litellm model that plays the customer, or `scripted` for none."),
]

InitialModel = Annotated[str | None, _training("model.init", "--model", MODEL, "DIR")]
LoraRank = Annotated[int | None, _training("local.lora.rank", "--lora-rank", MODEL, "N")]
Steps = Annotated[int | None, _training("train.steps", "--steps", TRAINING, "N")]
Device = Annotated[str | None, _training("local.device", "--device", WHERE, "NAME")]

Name = Annotated[str | None, _any("name", "--name", RUN, "NAME")]
Output = Annotated[Path | None, _any("output", "--output", RUN, "DIR")]
Resume = Annotated[bool | None, _any("resume", "--resume", RUN)]
Seed = Annotated[int | None, _any("seed", "--seed", RUN, "N", "Every attempt's own seed is derived from it.")]
Concurrency = Annotated[int | None, _any("rollout.concurrency", "--concurrency", RUN, "N")]
Address = Annotated[str | None, _any("launch.address", "--address", WHERE, "URL")]
Inline = Annotated[bool | None, _any("launch.inline", "--inline", WHERE)]
Detach = Annotated[bool | None, _any("launch.detach", "--detach", WHERE)]

DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the resolved config and what would run; run nothing.", rich_help_panel=OUTPUT)
]
Json = Annotated[
    bool,
    typer.Option(
        "--json", help="Machine-readable: JSON on stdout, and nothing else there.", rich_help_panel=OUTPUT, show_default=False
    ),
]


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


def tasks_settings(domains: list[str] | None, split: str | None, limit: int | None) -> dict[str, Any]:
    """The settings behind `--domains --task-split --limit`."""
    return {"tasks.domains": split_list(domains), "tasks.split": split, "tasks.limit": limit}


def agent_settings(
    policy: str | None, url: str | None, model: str | None, temperature: float | None, tokenizer: str | None, protocol: str | None
) -> dict[str, Any]:
    """The settings behind the options of the agent."""
    return {
        "policy.kind": policy,
        "policy.url": url,
        "policy.model": model,
        "policy.sampling.temperature": temperature,
        "chat.tokenizer": tokenizer,
        "chat.protocol": protocol,
    }


def user_settings(user_model: str | None) -> dict[str, Any]:
    """The settings behind `--user-model`.

    >>> user_settings("scripted"), user_settings("gpt-4.1")
    ({'user.kind': 'scripted'}, {'user.kind': 'llm', 'user.model': 'gpt-4.1'})
    """
    if user_model is None:
        return {}
    return {"user.kind": "scripted"} if user_model == "scripted" else {"user.kind": "llm", "user.model": user_model}


def run_settings(
    name: str | None,
    output: Path | None,
    resume: bool | None,
    seed: int | None,
    address: str | None,
    inline: bool | None,
    detach: bool | None,
) -> dict[str, Any]:
    """The settings behind the options that every run has."""
    return {
        "name": name,
        "output": None if output is None else str(output),
        "resume": resume,
        "seed": seed,
        "launch.address": address,
        "launch.inline": inline,
        "launch.detach": detach,
    }
