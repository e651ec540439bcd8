"""What a number on these tasks can mean: floors, judge-gated tasks, gold actions, defects, overlap of train and test."""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import resources
from typing import Any

from tau2rl.config import TasksConfig
from tau2rl.enums import TRANSFER_TOOL
from tau2rl.env.domain import domain
from tau2rl.env.grading import replay, why_not_one
from tau2rl.env.package import installed
from tau2rl.env.tasks import TaskRow, closing_words, describe, gold_actions, judged_by, overlap, select
from tau2rl.errors import EnvironmentFailure
from tau2rl.types import TaskRef

from tau2.data_model.tasks import Action

TRANSFER = Action(
    action_id="transfer",
    requestor="assistant",
    name=TRANSFER_TOOL,
    arguments={"summary": "The user needs help that I cannot give."},
)
POLICIES: dict[str, list[Any]] = {"do_nothing": [], "always_transfer": [TRANSFER]}


def solved_by(policy: str, refs: Iterable[TaskRef]) -> set[str]:
    """Keys of the tasks that the floor policy solves: from `floors.json`, by replay where its data are others or absent."""
    table = json.loads(resources.files("tau2rl.env").joinpath("floors.json").read_text(encoding="utf-8"))
    solved: set[str] = set()
    current = functools.cache(floor_hashes)
    for ref in refs:
        known = None if ref.source else table.get(ref.domain)
        if known and known["hashes"] == current(ref.domain) and ref.task_id in known["tasks"]:
            if ref.task_id in known[policy]:
                solved.add(ref.key)
        elif _solves(ref, policy):
            solved.add(ref.key)
    return solved


def floor_hashes(name: str) -> dict[str, str]:
    """The hashes that decide a domain's floors."""
    hashes = domain(name).hashes()
    return {key: hashes[key] for key in ("database", "tasks")}


def measure_floors(name: str, refs: Iterable[TaskRef]) -> dict[str, Any]:
    """One domain's entry of `floors.json`, by replay."""
    refs = list(refs)
    entry: dict[str, Any] = {"hashes": floor_hashes(name), "tasks": [r.task_id for r in refs]}
    for policy in POLICIES:
        entry[policy] = [r.task_id for r in refs if _solves(r, policy)]
    return entry


def _solves(ref: TaskRef, policy: str) -> bool:
    try:
        return replay(ref, POLICIES[policy])["reward"] >= 1.0 - 1e-6
    except EnvironmentFailure:  # some assertions raise where there is nothing to look at: that is not solved
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """One task's result: `Validation(ref=..., reward=0.0, why="the database differs")`."""

    ref: TaskRef
    reward: float
    why: str  # "" when the reward is 1


def validate_tasks(config: TasksConfig) -> Iterator[Validation]:
    """Replay the gold path of each task, one result at a time. Raises UserError for an empty selection."""
    for ref in select(config):
        task = domain(ref.domain).task(ref)
        communicate = (task.evaluation_criteria.communicate_info if task.evaluation_criteria else None) or ()
        try:
            info = replay(ref, gold_actions(task), said=[closing_words(communicate)])
        except EnvironmentFailure as error:
            yield Validation(ref=ref, reward=0.0, why=str(error))
            continue
        yield Validation(ref=ref, reward=info["reward"], why=why_not_one(info))


def audit_tasks(config: TasksConfig) -> dict[str, Any]:
    """The audit of the named domains in one split, JSON-ready. Raises UserError."""
    package = installed()
    domains = {name: audit_domain(name, config) for name in dict.fromkeys(config.domains)}
    floors = {p: sum(d["floor"][p]["solved"] for d in domains.values()) for p in POLICIES}
    total = sum(d["tasks"] for d in domains.values())
    return {
        "tau2": {"distribution": package.distribution, "version": package.version},
        "split": config.split,
        "tasks": total,
        "floor": {p: _share(solved, total) for p, solved in floors.items()},
        "domains": domains,
    }


def audit_domain(name: str, config: TasksConfig) -> dict[str, Any]:
    """One domain's part of the audit."""
    refs = select(config.model_copy(update={"domains": (name,)}))
    rows = [describe(ref) for ref in refs]
    loaded = domain(name)
    return {
        "hashes": loaded.hashes(),
        "tasks": len(refs),
        "floor": {p: _floor(p, refs) for p in POLICIES},
        "gold_actions": {
            k: sum(getattr(r, k) for r in rows) for k in ("reads", "writes", "generic", "user_actions", "communicate")
        },
        "tasks_that_change_state": sum(r.changes_state for r in rows),
        "reward_bases": dict(Counter("+".join(r.basis) for r in rows)),
        "judge_gated": [r.ref.task_id for r in rows if _judged(r)],
        "quarantined": {r.ref.task_id: r.quarantined for r in rows if r.quarantined},
        "train_test_overlap": _overlap(name, refs if config.source else None),
    }


def _floor(policy: str, refs: list[TaskRef]) -> dict[str, Any]:
    solved = solved_by(policy, refs)
    return {**_share(len(solved), len(refs)), "ids": [r.task_id for r in refs if r.key in solved]}


def _share(solved: int, total: int) -> dict[str, Any]:
    return {"solved": solved, "of": total, "share": solved / total if total else None}


def _judged(row: TaskRow) -> bool:
    return bool(judged_by(domain(row.ref.domain).task(row.ref)))


def _overlap(name: str, refs: list[TaskRef] | None) -> dict[str, Any] | None:
    """Entities that both train tasks (or those of a file) and tau2's test tasks name; None for a domain without such splits."""
    loaded = domain(name)
    if not {"train", "test"} <= set(loaded.splits()):
        return None
    learned = loaded.tasks("train").values() if refs is None else [loaded.task(ref) for ref in refs]
    shared = overlap(learned, loaded.tasks("test").values())
    return {kind: {"count": len(values), "ids": values} for kind, values in shared.items()}
