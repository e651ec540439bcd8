"""Tasks from a file (`tasks.source`): tau2's layout of tasks and splits, checked before anything is played.

A file has a list of tau2 tasks, `split_tasks.json` beside it their splits: `{"train": ["id", ...], "test": [...]}`. The split
`base` has all of them. A task may have a `demonstration`, which tau2 does not read: what an agent says and does that solves it,
`[{"say": "May I have your email?"}, {"action": "the action_id of one of its reference actions"}, ...]`, and calls that are none
of those, `{"call": "get_data_usage", "arguments": {...}}`. An action of the user is no step: an agent can only ask for it.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from tau2rl.env import quiet_tau2  # noqa: F401 - before tau2
from tau2rl.errors import UserError
from tau2rl.types import Actions, CallTool, Say

from tau2.data_model.tasks import Task

BASE, SPLITS = "base", "split_tasks.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFile:
    """What a file has. Get it by `task_file(path)`."""

    path: Path
    sha256: str  # of the file and of the splits beside it
    tasks: Mapping[str, Task]
    domains: Mapping[str, str]  # task id -> the domain that its instructions name; "" where they name none
    demonstrations: Mapping[str, tuple[Actions, ...]]
    splits: Mapping[str, tuple[str, ...]]

    def of(self, domain: str, split: str) -> dict[str, Task]:
        """The tasks of a domain in a split. Raises UserError for an unknown split."""
        if split not in self.splits:
            raise UserError(
                f"no such split `{split}` in `{self.path}`",
                hint=f"one of: {', '.join(self.splits)}; splits are read from `{SPLITS}` beside the file",
            )
        return {id: self.tasks[id] for id in self.splits[split] if self.domains[id] in ("", domain)}


def source_path(file: Path) -> str:
    """How a `TaskRef` names the file: absolute, so that every process of a run finds it."""
    return str(file.expanduser().absolute())


@functools.cache
def task_file(path: str) -> TaskFile:
    """Read and check a file, once a process. Raises UserError that names the row."""
    file = Path(path)
    content, rows = _read(file)
    beside = file.with_name(SPLITS)
    if not isinstance(rows, list) or not rows:
        raise UserError(f"`{file}` is not a list of tasks", hint="tau2's layout is `[{...}, {...}]`, as in its own `tasks.json`")
    tasks: dict[str, Task] = {}
    demonstrations: dict[str, tuple[Actions, ...]] = {}
    for number, row in enumerate(cast("list[Any]", rows), start=1):
        task = check_task(row, f"`{file}` row {number}")
        if task.id in tasks:
            raise UserError(f"`{file}` row {number}: a second task `{task.id}`")
        tasks[task.id] = task
        if "demonstration" in row:
            demonstrations[task.id] = _demonstration(row["demonstration"], task, f"`{file}` task `{task.id}`")
    splits = {BASE: tuple(tasks)}
    if beside.exists():
        more, named = _read(beside)
        content += more
        splits = {**splits, **_splits(named, tasks, beside)}
    domains = {id: str(getattr(task.user_scenario.instructions, "domain", "")) for id, task in tasks.items()}
    return TaskFile(
        path=file,
        sha256=hashlib.sha256(content).hexdigest(),
        tasks=tasks,
        domains=domains,
        demonstrations=demonstrations,
        splits=splits,
    )


def _read(file: Path) -> tuple[bytes, Any]:
    try:
        content = file.read_bytes()
        return content, json.loads(content)
    except OSError as error:
        raise UserError(
            f"the tasks in `{file}` cannot be read: {error.strerror}", hint="`tau2rl synth` makes such a file"
        ) from None
    except ValueError as error:
        raise UserError(f"`{file}` is not JSON: {error}") from None


def check_task(row: Any, where: str) -> Task:
    """A task of tau2 as JSON values; `where` names it. Raises UserError."""
    try:
        return Task.model_validate(row)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise UserError(f"{where} is not a task of tau2: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _splits(named: Any, tasks: Mapping[str, Task], file: Path) -> dict[str, tuple[str, ...]]:
    if not isinstance(named, dict) or not all(isinstance(ids, list) for ids in cast("dict[str, Any]", named).values()):
        raise UserError(f'`{file}` is not a table of splits: `{{"train": ["id", ...], ...}}`')
    splits = {name: tuple(map(str, ids)) for name, ids in cast("dict[str, list[Any]]", named).items()}
    for name, ids in splits.items():
        if unknown := [id for id in ids if id not in tasks]:
            raise UserError(f"`{file}` split `{name}` names tasks that are not in the file beside it, among them `{unknown[0]}`")
    return splits


def _demonstration(steps: Any, task: Task, where: str) -> tuple[Actions, ...]:
    actions = list((task.evaluation_criteria.actions if task.evaluation_criteria else None) or ())
    agent = {action.action_id: action for action in actions if action.requestor == "assistant"}
    user = {named for action in actions if action.requestor == "user" for named in (action.action_id, action.name)}
    turns: list[Actions] = []
    for step in cast("list[Any]", steps if isinstance(steps, list) else [steps]):
        match step:
            case {"say": str(text)}:
                turns.append((Say(text=text),))
            case {"action": str(named)} | {"call": str(named)} if named in user:
                raise UserError(
                    f"{where}: a step of its demonstration takes an action of the user: {named}",
                    hint="the user takes it when asked to: name its tool in a `say` step",
                )
            case {"action": str(id)} if id in agent:
                turns.append((CallTool(name=agent[id].name, arguments=agent[id].arguments),))
            case {"call": str(tool), "arguments": dict(arguments)}:
                turns.append((CallTool(name=tool, arguments=cast("dict[str, Any]", arguments)),))
            case _:
                raise UserError(
                    f"{where}: a step of its demonstration is neither words nor an action: {json.dumps(step)[:200]}",
                    hint='`{"say": "..."}`, `{"action": "..."}` with the action_id of one of its reference actions, or '
                    '`{"call": "TOOL", "arguments": {...}}`',
                )
    return tuple(turns)
