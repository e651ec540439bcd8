"""A domain loaded once: its tasks, policy, tool schemas, and databases as snapshots from which environments are made.

tau2 parses and validates its data files again for every environment, three times an episode and twice a grading. Here each
file is read once a process; databases whose files change on disk (size or time) are loaded anew. What was loaded is named by
content hashes.
The environments are registered in tau2's own registry under `tau2rl:NAME`, so its evaluator uses them too.
"""

from __future__ import annotations

import gc
import hashlib
import importlib
import pickle
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tau2rl.bench.calculator import bounded
from tau2rl.bench.package import INSTALL, prepare
from tau2rl.bench.snapshot import Snapshot
from tau2rl.errors import UserError
from tau2rl.types import TaskRef, ToolSchema

prepare()

from tau2rl.bench import synth  # noqa: E402

from tau2.data_model.tasks import Task  # noqa: E402  # isort: skip
from tau2.environment.environment import Environment  # noqa: E402
from tau2.environment.toolkit import ToolKitBase, get_tool_types  # noqa: E402
from tau2.registry import registry  # noqa: E402

SHARED_FROM_BYTES = 200_000  # below, copying the whole database costs less than a millisecond
NAMES = ("airline", "retail", "telecom", "mock")
_loaded: dict[str, Domain] = {}
_loading = threading.Lock()


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """The databases of one state of the files, ready to be handed out."""

    stamp: tuple[tuple[int, int], ...]  # (size, mtime) of each file: when it moves, the content is hashed again
    content: str  # sha256 over the files
    shared: Snapshot | None  # of a large agent database
    pickled: bytes  # the other keyword arguments of tau2's environment constructor


