"""The commands that run a stage: options -> config -> launch -> what came of it."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer
import yaml

from tau2rl import console, plugins
from tau2rl.cli.options import Asked, stage_command
from tau2rl.cli.printing import print_report, program, shown
from tau2rl.config import EvalConfig, GrpoConfig, PipelineConfig, PlayConfig, RftConfig, SeedConfig, SftConfig, StageConfig, dump
from tau2rl.errors import UserError, all_of
from tau2rl.report.tables import quantity
from tau2rl.runs.budget import budget_of, caps_of, estimate_from, estimate_words, higher_option, stopped_at
from tau2rl.runs.files import read_json
from tau2rl.runs.folder import has_results, run_path, stage_of

DONE, INCOMPLETE, INTERRUPTED = 0, 1, 130
SOURCES = "Settings come from the config file, then --set, then the options below; a later one wins. `--help-all` has them all."
ENDS = """Exits with 0 when every attempt was graded, 1 when the run failed or is incomplete, 2 for a wrong request, 130 if
    interrupted."""


def run(asked: Asked[StageConfig]) -> None:
    """Show what would run, or run it and show its report. Raises UserError; ends with the run's exit code."""
    from tau2rl.launch.submit import submit

    config = asked.config
    if asked.dry_run:
        print_plan(config, as_json=asked.as_json)
        return
    if asked.rehearse and isinstance(config, SftConfig | GrpoConfig):
        rehearse(config, as_json=asked.as_json)
        return
    folder = run_path(config)
    before = _written(folder / "report.json")
    if config.resume and not has_results(folder):
        console.say(f"nothing to resume in `{shown(folder)}`, starting")

    def on_detached(job: str, address: str) -> None:
        if asked.as_json:
            console.emit_json({"run": str(folder), "job": job, "address": address})

    with console.Follower() as follower:
        code = submit(config, on_line=follower.on_line, on_progress=follower.on_progress, on_detached=on_detached)
        follower.ended_well = code == DONE
    if not config.launch.detach and _written(folder / "report.json") != before:  # a run that broke early leaves an older one
        _show(config, folder, as_json=asked.as_json)
    if code == DONE:
        say_next(config, folder)
    elif (folder / "config.json").exists():  # what was refused before it had anything is gone
        _say_resume(code, resume_command(config))
    raise typer.Exit(code)


def rehearse(config: SftConfig | GrpoConfig, *, as_json: bool) -> None:
    """Carry a training out in small and say what held; ends with 1 where something did not. Raises UserError."""
    from tau2rl.launch.submit import submit
    from tau2rl.recipes import rehearsal

    plugins.search([Path.cwd()])
    first, second = rehearsal.rehearsed(config)
    folder = run_path(first)
    rehearsal.make_room(folder)
    seconds: list[float] = []
    for words, part in (("a step and a save", first), ("a resume, another step and an export", second)):
        console.say(f"rehearsal: {words}")
        began = time.monotonic()
        with console.Follower() as follower:
            code = submit(part, on_line=follower.on_line, on_progress=follower.on_progress)
            follower.ended_well = code == DONE
        seconds.append(time.monotonic() - began)
        if code:
            console.say(f"the rehearsal ended with {code} at {words}; its logs are in {shown(folder / 'logs')}")
            raise typer.Exit(code)
    found, numbers = list(rehearsal.rehearsal_checks(second)), rehearsal.numbers(second)
    holds = all(check.holds for check in found)
    if as_json:
        values = {"run": str(folder), "holds": holds, "checks": [asdict(check) for check in found]}
        console.emit_json({**values, "seconds": seconds, "numbers": numbers})
    else:
        rows = [[check.what, "yes" if check.holds else "NO", check.detail] for check in found]
        console.emit_table([["what must hold", "", ""], *rows])
        console.emit_table([["step 2", "value"], *([name, f"{value:.4g}"] for name, value in numbers.items())])
        console.say(f"{console.clock(seconds[0])} for the first run, {console.clock(seconds[1])} for the second")
        played = f"; what was played: `tau2rl show {shown(folder)}`" if isinstance(config, GrpoConfig) else ""
        console.say(f"it is in {shown(folder)}, and the next rehearsal replaces it{played}")
    raise typer.Exit(DONE if holds else INCOMPLETE)


