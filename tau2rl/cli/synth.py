"""`tau2rl synth`: tasks made from a domain's database, written to a folder with their proofs and a data card."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tau2rl import console, settings
from tau2rl.cli.options import Asked, stage_command
from tau2rl.cli.printing import shown
from tau2rl.config import SynthConfig, dump
from tau2rl.runs.progress import ProgressEvent


def run(asked: Asked[SynthConfig]) -> None:
    """Make the tasks and show their grid. Raises UserError."""
    config = asked.config
    folder = (config.output or settings.output_root() / "synth" / f"{config.domain}-{config.seed}").expanduser().absolute()
    if asked.dry_run:
        if asked.as_json:
            console.emit_json({"config": dump(config), "folder": str(folder)})
        else:
            console.emit_table([["setting", "value"], *([name, str(value)] for name, value in dump(config).items())])
            console.say(f"would write {config.num_tasks} tasks to {shown(folder)}")
        return
    from tau2rl.synth.make import synthesise

    started = time.monotonic()
    with console.Follower() as follower:

        def on_task(done: int, total: int) -> None:
            seconds = time.monotonic() - started
            follower.on_progress(ProgressEvent(done=done, total=total, seconds=seconds, unit="tasks"))

        facts = synthesise(config, folder, on_task)
    if asked.as_json:
        console.emit_json({"folder": str(folder), **facts})
        return
    _show(facts, folder)


def _show(facts: Mapping[str, Any], folder: Path) -> None:
    console.emit_table([facts["grid_head"], *([name, *map(str, row.values())] for name, row in facts["grid"].items())])
    if facts["tasks"] < facts["asked_for"]:
        console.say(f"{facts['tasks']} of the {facts['asked_for']} tasks: the database has no more of these cells")
    console.say(f"{facts['tasks']} tasks and their data card are in {shown(folder)}")
    command = f"tau2rl seed --domains {facts['domain']} --task-source {shown(folder / 'tasks.json')}"
    console.say(f"\nplay them:\n  {command}")


synth = stage_command(
    SynthConfig,
    run,
    """Make tasks of a domain under its policy, and prove each of them; no model is asked.

    `tasks.json` in the folder has the tasks in tau2's layout, `split_tasks.json` their splits, which share no customer,
    `proofs.jsonl` what was tried on each, `README.md` and `card.json` the data card.
    `--task-source tasks.json` lets every stage play them.

    A task is an order of writes (calls that change the database) and a burden (the reads after which the arguments of the writes
    are known). They are made in equal parts for each pair of both; in a share of them the agent must refuse. A task of telecom is
    a number of problems (of a phone or its line), an intent (what does not work) and a persona; a share of them goes to a human.

    The same command gives the same bytes. Exits with 0 when it is done, 2 for a wrong request, 130 if interrupted: then
    `--resume` goes on.
    """,
)
