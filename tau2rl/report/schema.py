"""The types of `report.json` and `selection.json`, their version, and the way from an older one to it.

`docs/formats.md` defines the keys. A report may have been edited, or made by something else: whoever reads one takes only what
has these types.

Version 1 has no `schema` in its reports (`selection.json` has); what it called otherwise is in the tables below. Nothing else
reads old names: whoever reads a report gets it in the present version.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from tau2rl.errors import UserError

SCHEMA = 2
SHOWN = 60  # characters of a value of another kind

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


# --- types ---


@dataclass(frozen=True, slots=True)
class Maybe:
    """A value of this kind, or null."""

    kind: Any


# A kind is a type (`float`: any number), a tuple (a list of so many), `[kind]`, `{str: kind}` for any names, or keys with their
# kinds; `name?` may be absent. Keys that are not named may hold anything.
_COUNTS, _FLOOR = {str: int}, {str: Maybe(float)}
_ESTIMATE = {
    "value": Maybe(float), "ci95?": Maybe((float, float)), "rerun_se?": Maybe(float),
    "method?": Maybe(str), "reason?": Maybe(str),
}  # fmt: skip
_MEAN = {"value": Maybe(float), "episodes": int, "reason?": Maybe(str)}
_MEASURES = {str: _ESTIMATE}
_RESULTS = {"overall": _MEASURES, "macro": _MEASURES, "by_domain": {str: _MEASURES}}
_TOKENS = {
    f"{name}?": Maybe(int) for name in ("policy_in", "policy_out", "policy_cached", "user_in", "user_out", "trained")
} | {"trained_per_second?": Maybe(float), "reason?": Maybe(str)}  # fmt: skip
_CPU = {"seconds": Maybe(float)}
_RUN_COST = {  # a backend of the user's may know less
    "process?": {"wall_seconds": Maybe(float), "cpu_seconds": Maybe(float), "busy": Maybe(float), "cores": Maybe(int)},
    "tokens?": _TOKENS,
    "bottleneck?": Maybe(str),
    "wall?": Maybe({"seconds": {str: float}, "shares": Maybe({str: float})}),
    "workers?": Maybe({"processes": int, "cpu_seconds": Maybe(float), "busy": Maybe(float)}),
    "episodes?": int,
    "episode_seconds?": {"total": float, str: float},
    "shares?": Maybe({str: float}),
    "env_cpu?": _CPU,
}
_ACCESS = {"selection": str, "chosen": bool, "sha256": str, "number": int, "seen_before": list, "warning": Maybe(str)}
_OF_RUNS = {"pass@1": [float], "sd": Maybe(float), "sd_by_attempts": Maybe(float)}
_PRICE = {"read": float, "write": float, "source": str}
_BUDGET = {
    "caps": {str: float},
    "spent": {"tokens": int, "usd": Maybe(float), "hours": float},
    "prices": {"policy": Maybe(_PRICE), "user": Maybe(_PRICE), "hour": Maybe(float)},
    "stopped": Maybe(str),
}
_BLAMED = {"raw": _ESTIMATE, "adjusted": _ESTIMATE, "left_out": int, "left_out_solved": int, "names": {str: _COUNTS}}
_AGAINST = {"published": float, "measured": Maybe(float), "ci95": Maybe((float, float)), "inside": Maybe(bool)}
_CARD = {"model": str, "source": str, "user": str, "domains": {str: _AGAINST}, "differs": [str], "look_at": [str]}
_EVALUATION = {
    **_RESULTS, "tasks": int, "attempts": int, "greedy": Maybe(_RESULTS), "reason": Maybe(str),
    "repetitions?": Maybe({"count": int, "overall": _OF_RUNS, "by_domain": {str: _OF_RUNS}}),
    "so_far": Maybe(
        {**_RESULTS, "tasks": int, "attempts": int, "tasks_by_domain": _COUNTS, "greedy": Maybe(_RESULTS), "not_done": [str]}
    ),
    "floor": _FLOOR, "floor_by_domain": {str: _FLOOR}, "tasks_by_domain": _COUNTS, "episodes": _COUNTS, "missing": int,
    "by_cell?": Maybe({str: {"tasks": int, str: _ESTIMATE}}),
    "failed_tries?": int, "failures?": [{"fault": str, "message": str, "count": int}], "terminations": _COUNTS, "faults": _COUNTS,
    "tokens": _COUNTS, "by_task": {str: {"attempts": int, "valid": int, "solved": int}}, "partial?": _MEAN, "shaped?": _MEAN,
    "cost?": Maybe(_RUN_COST), "test_access?": Maybe(_ACCESS),
    "budget?": Maybe(_BUDGET), "blame?": Maybe({"overall": _BLAMED, str: _BLAMED}), "published?": Maybe(_CARD),
}  # fmt: skip
_SPREAD = {"distinct": int, "effective": float}
_DATASET = {
    "domains": {str: dict.fromkeys(("tried", "solved", "kept", "tasks", "covered"), int)},
    "dropped": _COUNTS,
    "diversity": {"kinds": _SPREAD, "tasks": _SPREAD},
    "floor": {str: _FLOOR},
    "files": {str: {"rows": int, "sha256": str}},
    "sources?": [{"path": str, "digest": str, "episodes_sha256": str}],
    "cost?": Maybe(_RUN_COST),
    "budget?": Maybe(_BUDGET),
}
_FILE = {"path": str, "sha256": str}
_TRAINED = {
    "inputs?": {"parent?": _FILE, "data?": [_FILE]},
    "outputs": {"checkpoint": _FILE},
    "training": {"steps?": Maybe(int), "final_step?": Maybe(int), "validation?": {str: float}, "alarms?": _COUNTS},
    "rows?": Maybe(
        {"used": int, "held_out?": int, "dropped?": int, "reasons?": _COUNTS, "exact?": Maybe(int), "rendered?": Maybe(int)}
    ),
    "cost?": Maybe(_RUN_COST),
}
_ACCOUNT = {
    "stage": str, "folder": str, "digest": str, "parents": [str], "begins_as?": Maybe(str), "inputs": [str], "outputs": [str],
    "cpu_seconds": float, "seconds": float, "cost?": Maybe(_RUN_COST),
}  # fmt: skip
_EVALUATED = {
    **_ACCOUNT, "model": str, "over?": Maybe(str), "tasks": int, "attempts": int, "pass@1": _ESTIMATE, "floor": Maybe(float),
    "rise": Maybe(_ESTIMATE), "cpu_seconds_to_here": float,
}  # fmt: skip
_PIPELINE = {
    "steps": {str: _ACCOUNT},
    "evaluations": [_EVALUATED],
    "comparisons?": [
        {"first": str, "second": str, "pass@1": {"a": Maybe(float), "b": Maybe(float), "difference": _ESTIMATE, "p": float}}
    ],
    "chain": {"links": int, "broken": [str], "holds": bool},
    "not_done": [str],
    "cpu_seconds": float,
    "cpu_seconds_training": float,
    "cost?": Maybe({"seconds": float, "cpu_seconds": float, "runs": {str: float}, "tokens": _TOKENS, "env_cpu": _CPU}),
}
REPORT = {"stage": str, "incomplete": bool, "digest?": Maybe(str)}  # of every stage, one of the user's own too
STAGES = {
    "eval": _EVALUATION, "seed": _DATASET, "rft-filter": _DATASET, "sft": _TRAINED, "grpo": _TRAINED, "pipeline": _PIPELINE,
}  # fmt: skip
SELECTION = {
    "chosen": {"step?": int, "success?": Maybe(float), "se?": Maybe(float), "path?": str, "sha256?": str},
    "candidates": [{"step": int, "success?": Maybe(float)}],
    "source?": [dict],
    "test_access_log": [{"run": str, "sha256": str}],
}


def check_types(value: Any, kind: Any, at: str = "") -> None:
    """Raises UserError that names the first value of another kind.

    >>> check_types({"value": 0.5, "ci95": [0.4, 0.6]}, _ESTIMATE)
    >>> check_types({"a": [{"value": "0.5"}]}, {"a": [_ESTIMATE]})
    Traceback (most recent call last):
    tau2rl.errors.UserError: `a.0.value` is "0.5", not a number
    """
    match kind:
        case Maybe():
            if value is not None:
                check_types(value, kind.kind, at)
        case type():
            if not isinstance(value, int if kind is float else kind) and not (kind is float and isinstance(value, float)):
                raise _other(at, value, _NAMES[kind])
            if isinstance(value, bool) and kind is not bool:
                raise _other(at, value, _NAMES[kind])
        case tuple() | list():
            kinds = cast("list[Any] | tuple[Any, ...]", kind)
            if not isinstance(value, list) or (isinstance(kinds, tuple) and len(cast("list[Any]", value)) != len(kinds)):
                raise _other(at, value, f"a list of {len(kinds)}" if isinstance(kinds, tuple) else "a list")
            for i, one in enumerate(cast("list[Any]", value)):
                check_types(one, kinds[i] if isinstance(kinds, tuple) else kinds[0], f"{at}.{i}")
        case _:
            _check_object(value, cast("dict[Any, Any]", kind), at)


_NAMES = {float: "a number", int: "a whole number", str: "text", bool: "true or false", list: "a list", dict: "an object"}


def _check_object(value: Any, kinds: dict[Any, Any], at: str) -> None:
    if not isinstance(value, dict):
        raise _other(at, value, "an object")
    values = cast("Json", value)
    for name, kind in kinds.items():
        if name is str:
            for key, one in values.items():
                check_types(one, kind, f"{at}.{key}")
        elif (key := name.removesuffix("?")) in values:
            check_types(values[key], kind, f"{at}.{key}")
        elif key == name:
            raise UserError(f"`{f'{at}.{key}'.lstrip('.')}` is missing")


def _other(at: str, value: Any, kind: str) -> UserError:
    shown = json.dumps(value)
    return UserError(f"`{at.lstrip('.')}` is {shown if len(shown) < SHOWN else shown[:SHOWN] + '...'}, not {kind}")
