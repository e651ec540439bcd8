"""Files of rows, pinned here:

- a file is whole or absent, and named by its sha256;
- UTF-8 with and without a byte order mark, gzip and zstd are read, whatever the file is called; other encodings are refused with
  file, line and the way out, and so is everything else that is no row;
- a compressed file that was cut off or damaged is refused, and never a shorter file;
- a row says one thing: a key that an object has twice, NaN, infinity and numbers as large are refused;
- a line break is `\\n` alone, compressed or not.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import lzma
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tau2rl.data import jsonl
from tau2rl.data.jsonl import read_row_file, write_rows
from tau2rl.errors import UserError

CASES = Path(__file__).parents[2] / "fixtures" / "rows"


def compressed(data: bytes) -> bytes:
    import zstandard  # pyright: ignore[reportMissingImports]

    return zstandard.compress(data)


def rows(path: Path) -> list[Any]:
    return [row for _, row in read_row_file(path)]


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    written = write_rows(path, [{"a": "ü"}, {"a": 2}])
    assert path.read_text("utf-8") == '{"a":"ü"}\n{"a":2}\n'
    assert (written.file, written.rows) == ("rows.jsonl", 2)
    assert written.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert rows(path) == [{"a": "ü"}, {"a": 2}]


def test_a_file_that_breaks_off_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(path, [{"a": 1}])

    def broken() -> Iterator[dict[str, Any]]:
        yield {"a": 2}
        raise RuntimeError("disk")

    with pytest.raises(RuntimeError):
        write_rows(path, broken())
    assert [item.name for item in tmp_path.iterdir()] == ["rows.jsonl"]
    assert path.read_text("utf-8") == '{"a":1}\n'


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path: Path) -> None:
    assert [row["id"] for row in rows(CASES / "bom.jsonl")] == ["a", "b"]
    (tmp_path / "x.jsonl").write_bytes(gzip.compress((CASES / "bom.jsonl").read_bytes()))
    assert rows(tmp_path / "x.jsonl") == rows(CASES / "bom.jsonl")


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.jsonl"])
def test_gzip_is_read_whatever_it_is_called(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(gzip.compress(b'{"a": "x\xe2\x80\xa8y\\r"}\n') + gzip.compress(b'{"a": 2}'))
    assert rows(tmp_path / name) == [{"a": "x\u2028y\r"}, {"a": 2}]
    assert [place for place, _ in read_row_file(tmp_path / name)] == [f"{name}:1", f"{name}:2"]


def test_zstd_is_read_frame_by_frame(tmp_path: Path) -> None:
    many = b"".join(json.dumps({"n": n, "text": "x\r" * 999}).encode() + b"\n" for n in range(3000))
    (tmp_path / "a.zst").write_bytes(compressed(many) + compressed(b'{"n": 3000}'))
    assert [row["n"] for row in rows(tmp_path / "a.zst")] == list(range(3001))


@pytest.mark.parametrize("cut", [slice(0, -3), slice(0, 9)])
def test_zstd_that_was_cut_off_is_refused(cut: slice, tmp_path: Path) -> None:
    (tmp_path / "a.zst").write_bytes(compressed(b'{"a": 1}\n' * 50)[cut])
    with pytest.raises(UserError, match=r"cannot read `.*a\.zst`: it ends in the middle"):
        rows(tmp_path / "a.zst")


def test_zstd_without_its_package_is_refused_with_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    (tmp_path / "a.jsonl.zst").write_bytes(b"\x28\xb5\x2f\xfd....")
    with pytest.raises(UserError, match="compressed with zstd") as refused:
        rows(tmp_path / "a.jsonl.zst")
    assert ".[data]" in refused.value.hint


@pytest.mark.parametrize("damage", [slice(0, -3), slice(0, 14)])
def test_gzip_that_was_cut_off_is_refused(damage: slice, tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(gzip.compress(b'{"a": 1}\n' * 50)[damage])
    with pytest.raises(UserError, match=r"cannot read `.*a\.gz`: "):
        rows(tmp_path / "a.gz")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ((CASES / "utf16.jsonl").read_bytes(), "line 1 is UTF-16, not UTF-8"),
        ('{"a": "é"}'.encode("utf-32"), "line 1 is UTF-16, not UTF-8"),
        ('{"a": 1}\n{"a": "é"}'.encode("latin-1"), "line 2 is not UTF-8: byte 8 is 0xe9"),
        (b'{"a": 1}\n\xff\xfe', "line 2 is not UTF-8: byte 1 is 0xff"),
        (b'{"a": 1}\n[]\n', "line 2 is not an object"),
        (b'{"a": 1}\n\n{"a"\n', "line 3 is not JSON"),
        (b'{"a": NaN}\n', "line 1 is not JSON: `NaN` is no number"),
        (b'{"a": -Infinity}\n', "line 1 is not JSON"),
        (b'{"a": 1}\n{"a": [-1e999]}\n', "line 2 is not JSON: `-1e999` is no number"),
        (b'{"a": 1}\n{"a": {"b": 1, "c": 2, "b": 1}}\n', "line 2 is not JSON: an object has the key `b` twice"),
        ('{"a": "é"}\n'.encode("utf-16-le"), "line 1 has NUL bytes: it is UTF-16"),
        ('{"a": 1}\n'.encode("utf-16-be"), "line 1 has NUL bytes: it is UTF-16"),
        ('{"a": 1}\n'.encode("utf-32-be"), "line 1 has NUL bytes: it is UTF-16 or UTF-32"),
        (b'{"a": 1}\n' + bytes(64), "line 2 has NUL bytes: it is UTF-16 or UTF-32, or was never written to its end"),
        (bz2.compress(b'{"a": 1}\n'), "is compressed with bzip2"),
        (lzma.compress(b'{"a": 1}\n'), "is compressed with xz"),
        (b"PK\x03\x04....", "is compressed with zip"),
        (b'[\n {"a": 1}\n]\n', "line 1 is not JSON"),
        (b"1" * 5000 + b"\n", "line 1 is not JSON"),
        (b"[" * 100_000 + b"\n", "line 1 is not JSON that can be read: it is nested too deep"),
    ],
)
def test_what_is_no_row_is_refused_with_file_and_line(content: bytes, words: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(content)
    with pytest.raises(UserError) as refused:
        rows(file)
    assert refused.value.message.startswith(f"`{file}` {words}")


@pytest.mark.parametrize(
    ("content", "is_a_list"),
    [
        (b'[{"a": 1}, {"a": 2}]', True),
        (b'\xef\xbb\xbf[\n{"a": 1},\n{"a": 2}\n]\n', True),
        (b'[{"a": NaN}]\n', True),
        (b'{"a": 1}\n["a"]\n', True),
        (b'{"a": 1, "a": 2}\n', False),
        (b'{"a": NaN}\n', False),
        (b'{"a": 1e999}\n', False),
        (b'{"a": 1} {"a": 2}\n', False),
        (b'{"a": 1}\n[broken\n', False),
        (b'"a"\n', False),
    ],
)
def test_only_who_has_a_list_is_told_how_its_rows_are_written(content: bytes, is_a_list: bool, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(content)
    with pytest.raises(UserError) as refused:
        rows(file)
    assert ("jq -c '.[]' FILE" in refused.value.hint) == is_a_list


def test_a_name_that_promises_compression_is_taken_at_its_word(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(b'{"a": 1}\n')
    with pytest.raises(UserError, match="is not compressed as its name says"):
        rows(tmp_path / "a.jsonl.gz")


@pytest.mark.parametrize("name", ["missing.jsonl", "folder"])
def test_what_cannot_be_opened_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=f"cannot read `.*{name}`"):
        rows(tmp_path / name)


def test_an_empty_file_has_no_rows(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    assert rows(tmp_path / "a.jsonl") == []


def one_line_of(size: int, how: str) -> bytes:
    line = b"x" * size
    return gzip.compress(line, 1) if how == "gzip" else compressed(line) if how == "zstd" else line


@pytest.mark.parametrize("how", ["plain", "gzip", "zstd"])
def test_a_line_that_does_not_end_is_refused(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "MAX_LINE", 3_000_000)
    (tmp_path / "a.jsonl").write_bytes(one_line_of(3_000_001, how))
    with pytest.raises(UserError, match=r"a\.jsonl` line 1 is no row: it has more than 3000000 bytes"):
        rows(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").write_bytes(b'{"a":1}\n\n{"a":"' + b"x" * 2_999_000 + b'"}\n{"a":2}')
    assert [place for place, _ in read_row_file(tmp_path / "b.jsonl")] == ["b.jsonl:1", "b.jsonl:3", "b.jsonl:4"]
    (tmp_path / "c.jsonl").write_bytes(b'{"a":1}\n\n' + b"x" * 4_000_000)
    with pytest.raises(UserError, match=r"line 3 is no row"):
        rows(tmp_path / "c.jsonl")


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (Path("/dev/zero"), tmp_path / "pipe"):
        with pytest.raises(UserError, match="it is not a file"):
            rows(path)
