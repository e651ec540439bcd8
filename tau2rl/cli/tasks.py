"""`tau2rl tasks ...`: the benchmark's tasks, looked at without running a model. All that it knows of `env/` is in this file."""

from __future__ import annotations

import shlex
import textwrap
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from tau2rl import console, settings
from tau2rl.cli.lazy import escape_markup, examples
from tau2rl.cli.options import OUTPUT, SHORT, Json, option, shown_default
from tau2rl.config import Section, StageConfig, TasksConfig, build, every_setting
from tau2rl.errors import UserError
from tau2rl.report.tables import quantity
from tau2rl.runs.progress import ProgressEvent

app = typer.Typer(help="Look at the benchmark's tasks.", no_args_is_help=True)

WHAT = "Which tasks (tasks)"


def _of(model: type[Section], name: str, flag: str, metavar: str) -> Any:
    setting = next(setting for setting in every_setting(model) if setting.name == name)
    default = "" if setting.default in (None, ()) else f" (default `{shown_default(setting.default)}`)"
    return option(flag, help=escape_markup(setting.text + default), metavar=metavar, panel=WHAT)


Source = Annotated[Path | None, _of(TasksConfig, "source", SHORT["tasks.source"][0], "FILE")]
Domains = Annotated[list[str] | None, _of(TasksConfig, "domains", SHORT["tasks.domains"][0], "NAMES")]
Split = Annotated[str | None, _of(TasksConfig, "split", SHORT["tasks.split"][0], "NAME")]
Plugins = Annotated[list[str] | None, _of(StageConfig, "plugins", "--plugins", "MODULES")]
Limit = Annotated[int | None, _of(TasksConfig, "limit", SHORT["tasks.limit"][0], "N")]


def split_list(values: Iterable[str] | None) -> list[str] | None:
    """Values given by commas or by repeating the option; None when the option was not given.

    >>> split_list(["airline,retail", "telecom"]), split_list([]), split_list(None)
    (['airline', 'retail', 'telecom'], None, None)
    """
    parts = [part.strip() for value in values or () for part in value.split(",")]
    return [part for part in parts if part] or None


def tasks_config(
    domains: list[str] | None, split: str | None, limit: int | None, plugins: list[str] | None = None, source: Path | None = None
) -> TasksConfig:
    """The tasks that the options name, of tau2 or of a file, also of a domain of `--plugins`. Raises UserError."""
    if modules := split_list(plugins):
        from tau2rl.launch.entry import load_plugins

        load_plugins(modules)
    given = {"source": source, "domains": split_list(domains), "split": split, "limit": limit}
    return build(TasksConfig, {name: value for name, value in given.items() if value is not None})


@app.command("list", epilog=examples("tau2rl tasks list --domains airline", "tau2rl tasks list --task-split base --json"))
def list_(
    source: Source = None,
    domains: Domains = None,
    split: Split = None,
    limit: Limit = None,
    plugins: Plugins = None,
    as_json: Json = False,
) -> None:
    """List tasks: what their reference path reads and writes, how they are graded, and known defects."""
    config = tasks_config(domains, split, limit, plugins, source)
    from tau2rl.env.tasks import list_tasks

    rows = list_tasks(config)
    if as_json:
        console.emit_json([_with_ref(asdict(row)) for row in rows])
        return
    head = ["task", "reads", "writes", "user actions", "to say", "graded by", "known defect"]
    body = [
        [r.ref.key, str(r.reads), str(r.writes), str(r.user_actions), str(r.communicate), "+".join(r.basis), r.quarantined]
        for r in rows
    ]
    console.emit_table([head, *body])
    console.say(quantity(len(rows), "task"))


@app.command(epilog=examples("tau2rl tasks show retail/5", "tau2rl tasks show airline/7 --json"))
def show(
    task: Annotated[str, typer.Argument(help="A task, `domain/task_id`.", metavar="TASK", show_default=False)],
    split: Annotated[
        str, option("--task-split", help="The split that it is of. (default: base)", metavar="NAME", panel=WHAT)
    ] = "base",
    source: Source = None,
    plugins: Plugins = None,
    as_json: Json = False,
) -> None:
    """Show one task: what its user wants and knows, the reference path, and what is graded."""
    name, slash, _ = task.partition("/")
    if not slash:
        raise UserError(f"`{task}` names no domain", hint=f"`{shlex.quote(f'DOMAIN/{task}')}`; `tau2rl tasks list` shows them")
    config = tasks_config([name], split, None, plugins, source).model_copy(update={"ids": (task,)})
    from tau2rl.env.domain import domain
    from tau2rl.env.tasks import describe, gold_actions, select

    (ref,) = select(config)
    found = domain(ref.domain).task(ref)
    if as_json:
        console.emit_json(found.model_dump(mode="json"))
        return
    row = describe(ref)
    console.emit(f"{ref.key}: graded by {', '.join(row.basis)}")
    if row.quarantined:
        console.emit(f"known defect: {row.quarantined}")
    console.emit(f"\nThe user\n{textwrap.indent(str(found.user_scenario).strip().expandtabs(2), '  ')}")
    steps = [f"{action.requestor}: {action.name}({_arguments(action.arguments)})" for action in gold_actions(found)]
    console.emit("\nThe reference path\n" + "\n".join(f"  {step}" for step in steps or ["no action"]))
    criteria = found.evaluation_criteria
    for title, lines in (
        ("To be said", criteria.communicate_info if criteria else None),
        ("Judged in words", criteria.nl_assertions if criteria else None),
        ("The state at the end", [_assertion(one) for one in (criteria.env_assertions or ())] if criteria else None),
    ):
        if lines:
            console.emit(f"\n{title}\n" + "\n".join(f"  {line}" for line in lines))


