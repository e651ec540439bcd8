"""The command line of a stage, made from its config class: every setting is an option under its dotted name.

What is written here is what the class cannot know: which settings have short names, and which of them a short help shows.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar, cast

import typer
from typer.core import TyperCommand, TyperGroup

from tau2rl.cli.lazy import escape_markup, help_with_examples
from tau2rl.config import Section, Setting, every_setting, load_config, words_of
from tau2rl.config.base import arms_of, items_of, section_of, values_of
from tau2rl.config.loading import old_names

RUN, OUTPUT = "The run", "Output"

# A setting's short names; the first one is shown. A stage has those whose settings it has.
SHORT: dict[str, tuple[str, ...]] = {
    "tasks.domains": ("--domains",), "tasks.split": ("--task-split",), "tasks.limit": ("--limit",),
    "tasks.source": ("--task-source",),
    "policy.kind": ("--policy",), "policy.url": ("--url",), "policy.model": ("--model",), "policy.checkpoint": ("--checkpoint",),
    "policy.sampling.temperature": ("--temperature",),
    "policy.sampling.top_p": ("--top-p",), "policy.sampling.top_k": ("--top-k",),
    "chat.tokenizer": ("--tokenizer",), "chat.protocol": ("--protocol",), "limits.max_steps": ("--max-steps",),
    "rollout.num_samples": ("--num-samples", "--group-size"), "rollout.greedy": ("--greedy",),
    "rollout.concurrency": ("--concurrency",), "reward.preset": ("--reward",),
    "noise_prob": ("--noise-prob",), "sources": ("--from",),
    "keep.per_user": ("--per-user",), "keep.per_cell": ("--per-cell",), "keep.total": ("--total",),
    "balance.per_user": ("--per-user",), "balance.per_cell": ("--per-cell",), "balance.total": ("--total",),
    "keep.per_task": ("--per-task",), "keep.per_kind": ("--per-kind",), "keep.per_domain": ("--per-domain",),
    "keep.partial_backoff": ("--partial-backoff",), "keep.dedupe": ("--dedupe",), "balance.dedupe": ("--dedupe",),
    "keep.exclude_no_op": ("--exclude-no-op/--include-no-op",),
    "model.init": ("--model",), "data.files": ("--data",), "data.max_tokens": ("--max-tokens",), "data.limit": ("--limit",),
    "train.steps": ("--steps",), "train.lr": ("--lr",), "train.batch_size": ("--batch-size",),
    "train.tasks_per_step": ("--tasks-per-step",), "train.val_every": ("--val-every",), "algo.estimator": ("--estimator",),
    "sampling.temperature": ("--temperature",), "local.lora.rank": ("--lora-rank",), "local.device": ("--device",),
    "repetitions": ("--repetitions",), "card": ("--card",), "num_tasks": ("--num-tasks",), "per_user": ("--per-user",),
    "from_failures": ("--from-failures",), "behaviours": ("--behaviours",), "twists": ("--twists",),
    "writer.kind": ("--writer",), "writer.model": ("--writer-model",),
    "budget.max_usd": ("--max-usd",), "budget.max_tokens": ("--max-tokens",), "budget.max_hours": ("--max-hours",),
    "budget.like": ("--like",),
    "launch.address": ("--address",), "launch.inline": ("--inline",), "launch.detach": ("--detach",),
}  # fmt: skip

COMMON = {
    "name", "output", "resume", "seed", "limit", "backend", "keep", "noise_prob", "sources", "keep.per_task",
    "domain", "num_tasks", "writes", "burdens", "problems", "intents", "personas", "refusals",
    "per_user", "from_failures", "behaviours", "twists", "writer.kind", "writer.model", "tasks.source",
    "tasks.domains", "tasks.split", "tasks.limit", "policy.kind", "policy.url", "policy.model", "policy.checkpoint",
    "policy.sampling.temperature", "chat.tokenizer", "rollout.num_samples", "rollout.concurrency", "repetitions",
    "model.init", "data.files", "train.steps", "train.lr", "train.val_every", "launch.address", "launch.inline",
    "budget.max_usd", "budget.max_tokens", "budget.max_hours", "budget.like",
}  # fmt: skip


def option(
    *names: str,
    help: str,
    metavar: str | None = None,
    panel: str | None = RUN,
    min: float | None = None,
    max: float | None = None,
) -> Any:
    """An option whose help says its default, if it says one at all."""
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel=panel, show_default=False, min=min, max=max)


RunDir = Annotated[Path, typer.Argument(help="A run folder.", metavar="RUN_DIR", show_default=False)]
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
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the resolved config and what would run; run nothing.", rich_help_panel=OUTPUT)
]
Rehearse = Annotated[
    bool,
    typer.Option(
        "--rehearse",
        help="First in small, on the real layout: a step, a validation, a save, a resume, a step, an export; the run itself is "
        "not started.",
        rich_help_panel=OUTPUT,
    ),
]
Json = Annotated[
    bool,
    typer.Option(
        "--json", help="Machine-readable: JSON on stdout, and nothing else there.", rich_help_panel=OUTPUT, show_default=False
    ),
]

C = TypeVar("C", bound=Section)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked(Generic[C]):
    """What was typed for a stage: its config and what to do with it."""

    config: C
    file: Path | None  # where paths inside of it start from
    dry_run: bool
    rehearse: bool
    as_json: bool


def stage_command(model: type[C], act: Callable[[Asked[C]], None], text: str) -> Callable[..., None]:
    """A command that hands the config of its options to `act`; `text` is its help.

    It is a function whose signature has a parameter for every setting, which Typer reads as that of any other command.
    """
    trains = "train" in model.model_fields
    settings = {_identifier(setting.name): setting for setting in _ordered(every_setting(model)) if setting.name != "stage"}
    parameters = [_parameter("config", ConfigFile), _parameter("sets", Sets)]
    parameters += [_parameter(key, _option(model, setting)) for key, setting in settings.items()]
    types = {setting.name: setting.type for setting in settings.values()}
    old = {_identifier(before): (before, types[now]) for before, now in old_names(model)}
    parameters += [_parameter(key, _declared([f"--{name}"], type_, hidden=True)) for key, (name, type_) in old.items()]
    if "user.kind" in types:
        place = next(i for i, parameter in enumerate(parameters) if parameter.name == "user__kind")
        parameters.insert(place, _parameter("user_model", _user_model(model)))
    switches = [("dry_run", DryRun), *([("rehearse", Rehearse)] if trains else []), ("as_json", Json), ("help_all", HelpAll)]
    parameters += [_parameter(name, kind, False) for name, kind in switches]
    names = {key: setting.name for key, setting in settings.items()} | {key: name for key, (name, _) in old.items()}

    def command(**typed: Any) -> None:
        options = {name: typed[key] for key, name in names.items()} | user_settings(typed.get("user_model"))
        config = load_config(model, typed["config"], typed["sets"] or (), options)
        what = {name: typed.get(name, False) for name in ("dry_run", "rehearse", "as_json")}
        act(Asked(config=config, file=typed["config"], **what))

    command.__doc__ = text
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    extras: dict[str, Any] = {"__signature__": inspect.Signature(parameters), "command_class": StageCommand, "settings": settings}
    command.__dict__.update(extras)
    return command


WHOLE = "tau2rl.help_all"


class StageCommand(TyperCommand):
    """A command with more options than one wants to read: its help shows the common ones, `--help-all` every one."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help of the options that were asked for, each under one name."""
        help_with_examples(TyperCommand.format_help, _shortened(self, ctx), ctx, formatter)


