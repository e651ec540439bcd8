"""An index of a run's records in SQLite, so that 100,000 episodes are filtered, sorted and paged without reading them again.

`RUN/index.sqlite` is derived: deleting it costs the time to build it. It holds a row an episode with the place of its line, and
the words of the conversations for full-text search; the record itself is read from its line. Where the folder cannot be
written, the index is a temporary file of this process. `update` reads what was appended since, a batch a transaction, so a run
that is being written can be looked at, and two processes may share the file. Memory does not grow with the run: a line at a time.
"""

from __future__ import annotations

import hashlib
import re
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, cast

from pydantic_core import from_json

from tau2rl.errors import UserError
from tau2rl.report.aggregate import replaces
from tau2rl.runs.records import READ, SCHEMA, decode, record_files_of, validations
from tau2rl.types import EpisodeRecord, Fault, Status
from tau2rl.view.rows import COLUMNS, Json, index_row, searchable_text

NAME = "index.sqlite"
VERSION = 1  # of the tables below; an index of another version is built again
FINGERPRINT = 512  # bytes before the place up to which a file was read: they tell an appended file from another one
BATCH_BYTES = 4 << 20  # of lines between two commits, during which no page is answered
LONGEST_LINE = 256 << 20  # bytes; a longer line is counted as unreadable and never held
WAIT_SECONDS = 30.0  # for another process that updates the same index