def _arguments(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in values.items())


def _assertion(one: Any) -> str:
    return f"{one.env_type}: {one.func_name}({_arguments(one.arguments)}) is {one.assert_value}"


@app.command(
    epilog=examples(
        "tau2rl tasks index --output outputs/prompts", "tau2rl tasks index --domains retail,telecom --task-split train"
    )
)
def index(
    domains: Domains = None,
    splits: Annotated[
        list[str] | None,
        option("--task-split", help="Separated by commas or repeated. (default train,test)", metavar="NAMES", panel=WHAT),
    ] = None,
    limit: Limit = None,
    plugins: Plugins = None,
    source: Source = None,
    output: Annotated[
        Path | None, option("--output", help="Folder of the files. (default outputs/index)", metavar="DIR", panel=OUTPUT)
    ] = None,
    as_json: Json = False,
) -> None:
    """Write prompt files for trainers: a JSON line a task, a file a domain and split, and one of all domains a split."""
    config = tasks_config(domains, None, limit, plugins)
    from tau2rl.env.tasks import write_index

    folder = output or settings.output_root() / "index"
    files = write_index(config.domains, split_list(splits) or ["train", "test"], folder, limit=limit, source=source)
    if as_json:
        console.emit_json({"files": [str(file) for file in files]})
    else:
        console.emit("\n".join(map(str, files)))


@app.command(
    epilog=examples(
        "tau2rl tasks validate",
        "tau2rl tasks validate --task-split base --json",
        "tau2rl tasks validate --task-source DIR/tasks.json --domains retail --task-split base",
    )
)
def validate(
    source: Source = None,
    domains: Domains = None,
    split: Split = None,
    limit: Limit = None,
    plugins: Plugins = None,
    as_json: Json = False,
) -> None:
    """Replay each task's reference path through the real grader, and name every task that does not score 1.

    Exits with 1 when there is one.
    """
    config = tasks_config(domains, split, limit, plugins, source)
    from tau2rl.env.audit import Validation, validate_tasks as replay_all
    from tau2rl.env.tasks import select

    results: list[Validation] = []
    total, started = len(select(config)), time.monotonic()
    with console.Follower() as follower:
        for result in replay_all(config):
            results.append(result)
            solved, seconds = sum(not r.why for r in results), time.monotonic() - started
            follower.on_progress(
                ProgressEvent(done=len(results), total=total, successes=solved, valid=len(results), seconds=seconds)
            )
    bad = [result for result in results if result.why]
    if as_json:
        console.emit_json(
            {"tasks": len(results), "solved": len(results) - len(bad), "results": [_with_ref(asdict(r)) for r in results]}
        )
    else:
        if bad:
            console.emit_table([["task", "reward", "why"], *([r.ref.key, f"{r.reward:.3f}", r.why] for r in bad)])
        console.say(f"{len(results) - len(bad)} of {len(results)} reference paths score 1")
    raise typer.Exit(1 if bad else 0)


@app.command(epilog=examples("tau2rl tasks audit", "tau2rl tasks audit --domains airline --task-split train --json"))
def audit(
    source: Source = None,
    domains: Domains = None,
    split: Split = None,
    limit: Limit = None,
    plugins: Plugins = None,
    as_json: Json = False,
) -> None:
    """Say what a score on these tasks can mean.

    Floors (do nothing, always transfer), tasks that need an LLM judge, reads and writes, defects, overlap of train and test.
    """
    config = tasks_config(domains, split, limit, plugins, source)
    from tau2rl.env.audit import audit_tasks as audit_tasks

    found = audit_tasks(config)
    if as_json:
        console.emit_json(found)
        return
    console.emit_table(_audit_rows(found["domains"]))
    for name, part in found["domains"].items():
        for line in _audit_lines(part):
            console.emit(f"{name}: {line}")
    console.say(f"\nsplit `{found['split']}` of {found['tau2']['distribution']} {found['tau2']['version']}; `--json` has the ids")


def _audit_rows(domains: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    head = ["domain", "tasks", "do nothing", "always transfer", "judge-gated", "reads", "writes", "user actions", "quarantined"]
    rows = [head]
    for name, part in domains.items():
        gold, floor = part["gold_actions"], part["floor"]
        floors = [f"{floor[policy]['solved']}/{floor[policy]['of']}" for policy in ("do_nothing", "always_transfer")]
        counts = [len(part["judge_gated"]), gold["reads"], gold["writes"], gold["user_actions"], len(part["quarantined"])]
        rows.append([name, str(part["tasks"]), *floors, *map(str, counts)])
    return rows


def _audit_lines(part: Mapping[str, Any]) -> Sequence[str]:
    lines = [f"graded by {', '.join(f'{basis} ({count})' for basis, count in part['reward_bases'].items())}"]
    shared = part["train_test_overlap"]
    if shared:
        counts = [f"{value['count']} {kind} ids" for kind, value in shared.items()]
        lines.append(f"train and test share {', '.join(counts)}")
    return lines


def _with_ref(values: dict[str, Any]) -> dict[str, Any]:
    """The task's three names at the top level, where a reader of JSON looks for them."""
    return {**values.pop("ref"), **values}
