"""What `tau2rl seed` and `tau2rl rft-filter` have in common: options of every run, and the table of a dataset's report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tau2rl import console
from tau2rl.commands.options import OUTPUT, RUN, WHERE, setting
from tau2rl.commands.run import carry_out, print_plan, shown
from tau2rl.config import RftConfig, SeedConfig
from tau2rl.store.files import read_json
from tau2rl.store.run import run_path

Name = Annotated[str | None, setting("name", "--name", panel=RUN, metavar="NAME")]
Output = Annotated[Path | None, setting("output", "--output", panel=RUN, metavar="DIR")]
Resume = Annotated[bool | None, setting("resume", "--resume", panel=RUN)]
Seed = Annotated[
    int | None, setting("seed", "--seed", panel=RUN, metavar="N", note="Every attempt's own seed is derived from it.")
]
Concurrency = Annotated[int | None, setting("rollout.concurrency", "--concurrency", panel=RUN, metavar="N")]
Address = Annotated[str | None, setting("launch.address", "--address", panel=WHERE, metavar="URL")]
Inline = Annotated[bool | None, setting("launch.inline", "--inline", panel=WHERE)]
Detach = Annotated[bool | None, setting("launch.detach", "--detach", panel=WHERE)]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the resolved config and what would run; run nothing.", rich_help_panel=OUTPUT)
]


def run(config: SeedConfig | RftConfig, *, dry_run: bool, as_json: bool) -> None:
    """Show what would run, or run it and print its report. Raises UserError; ends with the run's exit code."""
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
            print_report(report, run_path(config))
    raise typer.Exit(code)


def print_report(report: Mapping[str, Any], folder: Path) -> None:
    """Kept of tried, by domain; below it why the others were left out, the floor, and the files."""
    head = ["domain", "tried", "solved", "kept", "tasks", "covered", "floor"]
    rows = [
        [name, *(str(part[key]) for key in ("tried", "solved", "kept", "tasks", "covered")), _floor(report["floor"].get(name))]
        for name, part in report["domains"].items()
    ]
    console.emit_table([head, *rows])
    if report["dropped"]:
        console.emit("left out: " + ", ".join(f"{count} {reason}" for reason, count in report["dropped"].items()))
    kinds, tasks = report["spread"]["kinds"], report["spread"]["tasks"]
    console.emit(
        f"spread of what is kept: {kinds['distinct']} kinds, as even as {kinds['effective']:g}; "
        f"{tasks['distinct']} tasks, as even as {tasks['effective']:g}"
    )
    for name, file in report["files"].items():
        console.emit(f"{shown(folder / name)}: {file['rows']} rows, sha256 {file['sha256'][:16]}")
    if report["incomplete"]:
        console.emit("incomplete: not every attempt was graded")


def _floor(floor: Mapping[str, float | None] | None) -> str:
    """The best of the constant policies."""
    known = [value for value in (floor or {}).values() if value is not None]
    return f"{max(known):.3f}" if known else "-"


def _written(file: Path) -> int | None:
    return file.stat().st_mtime_ns if file.exists() else None
