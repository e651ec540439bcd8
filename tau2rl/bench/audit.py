"""What a number on these tasks can mean: floors, judge-gated tasks, gold actions, defects, overlap of train and test."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tau2rl.bench.domain import domain
from tau2rl.bench.floors import POLICIES, solved_by
from tau2rl.bench.package import installed
from tau2rl.bench.tasks import TaskRow, describe, judged_by, overlap, select
from tau2rl.config import TasksConfig
from tau2rl.types import TaskRef


def audit(config: TasksConfig) -> dict[str, Any]:
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
        "train_test_overlap": _overlap(name),
    }


def _floor(policy: str, refs: list[TaskRef]) -> dict[str, Any]:
    solved = solved_by(policy, refs)
    return {**_share(len(solved), len(refs)), "ids": [r.task_id for r in refs if r.key in solved]}


def _share(solved: int, total: int) -> dict[str, Any]:
    return {"solved": solved, "of": total, "share": solved / total if total else None}


def _judged(row: TaskRow) -> bool:
    return bool(judged_by(domain(row.ref.domain).task(row.ref)))


def _overlap(name: str) -> dict[str, Any] | None:
    """Entities that both train and test tasks name; None where the domain has no such splits."""
    loaded = domain(name)
    if not {"train", "test"} <= set(loaded.splits()):
        return None
    shared = overlap(loaded.tasks("train").values(), loaded.tasks("test").values())
    return {kind: {"count": len(values), "ids": values} for kind, values in shared.items()}
