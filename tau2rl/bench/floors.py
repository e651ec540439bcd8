"""What a policy that does nothing, or always transfers, scores: the line below which a number means nothing.

Found by replaying the empty conversation and the lone transfer through tau2's grader. The solved tasks of the pinned data
ship in `floors.json`, under the hashes of the data that they were found with; other data are replayed on the spot.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from importlib import resources
from typing import Any

from tau2rl.bench.domain import domain
from tau2rl.bench.replay import replay
from tau2rl.errors import EnvironmentFailure
from tau2rl.types import TaskRef

from tau2.data_model.tasks import Action  # isort: skip

TRANSFER = Action(
    action_id="transfer",
    requestor="assistant",
    name="transfer_to_human_agents",
    arguments={"summary": "The user needs help that I cannot give."},
)
POLICIES: dict[str, list[Any]] = {"do_nothing": [], "always_transfer": [TRANSFER]}


def solved_by(policy: str, refs: Iterable[TaskRef]) -> set[str]:
    """Keys of the tasks that the floor policy solves."""
    table = json.loads(resources.files("tau2rl.bench").joinpath("floors.json").read_text(encoding="utf-8"))
    solved: set[str] = set()
    current = functools.cache(floor_hashes)
    for ref in refs:
        known = table.get(ref.domain)
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


def measure(name: str, refs: Iterable[TaskRef]) -> dict[str, Any]:
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
