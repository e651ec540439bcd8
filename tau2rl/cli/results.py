"""`tau2rl report` and `select-checkpoint`: what finished runs say, read from their folders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from tau2rl import console
from tau2rl.cli.options import OUTPUT, Json, option
from tau2rl.cli.printing import print_cost, print_report, shown
from tau2rl.cli.stages import resume_command
from tau2rl.config import EvalConfig
from tau2rl.errors import UserError
from tau2rl.report.aggregate import counted
from tau2rl.report.published import against_card
from tau2rl.report.tables import number, quantity
from tau2rl.runs import records
from tau2rl.runs.checkpoints import card_for
from tau2rl.runs.folder import read_config
from tau2rl.runs.provenance import read_environment
from tau2rl.runs.reports import REPORT, read_report as read_stored_report
from tau2rl.types import EpisodeRecord

RunDirs = Annotated[
    list[Path],
    typer.Argument(
        help="A training run that was validated on a selection split, or evaluations of its checkpoints on one.",
        metavar="RUN_DIR",
        show_default=False,
    ),
]


def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders.", metavar="RUN_DIR...", show_default=False)],
    html: Annotated[
        Path | None, option("--html", help="Write one page to send to somebody.", metavar="FILE", panel=OUTPUT)
    ] = None,
    markdown: Annotated[Path | None, option("--md", help="Write the tables as Markdown.", metavar="FILE", panel=OUTPUT)] = None,
    cost: Annotated[
        bool, option("--cost", help="Also say what it took in detail, of a pipeline each run.", panel=OUTPUT)
    ] = False,
    card: Annotated[
        str | None,
        option("--card", help="Set an evaluation beside the published results of this model.", metavar="NAME", panel=OUTPUT),
    ] = None,
    as_json: Json = False,
) -> None:
    """Print the result of a run again, of whatever stage; of a pipeline, the table of its evaluations.

    `--html` writes one file that loads nothing and runs nothing: results with intervals and floors, charts, what others have
    published on the same tasks, curves, faults, costs, the chain of hashes, the commands, and twenty conversations drawn by a
    hash. Of a pipeline it has the pipeline's runs too. `--md` writes the tables.

    Exits with 1 when a run is incomplete.
    """
    if html or markdown:
        _write_pages(runs, html, markdown)
        return
    reports = [_with_card(run, _with_blame(run, stage_report(run, whole=True)), card) for run in runs]
    if as_json:
        console.emit_json(reports[0] if len(reports) == 1 else reports)
    else:
        for run, values in zip(runs, reports, strict=True):
            if len(runs) > 1:
                console.emit(f"\n{shown(run)}")
            print_report(values, run if run.is_dir() else run.parent)
            if cost:
                print_cost(values)
    raise typer.Exit(1 if any(values["incomplete"] for values in reports) else 0)


def _write_pages(runs: list[Path], html: Path | None, markdown: Path | None) -> None:
    """The page and its Markdown; where they are, on stdout."""
    from tau2rl.runs.files import replacing, writing
    from tau2rl.share import report_page

    for file, write in ((html, report_page.page), (markdown, report_page.text)):
        if file is None:
            continue
        if file.is_dir():
            raise UserError(f"`{file}` is a folder", hint="name a file, such as `report.html`")
        text = write(runs, file=file)
        with writing(file), replacing(file) as out:
            out.write(text.encode("utf-8", "replace"))
        console.emit(f"{shown(file)}: {file.stat().st_size:,} bytes")


def select_checkpoint(runs: RunDirs, as_json: Json = False) -> None:
    """Choose a checkpoint of one training run, by success on tasks that are neither trained on nor tested on.

    Name the training run, and its validations decide (`train.val_every`, `val.split`).
    Or name one finished evaluation for each of its checkpoints, and they do.

    Chosen is the checkpoint with the fewest steps of those within one standard error of the best, paired over tasks.
    Success is tau2's own reward; shaped scores, losses and curves have no say.

    The choice goes into `selection.json` of the training run; results on test tasks, or on tasks it was trained on, are refused.
    Evaluations of its checkpoints on a test split are counted there: a second access is allowed, and said.

    Exits with 0 when there is a choice, 2 when there is nothing to choose by.
    """
    from tau2rl.recipes.select import select_checkpoint as choose

    selection = choose(runs)
    if as_json:
        console.emit_json(selection)
    else:
        _print_selection(selection)
    for step in selection["not_kept"]:
        console.say(f"step {step} was validated, but its checkpoint was not kept")
    for step in selection["without_validation"]:
        console.say(f"warning: step {step} was saved, but never validated, and could not be chosen (`tau2rl eval` evaluates it)")
    if left_out := selection["tasks_left_out"]:
        console.say(f"{quantity(len(left_out), 'task')} left out: not every checkpoint has evidence on them")
    if accesses := selection["test_access_log"]:
        console.say(f"warning: the test split was used before, {quantity(len(accesses), 'time')}; a choice made now has seen it")


def stage_report(run: Path, *, whole: bool = False) -> dict[str, Any]:
    """The `report.json` of a run folder, or the file itself. `whole`: all that its stage says must be there. Raises UserError."""
    file = run / REPORT if run.is_dir() else run
    if not run.exists():
        raise UserError(f"there is no `{run}`", hint="`tau2rl runs list` shows the runs that there are")
    if not file.exists():
        if (run / "config.json").exists():
            raise UserError(f"`{run}` has no report yet", hint=f"it is running, or finish it: `{_go_on(run)}`")
        raise UserError(f"`{run}` has no report", hint="name a run folder, such as `outputs/eval/default`")
    return read_stored_report(file, whole=whole)


def _with_card(run: Path, values: dict[str, Any], name: str | None) -> dict[str, Any]:
    """A report beside the card that is named. Raises UserError for another stage's, and where a card says nothing of the run."""
    if name is None:
        return values
    config = read_config(run)
    if not isinstance(config, EvalConfig):
        raise UserError(f"`{run}` is no evaluation, and a card has results of one", hint="leave out `--card`")
    agent = str(read_environment(run, config)["identity"].get("agent", ""))
    row = card_for(config.model_copy(update={"card": name}), agent)
    return {**values, "published": against_card(values, config, row)} if row else values


