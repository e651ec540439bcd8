"""Conversations in which a simulated user did one thing wrong, or nothing: `tests/fixtures/users/*.toml`, as episodes.

A file has a clean conversation a task, and cases that change lines of it. Lines are named by who speaks: g and u are the agent
and the user, c and p their calls, whose results tau2's own tools give, on the task's own database and phone.
"""

from __future__ import annotations

import functools
import json
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tau2rl.env.domain import domain
from tau2rl.types import CallTool, Checks, Episode, Grade, Message, Status, StopReason, TaskRef
from tau2rl.verify.blame import Blame, TaskFacts, blame, facts_of

from tau2.data_model.message import ToolCall

FOLDER = Path(__file__).parent / "fixtures" / "users"
STOPPED = {Status.COMPLETED: StopReason.USER_STOP, Status.TRUNCATED: StopReason.TURNS, Status.MALFORMED: StopReason.MALFORMED}
SIGNAL = re.compile("###[A-Z-]+###")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One conversation: `Case(name="lamp 3: told_before_asked", fault="told_before_asked", episode=...)`."""

    name: str
    fault: str  # "" of a clean user
    detail: str = ""  # of an agent's fault
    episode: Episode

    def blamed(self) -> Blame | None:
        """Whom the gates blame; a task's own faults are left aside, which would come before the user's."""
        return blame(self.episode, _facts(self.episode.task))


@functools.cache
def _facts(task: TaskRef) -> TaskFacts:
    return replace(facts_of(task), quarantined="")


def cases_of(name: str) -> Iterator[Case]:
    """Those of a file, by its name without the suffix."""
    for title, base in tomllib.loads((FOLDER / f"{name}.toml").read_text()).items():
        task = TaskRef(domain=base["domain"], task_id=base["task"], split=base["split"])
        for number, case in enumerate(base["cases"], 1):
            fault, detail, fails = case.pop("fault"), case.pop("detail", ""), case.pop("fails", False)
            status = Status(case.pop("status", "completed"))
            lines = {key: text for key, text in _in_place(base["talk"], case).items() if text != "-"}
            episode = replace(_episode(task, lines, may_fail=fails), status=status, stop_reason=STOPPED[status])
            yield Case(name=f"{title} {number}: {fault or 'clean'}", fault=fault, detail=detail, episode=episode)


def _in_place(talk: dict[str, str], case: dict[str, str]) -> dict[str, str]:
    """The lines of a case, in order; a call of the agent that is new stands before the last words that it has in the talk."""
    new = {key: text for key, text in case.items() if key[0] == "c" and key not in talk}
    last = [key for key in talk if key[0] == "g"][-1]
    lines: dict[str, str] = {}
    for key, text in (talk | case).items():
        lines |= new if key == last else {}
        lines |= {} if key in new else {key: text}
    return lines


def _episode(task: TaskRef, lines: dict[str, str], *, may_fail: bool) -> Episode:
    """A failed episode of these lines; it ends at the user's first signal."""
    world = domain(task.domain).environment()
    start = domain(task.domain).task(task).initial_state
    if start is not None:
        world.set_state(start.initialization_data, start.initialization_actions, start.message_history or [])
    seen: list[Message] = []
    trajectory: list[dict[str, Any]] = []
    for key, text in lines.items():
        who = "user" if key[0] in "up" else "assistant"
        if key[0] in "gu":
            trajectory.append({"role": who, "content": text})
            seen.append(Message(role=who, content=text))
        else:
            name, _, arguments = text.partition(" ")
            call = ToolCall(id=key, name=name, arguments=json.loads(arguments), requestor=who)
            result = world.get_response(call)
            assert may_fail or not result.error, f"{name}: {result.content}"
            trajectory.append({"role": who, "content": None, "tool_calls": [call.model_dump()]})
            trajectory.append({"role": "tool", "id": key, "content": result.content, "requestor": who})
            if who == "assistant":
                seen.append(Message(role=who, tool_calls=(CallTool(name=name, arguments=call.arguments),)))
                seen.append(Message(role="tool", content=result.content or "", error=result.error))
        if who == "user" and SIGNAL.search(text):
            break
    grade = Grade(reward=0.0, checks=Checks(db=(False,)), reward_basis=("DB", "COMMUNICATE"))
    return Episode(
        task=task,
        seed=1,
        status=Status.COMPLETED,
        stop_reason=StopReason.USER_STOP,
        token_ids=(),
        turns=(),
        messages=tuple(seen),
        trajectory=tuple(trajectory),
        grade=grade,
    )
