"""What a training on a cluster would run, before anything is submitted: slime's command line, and what is wrong with it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer
import yaml

from tau2rl import console
from tau2rl.config import GrpoConfig, PipelineConfig, PlayConfig, SftConfig, StageConfig, dump
from tau2rl.runs.files import read_json
from tau2rl.runs.folder import has_results, run_path, stage_of

INCOMPLETE, INTERRUPTED = 1, 130


def run(config: StageConfig, show: Callable[[Mapping[str, Any]], None], *, dry_run: bool, as_json: bool) -> None:
    """Show what would run, or run it and `show` its report. Raises UserError; ends with the run's exit code."""
    if dry_run:
        print_plan(config, as_json=as_json)
        return
    file = run_path(config) / "report.json"
    before = _written(file)
    code = carry_out(config, as_json=as_json)
    if not config.launch.detach and _written(file) != before:  # a run that broke early leaves an older report as it was
        report = read_json(file)
        if as_json:
            console.emit_json(report)
        else:
            show(report)
        if isinstance(config, PlayConfig) and (left := not_played(report)):
            in_a_row = config.rollout.give_up_after
            console.say(
                f"gave up: {in_a_row} episodes in a row failed (`rollout.give_up_after`), {left} attempts were not played"
            )
    if code in (INCOMPLETE, INTERRUPTED) and (run_path(config) / "config.json").exists():
        word = "interrupted" if code == INTERRUPTED else "not complete"
        console.say(f"{word}; continue with\n  {resume_command(config)}")
    raise typer.Exit(code)


def not_played(report: Mapping[str, Any]) -> int:
    """Planned attempts that a run left alone; one that writes its report has left them because it gave up.

    >>> not_played({"missing": 3}), not_played({"planned": 8, "tried": 6}), not_played({"planned": None, "tried": 6})
    (3, 2, 0)
    """
    if "missing" in report:
        return int(report["missing"])
    planned = report.get("planned")
    return int(planned) - int(report["tried"]) if planned is not None else 0


def print_plan(config: StageConfig, *, as_json: bool) -> None:
    """The resolved config and what would run; as YAML the latter is a comment, so that the output is a config file."""
    from tau2rl.launch.submit import job_argv

    job = job_argv(run_path(config))
    plan: dict[str, Any] = {"argv": job}
    if isinstance(config, SftConfig | GrpoConfig) and config.backend == "slime":
        plan = {**slime_plan(config), "job": job}
    if as_json:
        console.emit_json({"config": dump(config), **plan})
        return
    remarks = [f"would run: {shlex.join(plan['argv'])}", *plan.get("layout", ())]
    remarks += [f"{problem['kind']}: {problem['message']} ({problem['hint']})" for problem in plan.get("problems", ())]
    text = yaml.safe_dump(dump(config), sort_keys=False, allow_unicode=True)
    console.emit(text + "\n".join(f"# {line}" for remark in remarks for line in remark.splitlines()))


def carry_out(config: StageConfig, *, as_json: bool) -> int:
    """Run a stage and follow it on stderr; its exit code. A detached run is all that there is to show of it. Raises UserError."""
    from tau2rl.launch.submit import submit

    def on_detached(job: str, address: str) -> None:
        if as_json:
            console.emit_json({"run": str(folder), "job": job, "address": address})

    folder = run_path(config)
    if config.resume and not has_results(folder):
        console.say(f"nothing to resume in `{shown(folder)}`, starting")
    with console.Follower() as follower:
        return submit(config, on_line=follower.on_line, on_progress=follower.on_progress, on_detached=on_detached)


def resume_command(config: StageConfig) -> str:
    """What to type to go on with a run."""
    folder = shown(run_path(config))
    if isinstance(config, PipelineConfig):  # which goes on by itself
        return f"tau2rl run -c {folder}/config.json --output {folder}"
    return f"tau2rl {stage_of(config)} -c {folder}/config.json --output {folder} --resume"


def shown(path: Path) -> str:
    """A path as one would type it here: relative to the current directory when it is below it."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _written(file: Path) -> int | None:
    return file.stat().st_mtime_ns if file.exists() else None


def slime_plan(config: SftConfig | GrpoConfig) -> dict[str, Any]:
    """`argv` of slime's script, `layout` in lines for people, `problems` that the settings alone show. Raises UserError."""
    from tau2rl.slime.backend import SlimeBackend

    plan = SlimeBackend().plan(config, probe=False)
    return {"argv": list(plan.argv), "layout": list(plan.layout), "problems": [asdict(issue) for issue in plan.issues]}