class Domain:
    """One tau2 domain. Get it by `domain(name)`; thread-safe."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.registered = f"tau2rl:{name}"
        self._module = importlib.import_module(f"tau2.domains.{name}.environment")
        paths = importlib.import_module(f"tau2.domains.{name}.utils")
        prefix = name.upper()
        self._db_files = [Path(getattr(paths, f"{prefix}_DB_PATH"))]
        if hasattr(paths, f"{prefix}_USER_DB_PATH"):
            self._db_files.append(Path(getattr(paths, f"{prefix}_USER_DB_PATH")))
        self._task_file = Path(getattr(paths, f"{prefix}_TASK_SET_PATH"))
        self._lock = threading.Lock()
        self._vpn: Any = None
        self._snapshot = self._take_snapshot()
        self._tasks: dict[str, Mapping[str, Task]] = {}
        environment = self.environment()
        self.policy = environment.get_policy()
        self.agent_tools = environment.get_tools()  # for their schemas alone: they would act on this environment
        self.tools: tuple[ToolSchema, ...] = tuple(tool.openai_schema for tool in self.agent_tools)
        self.tool_types = {tool: str(kind.value) for tool, kind in get_tool_types(_toolkit(environment)).items()}
        self.user_tools = environment.get_user_tools() if environment.user_tools else None
        if self.registered not in registry.get_domains():
            registry.register_domain(self.environment, self.registered)

    def environment(self, solo_mode: bool = False) -> Environment:
        """A fresh environment in its initial state, equal to what tau2's own constructor gives."""
        now = self._current()
        databases = pickle.loads(now.pickled)  # noqa: S301 - pickled by this process
        if now.shared is not None:
            databases["db"] = now.shared.database()
        made: Environment = self._module.get_environment(**databases, solo_mode=solo_mode)
        toolkit: Any = made.tools
        if now.shared is not None:
            _share_hash(toolkit, now.shared)
        if hasattr(toolkit, "calculate"):
            toolkit.calculate = bounded(toolkit.calculate)
        if self._vpn is not None:
            # tau2 keeps these on the class, and `break_vpn` writes into them: every later episode would start with a bad VPN.
            phone: Any = made.user_tools
            phone.default_vpn_details = self._vpn.model_copy(deep=True)
        return made

    def splits(self) -> list[str]:
        """The names of the task splits, `base` (all of tau2's) among them; `mock` has synthesised ones too."""
        loader = registry.get_task_splits_loader(self.name)
        return [*(loader() if loader else ["base"]), *(synth.SIZES if self.name == "mock" else ())]

    def tasks(self, split: str = "base") -> Mapping[str, Task]:
        """Task id -> task, in tau2's order. Raises UserError for an unknown split."""
        with self._lock:
            if split not in self._tasks:
                if split not in self.splits():
                    raise UserError(f"no such split `{split}` in `{self.name}`", hint=f"one of: {', '.join(self.splits())}")
                if synth.is_synth(split):
                    return self._tasks.setdefault(split, synth.Pool(split))
                loader: Any = registry.get_tasks_loader(self.name)
                with readable(self.name):
                    found = loader(split) if registry.get_task_splits_loader(self.name) else loader()
                self._tasks[split] = {task.id: task for task in found}
                _keep_what_is_loaded()
            return self._tasks[split]

    def task(self, ref: TaskRef) -> Task:
        """The task that `ref` names. Raises UserError."""
        try:
            return self.tasks(ref.split)[ref.task_id]
        except KeyError:
            raise UserError(
                f"no task `{ref.task_id}` in `{ref.domain}` split `{ref.split}`", hint="`tau2rl tasks list` shows them"
            ) from None

    def hashes(self) -> dict[str, str]:
        """What pins this domain: hashes of databases, task file, policy and tool schemas (16 hex digits each)."""
        return {
            "database": self._current().content[:16],
            "tasks": hashlib.sha256(self._task_file.read_bytes()).hexdigest()[:16],
            "policy": hashlib.sha256(self.policy.encode()).hexdigest()[:16],
            "tools": hashlib.sha256(repr(self.tools).encode()).hexdigest()[:16],
            **({"synth": synth.fingerprint()} if self.name == "mock" else {}),
        }

    def _current(self) -> _Snapshot:
        with self._lock:
            if self._stamp() != self._snapshot.stamp:
                self._snapshot = self._take_snapshot()
            return self._snapshot

    def _take_snapshot(self) -> _Snapshot:
        stamp = self._stamp()
        content = hashlib.sha256()
        for file in self._db_files:
            content.update(file.read_bytes())
        made = self._module.get_environment()
        databases: dict[str, Any] = {"db": made.tools.db}
        if made.user_tools is not None:
            databases["user_db"] = made.user_tools.db
            if self._vpn is None and hasattr(made.user_tools, "default_vpn_details"):
                self._vpn = made.user_tools.default_vpn_details.model_copy(deep=True)
        large = self._db_files[0].stat().st_size > SHARED_FROM_BYTES and Snapshot.fits(made.tools.db)
        shared = Snapshot(databases.pop("db")) if large else None
        return _Snapshot(
            stamp=stamp,
            content=content.hexdigest(),
            shared=shared,
            pickled=pickle.dumps(databases, protocol=pickle.HIGHEST_PROTOCOL),
        )

    def _stamp(self) -> tuple[tuple[int, int], ...]:
        return tuple((s.st_size, s.st_mtime_ns) for s in (file.stat() for file in self._db_files))


def _keep_what_is_loaded() -> None:
    """Take what is loaded out of the garbage collector's sight: to look through it stops every episode for half a second."""
    gc.collect()  # what is garbage by now would be kept as well
    gc.freeze()


def _share_hash(toolkit: Any, shared: Snapshot) -> None:
    """Let the toolkit hash its database by what it has touched."""
    toolkit.get_db_hash = lambda: shared.hash(toolkit.db)


def _toolkit(environment: Environment) -> ToolKitBase:
    if environment.tools is None:
        raise UserError(f"tau2's domain `{environment.domain_name}` has no tools")
    return environment.tools


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Missing or broken data of tau2 are a matter for the person, not a bug."""
    try:
        yield
    except OSError as error:
        raise UserError(f"tau2's data of `{name}` is missing: `{error.filename}`", hint=f"{INSTALL} brings the data") from None
    except ValueError as error:  # JSON's, TOML's and pydantic's are all of this kind
        what = str(error).partition("\n")[0]
        raise UserError(f"tau2's data of `{name}` cannot be read: {what}", hint=f"{INSTALL} brings the data") from None


def domain(name: str) -> Domain:
    """The domain, loaded at first use. Raises UserError for an unknown name or missing data."""
    if name not in NAMES:
        raise UserError(f"no such domain `{name}`", hint=f"one of: {', '.join(NAMES)}")
    with _loading:
        if name not in _loaded:
            with readable(name):
                _loaded[name] = Domain(name)
            _keep_what_is_loaded()
        return _loaded[name]