def run_pipeline(asked: Asked[PipelineConfig]) -> None:
    """Show the runs of a pipeline, or carry them out and show the table. Raises UserError; ends with the chain's exit code."""
    from tau2rl.launch.checks import refuse_lost
    from tau2rl.launch.submit import check, job_argv, not_here, run_chain
    from tau2rl.recipes.pipeline_budget import PipelineBudget, estimate_words_of
    from tau2rl.recipes.pipeline_plan import plan_pipeline, with_files

    config = with_files(asked.config, asked.file.parent if asked.file else Path())
    folder = run_path(config)
    if asked.dry_run:
        runs = plan_pipeline(config, folder)
        absent = not_here([planned.config for planned in runs], made=folder)
        if asked.as_json:
            plans = [{"name": r.name, "kind": r.kind, "config": dump(r.config), "argv": job_argv(r.folder)} for r in runs]
            console.emit_json({"config": dump(config), "runs": plans, **({"not_here": absent} if absent else {})})
        else:
            console.emit_table([["run", "kind", "folder"], *([r.name, r.kind, shown(r.folder)] for r in runs)])
            for words in filter(None, (estimate_words_of(config, runs), _absent_words(absent) if absent else "")):
                console.emit(words)
        refuse_lost(runs)
        check([planned.config for planned in runs], made=folder, dry=True)
        return
    with console.Follower() as follower:
        try:
            code = run_chain(config, watch=follower.next_run, say=follower.on_line)
        except UserError as error:
            if not has_results(folder):
                raise
            more = f"then go on with `{resume_command(config)}`"
            raise UserError(error.message, hint=f"{error.hint}\n{more}" if error.hint else more) from None
        follower.ended_well = code == DONE
    if (folder / "report.json").exists():
        _show(config, folder, as_json=asked.as_json)
    if code:
        higher = PipelineBudget(config, plan_pipeline(config, folder)).higher()
        _say_resume(code, f"{resume_command(config)} {higher}".rstrip())
    else:
        say_next(config, folder)
    raise typer.Exit(code)


seed = stage_command(
    SeedConfig,
    run,
    f"""Write demonstrations: a policy that can solve the tasks plays them, and its conversations become dataset rows.

    `rows.jsonl` in the run folder has OpenAI `messages` and `tools`; the environment, its tools and its grades are real.
    {SOURCES}

    {ENDS}
    """,
)
rft_filter = stage_command(
    RftConfig,
    run,
    f"""Keep the attempts that solved their task: sampled here, or taken from earlier runs with `--from`.

    `sft.jsonl` in the run folder has what is kept, with the tokens as they were sampled; `dropped.jsonl` the rest, with reasons.
    {SOURCES}

    Exits with 0 when it is done, 1 when the run failed or is incomplete, 2 for a wrong request, 130 if interrupted.
    """,
)
sft = stage_command(
    SftConfig,
    run,
    f"""Train on conversations: whole ones, with a loss on what the assistant said and on nothing else.

    The checkpoint is in `checkpoints/final` of the run folder, as `from_pretrained` reads it, with its tokenizer.
    {SOURCES}

    Exits with 0 when training ended, 1 when the run failed, 2 for a wrong request, 130 if interrupted.
    """,
)
grpo = stage_command(
    GrpoConfig,
    run,
    f"""Reinforce what works: play groups of attempts at training tasks and move the weights towards the better ones.

    Curves are in `metrics.jsonl` of the run folder, the checkpoint in `checkpoints/final`.
    {SOURCES}

    Exits with 0 when training ended, 1 when the run failed or gave up, 2 for a wrong request, 130 if interrupted.
    """,
)
evaluate = stage_command(
    EvalConfig,
    run,
    f"""Let a policy play tasks, and say how many it solves: pass@k and pass^k with their intervals and floors.

    {SOURCES}

    {ENDS}
    """,
)
pipeline = stage_command(
    PipelineConfig,
    run_pipeline,
    """Run a pipeline: each step a job, each trained model evaluated on held-out tasks, one chain of hashes from data to result.

    The same command again goes on where the chain broke, and leaves alone what is finished.
    Settings come from the pipeline's file and the files that it names, then --set (`steps.grpo.settings.train.lr=5e-4`), then
    the options below; a later one wins.

    Exits with 0 when every run ended well, else with the exit code of the run that did not.
    """,
)


def print_plan(config: StageConfig, *, as_json: bool) -> None:
    """The resolved config and what would run; as YAML the latter is a comment, so that the output is a config file.

    Raises UserError behind it, with everything that the run would be refused for.
    """
    from tau2rl.launch.submit import check, job_argv, not_here
    from tau2rl.recipes.training import backend_for, trains_on_actors

    job = job_argv(run_path(config))
    plan: dict[str, Any] = {"argv": job}
    if isinstance(config, SftConfig | GrpoConfig) and trains_on_actors(config):
        plugins.search([Path.cwd()])
        # What the settings alone show; devices, files, disk and ports are checked on the machine that trains.
        of_backend = backend_for(config).plan(config, probe=False)
        issues = [asdict(issue) for issue in of_backend.issues]
        plan = {"argv": list(of_backend.argv) or job, "layout": list(of_backend.layout), "issues": issues, "job": job}
    if estimate := _estimate(config):
        plan["estimate"] = estimate
    if absent := not_here([config]):
        plan["not_here"] = absent
    if as_json:
        console.emit_json({"config": dump(config), **plan})
    else:
        _print_plan(config, plan)
    check([config], dry=True)
    if errors := [issue for issue in plan.get("issues", ()) if issue["kind"] == "error"]:
        raise all_of(UserError(issue["message"], hint=issue["hint"]) for issue in errors)


