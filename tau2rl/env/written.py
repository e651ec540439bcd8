"""The JSON text of a database, as tau2 hashes it, and the hash of the same text with some entities changed.

The text of a large domain has three megabytes, of which an episode changes a few hundred bytes. SHA-256 goes from left to right,
so its state is kept every so many bytes: a changed text is hashed from the state before its first change on, and what stands
between the changes is neither written nor copied again.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

STRIDE = 1 << 15  # bytes between two kept states
Edit = tuple[int, int, bytes]  # what stands in text[start:end] instead


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a table of entities stands in the text: `{"a": 1, "b": 2}` has its entries from 1 on, their values at 6 and 14."""

    entities: Mapping[str, str]  # id -> JSON
    ids: list[str]  # sorted
    entries: list[int]  # where each entry begins, at its id; and one more, the end of the last
    values: list[int]  # where each entity's JSON begins

    def edits(self, changes: Mapping[str, str | None]) -> list[Edit]:
        """What the changes (id -> JSON, None for a deleted entity) do to the text."""
        gone = any(text is None for text in changes.values())
        if gone or not self.ids:
            left: dict[str, str | None] = {**self.entities, **changes}
            body = ", ".join(_entry(id, text) for id, text in sorted(left.items()) if text is not None)
            return [(self.entries[0], self.entries[-1], body.encode())]
        return [self._edit(id, text) for id, text in sorted(changes.items()) if text is not None]

    def _edit(self, id: str, text: str) -> Edit:
        at = bisect_left(self.ids, id)
        if id in self.entities:
            return self.values[at], self.values[at] + len(self.entities[id]), text.encode()
        begins = self.entries[at]  # of the entry that it comes before, or the end of the table
        inserted = f"{_entry(id, text)}, " if at < len(self.ids) else f", {_entry(id, text)}"
        return begins, begins, inserted.encode()


class Written:
    """`json.dumps(tables, sort_keys=True)` of tables whose entities are JSON already, and its hashes under changes.

    >>> text = Written({"users": {"b": "2", "a": "1"}})
    >>> text.hash({}) == hashlib.sha256(b'{"users": {"a": 1, "b": 2}}').hexdigest()
    True
    >>> text.hash({"users": {"b": "3", "c": "4"}}) == hashlib.sha256(b'{"users": {"a": 1, "b": 3, "c": 4}}').hexdigest()
    True
    """

    def __init__(self, tables: Mapping[str, Mapping[str, str]], *, stride: int = STRIDE) -> None:
        """`tables`: name -> id -> JSON of the entity, all in ASCII as Python's encoder writes it."""
        self._stride = stride
        self._places: dict[str, _Place] = {}
        parts: list[str] = []
        length = 0

        def write(part: str) -> int:
            nonlocal length
            parts.append(part)
            length += len(part)
            return length

        write("{")
        for number, name in enumerate(sorted(tables)):
            at = write(f"{', ' if number else ''}{json.dumps(name)}: {{")
            ids, entries, values = sorted(tables[name]), [at], list[int]()
            for place, id in enumerate(ids):
                if place:
                    entries.append(write(", "))
                values.append(write(f"{json.dumps(id)}: "))
                at = write(tables[name][id])
            if ids:
                entries.append(at)
            write("}")
            self._places[name] = _Place(tables[name], ids, entries, values)
        write("}")
        self._text = memoryview("".join(parts).encode())
        self._states = _states(self._text, stride)

    def hash(self, changes: Mapping[str, Mapping[str, str | None]]) -> str:
        """SHA-256 of the text with these changes: table -> id -> JSON, None for a deleted entity."""
        changed = [name for name in sorted(changes) if changes[name]]
        edits = [edit for name in changed for edit in self._places[name].edits(changes[name])]  # from left to right
        done = edits[0][0] // self._stride if edits else len(self._states) - 1
        state, at = self._states[done].copy(), done * self._stride
        for start, end, text in edits:
            state.update(self._text[at:start])
            state.update(text)
            at = end
        state.update(self._text[at:])
        return state.hexdigest()


def _entry(id: str, text: str) -> str:
    return f"{json.dumps(id)}: {text}"


def _states(text: memoryview, stride: int) -> list[Any]:
    """The hash's state after 0, stride, 2 * stride... bytes."""
    state = hashlib.sha256()
    states = [state.copy()]
    for start in range(0, len(text) - stride + 1, stride):
        state.update(text[start : start + stride])
        states.append(state.copy())
    return states
