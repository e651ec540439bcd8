"""A domain of tau2's registry, loaded once: its tasks, policy, tool schemas, and the environments that are made of it.

tau2 parses its task file again at every step of its gym; here it is read once a process. What was loaded is named by content
hashes. The environments are registered in tau2's own registry under `tau2rl:NAME`, so its evaluator uses them too.

Whatever is in tau2's registry is a domain, tau2's own and those that somebody else registered: `register_domain` for the
environment and `register_tasks` for the tasks and their splits, under one name.

`train-learn` and `train-select` are a domain's training tasks cut in two, to train on and to choose a checkpoint by.
"""

from __future__ import annotations

import gc
import hashlib
import importlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tau2rl.config import TasksConfig, UserConfig
from tau2rl.env import synth
from tau2rl.env.factory import OWN, environment_factory
from tau2rl.env.package import INSTALL, installed
from tau2rl.env.task_files import BASE, source_path, task_file
from tau2rl.errors import UserError
from tau2rl.types import TaskRef, ToolSchema

from tau2.data_model.tasks import Task
from tau2.environment.environment import Environment
from tau2.environment.toolkit import ToolKitBase, ToolType, get_tool_types
from tau2.registry import registry
from tau2.user.user_simulator import SYSTEM_PROMPT, get_global_user_sim_guidelines

OURS = "tau2rl:"  # in front of the names under which our environments are registered
KEPT_ENDS = 4096  # synthesised tasks are without number
Hashes = tuple[str | None, str | None]  # of the agent's and of the user's database
_loaded: dict[str, Domain] = {}
_loading = threading.Lock()


