"""A domain's database that stands for the real one: calls are tried on copies, and one attempt's are carried out for good.

A copy is an environment in its initial state with the committed writes carried out again. A commit carries out an attempt's calls
on a fresh copy and takes its writes over if every result is what the attempt had seen: else somebody else's commit came between.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tau2rl.env.domain import domain
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
        made = Copy(self._domain.environment())
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
        made = Copy(self._domain.environment())
        for call in self.committed():
            made.act(call)
        return made

    def commit(self, attempt: Sequence[Carried]) -> bool:
        """Carry out the writes of an attempt; False, and nothing is changed, where a call has another result by now."""
        with self._lock:
            made = Copy(self._domain.environment())
            for call in self._committed:
                made.act(call)
            if any(made.act(one.call) != one for one in attempt):
                return False
            writes = [one.call for one in attempt if not one.error and self.tool_kinds.get(one.call.name) == "write"]
            if self._journal is not None and writes:
                _append(self._journal, writes)
            self._committed += writes
            return True


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
