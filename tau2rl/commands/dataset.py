"""What `tau2rl seed` and `tau2rl rft-filter` print: the table of a dataset's report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tau2rl import console
from tau2rl.commands.run import shown
from tau2rl.metrics.table import cost_words


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
    if cost := report.get("cost"):
        console.emit(f"cost: {cost_words(cost)}")
    if report["incomplete"]:
        console.emit("incomplete: not every attempt was graded")


def _floor(floor: Mapping[str, float | None] | None) -> str:
    """The best of the constant policies."""
    known = [value for value in (floor or {}).values() if value is not None]
    return f"{max(known):.3f}" if known else "-"
