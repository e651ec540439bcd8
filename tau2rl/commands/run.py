"""What every stage's command does with its config: show what would run, or run it and follow it."""

from __future__ import annotations

from pathlib import Path

import yaml

from tau2rl import console
from tau2rl.config import StageConfig, dump
from tau2rl.store.run import run_path, stage_of

INCOMPLETE, INTERRUPTED = 1, 130


def job_argv(run: Path) -> list[str]:
    """The command line of the job; `python` is the worker's own.

    >>> job_argv(Path("/runs/a"))
    ['python', '-m', 'tau2rl.launch.entry', '/runs/a']
    """
    return ["python", "-m", "tau2rl.launch.entry", str(run)]


def print_plan(config: StageConfig, *, as_json: bool) -> None:
    """The resolved config and what would run; as YAML the latter is a comment, so that the output is a config file."""
    argv = job_argv(run_path(config))
    if as_json:
        console.emit_json({"config": dump(config), "argv": argv})
    else:
        console.emit(yaml.safe_dump(dump(config), sort_keys=False, allow_unicode=True) + f"# would run: {' '.join(argv)}")


def carry_out(config: StageConfig) -> int:
    """Run a stage and follow it on stderr; its exit code. Raises UserError."""
    from tau2rl.launch.submit import submit

    with console.Follower() as follower:
        code = submit(config, on_line=follower.on_line, on_progress=follower.on_progress)
    if code in (INCOMPLETE, INTERRUPTED) and (run_path(config) / "config.json").exists():
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
