"""`tau2rl select-checkpoint`: which checkpoint of a training to keep, and to test."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tau2rl import console
from tau2rl.commands.options import Json
from tau2rl.commands.run import shown

RunDirs = Annotated[
    list[Path],
    typer.Argument(
        help="A training run that looked at a selection split, or evaluations of its checkpoints on one.",
        metavar="RUN_DIR",
        show_default=False,
    ),
]


def choose(runs: RunDirs, as_json: Json = False) -> None:
    """Choose a checkpoint of one training run, by success on tasks that are neither trained on nor tested on.

    Name the training run, and the looks that it took (`train.eval_every`, `select.split`) decide; or name one finished evaluation
    for each checkpoint, and they do. The rule: of all checkpoints whose success is within one standard error of the best, paired
    over tasks, the one with the fewest steps. Success is tau2's own reward; shaped scores, losses and curves have no say.

    Results on test tasks, and on tasks that the run was trained on, are refused. The choice goes into `selection.json` of the
    training run. An evaluation of that run's checkpoints on a test split is written there too: the test is for what was
    chosen, once, and a second look is allowed but said.
    """
    from tau2rl.stages.select import select_checkpoint

    selection = select_checkpoint(runs)
    if as_json:
        console.emit_json(selection)
    else:
        _print(selection)
    for step in selection["not_kept"]:
        console.say(f"step {step} was looked at, but its checkpoint was not kept")
    if left_out := selection["tasks_left_out"]:
        console.say(f"{len(left_out)} tasks left out: not every checkpoint has evidence on them")
    if looked := selection["test_evaluations"]:
        console.say(f"warning: the test split was looked at before, {len(looked)} times; a choice made now has seen it")


def _print(selection: Mapping[str, Any]) -> None:
    best, chosen = selection["best"], selection["chosen"]
    rows = [["step", "success", "se", "behind the best", "se of that", "within", ""]]
    for one in selection["candidates"]:
        step = one["step"]
        note = ", ".join(word for word, holds in (("chosen", step == chosen["step"]), ("best", step == best)) if holds)
        numbers = [_number(one[name]) for name in ("success", "se", "gap", "gap_se")]
        rows.append([str(step), *numbers, "yes" if one["within"] else "no", note])
    console.emit_table(rows)
    console.emit(f"step {chosen['step']}: {selection['rule']}; {selection['tasks']} tasks of {', '.join(selection['splits'])}")
    if start := selection["start"]:
        apart = f"{start['gap']:.3f} behind the chosen (standard error {_number(start['gap_se'])})"
        console.emit(f"before training: {start['success']:.3f}, {apart}")
    console.emit(f"{shown(Path(chosen['path']))}: sha256 {chosen['sha256'][:16]}")
    console.say("its success here is a little too good, because it was chosen by it; what counts is one test of it")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
