"""Where a task stands on the grid: its user, its writes and reads, and how its user behaves, from the proofs of made tasks."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tau2rl.env.domain import domain
from tau2rl.env.tasks import describe, entities, gold_actions
from tau2rl.runs.files import json_lines
from tau2rl.types import TaskRef

PROOFS = "proofs.jsonl"  # beside a file of tasks that `tau2rl synth` made


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskCell:
    """A task's place: `TaskCell(user="mei_li_1", cell="3 writes, 6-9 reads", behaviour="bit_by_bit/terse/none/email", ...)`."""

    user: str  # "" where it is not known
    cell: str
    behaviour: str  # "" of tasks whose users all behave as their texts say
    writes: int
    burden: str = ""  # the bin of its reads; "" where it is not known
    breaks: str = ""  # the rule of the policy that its one request breaks
    problems: TelecomProblems | None = None  # of telecom: what is wrong, where it is known


@dataclass(frozen=True, slots=True, kw_only=True)
class TelecomProblems:
    """What is wrong for whom in a telecom task: `TelecomProblems(intent="mms", names=("bad_vpn",), persona="hard")`."""

    intent: str
    names: tuple[str, ...]
    persona: str


def named_problems(task_id: str) -> TelecomProblems | None:
    """What the id of a telecom task names, as tau2 writes it; None for an id of another kind.

    >>> named_problems("[mms_issue]airplane_mode_on|bad_wifi_calling[PERSONA:Hard]")
    TelecomProblems(intent='mms', names=('airplane_mode_on', 'bad_wifi_calling'), persona='hard')
    """
    found = re.fullmatch(r"\[(\w+)_issue\]([\w|]+)\[PERSONA:(\w+)\]", task_id)
    if found is None:
        return None
    return TelecomProblems(intent=found[1], names=tuple(found[2].split("|")), persona=found[3].lower())


@functools.lru_cache(maxsize=65536)
def cell_of(ref: TaskRef) -> TaskCell:
    """The cell of a task. Of one without a proof: its writes alone, and the user that its reference path names."""
    proof = _proofs(str(Path(ref.source).with_name(PROOFS))).get(ref.task_id) if ref.source else None
    if proof is not None:
        return TaskCell(
            user=str(proof["user_id"]),
            cell=proof.get("cell") or f"{proof['writes']} writes, {proof['burden_bin']} reads",
            behaviour="/".join(map(str, proof["behaviour"].values())),
            writes=proof["writes"] if "writes" in proof else describe(ref).writes,
            burden=proof.get("burden_bin", ""),
            breaks=next((str(request["breaks"]) for request in proof.get("requests", ()) if request["breaks"]), ""),
            problems=_proved_problems(proof) if "problems" in proof else None,
        )
    writes = describe(ref).writes
    problems = named_problems(ref.task_id)
    return TaskCell(user=_user(ref), cell=f"{writes} writes", behaviour="", writes=writes, problems=problems)


def _proved_problems(proof: Mapping[str, Any]) -> TelecomProblems:
    return TelecomProblems(intent=proof["intent"], names=tuple(proof["problems"]), persona=proof["behaviour"]["persona"])


def cells_of(refs: Iterable[TaskRef]) -> dict[str, str] | None:
    """Task key -> its cell, for a report; None where no task has a proof."""
    tasks = list(refs)
    proved = any(ref.source and _proofs(str(Path(ref.source).with_name(PROOFS))) for ref in tasks)
    return {ref.key: cell_of(ref).cell for ref in tasks} if proved else None


def _user(ref: TaskRef) -> str:
    task = domain(ref.domain).task(ref)
    named = [a.arguments["user_id"] for a in gold_actions(task) if isinstance(a.arguments.get("user_id"), str)]
    found = entities(task)
    return [*named, *sorted(found.get("user", ())), *sorted(found.get("customer", ())), ""][0]


@functools.cache
def _proofs(file: str) -> Mapping[str, Any]:
    """Task id -> its line; nothing where there is no such file."""
    path = Path(file)
    return {str(row["task_id"]): row for _, row in json_lines(path)} if path.exists() else {}
