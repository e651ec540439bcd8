"""`tau2rl synth`: tasks made from a domain's database, written to a folder with their proofs and a data card; their profile."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from tau2rl import console, settings
from tau2rl.cli.lazy import examples
from tau2rl.cli.options import Asked, Json, stage_command, with_commands
from tau2rl.cli.printing import shown
from tau2rl.cli.results import sampled
from tau2rl.config import SynthConfig, dump
from tau2rl.data.task_profile import BUCKETS, SET_ASIDE, bucket, write_profile
from tau2rl.errors import UserError
from tau2rl.report.report import in_grid_order
from tau2rl.report.tables import quantity
from tau2rl.runs.folder import read_config, stage_of
from tau2rl.runs.progress import ProgressEvent
from tau2rl.runs.provenance import file_hash, read_environment
from tau2rl.types import TaskRef


def run(asked: Asked[SynthConfig]) -> None:
    """Make the tasks and show their grid. Raises UserError."""
    config = asked.config
    folder = (config.output or settings.output_root() / "synth" / f"{config.domain}-{config.seed}").expanduser().absolute()
    if asked.dry_run:
        if asked.as_json:
            console.emit_json({"config": dump(config), "folder": str(folder)})
        else:
            console.emit_table([["setting", "value"], *([name, str(value)] for name, value in dump(config).items())])
            console.say(f"would write {quantity(config.num_tasks, 'task')} to {shown(folder)}")
        return
    from tau2rl.synth.make import make_tasks
    from tau2rl.verify.failures import failures_of

    failures = failures_of(config.from_failures, config) if config.from_failures else None
    started = time.monotonic()
    with console.Follower() as follower:

        def on_task(done: int, total: int) -> None:
            seconds = time.monotonic() - started
            follower.on_progress(ProgressEvent(done=done, total=total, seconds=seconds, unit="tasks"))

        facts = make_tasks(config, folder, on_task, failures=failures)
    if asked.as_json:
        console.emit_json({"folder": str(folder), **facts})
        return
    _show(facts, folder)


def _show(facts: Mapping[str, Any], folder: Path) -> None:
    console.emit_table([facts["grid_head"], *([name, *map(str, row.values())] for name, row in facts["grid"].items())])
    if found := facts.get("from_failures"):
        of = [[c["name"], c["about"], c["argument"], str(len(c["failures"])), str(c["tasks"])] for c in found["clusters"]]
        console.emit_table([["what went wrong", "problem, tool or rule", "argument", "failures", "tasks"], *of])
    if facts["tasks"] < facts["asked_for"]:
        console.say(f"{facts['tasks']} of the {facts['asked_for']} tasks: the database has no more of these cells")
    console.say(f"{quantity(facts['tasks'], 'task')} and the data card are in {shown(folder)}")
    command = f"tau2rl seed --domains {facts['domain']} --task-source {shown(folder / 'tasks.json')}"
    console.say(f"\nplay them:\n  {command}")


make = stage_command(
    SynthConfig,
    run,
    """Make tasks of a domain under its policy, and prove each of them; no model is asked.

    `tasks.json` in the folder has the tasks in tau2's layout, `split_tasks.json` their splits, `proofs.jsonl` what was tried on
    each, `README.md` and `card.json` the data card. Training, selection and test tasks share no customer; of telecom, no
    intent with the same problems.
    `--task-source tasks.json` lets every stage play them.

    A task is an order of writes (calls that change the database) and a burden (the reads after which the arguments of the writes
    are known). They are made in equal parts for each pair of both; in a share of them the agent must refuse. A task of telecom is
    a number of problems (of a phone or its line), an intent (what does not work) and a persona; a share of them goes to a human.
    With `--from-failures RUN` tasks are made for what an agent failed at in earlier runs on training tasks.

    The same command gives the same bytes. Exits with 0 when it is done, 2 for a wrong request, 130 if interrupted: then
    `--resume` goes on.
    """,
)
synth = with_commands(
    make,
    name="synth",
    epilog=examples(
        "tau2rl synth --num-tasks 2000 --seed 1 --output data/retail-1",
        "tau2rl synth --from-failures outputs/eval/train-1 --num-tasks 500 --output data/retail-2",
        "tau2rl synth --num-tasks 200 --writes 3,4,5 --burdens 6-9,10+ --refusals 0",
        "tau2rl synth --domain telecom --num-tasks 300 --problems 2,3,4 --intents mms,service",
        "tau2rl seed --domains retail --task-source data/retail-1/tasks.json --protocol native --tokenizer DIR",
        "tau2rl tasks validate --domains retail --task-source data/retail-1/tasks.json --task-split base",
    ),
)
PLAYED = ("eval", "seed", "rft-filter")


@synth.command(
    epilog=examples(
        "tau2rl eval -c configs/1gpu/eval.yaml --domains retail --task-source data/retail-1/tasks.json --name rates",
        "tau2rl synth profile outputs/eval/rates --output profile.json",
        "tau2rl grpo -c configs/1gpu/grpo.yaml --task-source data/retail-1/tasks.json --set algo.curriculum.profile=profile.json",
    )
)
def profile(
    runs: Annotated[
        list[Path], typer.Argument(help="Runs of one policy on the tasks.", metavar="RUN_DIR...", show_default=False)
    ],
    output: Annotated[Path, typer.Option(help="The profile.", metavar="FILE")] = Path("profile.json"),
    easy: Annotated[float, typer.Option(min=0, max=1, help="The least pass rate of an easy task.")] = 0.7,
    hard: Annotated[float, typer.Option(min=0, max=1, help="The greatest pass rate of a hard task.")] = 0.3,
    min_attempts: Annotated[int, typer.Option(min=2, help="Of fewer graded attempts, nothing is said.")] = 4,
    as_json: Json = False,
) -> None:
    """Say how often a policy solves each task, and freeze it as a file that `grpo` begins with (`algo.curriculum.profile`).

    Tasks are easy, medium or hard by their pass rate. What was solved always, or never, is set aside: `grpo` draws it as rarely
    as `algo.curriculum.floor` says, until one of its groups ends otherwise. Nothing is taken out of the file of tasks.
    Several runs count together; they must be of one policy on one file of tasks.
    """
    if hard >= easy:
        raise UserError(f"`--hard {hard}` is not below `--easy {easy}`")
    content = _profiled(runs, easy=easy, hard=hard, least=min_attempts)
    digest = write_profile(output, content)
    if as_json:
        console.emit_json({**content, "digest": digest})
        return
    counts: Mapping[str, int] = content["buckets"]
    by_cell: Mapping[str, Mapping[str, int]] = content["by_cell"]
    rows = [[cell, *(str(part.get(name, 0)) for name in BUCKETS)] for cell, part in by_cell.items()]
    console.emit_table([["cell", *BUCKETS], *rows, ["all", *(str(counts[name]) for name in BUCKETS)]])
    aside = sum(counts[name] for name in SET_ASIDE)
    console.emit(f"{shown(output)}: profile {digest}, {quantity(len(content['tasks']), 'task')}, {aside} of them set aside")
    console.say(f"train with `--set algo.curriculum.profile={shown(output)}`")


def _profiled(runs: Sequence[Path], *, easy: float, hard: float, least: int) -> dict[str, Any]:
    """What the profile holds. Raises UserError."""
    from tau2rl.env.task_cells import cell_of

    sources = [_source(run) for run in dict.fromkeys(runs)]
    for key, what in (("agent", "policies"), ("tasks_sha256", "files of tasks"), ("data", "versions of tau2's data")):
        if any(source[key] != sources[0][key] for source in sources):
            raise UserError(f"the runs are of different {what}: a profile is of one", hint="profile each by itself")
    counts: dict[str, Counter[str]] = {}
    refs: dict[str, TaskRef] = {}
    for run in dict.fromkeys(runs):
        for key, attempts in sampled(run).items():
            refs[key] = attempts[0].attempt.task
            graded = [one.episode for one in attempts if one.episode.grade is not None]
            counts.setdefault(key, Counter()).update(valid=len(graded), solved=sum(episode.solved for episode in graded))
    if not counts:
        raise UserError("the runs have no episodes", hint="let a policy play the tasks first: `tau2rl eval --num-samples 8`")
    tasks: dict[str, dict[str, Any]] = {}
    for key, count in sorted(counts.items()):
        solved, valid = count["solved"], count["valid"]
        tasks[key] = {
            "valid": valid,
            "solved": solved,
            "pass_rate": solved / valid if valid else None,
            "bucket": bucket(solved, valid, easy=easy, hard=hard, least=least),
            "cell": cell_of(refs[key]).cell,
        }
    cells = Counter((str(task["cell"]), str(task["bucket"])) for task in tasks.values())
    return {
        "policy": sources[0]["agent"],
        "tasks_sha256": sources[0]["tasks_sha256"],
        "limits": {"easy": easy, "hard": hard, "min_attempts": least},
        "sources": [{key: source[key] for key in ("run", "digest", "episodes_sha256")} for source in sources],
        "buckets": {name: sum(task["bucket"] == name for task in tasks.values()) for name in BUCKETS},
        "by_cell": {
            cell: {name: cells[cell, name] for name in BUCKETS if cells[cell, name]}
            for cell in sorted({cell for cell, _ in cells}, key=in_grid_order)
        },
        "tasks": tasks,
    }


def _source(run: Path) -> dict[str, Any]:
    """A run that played, and what it stood on. Raises UserError."""
    config = read_config(run)
    if (stage := stage_of(config)) not in PLAYED:
        raise UserError(f"`{run}` is a run of `{stage}`", hint=f"attempts at tasks are in runs of {', '.join(PLAYED)}")
    known = read_environment(run, config)
    bench: Mapping[str, Any] = known["identity"].get("bench", {})
    return {
        "run": str(run),
        "digest": known["digest"],
        "episodes_sha256": file_hash(run / "episodes.jsonl"),
        "agent": known["identity"].get("agent"),
        "tasks_sha256": bench.get("sources", {}).get("tasks"),
        "data": bench.get("data"),
    }
