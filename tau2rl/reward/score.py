"""Grade -> Score: tau2's reward, the partial score, and their shaped sum with every part shown.

Which checks count. `cookbook` and `pipeline` count action, communicate and env-assertion checks whether or not the task's
`reward_basis` names them, as their sources do; DB and NL verdicts are shown with weight 0. `outcome` and `guarded` count
exactly the kinds that the task's `reward_basis` names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, cast

from tau2rl.errors import EnvironmentFailure
from tau2rl.reward.presets import Kind, RewardSpec, Shaping, capped
from tau2rl.types import Checks, Episode, Grade, Score

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


def score_episode(episode: Episode, spec: RewardSpec) -> Score | None:
    """The score of an episode; None for one without a grade (FAILED: no evidence about the model).

    Raises UserError when a term of the user's gives something else than it declares.
    """
    grade = episode.grade
    if grade is None:
        return None
    own = {} if grade.checks is None else {term.name: term.of(episode, grade) for term in spec.terms}
    return score(
        grade, spec, domain=episode.task.domain, steps=len(episode.turns), invalid_calls=episode.invalid_calls, own_terms=own
    )


def score(
    grade: Grade,
    spec: RewardSpec,
    *,
    domain: str,
    steps: int,
    invalid_calls: int,
    own_terms: Mapping[str, float] = MappingProxyType({}),
) -> Score:
    """Our number beside tau2's. A grade without checks was never graded: no partial and no shaped score.

    One of two actions and no assertion met, under the printed cookbook: partial 0.7/2, shaped 0 + 0.3 * 0.35.

    >>> from tau2rl.reward.presets import PRESETS
    >>> grade = Grade(reward=0.0, checks=Checks(action=(True, False), env_assertion=(False,)), reward_basis=("ENV_ASSERTION",))
    >>> s = score(grade, PRESETS["cookbook"], domain="telecom", steps=9, invalid_calls=0)
    >>> s.task, s.partial, round(s.shaped, 6)
    (0.0, 0.35, 0.105)

    The code behind the cookbook divides by the weights that are there: 0.35/2 / (0.35 + 0.30), times 0.4.

    >>> s = score(grade, PRESETS["pipeline"], domain="telecom", steps=9, invalid_calls=0)
    >>> round(s.partial, 6), round(s.shaped, 6)
    (0.269231, 0.107692)
    """
    if grade.checks is None:
        return Score(task=grade.reward, partial=None, shaped=None, components={})
    shaping = spec.shaping(domain)
    shares = {kind: math.fsum(met) / len(met) for kind, met in kinds_met(grade.checks).items()}
    partial = _partial(grade, spec, shaping)
    terms = {
        "outcome": spec.failure + (spec.success - spec.failure) * grade.reward,
        "shaping": shaping.alpha * partial,
        "steps": 0.0 - capped(spec.step_penalty * steps, spec.step_cap),
        "tools": 0.0 - capped(spec.tool_penalty * invalid_calls, spec.tool_cap),
        **own_terms,
    }
    return Score(task=grade.reward, partial=partial, shaped=math.fsum(terms.values()), components={**shares, **terms})


def _partial(grade: Grade, spec: RewardSpec, shaping: Shaping) -> float:
    # 0.0 where nothing that counts is there (the sources' choice): the same for every attempt at the task, so no advantage.
    verdicts = kinds_met(grade.checks or Checks())
    named = {BASIS_KIND.get(name) for name in grade.reward_basis}
    counted: list[Kind] = [kind for kind in verdicts if kind in named or not spec.basis_only]
    total = math.fsum(shaping.weights.get(kind, 0.0) for kind in counted)
    if not total:
        return 0.0
    weighted = math.fsum(shaping.weights.get(kind, 0.0) * sum(verdicts[kind]) / len(verdicts[kind]) for kind in counted)
    return weighted / total if spec.normalize else weighted
