"""The version of `report.json` and `selection.json`, and the way from an older one to it. `docs/formats.md` defines the keys.

Version 1 has no `schema` in its reports (`selection.json` has); what it called otherwise is in the tables below. Nothing else
reads old names: whoever reads a report gets it in the present version.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from tau2rl.errors import UserError

SCHEMA = 2

Json = dict[str, Any]
_COST = {"bound": "bottleneck"}
_PARTS = {"customer": "user", "looks": "validation"}  # of episode time and wall time
_REPORT = {"spread": "diversity", "selected_by": "test_access"}
_TEST_ACCESS = {"look": "number", "file": "selection"}
_TRAINING = {
    "selection": "validation",
    "held_out_loss_before": "val_loss_before",
    "held_out_loss_after": "val_loss_after",
    "best_held_out_loss": "best_val_loss",
}
_STEP = {"took": "inputs", "gave": "outputs"}
_SELECTION = {"test_evaluations": "test_access_log", "without_look": "without_validation"}
_SOURCE = {"look": "file"}


def upgrade_report(values: Mapping[str, Any]) -> Json:
    """A `report.json` of any version in the present one. Raises UserError for a later one.

    >>> old = {"stage": "seed", "incomplete": False, "spread": {}, "cost": {"bound": "x", "shares": {"customer": 0.5}}}
    >>> new = upgrade_report(old)
    >>> new["schema"], new["diversity"], new["cost"]
    (2, {}, {'bottleneck': 'x', 'shares': {'user': 0.5}})
    """
    if not _is_older(values):
        return dict(values)
    report: Json = _renamed(values, _REPORT)
    if "stage" not in report and "overall" in report:
        report = {"stage": "eval", **report}
    _within(report, "test_access", lambda part: _renamed(part, _TEST_ACCESS))
    _within(report, "training", lambda part: _renamed(part, _TRAINING))
    _within(report, "cost", _cost)
    _within(report, "steps", _steps)
    if "evaluations" in report:
        report["evaluations"] = [_step(entry) for entry in cast("list[Json]", report["evaluations"])]
    return {"schema": SCHEMA, **report}


def upgrade_selection(values: Mapping[str, Any]) -> Json:
    """A `selection.json` of any version in the present one. Raises UserError for a later one.

    >>> upgrade_selection({"schema": 1, "test_evaluations": [], "source": [{"look": "select/step_00020.jsonl", "step": 20}]})
    {'schema': 2, 'test_access_log': [], 'source': [{'file': 'select/step_00020.jsonl', 'step': 20}]}
    """
    if not _is_older(values):
        return dict(values)
    selection = _renamed(values, _SELECTION)
    selection["source"] = [_renamed(source, _SOURCE) for source in selection.get("source", [])]
    return {**selection, "schema": SCHEMA}


def _is_older(values: Mapping[str, Any]) -> bool:
    schema = values.get("schema", 1)
    if schema in (1, SCHEMA):
        return schema == 1
    raise UserError(
        f"a report of schema {schema!r}, this version reads schemas 1 and {SCHEMA}",
        hint="read it with the version of tau2rl that `environment.json` beside it names",
    )


def _steps(steps: Json) -> Json:
    return {name: _step(cast("Json", step)) for name, step in steps.items()}


def _step(step: Json) -> Json:
    """The account of one run of a pipeline."""
    renamed = _renamed(step, _STEP)
    outputs = renamed.get("outputs")
    renamed["outputs"] = [] if outputs is None else [outputs]
    _within(renamed, "cost", _cost)
    return renamed


def _cost(cost: Json) -> Json:
    renamed = _renamed(cost, _COST)
    for name in ("episode_seconds", "shares"):
        _within(renamed, name, lambda parts: _renamed(parts, _PARTS))
    _within(renamed, "wall", lambda wall: {key: _renamed(parts, _PARTS) if parts else parts for key, parts in wall.items()})
    return renamed


def _renamed(values: Mapping[str, Any], names: Mapping[str, str]) -> Json:
    return {names.get(key, key): value for key, value in values.items()}


def _within(values: Json, key: str, change: Callable[[Json], Json]) -> None:
    if isinstance(values.get(key), dict):
        values[key] = change(cast("Json", values[key]))
