"""Domains that are one of tau2's own with another database and other tasks, from a folder that `tau2rl data import` wrote.

`domains.json`: `{"areal-airline-1": {"base": "airline", "database": "x.json", "tasks": "areal-airline-1.json"}}`.
"""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tau2rl.env import quiet_tau2  # noqa: F401 - before tau2
from tau2rl.env.factory import copies_of
from tau2rl.errors import UserError

from tau2.data_model.tasks import Task
from tau2.environment.environment import Environment
from tau2.registry import registry

DOMAINS_FILE = "domains.json"
DATABASES = {"airline": "FlightDB", "retail": "RetailDB", "telecom": "TelecomDB"}  # tau2's classes


def register(folder: Path) -> list[str]:
    """Make the domains of a folder known to tau2's registry; their names. Raises UserError."""
    try:
        named: dict[str, dict[str, str]] = json.loads((folder / DOMAINS_FILE).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"`{folder / DOMAINS_FILE}` cannot be read: {error}", hint="`tau2rl data import` writes it") from None
    for name, parts in named.items():
        if name not in registry.get_domains():
            registry.register_domain(_constructor(folder / parts["database"], parts["base"]), name)
            tasks = functools.partial(_tasks, folder / parts["tasks"])
            registry.register_tasks(tasks, name, functools.partial(_splits, folder / parts["tasks"]))
    return list(named)


def load_database(file: Path, base: str) -> Any:
    """A database of one of tau2's own domains. Raises UserError for one that is not of its shape."""
    kind: Any = getattr(importlib.import_module(f"tau2.domains.{base}.data_model"), DATABASES[base])
    try:
        return kind.load(file)
    except (OSError, ValueError) as error:
        why = str(error).partition("\n")[0]
        raise UserError(f"`{file}` is no database of `{base}` of the installed tau2: {why}") from None


def _constructor(database: Path, base: str) -> Callable[..., Environment]:
    @functools.cache
    def factory() -> Callable[[], Environment]:
        environment: Any = importlib.import_module(f"tau2.domains.{base}.environment")
        return copies_of(environment.get_environment(db=load_database(database, base)), base)

    def construct(solo_mode: bool = False) -> Environment:
        if solo_mode:
            raise UserError("tau2's solo mode has no user: it is not played here")
        return factory()()

    return construct


def _tasks(file: Path, split: str | None = None) -> list[Task]:
    """All tasks of a file, which are training tasks, whatever of its two splits is asked for."""
    return [Task.model_validate(row) for row in json.loads(file.read_text("utf-8"))]


def _splits(file: Path) -> dict[str, list[str]]:
    ids = [str(row["id"]) for row in json.loads(file.read_text("utf-8"))]
    return {"train": ids, "base": ids}
