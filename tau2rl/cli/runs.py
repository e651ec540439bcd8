"""`tau2rl runs [list|prune]`: which runs there are, what each says and weighs, and checkpoints that may go."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from tau2rl import console, settings
from tau2rl.cli.lazy import examples
from tau2rl.cli.options import Json
from tau2rl.cli.printing import shown
from tau2rl.config import STAGES
from tau2rl.errors import UserError
from tau2rl.report.tables import quantity
from tau2rl.runs.files import section

app = typer.Typer()


@app.callback(invoke_without_command=True)
def root(ctx: typer.Context) -> None:
    """List runs, and remove checkpoints that nothing needs.

    Without a command it lists those of the outputs folder.
    """
    if ctx.invoked_subcommand is None:
        list_()


Places = Annotated[
    list[Path] | None,
    typer.Argument(help="Run folders, or folders of them. (default: the outputs folder)", metavar="[RUN...]", show_default=False),
]
Sort = Literal["path", "changed", "size", "pass@1"]
State = Literal["done", "live", "incomplete"]


@app.command("list", epilog=examples("tau2rl runs list", "tau2rl runs list --stage eval --sort pass@1 --descending"))
def list_(
    places: Places = None,
    stage: Annotated[str, typer.Option("--stage", help="Only of this stage.", metavar="NAME")] = "",
    state: Annotated[State | None, typer.Option("--state", help="Only these.", show_default=False)] = None,
    sort: Annotated[Sort, typer.Option("--sort", help="What the lines are ordered by.")] = "path",
    descending: Annotated[bool, typer.Option("--descending", help="The greatest first.")] = False,
    as_json: Json = False,
) -> None:
    """List runs with their state, headline and size; a pipeline stands before its steps.

    `live` is a run without a result that has written something within the last minute. Sizes do not follow links.
    """
    from tau2rl.runs.checkpoints import disk_size
    from tau2rl.view.runs import run_summary

    if stage and stage not in STAGES:
        raise UserError(f"no such stage `{stage}`", hint=f"one of: {', '.join(STAGES)}")
    rows: list[dict[str, Any]] = []
    runs, unread = _runs(places)
    for run in runs:
        values = run_summary(run)
        if stage in ("", values["stage"]) and state in (None, values["state"]):
            rows.append({**values, "size": disk_size(run)})
    keys = {"path": "path", "changed": "changed", "size": "size"}
    rows.sort(key=lambda row: _score(row) if sort == "pass@1" else row[keys[sort]], reverse=descending)
    if as_json:
        console.emit_json(rows)
        return
    head = ["run", "stage", "state", "pass@1 [95%]", "floor", "changed", "MB"]
    console.emit_table([head, *(_line(row) for row in rows)])
    console.say(quantity(len(rows), "run") + (f"; {_cannot_be_read(unread)}" if unread else ""))


@app.command(epilog=examples("tau2rl runs prune", "tau2rl runs prune --keep-last 2 --yes"))
def prune(
    places: Places = None,
    keep_last: Annotated[int, typer.Option("--keep-last", help="Later steps of each training that stay as well.", min=0)] = 1,
    state: Annotated[
        bool, typer.Option("--state", help="Also what finished trainings could be extended from: optimizer and shards.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Delete; without it nothing is touched.")] = False,
    as_json: Json = False,
) -> None:
    """Say which checkpoints nothing needs any more, and with `--yes` delete them.

    What stays, always: the final one, the one that `select-checkpoint` chose, the model before training, every one that the
    settings of a run in sight name, and all of a training that is not finished. Name the folder of all runs, so that every
    run is in sight.
    """
    from tau2rl.runs.checkpoints import plan_pruning, remove

    runs, unread = _runs(places)
    if unread:
        raise UserError(
            f"{_cannot_be_read(unread)}: nobody knows what runs in there need", hint="name the folders of your own runs"
        )
    found = plan_pruning(runs, keep_last=keep_last, state=state)
    going = [one for one in found if not one.kept_because]
    if yes:
        remove(going)
    if as_json:
        values = [{"path": str(one.path), "bytes": one.size, "kept_because": one.kept_because or None} for one in found]
        console.emit_json({"deleted": yes, "checkpoints": values})
        return
    rows = [[shown(one.path), _megabytes(one.size), one.kept_because or ("deleted" if yes else "may go")] for one in found]
    if not rows:
        console.say("there is no checkpoint of a training")
        return
    console.emit_table([["checkpoint", "MB", ""], *rows])
    size = _megabytes(sum(one.size for one in going))
    words = "deleted" if yes else "may go: `--yes` deletes them"
    console.say(f"{len(going)} of {len(found)}, {size} MB, {words}" if going else f"none of {len(found)} may go")


def _cannot_be_read(folders: list[Path]) -> str:
    return f"{quantity(len(folders), 'folder')} cannot be read, among them `{folders[0]}`"


def _runs(places: list[Path] | None) -> tuple[list[Path], list[Path]]:
    """The runs, and the folders that cannot be read."""
    from tau2rl.view.runs import find_runs

    looked = places or [place for place in [settings.output_root()] if place.exists()]  # before the first run there is none
    if missing := [place for place in looked if not place.is_dir()]:
        raise UserError(f"`{missing[0]}` is not a folder", hint="name run folders, or a folder of them")
    unread: list[Path] = []
    return list(find_runs(looked, unread).values()), unread


def _line(row: dict[str, Any]) -> list[str]:
    value, floor = section(row, "headline", "pass@1"), section(row, "headline").get("floor")
    solved = value.get("value")
    interval = "" if not value.get("ci95") else " [{:.3f}, {:.3f}]".format(*value["ci95"])
    return [
        shown(Path(row["path"])), row["stage"], row["state"],
        "" if solved is None else f"{solved:.3f}{interval}", "" if floor is None else f"{floor:.3f}",
        time.strftime("%Y-%m-%d %H:%M", time.localtime(row["changed"])), _megabytes(row["size"]),
    ]  # fmt: skip


def _score(row: dict[str, Any]) -> float:
    value = section(row, "headline", "pass@1").get("value")
    return -1.0 if value is None else float(value)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f}"