class Domain:
    """One tau2 domain. Get it by `domain(name)`; thread-safe."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.registered = f"{OURS}{name}"
        # `environment()` is a fresh one in its initial state, equal to what the domain's own constructor gives.
        self.environment, self.content = environment_factory(name)
        self._lock = threading.Lock()
        self._handed_out = threading.local()
        self._gold_ends: dict[str, Hashes] = {}
        self._tasks: dict[str, Mapping[str, Task]] = {}
        environment = self.environment()
        self.policy = environment.get_policy()
        self.agent_tools = environment.get_tools()  # for their schemas alone: they would act on this environment
        self.tools: tuple[ToolSchema, ...] = tuple(tool.openai_schema for tool in self.agent_tools)
        self.tool_types = {tool: str(kind.value) for tool, kind in get_tool_types(_toolkit(environment)).items()}
        self.user_tools = environment.get_user_tools() if environment.user_tools else None
        self.user_tool_schemas: tuple[ToolSchema, ...] = tuple(tool.openai_schema for tool in self.user_tools or ())
        self.user_reads = _reads(environment.user_tools, self.user_tool_schemas)
        if self.registered not in registry.get_domains():
            registry.register_domain(self._construct, self.registered)

    def gold_end(self, name: str) -> Hashes | None:
        """What a reference path made of the databases, if `keep_gold_end` was told; see `grading.py`."""
        return self._gold_ends.get(name)

    def keep_gold_end(self, name: str, hashes: Hashes) -> None:
        """Remember how a reference path ends."""
        with self._lock:
            if len(self._gold_ends) >= KEPT_ENDS:
                self._gold_ends.pop(next(iter(self._gold_ends)))
            self._gold_ends[name] = hashes

    @contextmanager
    def handing_out(self, *environments: Any) -> Iterator[None]:
        """Give these to whoever asks tau2's registry for a fresh environment of this domain in this thread, in this order."""
        self._handed_out.next = list(environments)
        try:
            yield
        finally:
            self._handed_out.next = []

    def splits(self, source: str = "") -> list[str]:
        """The names of the task splits: the domain's own, `base` (all tasks) among them, and those that are made here.

        Of a file of tasks (`TaskRef.source`): its own. Raises UserError where that cannot be read.
        """
        if source:
            return list(task_file(source).splits)
        loader = registry.get_task_splits_loader(self.name)
        names = list(loader() if loader else ())
        halves = (LEARN, SELECT) if "train" in names else ()
        return [*names, *(() if BASE in names else (BASE,)), *halves, *(synth.SIZES if self.name == "mock" else ())]

    def tasks(self, split: str = BASE, source: str = "") -> Mapping[str, Task]:
        """Task id -> task, in tau2's order or that of the file `source`. Raises UserError for an unknown split."""
        if source:
            return task_file(source).of(self.name, split)
        if split not in self._tasks:
            if split not in self.splits():
                raise UserError(f"no such split `{split}` in `{self.name}`", hint=f"one of: {', '.join(self.splits())}")
            self._tasks.setdefault(split, self._load(split))  # of two threads that loaded it the first one's
        return self._tasks[split]

    def task(self, ref: TaskRef) -> Task:
        """The task that `ref` names. Raises UserError."""
        try:
            return task_file(ref.source).tasks[ref.task_id] if ref.source else self.tasks(ref.split)[ref.task_id]
        except KeyError:
            where = f"`{ref.source}`" if ref.source else f"`{ref.domain}` split `{ref.split}`"
            raise UserError(f"no task `{ref.task_id}` in {where}", hint="`tau2rl tasks list` shows them") from None

    def hashes(self) -> dict[str, str]:
        """What pins this domain: hashes of databases, tasks, policy and tool schemas (16 hex digits each)."""
        return {
            "database": self.content[:16],
            "tasks": hashlib.sha256(self._task_text()).hexdigest()[:16],
            "policy": hashlib.sha256(self.policy.encode()).hexdigest()[:16],
            "tools": hashlib.sha256(repr(self.tools).encode()).hexdigest()[:16],
            **({"synth": synth.fingerprint()} if self.name == "mock" else {}),
        }

    def _load(self, split: str) -> Mapping[str, Task]:
        if synth.is_synth(split) and self.name == "mock":
            return synth.Pool(split)
        if split in (LEARN, SELECT):
            return half(split, self.name, self.tasks("train"), self.tool_types)
        loader: Any = registry.get_tasks_loader(self.name)
        named = registry.get_task_splits_loader(self.name)
        with readable_data(self.name):
            found = loader(split) if named and split in named() else loader(None) if named else loader()
        keep_what_is_loaded()
        return {task.id: task for task in found}

    def _task_text(self) -> bytes:
        if self.name in OWN:
            paths = importlib.import_module(f"tau2.domains.{self.name}.utils")
            return Path(getattr(paths, f"{self.name.upper()}_TASK_SET_PATH")).read_bytes()
        return json.dumps([task.model_dump(mode="json") for task in self.tasks().values()], sort_keys=True).encode()

    def _construct(self, solo_mode: bool = False) -> Any:
        """What stands in tau2's registry."""
        if solo_mode:
            raise UserError("tau2's solo mode has no user: it is not played here")
        waiting = getattr(self._handed_out, "next", None)
        return waiting.pop(0) if waiting else self.environment()


def keep_what_is_loaded() -> None:
    """Take what is loaded out of the garbage collector's sight: to look through it stops every episode for half a second."""
    gc.collect()  # what is garbage by now would be kept as well
    gc.freeze()


def _toolkit(environment: Environment) -> ToolKitBase:
    if environment.tools is None:
        raise UserError(f"tau2's domain `{environment.domain_name}` has no tools")
    return environment.tools


def _reads(toolkit: ToolKitBase | None, schemas: tuple[ToolSchema, ...]) -> dict[str, tuple[str, ...]]:
    """Tools by which a user looks at something and changes nothing -> the arguments that they need."""
    kinds = get_tool_types(toolkit) if toolkit else {}
    functions: list[Any] = [schema["function"] for schema in schemas]
    return {f["name"]: tuple(f["parameters"].get("required", ())) for f in functions if kinds[f["name"]] == ToolType.READ}


@contextmanager
def readable_data(name: str) -> Iterator[None]:
    """Missing or broken data of a domain are a matter for the person, not a bug."""
    whose, hint = ("tau2's data", f"{INSTALL} brings the data") if name in OWN else ("the data", "whoever registered it has them")
    try:
        yield
    except OSError as error:
        raise UserError(f"{whose} of `{name}` are missing: `{error.filename}`", hint=hint) from None
    except ValueError as error:  # JSON's, TOML's and pydantic's are all of this kind
        what = str(error).partition("\n")[0]
        raise UserError(f"{whose} of `{name}` cannot be read: {what}", hint=hint) from None


