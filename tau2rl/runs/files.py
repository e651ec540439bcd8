"""Files of a run: replaced whole or not at all, read with an error that names the file, repaired after a kill."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from tau2rl.errors import UserError

T = TypeVar("T")
DAMAGED = "it is damaged: restore it from a copy"


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Replace `path` with these values; a reader sees the old file or the new one, after a crash too."""
    text = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with replacing(path) as file:
        file.write(text.encode("utf-8", "replace"))


@contextlib.contextmanager
def replacing(path: Path) -> Generator[BinaryIO]:
    """A file that takes the place of `path` when the block ends well; until then, and when it does not, the old one stays."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def make_folder(path: Path) -> None:
    """Make a folder and those above it, if they are not there. Raises OSError."""
    _again(lambda: path.mkdir(parents=True, exist_ok=True))


def open_or_make(path: Path) -> int:
    """A descriptor of a file to read and write, which is made if it is not there, and the folders above it. Raises OSError."""

    def opened() -> int:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)

    return _again(opened)


def _again(make: Callable[[], T]) -> T:
    """What `make` gives. Another process may take away the folder while it works; then once more, at most a hundred times."""
    for _ in range(100):
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            return make()
    return make()


WAYS_OUT = {  # by errno: what a person can do about a file that cannot be written
    errno.ENOSPC: "free some space, or choose a disk with more: `--output`",
    errno.EDQUOT: "free some space, or choose a disk with more: `--output`",
    errno.EFBIG: "this process may write no larger files (`ulimit -f`)",
    errno.ENAMETOOLONG: "choose a shorter `--output` or `--name`",
    errno.ELOOP: "a symbolic link on the way leads back to itself; choose another `--output`",
}


@contextlib.contextmanager
def writing(path: Path) -> Generator[None]:
    """Turn a failure of the file system into a UserError that names `path` and a way out.

    For the files with which a session begins. What fails later, in the middle of a run, is no mistake in the request: see
    `RunFolder.append`.
    """
    try:
        yield
    except OSError as error:
        hint = WAYS_OUT.get(error.errno or 0, "choose an `--output` that you can write to")
        raise UserError(f"cannot write `{shortened(path)}`: {error.strerror or error}", hint=hint) from None


def shortened(path: Path) -> str:
    """A path for a message: whole, but for one that would fill the screen.

    >>> shortened(Path("/a/b")), len(shortened(Path("/" + "x" * 5000)))
    ('/a/b', 203)
    """
    text = str(path)
    return text if len(text) <= 1000 else f"{text[:100]}...{text[-100:]}"


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file. Raises UserError that names the file."""
    try:
        values: object = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"no such file `{path}`") from None
    except OSError as error:
        raise UserError(f"cannot read `{path}`: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"`{path}` is not JSON: {error}", hint=DAMAGED) from None
    if not isinstance(values, dict):
        raise UserError(f"`{path}` is not a JSON object", hint=DAMAGED)
    return cast("dict[str, Any]", values)


def json_lines(path: Path) -> Generator[tuple[bytes, dict[str, Any]]]:
    """Each line of a file of JSON objects, as it stands and as values; empty ones are left out. Raises UserError."""
    with path.open("rb") as lines:  # a line at a time: episodes are gigabytes
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                values: object = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"`{path}` line {number} is not JSON: {error}", hint=DAMAGED) from None
            if not isinstance(values, dict):
                raise UserError(f"`{path}` line {number} is not a JSON object", hint=DAMAGED)
            yield line, cast("dict[str, Any]", values)


def section(values: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """A mapping inside of mappings; empty where one of the names is not there, or holds something else.

    >>> section({"policy": {"sampling": {"top_k": 5}}}, "policy", "sampling"), section({"policy": None}, "policy", "sampling")
    ({'top_k': 5}, {})
    """
    inner: Any = values
    for name in names:
        inner = cast("Mapping[str, Any]", inner).get(name) if isinstance(inner, Mapping) else None
    return dict(cast("Mapping[str, Any]", inner)) if isinstance(inner, Mapping) else {}


def point_link(link: Path, target: str) -> None:
    """Make `link` a symbolic link to `target`, whatever it was before."""
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # a file system without links: the convenience is missing, the run is not
        temporary.symlink_to(target)
        temporary.replace(link)


def repair_tail(path: Path) -> int:
    """Cut a file back to its last newline; the number of bytes cut.

    A process that is killed inside `write` can leave the beginning of a line; the next line would be glued to it.
    """
    if not path.exists():
        return 0
    with path.open("r+b") as file:
        end = size = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - 65536)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end < size:
            file.truncate(end)
        return size - end