class StageGroup(TyperGroup):
    """The same with commands below it; it acts itself where none of them is named."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help of the options that were asked for, each under one name."""
        help_with_examples(TyperGroup.format_help, _shortened(self, ctx), ctx, formatter)


def _shortened(command: Any, ctx: Any) -> Any:
    """A command with the options that its help shows."""
    settings: dict[str, Setting] = getattr(command.callback, "settings", {})
    whole, shown = WHOLE in ctx.meta, copy.copy(command)
    shown.params = [
        _as_shown(param, settings.get(str(param.name)), whole=whole)
        for param in command.params
        if whole or param.name not in settings or settings[param.name].name in COMMON
    ]
    return shown


def with_commands(command: Callable[..., None], *, name: str, epilog: str) -> typer.Typer:
    """A command of `stage_command` as an application that takes further commands."""
    signature = inspect.signature(command)
    context = inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)

    def act(ctx: typer.Context, **typed: Any) -> None:
        if ctx.invoked_subcommand is None:
            command(**typed)

    act.__doc__ = command.__doc__
    act.__annotations__ = {"ctx": typer.Context, **command.__annotations__}
    extras: dict[str, Any] = {
        "__signature__": signature.replace(parameters=[context, *signature.parameters.values()]),
        "settings": command.__dict__["settings"],
    }
    act.__dict__.update(extras)
    app = typer.Typer(name=name, cls=StageGroup, rich_markup_mode="rich", epilog=epilog, invoke_without_command=True)
    app.callback(invoke_without_command=True)(act)
    return app


