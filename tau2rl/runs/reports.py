"""What a stage leaves behind it: its result, and `report.json`, read in the present format whatever its age."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tau2rl.errors import UserError
from tau2rl.report.schema import upgrade_report, upgrade_selection
from tau2rl.runs.files import read_json

REPORT, SELECTION = "report.json", "selection.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a stage has to show: `Result(report={...}, complete=True)`. Incomplete: on disk, to be resumed; exit code 1."""

    report: dict[str, Any]
    complete: bool


def read_report(file: Path) -> dict[str, Any]:
    """A `report.json`. Raises UserError for a file that is none."""
    values = read_json(file)
    if "incomplete" not in values or not ("stage" in values or {"overall", "by_task"} <= values.keys()):
        raise UserError(f"`{file}` is not a report of a run", hint="name a run folder, such as `outputs/eval/default`")
    try:
        return upgrade_report(values)
    except UserError as error:
        raise UserError(f"`{file}`: {error.message}", hint=error.hint) from None


def read_selection(file: Path) -> dict[str, Any]:
    """A `selection.json`. Raises UserError for a file that is none."""
    values = read_json(file)
    if not {"chosen", "candidates"} <= values.keys():
        raise UserError(f"`{file}` is not a choice of a checkpoint", hint="make it again with `tau2rl select-checkpoint`")
    try:
        return upgrade_selection(values)
    except UserError as error:
        raise UserError(f"`{file}`: {error.message}", hint=error.hint) from None
