"""What every stage's command does with its config: show what would run, or run it and follow it."""

from __future__ import annotations

import shlex
from pathlib import Path

import yaml

from tau2rl import console
from tau2rl.config import StageConfig, dump
from tau2rl.store.run import has_results, run_path, stage_of

INCOMPLETE, INTERRUPTED = 1, 130


def print_plan(config: StageConfig, *, as_json: bool) -> None:
    """The resolved config and what would run; as YAML the latter is a comment, so that the output is a config file."""
    from tau2rl.launch.submit import job_argv

    argv = job_argv(run_path(config))
    if as_json:
        console.emit_json({"config": dump(config), "argv": argv})
    else:
        console.emit(yaml.safe_dump(dump(config), sort_keys=False, allow_unicode=True) + f"# would run: {shlex.join(argv)}")


def carry_out(config: StageConfig, *, as_json: bool) -> int:
    """Run a stage and follow it on stderr; its exit code. A detached run is all that there is to show of it. Raises UserError."""
    from tau2rl.launch.submit import submit

    def on_detached(job: str, address: str) -> None:
        if as_json:
            console.emit_json({"run": str(run), "job": job, "address": address})

    run = run_path(config)
    if config.resume and not has_results(run):
        console.say(f"nothing to resume in `{shown(run)}`, starting")
    with console.Follower() as follower:
        code = submit(config, on_line=follower.on_line, on_progress=follower.on_progress, on_detached=on_detached)
    if code in (INCOMPLETE, INTERRUPTED) and (run / "config.json").exists():
        word = "interrupted" if code == INTERRUPTED else "not complete"
        console.say(f"{word}; continue with\n  {resume_command(config)}")
    return code


def resume_command(config: StageConfig) -> str:
    """What to type to go on with a run."""
    run = shown(run_path(config))
    return f"tau2rl {stage_of(config)} -c {run}/config.json --output {run} --resume"


def shown(path: Path) -> str:
    """A path as one would type it here: relative to the current directory when it is below it."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
