"""tau2's RewardInfo, as plain JSON values, -> Grade. This room does not import tau2.

Layout: tau2 `data_model/simulation.py::RewardInfo`; meaning: tau2 `evaluator/`. A kind that a task has none of is null or an
empty list there. All kinds null means that no evaluator ran (a conversation ended by a limit, or a task without criteria).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

from tau2rl.errors import EnvironmentFailure
from tau2rl.rewards.presets import Kind
from tau2rl.types import Checks, Grade

BASIS_KIND: Mapping[str, Kind] = {
    "ACTION": "action",
    "COMMUNICATE": "communicate",
    "ENV_ASSERTION": "env_assertion",
    "DB": "db",
    "NL_ASSERTION": "nl",
}
_FIELDS = ("action_checks", "communicate_checks", "env_assertions", "db_check", "nl_assertions")


def grade_from_tau2(reward_info: Mapping[str, Any]) -> Grade:
    """Read a `RewardInfo.model_dump(mode="json")`. Raises EnvironmentFailure when it is not one.

    >>> info = {
    ...     "reward": 0.0,
    ...     "db_check": {"db_match": False, "db_reward": 0.0},
    ...     "reward_basis": ["DB", "COMMUNICATE"],
    ...     "action_checks": [{"action_match": True}, {"action_match": False}],
    ...     "communicate_checks": None,
    ... }
    >>> grade = grade_from_tau2(info)
    >>> grade.reward, grade.checks.action, grade.checks.db, grade.checks.nl
    (0.0, (True, False), (False,), None)
    >>> grade_from_tau2({"reward": 0.0, "reward_basis": None}).checks is None
    True
    """
    graded = any(reward_info.get(name) is not None for name in _FIELDS)
    return Grade(reward=_reward(reward_info), checks=_checks(reward_info) if graded else None, reward_basis=_basis(reward_info))


def kinds_met(checks: Checks) -> dict[Kind, tuple[bool, ...]]:
    """The verdicts by kind, without the kinds that the task has none of.

    >>> kinds_met(Checks(action=(True, False), nl=None))
    {'action': (True, False)}
    """
    verdicts: dict[Kind, tuple[bool, ...]] = {
        "action": checks.action,
        "communicate": checks.communicate,
        "env_assertion": checks.env_assertion,
        "db": checks.db,
        "nl": checks.nl or (),
    }
    return {kind: met for kind, met in verdicts.items() if met}


def _checks(info: Mapping[str, Any]) -> Checks:
    db = info.get("db_check")
    return Checks(
        action=_verdicts(info, "action_checks", "action_match"),
        communicate=_verdicts(info, "communicate_checks", "met"),
        env_assertion=_verdicts(info, "env_assertions", "met"),
        db=() if db is None else (_verdict(db, "db_check", "db_match"),),
        nl=None if info.get("nl_assertions") is None else _verdicts(info, "nl_assertions", "met"),
    )


def _verdicts(info: Mapping[str, Any], field: str, key: str) -> tuple[bool, ...]:
    rows = info.get(field)
    if rows is None:
        return ()
    if not isinstance(rows, Sequence) or isinstance(rows, str):
        raise EnvironmentFailure(f"tau2's reward info has `{field}` = {rows!r}, which is not a list")
    return tuple(_verdict(row, field, key) for row in cast(Sequence[Any], rows))


def _verdict(row: Any, field: str, key: str) -> bool:
    value = cast(Mapping[str, Any], row).get(key) if isinstance(row, Mapping) else None
    if not isinstance(value, bool):
        raise EnvironmentFailure(f"tau2's reward info has no verdict `{key}` in `{field}`: {row!r}")
    return value


def _reward(info: Mapping[str, Any]) -> float:
    value = info.get("reward")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or not 0 <= value <= 1:
        raise EnvironmentFailure(f"tau2's reward is {value!r}, not a number from 0 to 1")
    return float(value)


def _basis(info: Mapping[str, Any]) -> tuple[str, ...]:
    names = info.get("reward_basis")
    if names is None:
        return ()
    if not isinstance(names, Sequence) or isinstance(names, str):
        raise EnvironmentFailure(f"tau2's reward info has `reward_basis` = {names!r}, which is not a list")
    # A dump without mode="json" still holds the enum, whose text is not its value.
    return tuple(str(getattr(name, "value", name)) for name in cast(Sequence[Any], names))
