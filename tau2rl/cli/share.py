"""`tau2rl regrade`: a finished run graded again."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from tau2rl import console
from tau2rl.cli.options import OUTPUT, RUN, Json, Sets
from tau2rl.cli.printing import print_report, shown
from tau2rl.errors import UserError
from tau2rl.runs.files import write_json
from tau2rl.runs.folder import RunFolder, run_path

RunDir = Annotated[Path, typer.Argument(help="A run folder.", metavar="RUN_DIR", show_default=False)]


def regrade(
    run: RunDir,
    reward: Annotated[
        str | None,
        typer.Option(
            "--reward", help="The preset of the score. (`reward.preset`)", metavar="NAME", rich_help_panel=RUN, show_default=False
        ),
    ] = None,
    exclude_quarantined: Annotated[
        bool | None,
        typer.Option(
            "--exclude-quarantined/--include-quarantined",
            help="Leave out tasks with known defects. (`tasks.exclude_quarantined`)",
            rich_help_panel=RUN,
            show_default=False,
        ),
    ] = None,
    sets: Sets = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--name",
            help="The new run folder is `outputs/eval/NAME`. (default: the run's, with `-regraded`)",
            metavar="NAME",
            rich_help_panel=OUTPUT,
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", help="The new run folder.", metavar="PATH", rich_help_panel=OUTPUT, show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Grade the kept conversations of an evaluation again, by other reward settings, into a new run folder.

    tau2 carries out each conversation's tool calls again and grades it; no model and no server is asked. `reward.*` and
    `tasks.exclude_quarantined` may change, everything else was decided when the conversations were played. The run itself is
    not touched; the new folder is an evaluation whose `environment.json` names it. A conversation that cannot be graded any
    more (its tools answer otherwise than they did) is FAILED, and no number.

    Exits with 0 when every attempt was graded, 1 when the result is incomplete, 2 for a wrong request.
    """
    from tau2rl.launch.entry import load_plugins
    from tau2rl.recipes import regrade as recipe
    from tau2rl.runs.folder import read_config

    source = run.expanduser().absolute()
    before = read_config(source)
    load_plugins(before.plugins)
    options = {"reward.preset": reward, "tasks.exclude_quarantined": exclude_quarantined, "output": output}
    config = recipe.config_of(source, sets or (), {**options, "name": name or f"{before.name}-regraded"})
    target = run_path(config)
    if target.resolve() == source.resolve():
        raise UserError("a run is not graded again in its own folder", hint="choose another `--name` or `--output`")
    RunFolder.create(target, config, resume=False)
    with RunFolder.open(target) as folder, console.Follower() as follower:
        began, cpu = time.monotonic(), time.process_time()
        done = recipe.regrade(source, config, folder, follower.on_progress)
        write_json(folder.usage, {"seconds": time.monotonic() - began, "cpu_seconds": time.process_time() - cpu})
    if as_json:
        console.emit_json({**done.report, "run": str(target), "other_data": list(done.data)})
    else:
        print_report(done.report, target)
        console.emit(f"graded again: {done.changed} rewards differ from those of `{shown(source)}`; {shown(target)}")
    if done.data:
        console.say(f"warning: the benchmark's data are not those of the run: {', '.join(done.data)}")
    raise typer.Exit(1 if done.report["incomplete"] else 0)
