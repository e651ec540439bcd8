"""What a stage leaves behind it: its result, and `report.json`, read in the present format whatever its age."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tau2rl.errors import UserError
from tau2rl.report import schema
from tau2rl.report.schema import check_types, upgrade_report, upgrade_selection
from tau2rl.runs.files import DAMAGED, read_json

REPORT, SELECTION = "report.json", "selection.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a stage has to show: `Result(report={...}, complete=True)`. Incomplete: on disk, to be resumed; exit code 1."""

    report: dict[str, Any]
    complete: bool


def read_report(file: Path, *, whole: bool = False) -> dict[str, Any]:
    """A `report.json`. Raises UserError for a file that is none, or that holds values of other types; `whole`: or lacks some."""
    values = read_json(file)
    if "incomplete" not in values or not ("stage" in values or {"overall", "by_task"} <= values.keys()):
        raise UserError(f"`{file}` is not a report of a run", hint="name a run folder, such as `outputs/eval/default`")
    try:
        report = upgrade_report(values)
        check_types(report, schema.REPORT)
        kinds = schema.STAGES.get(report["stage"], {})
        check_types(report, kinds if whole else {name: kind for name, kind in kinds.items() if name.removesuffix("?") in report})
    except UserError as error:
        raise UserError(f"`{file}`: {error.message}", hint=error.hint or DAMAGED) from None
    return report


def read_selection(file: Path) -> dict[str, Any]:
    """A `selection.json`. Raises UserError for a file that is none, or that holds values of other types."""
    values = read_json(file)
    if not {"chosen", "candidates"} <= values.keys():
        raise UserError(f"`{file}` is not a choice of a checkpoint", hint="make it again with `tau2rl select-checkpoint`")
    try:
        selection = upgrade_selection(values)
        check_types(selection, schema.SELECTION)
    except UserError as error:
        raise UserError(f"`{file}`: {error.message}", hint=error.hint or DAMAGED) from None
    return selection
