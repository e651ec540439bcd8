"""A copy-on-write database: shared between environments until one of them touches an entity.

Airline and retail hold thousands of entities, of which an episode touches a few. tau2 copies and hashes all of them for every
environment and every grading. Here an environment starts with nothing of its own: looking an entity up by its id makes a
private copy of that one, going through all of them shows the shared originals (tau2's tools only read there), and the hash
is put together from what was computed once and what this environment has changed. It equals tau2's own, digit for digit.

tau2 writes the database as JSON, three megabytes in the large domains, and takes SHA-256 of that text. SHA-256 goes from left to
right: its state is kept in front of every block of entities, so that a changed database is hashed from its first change on, and
only the blocks that changed are written again. That saves 2 to 5 ms a changed database, in an episode of 9 ms.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import pickle
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

from pydantic import BaseModel

KEPT_HASHES = 1024  # of changed databases: the episodes of a task, and its reference path, mostly end in the same few


class Originals:
    """The entities of one table, loaded once and never handed out for writing."""

    def __init__(self, entities: dict[str, BaseModel]) -> None:
        self.entities = entities
        self.pickled = {key: pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL) for key, value in entities.items()}
        self.fragments = {key: fragment(value) for key, value in entities.items()}


class Table(MutableMapping[str, Any]):
    """One environment's view of a table: tau2 uses it as the dict that it stands for."""

    def __init__(self, originals: Originals) -> None:
        self._originals = originals
        self._own: dict[str, Any] = {}
        self._deleted: set[str] = set()

    def __deepcopy__(self, memo: dict[int, Any]) -> Table:
        made = Table(self._originals)
        made._own, made._deleted = copy.deepcopy(self._own, memo), set(self._deleted)
        return made

    def __getitem__(self, key: str) -> Any:
        if key not in self._own:
            if key in self._deleted:
                raise KeyError(key)
            self._own[key] = pickle.loads(self._originals.pickled[key])  # noqa: S301 - pickled by this process
        return self._own[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._own[key] = value
        self._deleted.discard(key)

    def __delitem__(self, key: str) -> None:
        if key not in self:
            raise KeyError(key)
        self._own.pop(key, None)
        self._deleted.add(key)

    def __contains__(self, key: object) -> bool:
        return key in self._own or (key in self._originals.entities and key not in self._deleted)

    def __iter__(self) -> Iterator[str]:
        """Ids in tau2's order: the originals, then what was added."""
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def items(self) -> Any:
        """(id, entity) pairs: own copies where there are any, else the shared originals, which are for reading only."""
        return self._all().items()

    def values(self) -> Any:
        """The entities; see `items`."""
        return self._all().values()

    def _all(self) -> dict[str, Any]:
        if not self._own and not self._deleted:
            return self._originals.entities
        everything = {**self._originals.entities, **self._own}
        for key in self._deleted:
            everything.pop(key, None)
        return everything

    def changes(self) -> dict[str, str | None]:
        """Id -> JSON of what differs from the original; None for a deleted one."""
        own = {key: fragment(value) for key, value in self._own.items()}
        changed: dict[str, str | None] = {key: text for key, text in own.items() if self._originals.fragments.get(key) != text}
        return {**changed, **dict.fromkeys(self._deleted & self._originals.entities.keys())}


class SharedDatabase:
    """The initial state of a database whose fields are all tables of entities, from which environments get their own."""

    def __init__(self, db: BaseModel) -> None:
        self._kind: type[BaseModel] = type(f"Shared{type(db).__name__}", (type(db),), {"model_dump": _dump})
        self._tables = {name: Originals(getattr(db, name)) for name in type(db).model_fields}
        text = IncrementalHash({name: table.fragments for name, table in self._tables.items()})
        self._hash = functools.lru_cache(KEPT_HASHES)(lambda changes: text.hash(json.loads(changes)))

    @staticmethod
    def fits(db: BaseModel) -> bool:
        """Whether every field of the database is a table of entities."""
        return all(
            isinstance(table := getattr(db, name), dict) and all(isinstance(value, BaseModel) for value in table.values())
            for name in type(db).model_fields
        )

    def database(self) -> BaseModel:
        """A database in the initial state, as cheap as its number of tables."""
        tables: dict[str, Any] = {name: Table(table) for name, table in self._tables.items()}
        return self._kind.model_construct(**tables)

    def hash(self, db: BaseModel) -> str:
        """tau2's `get_dict_hash(db.model_dump())` of a database that `database` made."""
        tables: dict[str, Any] = {name: getattr(db, name) for name in self._tables}
        if not all(isinstance(table, Table) for table in tables.values()):  # a task's initial data made plain tables of them
            return hashlib.sha256(json.dumps(db.model_dump(), sort_keys=True, default=str).encode()).hexdigest()
        changes = {name: changed for name, table in tables.items() if (changed := table.changes())}
        return self._hash(json.dumps(changes, sort_keys=True))


def fragment(entity: BaseModel) -> str:
    """An entity's part of the text that tau2 hashes."""
    return json.dumps(entity.model_dump(), sort_keys=True, default=str)


def _dump(db: BaseModel, **options: Any) -> dict[str, Any]:
    """`model_dump` of a shared database, for whoever in tau2 wants all of it."""
    tables: dict[str, Any] = {name: getattr(db, name) for name in type(db).model_fields}
    return {name: {key: value.model_dump(**options) for key, value in table.items()} for name, table in tables.items()}


BLOCK = 32  # entities


class IncrementalHash:
    """SHA-256 of `json.dumps(tables, sort_keys=True)` under changes, for tables whose entities are JSON text already.

    >>> known = IncrementalHash({"users": {"b": "2", "a": "1"}})
    >>> known.hash({}) == hashlib.sha256(b'{"users": {"a": 1, "b": 2}}').hexdigest()
    True
    >>> known.hash({"users": {"b": "3", "c": "4"}}) == hashlib.sha256(b'{"users": {"a": 1, "b": 3, "c": 4}}').hexdigest()
    True
    """

    def __init__(self, tables: Mapping[str, Mapping[str, str]], *, block: int = BLOCK) -> None:
        """`tables`: name -> id -> JSON of the entity, at least one table."""
        self._tables = tables
        self._blocks: list[tuple[str, list[str]]] = []  # (table, sorted ids), in the order of the text; an empty table has one
        for name in sorted(tables):
            ids = sorted(tables[name])
            self._blocks += [(name, ids[at : at + block]) for at in range(0, max(len(ids), 1), block)]
        # Where each block begins. The first of a table begins before all ids: what is added in front of them belongs there.
        self._starts = [(name, ids[0] if self._is_inside(index) else "") for index, (name, ids) in enumerate(self._blocks)]
        self._texts = [self._text(index, {}) for index in range(len(self._blocks))]
        self._states = [hashlib.sha256()]  # the state in front of each block, and behind the last
        for text in self._texts:
            state = self._states[-1].copy()
            state.update(text)
            self._states.append(state)

    def hash(self, changes: Mapping[str, Mapping[str, str | None]]) -> str:
        """The hash with these changes: table -> id -> JSON of a changed or new entity, None for a deleted one."""
        if any(text is None for table in changes.values() for text in table.values()):
            return self._without_deleted(changes)
        edits: defaultdict[int, dict[str, str]] = defaultdict(dict)
        for name, table in changes.items():
            for id, text in table.items():
                edits[bisect_right(self._starts, (name, id)) - 1][id] = text or ""
        first = min(edits, default=len(self._blocks))
        state = self._states[first].copy()
        for index in range(first, len(self._blocks)):
            state.update(self._text(index, edits[index]) if index in edits else self._texts[index])
        state.update(b"}}")
        return state.hexdigest()

    def _without_deleted(self, changes: Mapping[str, Mapping[str, str | None]]) -> str:
        """All of it written again: no tool of tau2 deletes an entity of a large database."""
        tables = {name: {**table, **changes.get(name, {})} for name, table in self._tables.items()}
        left = {name: {id: text for id, text in table.items() if text is not None} for name, table in tables.items()}
        return IncrementalHash(left).hash({})

    def _is_inside(self, index: int) -> bool:
        """Whether the block continues the table of the one before it."""
        return index > 0 and self._blocks[index - 1][0] == self._blocks[index][0]

    def _text(self, index: int, edits: Mapping[str, str]) -> bytes:
        name, ids = self._blocks[index]
        entities = {**{id: self._tables[name][id] for id in ids}, **edits}
        body = ", ".join(f"{json.dumps(id)}: {entities[id]}" for id in sorted(entities))
        if self._is_inside(index):
            return f", {body}".encode()
        return f"{'}, ' if index else '{'}{json.dumps(name)}: {{{body}".encode()
