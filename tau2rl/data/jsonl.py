"""Files of rows: JSON lines in UTF-8, plain or compressed (`.gz`, `.zst`), or Parquet; every error names file and line."""

from __future__ import annotations

import codecs
import gzip
import hashlib
import json
import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, cast

from tau2rl.config.extras import part_of
from tau2rl.data.parquet import ParquetRows, is_parquet, read_parquet, write_parquet
from tau2rl.errors import UserError
from tau2rl.runs.files import replacing
from tau2rl.runs.provenance import file_hash

OTHER_MARKS = {codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}  # UTF-32 begins with the first, too
GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
UNREAD = {b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"PK\x03\x04": "zip"}  # how files begin that are compressed otherwise
ROW_FILES = ("rows.jsonl", "sft.jsonl")  # of `seed` and of `rft-filter`
NO_ROWS = ("episodes.jsonl", "failures.jsonl", "metrics.jsonl", "dropped.jsonl")  # of a run
SHOWN = 3  # files of a folder
BLOCK = 1 << 20
ZSTD_BLOCK = 1 << 12  # a block of a bomb is 32,000 times as large when it is decompressed
LISTED = "a row is one object on one line: `jq -c '.[]' FILE` writes those of a list so"
MAX_LINE = 1 << 26  # bytes of a row: a long conversation has a few hundred thousand, a bomb has no end


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenRows:
    """A finished file: `WrittenRows(file="rows.jsonl", rows=120, sha256="9f2c...")`."""

    file: str
    rows: int
    sha256: str


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> WrittenRows:
    """Write a JSONL file, one row at a time; until it is whole the old one stays in its place."""
    digest, count = hashlib.sha256(), 0
    with replacing(path) as file:
        for row in rows:
            line = row_line(row)
            digest.update(line)
            file.write(line)
            count += 1
    return WrittenRows(file=path.name, rows=count, sha256=digest.hexdigest())


def save_rows(path: Path, rows: ParquetRows) -> WrittenRows:
    """Write rows as the file's name asks: `.parquet`, `.gz`, else plain JSON lines. The same rows give the same bytes."""
    if path.suffix == ".parquet":
        count = write_parquet(path, rows)
        return WrittenRows(file=path.name, rows=count, sha256=file_hash(path))
    if path.suffix != ".gz":
        return write_rows(path, rows())
    count = 0
    with replacing(path) as file, gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as out:
        for row in rows():
            out.write(row_line(row))
            count += 1
    return WrittenRows(file=path.name, rows=count, sha256=file_hash(path))


def naming(bad: list[str] | None) -> Callable[[str, str], None]:
    """What is told the name and the fault of a bad row: it goes into the list; without one it is refused, with a UserError."""

    def tell(at: str, why: str) -> None:
        if bad is None:
            raise UserError(f"{at}: {why}", hint="`tau2rl data validate` names every bad row; `--skip-bad` leaves them out")
        bad.append(f"{at}: {why}")

    return tell


def row_line(row: Mapping[str, Any]) -> bytes:
    """A row as a line of JSON; half of a surrogate pair becomes `?`."""
    return json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n"


