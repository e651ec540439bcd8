"""Rows in Parquet files, read and written one batch at a time.

Arrow gives a column one type. `messages` become a list of structs, as other tools expect them; scalars and lists of numbers keep
their types; whatever has no one type (`metadata`, `tools`) is JSON text, and the file says which columns are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from tau2rl.config.extras import part_of
from tau2rl.errors import UserError
from tau2rl.runs.files import replacing

MAGIC = b"PAR1"
BATCH = 256  # rows of a row group, and of what is read at once
AS_JSON = b"tau2rl.json"  # key of the file's metadata: the columns that are JSON text
CONVERSATIONS = ("messages", "prompt")
ParquetRows = Callable[[], Iterable[Mapping[str, Any]]]  # the same rows at every call


def is_parquet(path: Path) -> bool:
    """Whether the file begins as Parquet does."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file. A null of a message is dropped: Arrow gives each of them every key. Raises UserError."""
    arrow = _library(path)
    try:
        file = arrow.parquet.ParquetFile(path)
        as_json = json.loads((file.schema_arrow.metadata or {}).get(AS_JSON, b"[]"))
        for batch in file.iter_batches(batch_size=BATCH):
            for row in batch.to_pylist():
                yield {name: _read_value(name, value, as_json) for name, value in row.items() if value is not None}
    except (arrow.lib.ArrowException, OSError, ValueError) as error:
        why = str(error).partition("\n")[0]
        raise UserError(f"cannot read `{path}`: {why}", hint="it is damaged, or no Parquet") from None


def write_parquet(path: Path, rows: ParquetRows) -> int:
    """Write the rows, which are gone through twice; their number. Raises UserError."""
    arrow = _library(path)
    kinds, members, count = _kinds(rows())
    if not kinds:
        raise UserError(f"no rows to write to `{path}`", hint="a Parquet file without columns is read by nobody")
    as_json = [name for name, kind in kinds.items() if kind == "json"]
    fields = [(name, _type(arrow, kind, members.get(name, {}))) for name, kind in kinds.items()]
    schema = arrow.schema(fields, metadata={AS_JSON: json.dumps(as_json).encode()})
    with replacing(path) as out, arrow.parquet.ParquetWriter(out, schema, compression="zstd") as writer:
        batch: list[dict[str, Any]] = []
        for number, row in enumerate(rows(), start=1):
            batch.append({name: _written_value(row.get(name), kind) for name, kind in kinds.items()})
            if len(batch) == BATCH or number == count:
                writer.write_table(arrow.Table.from_pylist(batch, schema=schema))
                batch = []
    return count


def _library(path: Path) -> Any:
    try:
        import_module("pyarrow.parquet")
    except ImportError:
        raise part_of("pyarrow").refusal(f"`{path}` is Parquet: it") from None
    return import_module("pyarrow")


def _read_value(name: str, value: Any, as_json: list[str]) -> Any:
    if name in as_json:
        return json.loads(value)
    if name in CONVERSATIONS and isinstance(value, list):
        return [_without_nulls(one) for one in cast("list[Any]", value)]
    return value


def _without_nulls(value: Any) -> Any:
    """A message without its nulls, those of its calls too; arguments are JSON text, in which a null was meant."""
    if isinstance(value, dict):
        return {key: _without_nulls(each) for key, each in cast("dict[str, Any]", value).items() if each is not None}
    if isinstance(value, list):
        return [_without_nulls(each) for each in cast("list[Any]", value)]
    return value


def _kinds(rows: Iterable[Mapping[str, Any]]) -> tuple[dict[str, str], dict[str, dict[str, str]], int]:
    """Column -> kind, conversation -> member of its messages -> kind, and the number of rows."""
    kinds: dict[str, str] = {}
    members: dict[str, dict[str, str]] = {}
    count = 0
    for row in rows:
        count += 1
        for name, value in row.items():
            kind = _kind_of_conversation(value, members.setdefault(name, {})) if name in CONVERSATIONS else _kind(value)
            kinds[name] = _joined(kinds.get(name), kind)
    empty = {name for name, kind in kinds.items() if kind == "messages" and not members[name]}  # no struct is without members
    return {name: "json" if name in empty else kind or "text" for name, kind in kinds.items()}, members, count


def _kind(value: Any) -> str:
    """The kind of a value; "" for null, which is of any.

    >>> _kind("a"), _kind(1), _kind(0.5), _kind([1, 2]), _kind({"a": 1}), _kind(None)
    ('text', 'int', 'number', 'ints', 'json', '')
    """
    match value:
        case None:
            return ""
        case bool():
            return "bool"
        case str():
            return "text"
        case int():
            return "int" if abs(value) < 2**63 else "json"
        case float():
            return "number"
        case list() if value and all(isinstance(one, int) and not isinstance(one, bool) for one in cast("list[Any]", value)):
            return "ints"
        case _:
            return "json"


def _joined(one: str | None, other: str) -> str:
    if not one or not other or one == other:
        return one or other
    return "number" if {one, other} == {"int", "number"} else "json"


def _kind_of_conversation(value: Any, members: dict[str, str]) -> str:
    """`messages` where every one is an OpenAI message of scalars and calls; `members` gets the kinds of its keys."""
    if value is None:
        return ""
    if not isinstance(value, list):
        return _kind(value)
    for message in cast("list[Any]", value):
        if not isinstance(message, dict):
            return "json"
        for key, each in cast("dict[str, Any]", message).items():
            kind = "calls" if key == "tool_calls" and _are_calls(each) else _kind(each)
            members[key] = _joined(members.get(key), kind)
            if members[key] in ("json", "ints"):
                return "json"
    return "messages"


def _are_calls(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(call, dict)
        and set(cast("dict[str, Any]", call)) <= {"id", "type", "function"}
        and isinstance(inner := cast("dict[str, Any]", call).get("function"), dict)
        and set(cast("dict[str, Any]", inner)) <= {"name", "arguments"}
        and all(isinstance(text, str) for text in cast("dict[str, Any]", inner).values())
        for call in cast("list[Any]", value)
    )


def _type(arrow: Any, kind: str, members: Mapping[str, str]) -> Any:
    text = arrow.string()
    function = arrow.struct([("name", text), ("arguments", text)])
    scalars = {"text": text, "json": text, "bool": arrow.bool_(), "int": arrow.int64(), "number": arrow.float64()}
    types = {
        **scalars,
        "ints": arrow.list_(arrow.int64()),
        "calls": arrow.list_(arrow.struct([("id", text), ("type", text), ("function", function)])),
    }
    if kind == "messages":
        return arrow.list_(arrow.struct([(key, types[each or "text"]) for key, each in members.items()]))
    return types[kind]


def _written_value(value: Any, kind: str) -> Any:
    return json.dumps(value, ensure_ascii=False) if kind == "json" and value is not None else value