def _estimate(config: StageConfig) -> dict[str, Any] | None:
    """What `budget.like` makes of the run, where it is named and its tasks are known here. Raises UserError."""
    like = budget_of(config).like
    if like is None or config.plugins:
        return None
    if isinstance(config, EvalConfig | SeedConfig | RftConfig):
        from tau2rl.env.tasks import select
        from tau2rl.rollouts.runner import planned_attempts

        return estimate_from(like, config, len(planned_attempts(config, select(config.tasks))))
    return estimate_from(like, config, config.train.steps) if isinstance(config, SftConfig | GrpoConfig) else None


def _print_plan(config: StageConfig, plan: Mapping[str, Any]) -> None:
    remarks = [f"would run: {shlex.join(plan['argv'])}", *plan.get("layout", ())]
    remarks += [estimate_words(plan["estimate"], config)] if "estimate" in plan else []
    remarks += [f"{issue['kind']}: {issue['message']} ({issue['hint']})" for issue in plan.get("issues", ())]
    remarks += [_absent_words(plan["not_here"])] if "not_here" in plan else []
    text = yaml.safe_dump(dump(config), sort_keys=False, allow_unicode=True)
    console.emit(text + "\n".join(f"# {line}" for remark in remarks for line in remark.splitlines()))


def _absent_words(paths: Sequence[str]) -> str:
    return f"not on this machine, and looked for by the start where it runs: {', '.join(paths)}"


def _show(config: StageConfig, folder: Path, *, as_json: bool) -> None:
    """The report of a run, and what it left alone when it gave up."""
    report = read_json(folder / "report.json")
    if as_json:
        console.emit_json(report)
    else:
        print_report(report, folder)
    stopped = _stopped(report)
    if isinstance(config, PlayConfig) and not stopped and (left := not_played(report)):
        in_a_row, not_tried = quantity(config.rollout.give_up_after, "episode"), quantity(left, "attempt")
        console.say(f"gave up: {in_a_row} in a row failed (`rollout.give_up_after`); not played: {not_tried}")


def not_played(report: Any) -> int:
    """Planned attempts that a run left alone; one that writes its report has left them because it gave up.

    >>> not_played({"missing": 3}), not_played({"planned": 8, "tried": 6}), not_played({"planned": None, "tried": 6})
    (3, 2, 0)
    """
    if "missing" in report:
        return int(report["missing"])
    planned = report.get("planned")
    return int(planned) - int(report["tried"]) if planned is not None else 0


def say_next(config: StageConfig, folder: Path) -> None:
    """Where the run is, and what can be done with it."""
    from tau2rl.recipes.pipeline_plan import ROWS

    run, command = shown(folder), program()
    match config:
        case PipelineConfig():
            more = [f"{command} view {run}", f"{command} report {run} --cost", f"{command} card {run}"]
        case SftConfig() | GrpoConfig():
            more = [f"{command} report {run} --cost", f"{command} view {run}"]
        case EvalConfig():
            more = [f"{command} show {run}", f"{command} compare {run} ANOTHER_RUN"]
        case _:
            rows = shlex.quote(str(folder / ROWS[stage_of(config)]))
            more = [
                f"{command} show {run}",
                f"{command} sft --data {rows} --model DIR  # without --model: a tiny one of random weights",
            ]
    console.say(f"run folder: {run}\nnext, if you like\n" + "\n".join(f"  {line}" for line in more))


def _say_resume(code: int, command: str) -> None:
    word = "interrupted, and what is done is kept" if code == INTERRUPTED else "not complete"
    console.say(f"{word}; continue with\n  {command}")


def resume_command(config: StageConfig) -> str:
    """What to type to go on with a run, as a line that a shell takes."""
    folder = shown(run_path(config))
    command = "run" if isinstance(config, PipelineConfig) else stage_of(config)
    words = f"{program()} {command} -c {shown(run_path(config) / 'config.json')} --output {folder}"
    return words if isinstance(config, PipelineConfig) else f"{words} --resume{_higher(config)}"  # a pipeline goes on by itself


def _higher(config: StageConfig) -> str:
    """The option that lifts the cap at which a run has stopped, to twice of it; nothing for any other run."""
    caps = caps_of(budget_of(config))
    cap, spent = stopped_at(run_path(config), caps)
    return f" {higher_option(cap, max(caps.get(cap, 0.0), spent))}" if cap else ""


def _stopped(report: Mapping[str, Any]) -> str | None:
    """The cap at which a run has stopped."""
    budget: Mapping[str, Any] = report.get("budget") or {}
    return budget.get("stopped")


def _written(file: Path) -> int | None:
    return file.stat().st_mtime_ns if file.exists() else None
