"""`tau2rl select-checkpoint`: which checkpoint of a training to keep, and to test."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tau2rl import console
from tau2rl.cli.options import Json
from tau2rl.cli.run import shown
from tau2rl.report.tables import number

RunDirs = Annotated[
    list[Path],
    typer.Argument(
        help="A training run that was validated, or evaluations of its checkpoints on one.", metavar="RUN_DIR", show_default=False
    ),
]


def choose(runs: RunDirs, as_json: Json = False) -> None:
    """Choose a checkpoint of one training run, by success on tasks that are neither trained on nor tested on.

    Name the training run, and its validations decide (`train.val_every`, `val.split`).
    Or name one finished evaluation for each of its checkpoints, and they do.

    Chosen is the checkpoint with the fewest steps of those within one standard error of the best, paired over tasks.
    Success is tau2's own reward; shaped scores, losses and curves have no say.

    The choice goes into `selection.json` of the training run; results on test tasks, or on tasks it was trained on, are refused.
    Evaluations of its checkpoints on a test split are counted there: the second access is allowed, and said.

    Exits with 0 when there is a choice, 2 when there is nothing to choose by.
    """
    from tau2rl.recipes.select import select_checkpoint

    selection = select_checkpoint(runs)
    if as_json:
        console.emit_json(selection)
    else:
        _print(selection)
    for step in selection["not_kept"]:
        console.say(f"step {step} was validated, but its checkpoint was not kept")
    for step in selection["without_validation"]:
        console.say(f"warning: step {step} was saved, but never validated, and could not be chosen (`tau2rl eval` evaluates it)")
    if left_out := selection["tasks_left_out"]:
        console.say(f"{len(left_out)} tasks left out: not every checkpoint has evidence on them")
    if accesses := selection["test_access_log"]:
        console.say(f"warning: the test split was used before, {len(accesses)} times; a choice made now has seen it")


def _print(selection: Mapping[str, Any]) -> None:
    best, chosen = selection["best"], selection["chosen"]
    rows = [["step", "success", "se", "behind the best", "se of that", "within", ""]]
    for one in selection["candidates"]:
        step = one["step"]
        note = ", ".join(word for word, holds in (("chosen", step == chosen["step"]), ("best", step == best)) if holds)
        numbers = [number(one[name]) for name in ("success", "se", "gap", "gap_se")]
        rows.append([str(step), *numbers, "yes" if one["within"] else "no", note])
    console.emit_table(rows)
    console.emit(f"step {chosen['step']}: {selection['rule']}; {selection['tasks']} tasks of {', '.join(selection['splits'])}")
    if start := selection["start"]:
        apart = f"{start['gap']:.3f} behind the chosen (standard error {number(start['gap_se'])})"
        console.emit(f"before training: {start['success']:.3f}, {apart}")
    console.emit(f"{shown(Path(chosen['path']))}: sha256 {chosen['sha256'][:16]}")
    console.say("its success here is a little too good, because it was chosen by it; what counts is one test of it")
