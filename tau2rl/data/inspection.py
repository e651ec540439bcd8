"""What is wrong with rows, and what is in them: `tau2rl data validate` and `stats`. Pure but for reading the files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from typing import Any, cast

from tau2rl.data.encoding import learned_turns
from tau2rl.data.jsonl import read_row_file
from tau2rl.data.layouts import Facts, row_facts
from tau2rl.data.rows import BadRow, Row, exact_sample
from tau2rl.types import ToolSchema

Further = Callable[[str, Mapping[str, Any], Row, Facts], Iterable[str]]  # name, content, row and facts to further faults


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFault:
    """What is wrong with a row: `RowFault(at="rows.jsonl:17", why="a call of `f`, which is none of its tools")`."""

    at: str
    why: str


def facts(files: Sequence[Path], *, bad: Callable[[RowFault], object], licence: str = "") -> Iterator[tuple[str, Row, Facts]]:
    """Name, row and facts of every conversation of the files; `bad` is told what is none. Raises UserError."""
    for name, data in rows(files, bad=bad):
        try:
            row, found = row_facts(data, name=name, licence=licence)
        except BadRow as error:
            bad(RowFault(at=name, why=str(error)))
            continue
        yield name, row, found


def rows(files: Sequence[Path], *, bad: Callable[[RowFault], object]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Name and content of every row of the files; `bad` is told of lines that are none. Raises UserError."""
    for file in files:
        yield from read_row_file(file.expanduser(), on_bad=lambda at, why: bad(RowFault(at=at, why=why)))


def validate(files: Sequence[Path], further: Sequence[Further] = ()) -> tuple[int, list[RowFault]]:
    """How many rows there are, and every fault of every row, in the order of the files. Raises UserError."""
    count, found, no_rows = 0, list[RowFault](), list[RowFault]()
    seen: dict[bytes, str] = {}

    def unreadable(fault: RowFault) -> None:
        found.append(fault)
        no_rows.append(fault)

    for name, data in rows(files, bad=unreadable):
        count += 1
        try:
            row, said = row_facts(data, name=name)
            exact_sample(data)
        except BadRow as error:
            found.append(RowFault(at=name, why=str(error)))
            continue
        faults = list(row_faults(row))
        if (first := seen.setdefault(said.fingerprint, name)) != name:
            faults.append(f"it is the same conversation as {first}")
        for check in further:
            faults += check(name, data, row, said)
        found += [RowFault(at=name, why=why) for why in faults]
    return count + len(no_rows), found


def row_faults(row: Row) -> Iterator[str]:
    """What is wrong with a conversation that can be read: its order, its calls, what of it is learned."""
    try:
        learned_turns(row)
    except BadRow as error:
        yield str(error)
    if late := [i for i, message in enumerate(row.messages) if message.role == "system" and i]:
        yield f"message {late[0]} is a system message behind others"
    yield from _results(row)
    schemas = {_function(tool)["name"]: _function(tool) for tool in row.tools}
    for number, message in enumerate(row.messages):
        for call in message.tool_calls if message.role == "assistant" and schemas else ():
            if call.name not in schemas:
                yield f"message {number} calls `{call.name}`, which is none of its tools"
            elif why := _arguments(call.arguments, schemas[call.name]):
                yield f"message {number} calls `{call.name}` {why}"


def _results(row: Row) -> Iterator[str]:
    """Results that answer no call, and calls without a result before the conversation goes on."""
    waiting = 0
    for number, message in enumerate(row.messages):
        if message.role == "tool":
            if waiting == 0:
                yield f"message {number} is the result of no call"
            waiting = max(0, waiting - 1)
            continue
        if waiting:
            yield f"message {number} comes before {waiting} results of the calls before it"
        waiting = len(message.tool_calls)


def _arguments(arguments: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    parameters = schema.get("parameters") or {}
    known, required = parameters.get("properties") or {}, parameters.get("required") or ()
    if lacking := [name for name in required if name not in arguments]:
        return f"without `{lacking[0]}`"
    strange = [name for name in arguments if name not in known]
    return f"with `{strange[0]}`, which its schema does not have" if known and strange else ""


def _function(tool: ToolSchema) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", tool.get("function", tool))


class Stats:
    """Counts rows, one at a time."""

    def __init__(self, writes: Collection[str]) -> None:
        """`writes`: names of tools that change a database."""
        self._writes = writes
        self._counts = {name: Counter[str]() for name in COUNTED}
        self._sizes = {name: list[int]() for name in ("turns", "calls", "writes")}
        self._tools, self._distinct = Counter[str](), {name: set[str]() for name in ("tasks", "users")}
        self._seen, self._rows, self._solved, self._graded = set[bytes](), 0, 0, 0

    def add(self, said: Facts) -> None:
        """Take a row in."""
        self._rows += 1
        self._seen.add(said.fingerprint)
        self._graded += said.reward is not None
        self._solved += said.reward is not None and said.reward >= 1 - 1e-6
        for name, counts in self._counts.items():
            counts[str(getattr(said, name) or "not said")] += 1
        written = sum(call.name in self._writes for call in said.calls)
        for name, size in (("turns", said.turns), ("calls", len(said.calls)), ("writes", written)):
            self._sizes[name].append(size)
        self._tools.update(call.name for call in said.calls)
        for name, value in (("tasks", said.task), ("users", said.user)):
            if value:
                self._distinct[name].add(f"{said.domain}/{value}")

    def report(self) -> dict[str, Any]:
        """The counts, JSON-ready."""
        return {
            "rows": self._rows,
            "duplicates": self._rows - len(self._seen),
            "graded": self._graded,
            "solved": self._solved,
            **{name: len(values) for name, values in self._distinct.items()},
            **{f"by_{name}": dict(sorted(counts.items())) for name, counts in self._counts.items()},
            "tools": dict(self._tools.most_common()),
            **{name: spread(sizes) for name, sizes in self._sizes.items() if sizes},
        }


COUNTED = ("layout", "domain", "source", "licence", "split", "behaviour", "cell")


def spread(sizes: Sequence[int]) -> dict[str, float]:
    """How a number is spread over rows.

    >>> spread([1, 2, 3, 10])
    {'total': 16, 'least': 1, 'median': 2.5, 'p90': 7.9, 'most': 10}
    """
    cuts = quantiles(sizes, n=10, method="inclusive") if len(sizes) > 1 else [float(sizes[0])] * 9
    return {"total": sum(sizes), "least": min(sizes), "median": cuts[4], "p90": round(cuts[8], 1), "most": max(sizes)}