def _as_shown(param: Any, setting: Setting | None, *, whole: bool) -> Any:
    """An option with the documentation of its setting, under its short name; in the whole help under the dotted one."""
    if setting is None:
        return param
    shown = copy.copy(param)
    place = slice(-1, None) if whole else slice(1)
    shown.opts, shown.secondary_opts = param.opts[place], param.secondary_opts[place]
    others = param.opts[:-1] if whole else [setting.name] if "." in setting.name else []
    notes = [f"`{name}`" for name in others]
    if setting.default is not False and setting.default not in (None, (), "", {}):
        notes.append(f"default `{shown_default(setting.default)}`")
    shown.help = escape_markup(" ".join(filter(None, [setting.text, f"({', '.join(notes)})" if notes else ""])))
    return shown


def _help_all(ctx: typer.Context, value: bool) -> None:
    if value:
        ctx.meta[WHOLE] = True
        typer.echo(ctx.get_help())
        raise typer.Exit


HelpAll = Annotated[
    bool,
    typer.Option(
        "--help-all", help="Show the option of every setting.", is_eager=True, callback=_help_all, rich_help_panel=OUTPUT
    ),
]


def _ordered(settings: Iterable[Setting]) -> list[Setting]:
    """In the order of a help: first what stands in no section and is of the run, last where the job runs."""
    return sorted(settings, key=lambda setting: ("." in setting.name) + setting.name.startswith("launch."))


def _option(model: type[Section], setting: Setting) -> Any:
    """The option of a setting; its own default is None, which means "not given": the config file's value holds."""
    panel = _panel(model, setting.name.partition(".")[0])
    return _declared([*SHORT.get(setting.name, ()), f"--{setting.name}"], setting.type, rich_help_panel=panel)


def _panel(model: type[Section], head: str) -> str:
    """The heading of a section's options: what the section says of itself, and its name."""
    section = section_of(model.model_fields[head].annotation)
    return RUN if section is None else f"{re.split(r'[.;:](?= |$)', section.__doc__ or head)[0]} ({head})"


def _user_model(model: type[Section]) -> Any:
    """The option behind `user_settings`, which sets two settings."""
    text = "litellm model that plays the user, or `scripted` for none. (`user.kind`, `user.model`)"
    panel = _panel(model, "user")
    return Annotated[
        str | None, typer.Option("--user-model", help=text, metavar="NAME", rich_help_panel=panel, show_default=False)
    ]


def _declared(names: list[str], annotation: Any, **more: Any) -> Any:
    if bool in arms_of(annotation):
        switches = [name if "/" in name else f"{name}/--no-{name[2:]}" for name in names]
        return Annotated[bool | None, typer.Option(*switches, show_default=False, **more)]
    option = typer.Option(*names, metavar=_metavar(annotation), show_default=False, **more)
    several = items_of(annotation) is not None or values_of(annotation) is not None
    return Annotated[list[str] | None if several else str | None, option]


def _metavar(annotation: Any) -> str:
    """What stands for a value.

    >>> _metavar(int | None), _metavar(tuple[Path, ...]), _metavar(dict[str, Any])
    ('N', 'PATHS', 'KEY=VALUE')
    """
    items = items_of(annotation)
    if items is not None:
        return f"{_metavar(items)}S"
    if values_of(annotation) is not None:
        return "KEY=VALUE"
    arms = arms_of(annotation)
    if words_of(annotation):
        return "NAME"
    return next((word for kind, word in ((int, "N"), (float, "X"), (Path, "PATH")) if kind in arms), "NAME")


def shown_default(default: Any) -> str:
    """A default as a help has it."""
    if isinstance(default, bool):
        return "on" if default else "off"
    return ",".join(map(str, cast("tuple[object, ...]", default))) if isinstance(default, tuple) else str(default)


def _identifier(name: str) -> str:
    return name.replace(".", "__")


def _parameter(name: str, annotation: Any, default: Any = None) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def user_settings(user_model: str | None) -> dict[str, Any]:
    """The settings behind `--user-model`.

    >>> user_settings("scripted"), user_settings("gpt-4.1")
    ({'user.kind': 'scripted'}, {'user.kind': 'llm', 'user.model': 'gpt-4.1'})
    """
    if user_model is None:
        return {}
    return {"user.kind": "scripted"} if user_model == "scripted" else {"user.kind": "llm", "user.model": user_model}