def _with_blame(run: Path, values: dict[str, Any]) -> dict[str, Any]:
    """A report with what `tau2rl blame` has found since, where it is of an evaluation."""
    from tau2rl.verify.attribution import kept

    found = kept(run) if "by_task" in values and run.is_dir() else None
    return {**values, "blame": found["scores"]} if found else values


def evaluated(run: Path) -> dict[str, tuple[int, int]]:
    """Task -> (attempts, solved) of a finished evaluation. Raises UserError."""
    values = stage_report(run)
    if "by_task" not in values:
        raise UserError(f"`{run}` is no evaluation but a run of `{values['stage']}`", hint="`tau2rl report` shows it")
    if values["incomplete"]:
        raise UserError(f"`{run}` is incomplete: {values['reason']}", hint=f"finish it: `{_go_on(run)}`")
    counts = cast("dict[str, dict[str, int]]", values["by_task"])
    return {key: (count["valid"], count["solved"]) for key, count in counts.items()}


def sampled(run: Path) -> dict[str, list[EpisodeRecord]]:
    """Task -> the record that counts of each of its sampled attempts, in the order of the attempts; FAILED ones are none."""
    out: dict[str, list[EpisodeRecord]] = {}
    for record in sorted(counted(records.read_records(run / "episodes.jsonl")), key=lambda one: one.attempt.index):
        if not record.attempt.greedy:
            out.setdefault(record.attempt.task.key, []).append(record)
    return dict(sorted(out.items()))


def _print_selection(selection: Mapping[str, Any]) -> None:
    best, chosen = selection["best"], selection["chosen"]
    rows = [["step", "success", "se", "behind the best", "se of that", "within", ""]]
    for one in selection["candidates"]:
        step = one["step"]
        note = ", ".join(word for word, holds in (("chosen", step == chosen["step"]), ("best", step == best)) if holds)
        numbers = [number(one[name]) for name in ("success", "se", "gap", "gap_se")]
        rows.append([str(step), *numbers, "yes" if one["within"] else "no", note])
    console.emit_table(rows)
    console.emit(
        f"step {chosen['step']}: {selection['rule']}; {quantity(selection['tasks'], 'task')} of {', '.join(selection['splits'])}"
    )
    if start := selection["start"]:
        apart = f"{start['gap']:.3f} behind the chosen (standard error {number(start['gap_se'])})"
        console.emit(f"before training: {start['success']:.3f}, {apart}")
    console.emit(f"{shown(Path(chosen['path']))}: sha256 {chosen['sha256'][:16]}")
    console.say("its success here is a little too good, because it was chosen by it; what counts is one test of it")


def _go_on(run: Path) -> str:
    """What to type to finish the run in a folder."""
    return resume_command(read_config(run).model_copy(update={"output": run}))
