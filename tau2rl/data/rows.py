"""Dataset rows: conversations as lines of JSON, written by us and read in every layout that has been published.

Layouts that are read:
- ours and plain OpenAI: `messages`, optionally `tools` and `metadata`; every assistant turn after a user's is trained on
- ours with `token_ids` and `loss_mask`: what was sampled, exactly; see `exact_sample`
- `tau2-sft-seed-v3`: `prompt` holds the whole conversation, calls are text
- `AReaL-tau2-data`: `messages` is the history of one turn, `answer` is that turn; only the answer is trained on
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, cast

from tau2rl.config import DataConfig
from tau2rl.errors import UserError
from tau2rl.types import CallTool, Message, ToolSchema, TrainingSample

ROLES = ("system", "user", "assistant", "tool")


class BadRow(ValueError):
    """A row that cannot be trained on; the message says why, in words for the report."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One conversation: `Row(id="17", messages=(...), tools=(...,), last_only=False)`."""

    id: str
    messages: tuple[Message, ...]  # the system message first, where there is one
    tools: tuple[ToolSchema, ...]
    last_only: bool  # only the last turn is to be learned; the others are history
    chat: str = ""  # fingerprint of the codec that wrote its tokens, where it has them; see `exact_sample`


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A finished file: `Written(file="rows.jsonl", rows=120, sha256="9f2c...")`."""

    file: str
    rows: int
    sha256: str


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Written:
    """Write a JSONL file, one row at a time; until it is whole the old one stays in its place."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    digest, count = hashlib.sha256(), 0
    try:
        with temporary.open("wb") as file:
            for row in rows:
                line = json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n"
                digest.update(line)
                file.write(line)
                count += 1
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return Written(file=path.name, rows=count, sha256=digest.hexdigest())


def read_file(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Name and content of each line of a JSONL file, one at a time. Raises UserError, naming the line."""
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield f"{path.name}:{number}", _object(line, path, number)
    except OSError as error:
        raise UserError(f"cannot read `{path}`: {error.strerror}") from None


def read_row(data: Mapping[str, Any], *, name: str) -> Row:
    """A row of any of the layouts. Raises BadRow.

    >>> read_row({"messages": [{"role": "user", "content": "Hi"}]}, name="a.jsonl:1").messages
    (Message(role='user', content='Hi', tool_calls=(), error=False),)
    """
    answer = _mapping(data.get("answer"))
    history = data.get("messages") if "messages" in data else data.get("prompt")
    if not isinstance(history, Sequence) or isinstance(history, str) or not history:
        raise BadRow("no `messages` and no `prompt`")
    turns = [*cast("Sequence[object]", history), *([answer] if answer else [])]
    metadata = _mapping(data.get("metadata"))
    return Row(
        id=str(data.get("id") or data.get("task_id") or metadata.get("id") or name),
        messages=tuple(_message(turn) for turn in turns),
        tools=tuple(cast("Sequence[ToolSchema]", data.get("tools") or ())),
        last_only=bool(answer),
        chat=str(metadata.get("chat") or "") if "token_ids" in data else "",
    )


def exact_sample(data: Mapping[str, Any]) -> TrainingSample | None:
    """The tokens of a row that has them, as they were sampled; None for a row of messages alone. Raises BadRow.

    They belong to one tokenizer and chat protocol, which `metadata.chat` names (`chat.fingerprint`).

    >>> exact_sample({"token_ids": [5, 6, 7, 8], "loss_mask": [0, 1, 1, 0]}).turn_spans
    ((1, 3),)
    """
    ids, mask = data.get("token_ids"), data.get("loss_mask")
    if ids is None:
        return None
    if not isinstance(ids, list) or not isinstance(mask, list):
        raise BadRow("`token_ids` without a `loss_mask` as long")
    ids, mask = cast("list[object]", ids), cast("list[object]", mask)
    if len(ids) != len(mask) or not any(mask):
        raise BadRow("`token_ids` without a `loss_mask` as long that marks something")
    if not all(isinstance(token, int) for token in ids) or any(mark not in (0, 1) for mark in mask):
        raise BadRow("`token_ids` that are no numbers, or a `loss_mask` of other values than 0 and 1")
    ids, mask = cast("list[int]", ids), cast("list[int]", mask)
    edges = [i for i in range(len(mask) + 1) if (mask[i] if i < len(mask) else 0) != (mask[i - 1] if i else 0)]
    spans = tuple(zip(edges[::2], edges[1::2], strict=True))
    return TrainingSample(token_ids=tuple(ids), loss_mask=tuple(mask), logprobs=None, turn_spans=spans)


def _message(data: object) -> Message:
    fields = _mapping(data)
    if fields.get("role") not in ROLES:
        raise BadRow(f"a message with the role {fields.get('role') if fields else data!r}")
    content = fields.get("content")
    if content is not None and not isinstance(content, str):
        raise BadRow("a message whose content is not text")
    calls = cast("Sequence[object]", fields.get("tool_calls") or ())
    return Message(role=fields["role"], content=content or "", tool_calls=tuple(_call(call) for call in calls))


def _call(data: object) -> CallTool:
    fields = _mapping(data)
    inner = _mapping(fields.get("function", fields))
    if not isinstance(inner.get("name"), str):
        raise BadRow("a tool call without a name")
    arguments = inner.get("arguments")
    if isinstance(arguments, str):  # OpenAI writes them as JSON in a string
        try:
            arguments = json.loads(arguments)
        except ValueError:
            raise BadRow(f"arguments of `{inner['name']}` that are not JSON") from None
    if not isinstance(arguments, dict):
        raise BadRow(f"arguments of `{inner['name']}` that are not an object")
    return CallTool(name=inner["name"], arguments=cast("dict[str, Any]", arguments))


def _mapping(value: object) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}


def _object(line: str, path: Path, number: int) -> Mapping[str, Any]:
    try:
        data: object = json.loads(line)
    except ValueError as error:
        raise UserError(f"`{path}` line {number} is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise UserError(f"`{path}` line {number} is not an object")
    return cast("dict[str, Any]", data)


def read_rows(data: DataConfig) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Name and content of every row, file by file. Raises UserError."""
    for file in data.files:
        yield from islice(read_file(file.expanduser()), data.limit)