def read_row_file(path: Path, *, on_bad: Callable[[str, str], object] | None = None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Name (`rows.jsonl:17`) and content of each row of a file, one at a time. Raises UserError, naming the line.

    `on_bad` is told the name and the fault of a line that is no row, which is then passed over.
    """
    if is_parquet(path):
        for number, row in enumerate(read_parquet(path), start=1):
            yield f"{path.name}:{number}", row
        return
    for number, line in _lines(path):
        name = f"{path.name}:{number}"
        try:
            text = _text(line, path, number).strip()
            row = _object(text, path, number) if text else None
        except UserError as error:
            if on_bad is None:
                raise
            on_bad(name, error.message.removeprefix(f"`{path}` line {number} "))
            continue
        if row is not None:
            yield name, row


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of each line, without a byte order mark."""
    try:
        for number, line in enumerate(_decompressed(path), start=1):
            if number == 1:
                for mark, name in OTHER_MARKS.items():
                    if line.startswith(mark):
                        raise UserError(
                            f"`{path}` line 1 is {name}, not UTF-8", hint=f"convert it: iconv -f {name} -t UTF-8 FILE"
                        )
                line = line.removeprefix(codecs.BOM_UTF8)
            yield number, line
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read `{path}`: {_first_line(error)}") from None


def refuse_folder(path: Path) -> None:
    """Raise UserError where a folder is named in place of a file of rows, with the files that it has."""
    if path.is_dir():
        found = [file for file in path.iterdir() if {".jsonl", ".parquet"} & {*file.suffixes} and file.name not in NO_ROWS]
        named = sorted(found, key=lambda file: (file.name not in ROW_FILES, file.name))[:SHOWN]
        there = f"file of rows in it: {', '.join(map(str, named))}" if named else "JSONL or Parquet file of rows"
        raise UserError(f"cannot read `{path}`: it is a folder", hint=f"name a {there}")


def _decompressed(path: Path) -> Iterator[bytes]:
    """The lines of a file, decompressed where its first bytes say so. Raises OSError, EOFError, zlib.error, UserError."""
    refuse_folder(path)
    if path.exists() and not path.is_file():  # a pipe can be read once, rows are read more than once
        raise UserError(f"cannot read `{path}`: it is not a file", hint="write the rows to a file first")
    with path.open("rb") as file:
        start = file.read(5)
        magic = start[:4]
        file.seek(0)
        if other := next((name for mark, name in UNREAD.items() if start.startswith(mark)), None):
            raise UserError(
                f"`{path}` is compressed with {other}", hint="gzip and zstd are read: compress it again with one of them"
            )
        if magic.startswith(GZIP):
            with gzip.open(file) as inner:
                yield from _split(_blocks(inner), path)
        elif magic == ZSTD:
            yield from _split(_zstd_blocks(path, file), path)
        elif path.suffix in (".gz", ".zst") and magic:
            raise UserError(f"`{path}` is not compressed as its name says", hint="name it `.jsonl`, or compress it again")
        else:
            yield from _split(_blocks(file), path)


def _blocks(file: BinaryIO | gzip.GzipFile) -> Iterator[bytes]:
    while block := file.read(BLOCK):
        yield block


def _zstd_blocks(path: Path, file: BinaryIO) -> Iterator[bytes]:
    """What the frames of a file hold. The library's own reader takes a file that was cut off for a whole one."""
    try:
        zstandard: Any = import_module("zstandard")
    except ImportError:
        refusal = part_of("zstandard").refusal(f"`{path}` is compressed with zstd: it")
        raise UserError(refusal.message, hint=f"{refusal.hint}, or `zstd -d FILE`") from None
    frame: Any = None
    while block := file.read(ZSTD_BLOCK):
        while block:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            try:
                yield frame.decompress(block)
            except zstandard.ZstdError as error:
                raise EOFError(str(error)) from None
            block = frame.unused_data if frame.eof else b""
            frame = None if frame.eof else frame
    if frame is not None:
        raise EOFError("it ends in the middle of a frame")


def _split(blocks: Iterable[bytes], path: Path) -> Iterator[bytes]:
    """Lines, their ends included, out of blocks that end anywhere. Raises UserError for one that does not end."""
    begun, size, number = list[bytes](), 0, 1
    for block in blocks:
        first, *others = block.split(b"\n")
        begun.append(first)
        size += len(first)
        if size > MAX_LINE:
            raise UserError(f"`{path}` line {number} is no row: it has more than {MAX_LINE} bytes")
        for other in others:
            yield b"".join(begun) + b"\n"
            begun, size, number = [other], len(other), number + 1
    if any(begun):
        yield b"".join(begun)


def _text(line: bytes, path: Path, number: int) -> str:
    if b"\0" in line:  # which JSON spells
        raise UserError(
            f"`{path}` line {number} has NUL bytes: it is UTF-16 or UTF-32, or was never written to its end",
            hint="convert the file: iconv -f UTF-16LE -t UTF-8 FILE (or UTF-16BE, UTF-32LE, UTF-32BE)",
        )
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"`{path}` line {number} is not UTF-8: byte {error.start + 1} is 0x{line[error.start]:02x}",
            hint="convert the file: iconv -f ENCODING -t UTF-8 FILE",
        ) from None


def _object(text: str, path: Path, number: int) -> Mapping[str, Any]:
    try:
        data = strict_json(text)
    except RecursionError:
        raise UserError(f"`{path}` line {number} is not JSON that can be read: it is nested too deep") from None
    except ValueError as error:
        hint = LISTED if number == 1 and text.startswith("[") else ""
        raise UserError(f"`{path}` line {number} is not JSON: {error}", hint=hint) from None
    if not isinstance(data, dict):
        raise UserError(f"`{path}` line {number} is not an object", hint=LISTED if isinstance(data, list) else "")
    return cast("dict[str, Any]", data)


def strict_json(text: str) -> object:
    """A JSON value that says one thing: without NaN and infinity, and no key twice. Raises ValueError, RecursionError.

    >>> strict_json('{"weight": 0, "weight": 1}')
    Traceback (most recent call last):
    ValueError: an object has the key `weight` twice
    """
    return _STRICT.decode(text)


def _refuse_constant(name: str) -> object:
    raise ValueError(f"`{name}` is no number of JSON")


def _finite(digits: str) -> float:
    return value if math.isfinite(value := float(digits)) else cast("float", _refuse_constant(digits))


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):  # readers take the first, the last or neither
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"an object has the key `{twice[:60]}` twice")
    return found


_STRICT = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_distinct)


def _first_line(error: BaseException) -> str:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return next(iter(reason.splitlines()), type(error).__name__)