_TABLES = f"""
CREATE TABLE files (name TEXT PRIMARY KEY, done INTEGER, fingerprint TEXT, lines INTEGER, unreadable INTEGER);
CREATE TABLE episodes (
    id INTEGER PRIMARY KEY, file TEXT, place TEXT, start INTEGER, size INTEGER, counts INTEGER, {", ".join(COLUMNS)}
);
CREATE INDEX episodes_key ON episodes (place, key);
CREATE VIRTUAL TABLE words USING fts5 (text, content='', detail='full');
"""
_INSERT = (
    f"INSERT INTO episodes (file, place, start, size, counts, {', '.join(name.partition(' ')[0] for name in COLUMNS)}) "  # noqa: S608
    f"VALUES ({', '.join('?' * (5 + len(COLUMNS)))})"
)
SORTS = {
    "order": "id", "task": "domain, task, attempt", "score": "score", "reward": "reward", "turns": "turns", "tokens": "tokens",
    "seconds": "seconds", "status": "status",
}  # fmt: skip
EXACT = ("domain", "status", "fault", "reason", "place")
WORDS = {"status": tuple(Status), "fault": (*Fault, "none")}  # those that there are
_COMPARISON = re.compile(r"\s*(<=|>=|<|>|=)?\s*([-+]?\d*\.?\d+)\s*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """Which episodes, in which order: `Query(domain="retail", score="<0.5", text="refund", sort="turns", descending=True)`."""

    domain: str = ""
    task: str = ""  # part of the task's id
    status: str = ""
    fault: str = ""  # a fault, or `none`
    reason: str = ""  # what ended the episode (`StopReason`)
    score: str = ""  # a comparison: `1`, `<0.5`, `>=0.9`
    text: str = ""  # words that the conversation has, or "a phrase"
    place: str = ""  # `run`, or the validation behind a step: `val 20`
    every: bool = False  # also the records that do not count: tries that another record of the attempt has replaced
    sort: str = "order"
    descending: bool = False
    offset: int = 0
    limit: int = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Rows of a query: `Page(rows=[{"id": 1, "key": "mock/a#0", ...}], total=400)`."""

    rows: list[Json]
    total: int  # that the query finds, on all pages


class Index:
    """The index of one run folder. Safe to use from several threads; close it."""

    def __init__(self, run: Path) -> None:
        """Opens or makes it; nothing is read yet. Raises UserError for a folder that is no run's."""
        if not (run / "config.json").is_file() and not record_files(run):
            raise UserError(f"`{run}` is not a run folder", hint="name a folder such as `outputs/eval/default`")
        self.run = run
        self._lock = threading.RLock()
        self._connection = self._open()

    def close(self) -> None:
        """Let go of the file; safe to call twice."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, *, seconds: float) -> bool:
        """Read what was appended, for about so many seconds; whether all is read now. Files that were replaced start again.

        Raises UserError where the index cannot be written: the disk is full, or another process holds it.
        """
        until = time.monotonic() + seconds
        while True:
            try:
                with self._lock, self._transaction():
                    complete = self._read_batch(until)
            except sqlite3.OperationalError as error:
                raise UserError(
                    f"cannot write `{self.run / NAME}`: {error}", hint="it is derived: free some space, or try again"
                ) from None
            if complete or time.monotonic() >= until:
                return complete

    def progress(self) -> tuple[int, int]:
        """(bytes read, bytes there) of the records, to say how far a long first reading is."""
        with self._lock:
            done = self._connection.execute("SELECT coalesce(sum(done), 0) FROM files").fetchone()[0]
        return int(done), sum(_size(file) for file in record_files(self.run))

    def unreadable(self) -> int:
        """Lines that are no records of this version."""
        with self._lock:
            return int(self._connection.execute("SELECT coalesce(sum(unreadable), 0) FROM files").fetchone()[0])

    def page(self, query: Query) -> Page:
        """The rows that a query finds. Raises UserError for a filter that cannot be read."""
        where, values = _conditions(query)
        for name, words in WORDS.items():
            if (word := getattr(query, name)) and word not in words:
                raise UserError(f"there is no {name} `{word}`", hint=f"one of: {', '.join(words)}")
        if query.sort not in SORTS:
            raise UserError(f"cannot sort by `{query.sort}`", hint=f"one of: {', '.join(SORTS)}")
        down = " DESC" if query.descending else ""
        order = ", ".join(f"{column.strip()}{down}" for column in SORTS[query.sort].split(","))
        with self._lock:
            try:
                total = self._connection.execute(f"SELECT count(*) FROM episodes WHERE {where}", values).fetchone()[0]  # noqa: S608
                found = self._connection.execute(
                    f"SELECT * FROM episodes WHERE {where} ORDER BY {order}, id{down} LIMIT ? OFFSET ?",  # noqa: S608
                    [*values, query.limit, query.offset],
                ).fetchall()
            except sqlite3.OperationalError as error:
                raise UserError(f"cannot search for `{query.text}`: {error}") from None
        return Page(rows=[dict(row) for row in found], total=int(total))

    def choices(self) -> dict[str, dict[str, int]]:
        """Value -> number of episodes that count, for the filters that have a list of values."""
        out: dict[str, dict[str, int]] = {}
        with self._lock:
            for name in EXACT:
                found = self._connection.execute(
                    f"SELECT coalesce(nullif({name}, ''), 'none') AS value, count(*) AS count FROM episodes "  # noqa: S608
                    "WHERE counts GROUP BY 1 ORDER BY 2 DESC"
                )
                out[name] = {str(row["value"]): int(row["count"]) for row in found}
        return out

    def task_counts(self) -> list[Json]:
        """Of each task of the run itself: `domain`, `task`, `valid` and `solved` attempts; FAILED ones are no evidence."""
        with self._lock:
            return [
                dict(row)
                for row in self._connection.execute(
                    "SELECT domain, task, count(*) AS valid, sum(reward >= 0.999999) AS solved FROM episodes "
                    "WHERE counts AND place = 'run' AND status != 'failed' AND NOT greedy GROUP BY domain, task"
                )
            ]

    def find(self, number: int) -> Json:
        """The row of an episode by its `id`. Raises UserError."""
        with self._lock:
            row = self._connection.execute("SELECT * FROM episodes WHERE id = ?", [number]).fetchone()
        if row is None:
            raise UserError(f"`{self.run}` has no episode {number}")
        return dict(row)

    def attempts(self, row: Mapping[str, Any]) -> list[Json]:
        """The counting attempts at the same task in the same place, by number."""
        with self._lock:
            found = self._connection.execute(
                "SELECT * FROM episodes WHERE counts AND place = ? AND domain = ? AND task = ? ORDER BY greedy, attempt",
                [row["place"], row["domain"], row["task"]],
            )
            return [dict(each) for each in found]

    def record(self, row: Mapping[str, Any]) -> EpisodeRecord:
        """The record behind a row. Raises UserError when the file has changed under the index."""
        return decode(self.line(row))

    def line(self, row: Mapping[str, Any]) -> bytes:
        """The record's line as it stands in its file."""
        with (self.run / str(row["file"])).open("rb") as file:
            file.seek(int(row["start"]))
            return file.read(int(row["size"]))

    def _open(self) -> sqlite3.Connection:
        file = self.run / NAME
        try:
            return _prepared(str(file))
        except sqlite3.OperationalError:
            return _prepared("")  # the folder is not ours to write, or its file system has no locks
        except sqlite3.DatabaseError:  # cut or overwritten: it is derived
            file.unlink()
            return _prepared(str(file))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            if self._connection.in_transaction:  # a full disk has ended it already
                self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def _read_batch(self, until: float) -> bool:
        files = record_files(self.run)
        known = {str(row["name"]): row for row in self._connection.execute("SELECT * FROM files")}
        names = {file.relative_to(self.run).as_posix(): file for file in files}
        if any(name not in names or not _grew(names[name], row) for name, row in known.items()):
            for statement in ("DROP TABLE files", "DROP TABLE episodes", "DROP TABLE words"):
                self._connection.execute(statement)
            _create(self._connection)
            known = {}
        for name, file in names.items():
            done = int(known[name]["done"]) if name in known else 0
            if _size(file) > done and not self._read_file(name, file, done, until):
                return False
        return True

    def _read_file(self, name: str, path: Path, done: int, until: float) -> bool:
        """Up to a batch of one file; whether its end is reached. A last line without its newline is not a record yet."""
        begin, lines, unreadable, complete = done, 0, 0, False
        with path.open("rb") as file:
            file.seek(done)
            while True:
                line = file.readline(LONGEST_LINE)
                if not line.endswith(b"\n"):
                    end = _end_of_long_line(file) if len(line) == LONGEST_LINE else None
                    if end is None:
                        complete = True
                        break
                    lines, unreadable, done = lines + 1, unreadable + 1, end
                    continue
                lines += 1
                unreadable += not self._add(name, done, line)
                done += len(line)
                if done - begin >= BATCH_BYTES or time.monotonic() >= until:
                    complete = done >= path.stat().st_size
                    break
            mark = _fingerprint(file, done)
        self._connection.execute(
            "INSERT INTO files VALUES (?, ?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET done = excluded.done, "
            "fingerprint = excluded.fingerprint, lines = lines + excluded.lines, unreadable = unreadable + excluded.unreadable",
            [name, done, mark, lines, unreadable],
        )
        return complete

    def _add(self, name: str, start: int, line: bytes) -> bool:
        try:
            values = from_json(line)
            row = index_row(cast("Json", values))
            words = searchable_text(cast("Json", values))
        except (ValueError, KeyError, TypeError, AttributeError):
            return False
        if values.get("schema", SCHEMA) not in READ:
            return False
        place = "run" if "/" not in name else f"val {int(Path(name).stem.rpartition('_')[2])}"
        counts = self._replace(place, str(row["key"]))
        cursor = self._connection.execute(_INSERT, [name, place, start, len(line), counts, *row.values()])
        self._connection.execute("INSERT INTO words (rowid, text) VALUES (?, ?)", [cursor.lastrowid, words])
        return True

    def _replace(self, place: str, key: str) -> bool:
        """Whether a new record of the attempt counts; the one that it replaces no longer does."""
        earlier = self._connection.execute(
            "SELECT id, status FROM episodes WHERE place = ? AND key = ? AND counts", [place, key]
        ).fetchone()
        if earlier is None:
            return True
        if not replaces(earlier_failed=earlier["status"] == "failed"):
            return False
        self._connection.execute("UPDATE episodes SET counts = 0 WHERE id = ?", [earlier["id"]])
        return True


def record_files(run: Path) -> list[Path]:
    """The files of a run that hold records, in the order in which they are read."""
    return [*record_files_of(run), *validations(run).values()]


def _prepared(name: str) -> sqlite3.Connection:
    connection = sqlite3.connect(name, timeout=WAIT_SECONDS, check_same_thread=False, isolation_level=None)
    try:
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA synchronous = OFF")  # what a power failure breaks is built again
        connection.execute("PRAGMA cache_size = -16384")  # 16 MB
        connection.execute("BEGIN IMMEDIATE")
        if connection.execute("PRAGMA user_version").fetchone()[0] != VERSION:
            for row in connection.execute(
                "SELECT name FROM sqlite_master WHERE name IN ('files', 'episodes', 'words')"
            ).fetchall():
                connection.execute(f"DROP TABLE {row['name']}")
            _create(connection)
            connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        connection.close()
        raise
    return connection


def _create(connection: sqlite3.Connection) -> None:
    for statement in _TABLES.split(";"):
        if statement.strip():
            connection.execute(statement)


def _conditions(query: Query) -> tuple[str, list[Any]]:
    """The WHERE of a query. What a person types may be no UTF-8, and SQLite takes nothing behind a NUL."""
    given = {name: value for name, value in asdict(query).items() if isinstance(value, str)}
    query = replace(query, **{n: v.replace("\0", " ").encode("utf-8", "replace").decode() for n, v in given.items()})
    parts, values = ["1" if query.every else "counts"], list[Any]()
    for name in EXACT:
        if wanted := getattr(query, name):
            parts.append(f"{name} = ?")
            values.append("" if wanted == "none" else wanted)
    if query.task:
        parts.append("instr(domain || '/' || task || '#' || attempt, ?)")
        values.append(query.task)
    if query.score:
        found = _COMPARISON.fullmatch(query.score)
        if found is None:
            raise UserError(f"`{query.score}` is not a comparison of scores", hint="such as `1`, `<0.5`, `>=0.9`")
        parts.append(f"score {found[1] or '='} ?")
        values.append(float(found[2]))
    if words := _match(query.text):
        parts.append("id IN (SELECT rowid FROM words WHERE words MATCH ?)")
        values.append(words)
    return " AND ".join(parts), values


def _match(text: str) -> str:
    """A search as FTS5 reads it, in which nothing of what a person types is an operator; "" where no word is in it.

    >>> _match('refund "order #W1" wi*')
    '"refund" "order #W1" "wi"*'
    """
    found: Sequence[tuple[str, str]] = re.findall(r'"([^"]*)"|([^\s"]+)', text)
    phrases = [(phrase or word.rstrip("*"), word.endswith("*")) for phrase, word in found]
    return " ".join(f'"{phrase}"{"*" if starts else ""}' for phrase, starts in phrases if phrase)


def _grew(file: Path, row: Mapping[str, Any]) -> bool:
    """Whether the file still begins with what was read of it."""
    with file.open("rb") as opened:
        return _size(file) >= row["done"] and _fingerprint(opened, int(row["done"])) == row["fingerprint"]


def _fingerprint(file: BinaryIO, end: int) -> str:
    file.seek(max(0, end - FINGERPRINT))
    return hashlib.sha256(file.read(min(end, FINGERPRINT))).hexdigest()[:16]


def _end_of_long_line(file: BinaryIO) -> int | None:
    while part := file.readline(1 << 20):
        if part.endswith(b"\n"):
            return file.tell()
    return None


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0
