"""`tau2rl report` and `tau2rl compare`: what finished runs say, read from their folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from tau2rl import console
from tau2rl.cli import pipeline, seed, sft
from tau2rl.cli.options import Json
from tau2rl.cli.run import resume_command
from tau2rl.errors import UserError
from tau2rl.report.compare import Comparison, compare as compare_values
from tau2rl.report.tables import cost_words, report_rows
from tau2rl.runs.folder import read_config
from tau2rl.runs.provenance import SUBJECT, differences, read_environment
from tau2rl.runs.reports import REPORT, read_report as read_stored_report

RunDir = Annotated[Path, typer.Argument(help="A run folder.", metavar="RUN_DIR", show_default=False)]


def report(run: RunDir, as_json: Json = False) -> None:
    """Print the result of a run again, of whatever stage; of a pipeline, the table of its evaluations.

    Exits with 1 when the run is incomplete.
    """
    values = read_report(run)
    if as_json:
        console.emit_json(values)
    else:
        _print_any(values, run if run.is_dir() else run.parent)
    raise typer.Exit(1 if values["incomplete"] else 0)


def _print_any(values: Mapping[str, Any], folder: Path) -> None:
    """A report as the command that made it prints it."""
    match values["stage"]:
        case "seed" | "rft-filter":
            seed.print_report(values, folder)
        case "sft" | "grpo":
            sft.print_report(values)
        case "pipeline":
            pipeline.print_report(values)
        case _:
            print_report(values)


def compare(
    a: Annotated[Path, typer.Argument(help="A run folder.", metavar="RUN_A", show_default=False)],
    b: Annotated[Path, typer.Argument(help="Another run folder.", metavar="RUN_B", show_default=False)],
    force: Annotated[bool, typer.Option("--force", help="Compare runs that measured different things, with a warning.")] = False,
    as_json: Json = False,
) -> None:
    """Compare two runs on the same tasks, task by task: RUN_A minus RUN_B.

    Refused when they differ in more than the agent: another user model, split or tool schema makes another measurement of it.
    """
    unequal = [d for d in differences(_identity(a), _identity(b)) if d[0] not in SUBJECT]
    if unequal:
        lines = "\n".join(f"  {key}: {left!r} and {right!r}" for key, left, right in unequal)
        message = f"the runs did not measure the same thing; these differ\n{lines}"
        if not force:
            raise UserError(message, hint="run one of them again with the other's settings, or look anyway with `--force`")
        console.say(f"warning: {message}\n")
    result = compare_values(_solved_share(a), _solved_share(b))
    if as_json:
        shown = {**asdict(result), "difference": result.difference.to_json()}
        console.emit_json({"a": str(a), "b": str(b), "differing": [key for key, _, _ in unequal], "pass@1": shown})
    else:
        _print_comparison(a, b, result)


def read_report(run: Path) -> dict[str, Any]:
    """The `report.json` of a run folder, or the file itself. Raises UserError."""
    file = run / REPORT if run.is_dir() else run
    if not file.exists():
        if (run / "config.json").exists():
            raise UserError(f"`{run}` has no report yet", hint=f"it is running, or finish it: `{_go_on(run)}`")
        raise UserError(f"`{run}` has no report", hint="name a run folder, such as `outputs/eval/default`")
    return read_stored_report(file)


def print_report(report: Mapping[str, Any]) -> None:
    """The table, and below it what became of every attempt."""
    console.emit_table(report_rows(report))
    ended = ", ".join(f"{count} {status}" for status, count in report["episodes"].items())
    console.emit(f"episodes: {ended}" + (f", {report['missing']} missing" if report["missing"] else ""))
    for name in ("faults", "terminations"):
        if report[name]:
            console.emit(f"{name}: " + ", ".join(f"{key} {count}" for key, count in report[name].items()))
    floor = ", ".join(
        f"{name.replace('_', ' ')} {'unknown' if value is None else f'{value:.3f}'}" for name, value in report["floor"].items()
    )
    console.emit(f"floor: {floor}")
    if cost := report.get("cost"):
        console.emit(f"cost: {cost_words(cost)}")
    if test_access := report.get("test_access"):
        console.emit(_of_the_test(test_access))
    for line in console.failure_words(report.get("failures", ()), tries=report.get("failed_tries", 0)):
        console.emit(line)
    if report["incomplete"]:
        console.emit(f"incomplete: {report['reason']}")
        if report["so_far"]:
            console.emit("not done: " + ", ".join(report["so_far"]["not_done"]))


def _of_the_test(test_access: Mapping[str, Any]) -> str:
    """Which selection a test belongs to, and what is wrong with it."""
    if test_access["warning"]:
        return f"warning: {test_access['warning']}"
    return f"test-set access {test_access['number']} for the checkpoint chosen by `{test_access['selection']}`"


def _print_comparison(a: Path, b: Path, result: Comparison) -> None:
    ci95 = result.difference.ci95
    interval = f" [{ci95[0]:+.3f}, {ci95[1]:+.3f}]" if ci95 else f" ({result.difference.reason})"
    rows = [["pass@1", "value"], [str(a), f"{result.a:.3f}"], [str(b), f"{result.b:.3f}"]]
    console.emit_table([*rows, ["difference [95%]", f"{result.difference.value:+.3f}{interval}"]])
    low, high = result.bootstrap
    console.emit(f"{result.tasks} tasks, paired; bootstrap [{low:+.3f}, {high:+.3f}], sign-flip p = {result.p:.4f}")
    if result.mcnemar:
        m = result.mcnemar
        console.emit(f"only the first solved {m.only_a}, only the second {m.only_b}, McNemar p = {m.p:.4f}")


def _solved_share(run: Path) -> dict[str, float]:
    values = read_report(run)
    if "by_task" not in values:
        raise UserError(f"`{run}` is no evaluation but a run of `{values['stage']}`", hint="`tau2rl report` shows it")
    if values["incomplete"]:
        raise UserError(f"`{run}` is incomplete: {values['reason']}", hint=f"finish it: `{_go_on(run)}`")
    counts = cast("dict[str, dict[str, int]]", values["by_task"])
    return {key: count["solved"] / count["valid"] for key, count in counts.items()}


def _go_on(run: Path) -> str:
    """What to type to finish the run in a folder."""
    return resume_command(read_config(run).model_copy(update={"output": run}))


def _identity(run: Path) -> dict[str, Any]:
    return cast("dict[str, Any]", read_environment(run, read_config(run))["identity"])
