"""Episodes as lines of JSON: `episodes.jsonl`, `failures.jsonl`, the files of validations. `docs/formats.md` defines the fields.

A reader takes what it knows: a field that a line lacks has its default, and one that is not known is passed over. `SCHEMA` is
raised when that is not enough.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from itertools import chain
from pathlib import Path
from typing import cast

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, from_json

from tau2rl.errors import UserError
from tau2rl.types import EpisodeRecord

# The layout of a line; raised when a reader of the old one would misread the new one. 2: turns may have `kept` and `forced`.
SCHEMA = 2
READ = (1, SCHEMA)
FILES = ("episodes.jsonl", "failures.jsonl")  # of a run: what is evidence, and what FAILED


def encode(record: EpisodeRecord) -> bytes:
    r"""One line, its newline included; what `decode` returns is equal to what came in.

    UTF-8 has no lone surrogates (a model can sample half a pair): each becomes `?`. The token ids still have the truth.
    """
    try:
        return _writer().dump_json((record,), by_alias=True)[1:-1] + b"\n"
    except PydanticSerializationError:  # a lone surrogate
        values = _reader().dump_python(record, by_alias=True)
        text = json.dumps(values, ensure_ascii=False, separators=(",", ":"))
        return text.encode("utf-8", "replace") + b"\n"


def decode(line: bytes) -> EpisodeRecord:
    """The record in a line. Raises UserError."""
    try:
        record = _reader().validate_json(line)
    except ValidationError as error:
        _refuse_other_schema(line)
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"not an episode record: {where + ': ' if where else ''}{first['msg']}") from None
    if record.schema not in READ:
        raise _other_schema(record.schema)
    return record


def read_records(path: Path) -> Iterator[EpisodeRecord]:
    """The records of a file, one at a time; nothing where there is no file.

    A last line without its newline was cut by a kill while it was written and is not a record. Any other line that
    cannot be read raises UserError with file and line.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                yield decode(line)
            except UserError as error:
                raise UserError(f"`{path}` line {number}: {error.message}", hint=error.hint) from None


def record_files_of(run: Path) -> list[Path]:
    """The files of a run folder that hold its episodes, as far as they are there; those that FAILED last."""
    return [file for name in FILES if (file := run / name).is_file()]


def read_run(run: Path) -> Iterator[EpisodeRecord]:
    """Every record of a run folder, one at a time, those that FAILED behind the others. Raises UserError."""
    return chain.from_iterable(map(read_records, record_files_of(run)))


@cache
def _reader() -> TypeAdapter[EpisodeRecord]:
    return TypeAdapter(EpisodeRecord)


@cache
def _writer() -> TypeAdapter[tuple[EpisodeRecord]]:
    # Infinite log-probabilities stay what they are, which is a matter of the outermost type's config; a dataclass has none.
    return TypeAdapter(tuple[EpisodeRecord], config=ConfigDict(ser_json_inf_nan="constants"))


def _refuse_other_schema(line: bytes) -> None:
    try:
        values: object = from_json(line)  # json.loads has no depth limit of its own
    except ValueError:
        return
    schema = cast("dict[str, object]", values).get("schema", SCHEMA) if isinstance(values, dict) else SCHEMA
    if schema not in READ:
        raise _other_schema(schema)


def _other_schema(schema: object) -> UserError:
    return UserError(
        f"record of schema {schema!r}, this version reads schemas 1 and {SCHEMA}",
        hint="read it with the version of tau2rl that `environment.json` beside it names",
    )
