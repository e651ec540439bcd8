"""`tau2rl run`: a pipeline's file -> the config of every run -> a chain of jobs -> the table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tau2rl import console
from tau2rl.cli.options import RUN, WHAT, Address, ConfigFile, DryRun, Inline, Json, Name, Output, Sets, options_of
from tau2rl.cli.run import resume_command, shown
from tau2rl.config import PipelineConfig, dump, load
from tau2rl.report.tables import cost_words, total_words
from tau2rl.runs.files import read_json
from tau2rl.runs.folder import run_path

option = options_of(PipelineConfig)


def run(
    config: ConfigFile = None,
    sets: Sets = None,
    limit: Annotated[int | None, option("limit", "--limit", WHAT, "N")] = None,
    name: Name = None,
    output: Output = None,
    seed: Annotated[int | None, option("seed", "--seed", RUN, "N", "Of every run of the chain.")] = None,
    address: Address = None,
    inline: Inline = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Run a pipeline: each step a job, each trained model evaluated on held-out tasks, one chain of hashes from data to result.

    The same command again goes on where the chain broke, and leaves alone what is finished.
    Settings come from the pipeline's file and the files that it names, then --set (`steps.grpo.settings.train.lr=5e-4`), then
    the options below; a later one wins.

    Exits with 0 when every run ended well, else with the exit code of the run that did not.
    """
    from tau2rl.launch.submit import job_argv
    from tau2rl.recipes.pipeline_plan import plan, with_files

    overrides: dict[str, Any] = {
        "limit": limit,
        "name": name,
        "output": None if output is None else str(output),
        "seed": seed,
        "launch.address": address,
        "launch.inline": inline,
    }
    chosen = with_files(load(PipelineConfig, config, sets or (), overrides), config.parent if config else Path())
    if dry_run:
        runs = plan(chosen, run_path(chosen))
        if as_json:
            plans = [{"name": r.name, "kind": r.kind, "config": dump(r.config), "argv": job_argv(r.folder)} for r in runs]
            console.emit_json({"config": dump(chosen), "runs": plans})
        else:
            console.emit_table([["run", "kind", "folder"], *([r.name, r.kind, shown(r.folder)] for r in runs)])
    else:
        raise typer.Exit(_run(chosen, as_json=as_json))


def print_report(report: Mapping[str, Any]) -> None:
    """The table, and below it what each step gave, whether the chain of hashes holds, and what is not done."""
    from tau2rl.recipes.pipeline_report import rows, step_rows

    if report["evaluations"]:
        console.emit_table(rows(report))
    console.emit_table(step_rows(report))
    chain = report["chain"]
    broken = f"broken: {', '.join(chain['broken'])}" if chain["broken"] else "sound"
    console.emit(f"chain of hashes: {chain['links']} links, {broken}")
    runs = [*report["steps"].items(), *((f"{entry['model']}-eval", entry) for entry in report["evaluations"])]
    for name, account in runs:
        if cost := account.get("cost"):
            console.emit(f"cost of {name}: {cost_words(cost)}")
    if total := report.get("cost"):
        console.emit(f"cost: {total_words(total)}")
    if report["incomplete"]:
        console.emit(f"not done: {', '.join(report['not_done']) or 'nothing is left, but the last start was broken off'}")


def _run(config: PipelineConfig, *, as_json: bool) -> int:
    from tau2rl.launch.pipeline import run_pipeline

    code = run_pipeline(config, watch=console.Follower, say=console.say)
    file = run_path(config) / "report.json"
    if file.exists():
        report = read_json(file)
        if as_json:
            console.emit_json(report)
        else:
            print_report(report)
    if code:
        console.say(f"not complete; continue with\n  {resume_command(config)}")
    return code
