"""Environments of a domain in the state of its files, made without reading them again.

tau2 parses and validates its databases and reads its policy for every environment, once an episode and twice a grading. Here
they are read when they have changed (by size or time), and each environment gets databases of its own: a view of a shared one
where it is large, a copy where it is small. What tau2 keeps on its classes, and so shares between episodes, is each one's own.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import importlib.util
import pickle
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tau2rl.env.calculator import bounded
from tau2rl.env.database import Snapshot
from tau2rl.env.package import NVIDIA, installed, prepare

prepare()

from tau2.data_model.message import ToolCall, ToolMessage  # noqa: E402
from tau2.environment.environment import Environment  # noqa: E402
from tau2.registry import registry  # noqa: E402

SHARED_FROM_BYTES = 200_000  # below, copying the whole database costs less than a millisecond


@dataclass(frozen=True, slots=True)
class _State:
    """What one state of the files gives."""

    stamp: tuple[tuple[int, int], ...]  # (size, mtime) of each file: when it moves, the content is hashed again
    content: str  # sha256 over the files
    shared: Snapshot | None  # of a large agent database
    pickled: bytes  # the other databases, by the attribute of their toolkit
    bare: Environment  # as tau2's constructor gives it, policy and all, but without its toolkits
    toolkits: dict[str, type[Any]]  # the classes of its toolkits, by attribute


class Maker:
    """Makes the environments of one domain; thread-safe."""

    def __init__(self, name: str) -> None:
        self._construct = registry.get_env_constructor(name)
        self._files: list[Path] = []
        if importlib.util.find_spec(f"tau2.domains.{name}"):
            paths = importlib.import_module(f"tau2.domains.{name}.utils")
            names = (f"{name.upper()}_DB_PATH", f"{name.upper()}_USER_DB_PATH")
            self._files = [Path(getattr(paths, path)) for path in names if hasattr(paths, path)]
        self._lock = threading.Lock()
        self._vpn: Any = None
        self._state = self._read()

    @property
    def content(self) -> str:
        """A hash of the database files."""
        return self._current().content

    def environment(self) -> Environment:
        """A fresh environment in its initial state, equal to what tau2's own constructor gives."""
        now = self._current()
        databases = pickle.loads(now.pickled)  # noqa: S301 - pickled by this process
        if now.shared is not None:
            databases["tools"] = now.shared.database()
        made = copy.copy(now.bare)
        for attribute, kind in now.toolkits.items():
            setattr(made, attribute, kind(databases[attribute]))
        if self._vpn is not None:
            # tau2 keeps these on the class, and `break_vpn` writes into them: every later episode would start with a bad VPN.
            phone: Any = made.user_tools
            phone.default_vpn_details = self._vpn.model_copy(deep=True)
        made.sync_tools()
        return made

    def _current(self) -> _State:
        with self._lock:
            if self._stamp() != self._state.stamp:
                self._state = self._read()
            return self._state

    def _read(self) -> _State:
        stamp = self._stamp()
        content = hashlib.sha256()
        for file in self._files:
            content.update(file.read_bytes())
        made: Environment = self._construct()
        if not self._files:
            content.update(f"{made.get_db_hash()} {made.get_user_db_hash()}".encode())
        toolkits: dict[str, Any] = {"tools": made.tools}
        if made.user_tools is not None:
            toolkits["user_tools"] = made.user_tools
            default = getattr(made.user_tools, "default_vpn_details", None)
            if self._vpn is None and default is not None:
                self._vpn = default.model_copy(deep=True)
        databases: dict[str, Any] = {attribute: toolkit.db for attribute, toolkit in toolkits.items()}
        large = bool(self._files) and self._files[0].stat().st_size > SHARED_FROM_BYTES and Snapshot.fits(databases["tools"])
        shared = Snapshot(databases.pop("tools")) if large else None
        return _State(
            stamp=stamp,
            content=content.hexdigest(),
            shared=shared,
            pickled=pickle.dumps(databases, protocol=pickle.HIGHEST_PROTOCOL),
            bare=_bare(made),
            toolkits={attribute: _kind(type(toolkit), shared) for attribute, toolkit in toolkits.items()},
        )

    def _stamp(self) -> tuple[tuple[int, int], ...]:
        return tuple((s.st_size, s.st_mtime_ns) for s in (file.stat() for file in self._files))


def _bare(made: Environment) -> Environment:
    made.tools = made.user_tools = None
    if installed().distribution == NVIDIA:  # whose `get_response` this is
        made.__class__ = type(type(made).__name__, (type(made),), {"get_response": _get_response})
    return made


def _kind(kind: type[Any], shared: Snapshot | None) -> type[Any]:
    """The toolkit's class with a calculator that ends and, for a shared database, its quick hash."""
    metaclass: Any = type(kind)
    ours: Any = metaclass(kind.__name__, (kind,), {})
    # Set afterwards: tau2 lists a class's own tools before those that it inherits, and their order is part of the prompt.
    if hasattr(kind, "calculate"):
        ours.calculate = bounded(kind.calculate)
    if shared is not None and hasattr(kind, "get_db_hash"):
        ours.get_db_hash = lambda toolkit: shared.hash(toolkit.db)
    return ours


def _get_response(environment: Environment, message: ToolCall) -> ToolMessage:
    """tau2's `get_response`, which writes the text of every answer for a log that nobody reads."""
    error = False
    try:
        answer = environment.make_tool_call(message.name, requestor=message.requestor, **message.arguments)
        environment.sync_tools()
    except Exception as failure:  # noqa: BLE001 - as tau2: whatever a tool raises is its answer
        answer, error = f"Error: {failure}", True
    content = environment.to_json_str(answer)
    return ToolMessage(id=message.id, content=content, requestor=message.requestor, role="tool", error=error)
