"""A domain's database that stands for the real one: calls are tried on copies, and one attempt's are carried out for good.

A commit carries out an attempt's calls on a fresh copy, which is the database from then on if every result is what the attempt
had seen: else somebody else's commit came between. A call that is refused has no effect, although tau2's tools may change rows
before they raise: the database is again what the writes before it made of it. Of a domain that is not tau2's own, whose code may
keep anything anywhere, a copy is an environment in its initial state with all committed writes carried out again.
"""

from __future__ import annotations

import contextlib
import copy
import fcntl
import json
import logging
import os
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tau2rl.env.domain import domain
from tau2rl.env.factory import OWN
from tau2rl.errors import UserError
from tau2rl.types import CallTool

from tau2.data_model.message import ToolCall

log = logging.getLogger(__name__)
START = b'{"name": '  # of each line of a journal


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """A call with its result: `Carried(call=CallTool(...), result="{...}", error=False)`."""

    call: CallTool
    result: str
    error: bool


class Copy:
    """One environment of its own; not thread-safe."""

    def __init__(self, make: Callable[[], Any], kinds: Mapping[str, str]) -> None:
        """`make`: an environment in the state of the beginning, each time it is called. `kinds`: tool -> read, write, ..."""
        self._make, self._kinds = make, kinds
        self.environment = make()
        self._written: list[CallTool] = []

    def act(self, call: CallTool) -> Carried:
        """Carry out a call of the agent; whatever the tool raises is its result, and then nothing has changed."""
        answer = _respond(self.environment, call)
        kind = self._kinds.get(call.name)
        if answer.error and kind != "read":
            self.environment = self._make()
            for one in self._written:
                _respond(self.environment, one)
        elif kind == "write":
            self._written.append(call)
        return Carried(call=call, result=answer.content or "", error=answer.error)

    def hash(self) -> str:
        """Of the agent's database."""
        return str(self.environment.get_db_hash())


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
        self._committed = _read(journal) if journal is not None else []
        self._own = name in OWN
        made = Copy(self._domain.environment, self.tool_kinds)
        for call in self._committed:
            if (carried := made.act(call)).error:
                raise UserError(
                    f"`{journal}` does not fit the database of `{name}`: {call.name} answers `{carried.result[:160]}`",
                    hint="it is the journal of another domain or of another version of tau2",
                )
        self._now = made.environment  # nobody acts on it any more

    def committed(self) -> tuple[CallTool, ...]:
        """The writes so far."""
        with self._lock:
            return tuple(self._committed)

    def copy(self) -> Copy:
        """A copy of the database as it is now."""
        with self._lock:
            return self._copy()

    def commit(self, attempt: Sequence[Carried]) -> bool:
        """Carry out the writes of an attempt; False, and nothing is changed, where a call has another result by now.

        Raises OSError where the journal cannot be written; nothing is changed then.
        """
        with self._lock:
            made = self._copy()
            if any(made.act(one.call) != one for one in attempt):
                return False
            writes = [one.call for one in attempt if not one.error and self.tool_kinds.get(one.call.name) == "write"]
            if self._journal is not None and writes:
                _append(self._journal, writes)
            self._committed += writes
            self._now = made.environment
            return True

    def _copy(self) -> Copy:
        now, committed = self._now, tuple(self._committed)
        return Copy(lambda: self._copied(now, committed), self.tool_kinds)

    def _copied(self, now: Any, committed: Sequence[CallTool]) -> Any:
        made: Any = self._domain.environment()
        if not self._own:
            for call in committed:
                _respond(made, call)
            return made
        for toolkit, latest in ((made.tools, now.tools), (made.user_tools, now.user_tools)):
            if toolkit is not None:
                toolkit.db = copy.deepcopy(latest.db)
        return made


def _respond(environment: Any, call: CallTool) -> Any:
    return environment.get_response(ToolCall(id="call", name=call.name, arguments=call.arguments, requestor="assistant"))


def _append(journal: Path, calls: Sequence[CallTool]) -> None:
    """All of them, on the disk before the caller hears that it was done; or none, and OSError."""
    lines = "".join(json.dumps({"name": call.name, "arguments": call.arguments}) + "\n" for call in calls)
    with journal.open("ab", buffering=0) as file:
        before = file.tell()
        try:
            if file.write(lines.encode()) != len(lines):  # ASCII, as `json.dumps` writes
                raise OSError(f"`{journal}` took a part of {len(lines)} bytes")
            os.fsync(file.fileno())
        except OSError:
            file.truncate(before)
            raise


@contextlib.contextmanager
def only_writer(journal: Path) -> Generator[None]:
    """Nobody else's while the block runs: two sandboxes on one journal would not know of each other's writes. Raises UserError.

    A journal that is not there is made.
    """
    with _opened(journal) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another server writes on `{journal}`", hint="stop it, or keep another journal") from None
        except OSError as error:
            raise UserError(
                f"cannot lock `{journal}`: {error.strerror}", hint="keep it on a file system that has locks"
            ) from None
        yield


def _opened(journal: Path) -> IO[bytes]:
    try:
        return journal.open("ab")
    except FileNotFoundError:
        raise UserError(f"`{journal.parent}` is no folder", hint="make it, or keep the journal elsewhere") from None
    except OSError as error:
        raise UserError(f"`{journal}` is no journal of committed writes: {error}") from None


def _read(journal: Path) -> list[CallTool]:
    """The writes of a journal, which is made if there is none and mended where its writer was stopped. Raises UserError."""
    try:
        with _opened(journal):
            whole = _mended(journal)
        lines: list[Any] = [json.loads(line) for line in whole.splitlines() if line.strip()]
        return [CallTool(name=line["name"], arguments=line["arguments"]) for line in lines]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"`{journal}` is no journal of committed writes: {error}") from None


def _mended(journal: Path) -> bytes:
    """Its bytes. A last line without its end gets one if it is whole, and is dropped if it is the beginning of one."""
    whole = journal.read_bytes()
    end = whole.rfind(b"\n") + 1
    if not (last := whole[end:]):
        return whole
    try:
        json.loads(last)
    except ValueError:
        if not (last.startswith(START) or START.startswith(last)):
            raise
        log.warning("`%s`: the last line was not written to its end, and is dropped", journal)
        os.truncate(journal, end)
        return whole[:end]
    with journal.open("ab") as file:
        file.write(b"\n")
    return whole + b"\n"
