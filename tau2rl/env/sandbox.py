"""A domain's database that stands for the real one: calls are tried on copies, and one attempt's are carried out for good.

A commit carries out an attempt's calls on a fresh copy, which is the database from then on if every result is what the attempt
had seen: else somebody else's commit came between. Of a domain that is not tau2's own, whose code may keep anything anywhere, a
copy is an environment in its initial state with all committed writes carried out again.
"""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tau2rl.env.domain import domain
from tau2rl.env.factory import OWN
from tau2rl.errors import UserError
from tau2rl.types import CallTool

from tau2.data_model.message import ToolCall


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """A call with its result: `Carried(call=CallTool(...), result="{...}", error=False)`."""

    call: CallTool
    result: str
    error: bool


class Copy:
    """One environment of its own; not thread-safe."""

    def __init__(self, environment: Any) -> None:
        self._environment = environment

    def act(self, call: CallTool) -> Carried:
        """Carry out a call of the agent; whatever the tool raises is its result."""
        answer = self._environment.get_response(
            ToolCall(id="call", name=call.name, arguments=call.arguments, requestor="assistant")
        )
        return Carried(call=call, result=answer.content or "", error=answer.error)

    def hash(self) -> str:
        """Of the agent's database."""
        return str(self._environment.get_db_hash())


class Sandbox:
    """The database of a domain of tau2's registry, in memory; thread-safe."""

    def __init__(self, name: str, *, journal: Path | None = None) -> None:
        """`journal`: a file of JSON lines, one a committed write, that is carried out first and written on. Raises UserError."""
        self._domain = domain(name)
        self.name = name
        self.policy, self.tools = self._domain.policy, self._domain.tools
        self.tool_kinds = dict(self._domain.tool_types)
        self._lock = threading.Lock()
        self._journal = journal
        self._committed = _read(journal) if journal is not None and journal.exists() else []
        self._own = name in OWN
        self._now = self._domain.environment()
        made = Copy(self._now)
        for call in self._committed:
            if (carried := made.act(call)).error:
                raise UserError(
                    f"`{journal}` does not fit the database of `{name}`: {call.name} answers `{carried.result[:160]}`",
                    hint="it is the journal of another domain or of another version of tau2",
                )

    def committed(self) -> tuple[CallTool, ...]:
        """The writes so far."""
        with self._lock:
            return tuple(self._committed)

    def copy(self) -> Copy:
        """A copy of the database as it is now."""
        with self._lock:
            return Copy(self._copied())

    def commit(self, attempt: Sequence[Carried]) -> bool:
        """Carry out the writes of an attempt; False, and nothing is changed, where a call has another result by now."""
        with self._lock:
            environment = self._copied()
            made = Copy(environment)
            if any(made.act(one.call) != one for one in attempt):
                return False
            writes = [one.call for one in attempt if not one.error and self.tool_kinds.get(one.call.name) == "write"]
            if self._journal is not None and writes:
                _append(self._journal, writes)
            self._committed += writes
            self._now = environment
            return True

    def _copied(self) -> Any:
        made: Any = self._domain.environment()
        now: Any = self._now
        if not self._own:
            for call in self._committed:
                Copy(made).act(call)
            return made
        for toolkit, latest in ((made.tools, now.tools), (made.user_tools, now.user_tools)):
            if toolkit is not None:
                toolkit.db = copy.deepcopy(latest.db)
        return made


def _append(journal: Path, calls: Sequence[CallTool]) -> None:
    """In one piece, before the caller hears that it was done."""
    lines = "".join(json.dumps({"name": call.name, "arguments": call.arguments}) + "\n" for call in calls)
    with journal.open("a", encoding="utf-8") as file:
        file.write(lines)


def _read(journal: Path) -> list[CallTool]:
    try:
        lines: list[Any] = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines() if line.strip()]
        return [CallTool(name=line["name"], arguments=line["arguments"]) for line in lines]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"`{journal}` is no journal of committed writes: {error}") from None