def known_domains() -> list[str]:
    """The names that `domain` takes: everything in tau2's registry that has both an environment and tasks."""
    tasks = set(registry.get_task_sets())
    return [name for name in registry.get_domains() if name in tasks and not name.startswith(OURS)]


def domain(name: str) -> Domain:
    """The domain, loaded at first use. Raises UserError for a name that is not in tau2's registry, or missing data."""
    with _loading:
        if name not in _loaded:
            if name not in known_domains():
                raise UserError(
                    f"no such domain `{name}`",
                    hint=f"one of: {', '.join(known_domains())}; a domain of your own must be registered with tau2's registry",
                )
            with readable_data(name):
                _loaded[name] = Domain(name)
            keep_what_is_loaded()
        return _loaded[name]


LEARN, SELECT = "train-learn", "train-select"
SHARE = 0.15  # of each domain's training tasks are set apart


def set_apart(domain: str, kinds: Mapping[str, str]) -> set[str]:
    """The ids that belong to `train-select`, at least one; `kinds` maps every training id to its kind of task.

    Systematic sampling: tasks at even distances in the order of (kind, hash), so that each kind has its share.

    >>> kinds = {str(i): "writes" if i < 50 else "reads" for i in range(74)}
    >>> apart = set_apart("retail", kinds)
    >>> len(apart), sum(kinds[id] == "writes" for id in apart)
    (11, 7)
    """
    ranked = sorted(kinds, key=lambda id: (kinds[id], hashlib.sha256(f"{SELECT}/{domain}/{id}".encode()).digest()))
    count = max(1, round(SHARE * len(ranked)))
    return {ranked[(2 * i + 1) * len(ranked) // (2 * count)] for i in range(count)}


def stratum(id: str, task: Any, tool_types: Mapping[str, str]) -> str:
    """Telecom: the intent that the id begins with. Others: whether the reference path changes anything."""
    if id.startswith("["):
        return id.partition("]")[0]
    actions = (task.evaluation_criteria.actions if task.evaluation_criteria else None) or ()
    return "writes" if any(tool_types.get(action.name) == "write" for action in actions) else "reads"


def half(split: str, domain: str, train: Mapping[str, Any], tool_types: Mapping[str, str]) -> dict[str, Any]:
    """The tasks of `train-learn` or `train-select`, in the order of `train`."""
    apart = set_apart(domain, {id: stratum(id, task, tool_types) for id, task in train.items()})
    return {id: task for id, task in train.items() if (id in apart) == (split == SELECT)}


def env_identity(tasks: TasksConfig, user: UserConfig, *, val: TasksConfig | None = None) -> dict[str, Any]:
    """The part of `environment.json` that this package knows, JSON-ready; `val`: the tasks of validations, if there are any."""
    package = installed()
    files = {use: part.source for use, part in (("tasks", tasks), ("val", val)) if part and part.source}
    sources = {use: task_file(source_path(file)).sha256 for use, file in files.items()}
    return {
        "tau2": {"distribution": package.distribution, "version": package.version},
        "data": {name: domain(name).hashes() for name in dict.fromkeys(tasks.domains)},
        **({"sources": sources} if sources else {}),
        "user": user_identity(user),
        "judge": None,  # no task of the pinned data is graded by a model
    }


def user_identity(config: UserConfig) -> dict[str, Any]:
    """What decides how the user talks: model, temperature, and a hash of tau2's simulator prompts."""
    if config.kind == "scripted":
        return {"kind": "scripted", "max_stalled_turns": config.max_stalled_turns}
    prompts = SYSTEM_PROMPT + get_global_user_sim_guidelines(use_tools=False) + get_global_user_sim_guidelines(use_tools=True)
    return {
        "kind": "llm",
        "model": config.model,
        "temperature": None if "temperature" in config.omit else config.temperature,  # None: what its server takes by default
        "prompt": hashlib.sha256(prompts.encode()).hexdigest()[:16],
    }
