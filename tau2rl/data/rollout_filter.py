"""The rollout filter: which attempts become data. Every attempt is added, then rules drop what is not kept, each with its reason.

Of several records of one attempt one counts: `report/aggregate.py`. The entries lie in a temporary SQLite database on disk, so
a million of them take no memory, and the rules are sorts that spill to disk. Nothing depends on the order in which episodes
ended: who stays is decided by a hash of (seed, source, attempt).
"""

# ruff: noqa: S608 - the queries are put together from words of this file, and every value is bound

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from types import TracebackType

from tau2rl.config import KeepConfig
from tau2rl.report.aggregate import replaces

CACHE_KIB = 16 * 1024  # what SQLite may hold in memory; the rest is on disk


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One attempt: `Entry(source=0, position=5120, domain="mock", task="mock/a", kind="update", key="mock/a#1", ...)`."""

    source: int
    position: int  # of its line in the source's `episodes.jsonl`
    domain: str
    task: str
    kind: str
    key: str
    index: int
    reward: float
    partial: float
    no_op: bool
    fault: str  # "user", "task" or "infra" when it FAILED, else ""
    excluded: str  # what user or task did to it, where the settings leave that out: "user: role_flip", else ""
    signature: str  # names its tool calls in their order
    user: str = ""  # of the database, whom the task is about; "" where that is not known
    cell: str = ""  # writes x reads x behaviour
    form: str = ""  # the rules of form that it broke, by their names
    pick: int  # a hash: the lowest stay


@dataclass(frozen=True, slots=True, kw_only=True)
class DroppedEpisode:
    """What was dropped, and why: `DroppedEpisode(source=0, key="mock/a#2", task="mock/a", reward=1.0, reason="same actions")`."""

    source: int
    key: str
    task: str
    reward: float
    partial: float
    reason: str


COLUMNS = (
    "source", "position", "domain", "task", "kind", "key", "number", "reward", "partial", "no_op", "fault", "excluded",
    "signature", "user", "cell", "form", "pick",
)  # fmt: skip
CELL = "domain, cell"
KEPT, SOLVED, ORDER = "reason IS NULL", "reward >= 1 - 1e-6", "pick, source, key"


class RolloutFilter:
    """`add` records, `apply` the rules once, read what is kept and what was dropped. A context manager."""

    def __init__(self) -> None:
        self._db = sqlite3.connect("", isolation_level=None)  # no name: a private file that goes with the connection
        self._db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        self._db.execute("PRAGMA temp_store = FILE")
        self._db.execute("PRAGMA synchronous = OFF")
        self._db.execute("PRAGMA journal_mode = OFF")
        self._db.execute(f"CREATE TABLE attempt (id INTEGER PRIMARY KEY, {', '.join(COLUMNS)}, turn, even, reason)")
        self._db.execute("CREATE UNIQUE INDEX attempt_key ON attempt (source, key)")
        self._db.execute("BEGIN")

    def add(self, entry: Entry) -> None:
        """Take a record in; of one attempt in the order in which they were written."""
        before = self._db.execute("SELECT fault FROM attempt WHERE source = ? AND key = ?", (entry.source, entry.key)).fetchone()
        if before is None or replaces(earlier_failed=before[0] != ""):
            places = ", ".join("?" * len(COLUMNS))
            self._db.execute(f"INSERT OR REPLACE INTO attempt ({', '.join(COLUMNS)}) VALUES ({places})", astuple(entry))

    def apply(self, keep: KeepConfig) -> None:
        """Drop what is not kept, after the last record was added."""
        self._apply(keep, solved_only=keep.attempts != "all")
        if keep.attempts == "subset":
            (size,) = self._db.execute(f"SELECT COUNT(*) FROM attempt WHERE {KEPT}").fetchone()
            self._db.execute("UPDATE attempt SET reason = NULL")
            self._drop_faults()
            self._drop_beyond(size, "'all'", ORDER, "not drawn")

    def _apply(self, keep: KeepConfig, *, solved_only: bool) -> None:
        self._drop_faults()
        if solved_only:
            self._drop("'not solved'", f"NOT ({SOLVED})")
        if keep.attempts == "solved+form":
            self._drop("'form: ' || form", "form <> ''")
        if keep.exclude_no_op:
            self._drop("'solved without changing anything'", f"no_op AND {SOLVED}")
        if keep.dedupe:
            self._drop_beyond(1, "task, signature", ORDER, "same actions as another")
        if keep.partial_backoff is not None:
            self._keep_best_failures(keep.partial_backoff)
        self._rank("turn", "task", ORDER)
        for limit, group, of in (
            (keep.per_task, "task", "task"),
            (keep.per_kind, "domain, kind", "kind"),
            (keep.per_domain, "domain", "domain"),
            (keep.per_user, "domain, CASE user WHEN '' THEN source || key ELSE user END", "user"),
            (keep.per_cell, CELL, "cell"),
        ):
            if limit is not None:  # by `turn` first: second ones of a task come behind first ones of all others
                self._drop_beyond(limit, group, f"turn, {ORDER}", f"over the limit of its {of}")
        if keep.total is not None:
            self._rank("even", CELL, f"turn, {ORDER}")
            self._drop_beyond(keep.total, "'all'", f"even, {ORDER}", "over the total")

    def kept(self) -> Iterator[tuple[int, int]]:
        """(source, position) of what is kept: first attempts of all tasks before second ones."""
        yield from self._db.execute(f"SELECT source, position FROM attempt WHERE {KEPT} ORDER BY source, number, task, key")

    def dropped(self) -> Iterator[DroppedEpisode]:
        """What was dropped."""
        names = ("source", "key", "task", "reward", "partial", "reason")
        query = f"SELECT {', '.join(names)} FROM attempt WHERE NOT ({KEPT}) ORDER BY source, number, task, key"
        for values in self._db.execute(query):
            yield DroppedEpisode(**dict(zip(names, values, strict=True)))

    def reasons(self) -> dict[str, int]:
        """Reason -> how many were dropped for it, the commonest first."""
        query = f"SELECT reason, COUNT(*) AS n FROM attempt WHERE NOT ({KEPT}) GROUP BY reason ORDER BY n DESC, reason"
        return dict(self._db.execute(query))

    def counts(self, column: str = "'all'") -> dict[str, dict[str, int]]:
        """Value of a column -> attempts tried, graded, solved and kept, and tasks tried and covered."""
        query = (
            f"SELECT {column}, COUNT(*), SUM(fault = ''), SUM({SOLVED}), SUM({KEPT}), COUNT(DISTINCT task), "
            f"COUNT(DISTINCT CASE WHEN {KEPT} THEN task END) FROM attempt GROUP BY 1 ORDER BY 1"
        )
        names = ("tried", "graded", "solved", "kept", "tasks", "covered")
        return {row[0]: dict(zip(names, row[1:], strict=True)) for row in self._db.execute(query)}

    def diversity(self, column: str) -> dict[str, float | int]:
        """How evenly what is kept lies over the values of a column.

        Shannon entropy in bits, and how many equally frequent values would have it.
        """
        total, weighted, distinct = 0, 0.0, 0
        for (count,) in self._db.execute(f"SELECT COUNT(*) FROM attempt WHERE {KEPT} GROUP BY {column}"):
            total, weighted, distinct = total + count, weighted + count * math.log2(count), distinct + 1
        bits = math.log2(total) - weighted / total if total else 0.0
        return {"bits": round(bits, 4), "effective": round(2**bits, 2) if total else 0.0, "distinct": distinct}

    def _rank(self, column: str, group: str, order: str) -> None:
        """Write into a column which of its group an attempt is, from 1."""
        ranked = f"SELECT id AS i, ROW_NUMBER() OVER (PARTITION BY {group} ORDER BY {order}) AS n FROM attempt WHERE {KEPT}"
        self._db.execute(f"UPDATE attempt SET {column} = n FROM ({ranked}) WHERE id = i")

    def _drop_faults(self) -> None:
        """What FAILED, and what user or task spoiled."""
        self._drop("'fault: ' || fault", "fault <> ''")
        self._drop("'left out, ' || excluded", "excluded <> ''")

    def _drop(self, reason: str, where: str) -> None:
        self._db.execute(f"UPDATE attempt SET reason = {reason} WHERE {KEPT} AND ({where})")

    def _drop_beyond(self, limit: int, group: str, order: str, reason: str) -> None:
        ranked = f"SELECT id, ROW_NUMBER() OVER (PARTITION BY {group} ORDER BY {order}) AS n FROM attempt WHERE {KEPT}"
        self._drop(f"'{reason}'", f"id IN (SELECT id FROM ({ranked}) WHERE n > {limit})")

    def _keep_best_failures(self, least: float) -> None:
        best = (
            f"SELECT id, ROW_NUMBER() OVER (PARTITION BY task ORDER BY partial DESC, {ORDER}) AS n FROM attempt AS a "
            f"WHERE fault = '' AND excluded = '' AND partial >= ? "
            "AND NOT EXISTS (SELECT 1 FROM solved WHERE solved.task = a.task)"
        )
        self._db.execute(
            f"CREATE TEMP TABLE solved AS SELECT DISTINCT task FROM attempt WHERE {SOLVED} AND fault = '' AND excluded = ''"
        )
        self._db.execute("CREATE UNIQUE INDEX temp.solved_task ON solved (task)")
        self._db.execute(f"UPDATE attempt SET reason = NULL WHERE id IN (SELECT id FROM ({best}) WHERE n = 1)", (least,))

    def __enter__(self) -> RolloutFilter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._db.close()
