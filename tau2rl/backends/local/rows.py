"""Rows of conversations to training samples: which tokens an assistant would have sampled, and nothing else.

Layouts that are read:
- ours and plain OpenAI: `messages`, optionally `tools` and `metadata`; every assistant turn after a user's is trained on
- `tau2-sft-seed-v3`: `prompt` holds the whole conversation, calls are text
- `AReaL-tau2-data`: `messages` is the history of one turn, `answer` is that turn; only the answer is trained on
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tau2rl.chat.native import NativeCodec
from tau2rl.chat.template import TemplateChat, chat_dicts
from tau2rl.chat.tokenizers import Tokenizer
from tau2rl.errors import UserError
from tau2rl.types import CallTool, Message, Say, ToolSchema, TrainingSample

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """A row that was left out: `Dropped(id="17", reason="too long", tokens=9120)`."""

    id: str
    reason: str
    tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """What became of the rows."""

    samples: tuple[TrainingSample, ...]
    ids: tuple[str, ...]  # of the samples
    dropped: tuple[Dropped, ...]


def encode_rows(rows: Iterable[tuple[str, Mapping[str, Any]]], tokenizer: Tokenizer, *, max_tokens: int) -> Encoded:
    """Encode what can be trained on, name what cannot. A row longer than `max_tokens` is left out whole, never cut."""
    encoder = RowEncoder(tokenizer)
    samples: list[TrainingSample] = []
    ids: list[str] = []
    dropped: list[Dropped] = []
    for name, data in rows:
        try:
            row = read_row(data, name=name)
            sample = encoder.encode(row)
        except BadRow as error:
            dropped.append(Dropped(id=name, reason=str(error)))
            continue
        if len(sample.token_ids) > max_tokens:
            dropped.append(Dropped(id=row.id, reason="too long", tokens=len(sample.token_ids)))
            continue
        samples.append(sample)
        ids.append(row.id)
    return Encoded(samples=tuple(samples), ids=tuple(ids), dropped=tuple(dropped))


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
    """A row of any of the layouts. Raises BadRow."""
    metadata = data.get("metadata")
    known = metadata if isinstance(metadata, Mapping) else {}
    answer = data.get("answer")
    history = data.get("messages") if "messages" in data else data.get("prompt")
    if not isinstance(history, Sequence) or isinstance(history, str) or not history:
        raise BadRow("no `messages` and no `prompt`")
    turns = [*history, answer] if isinstance(answer, Mapping) else list(history)
    return Row(
        id=str(data.get("id") or data.get("task_id") or known.get("id") or name),
        messages=tuple(_message(turn) for turn in turns),
        tools=tuple(cast("Sequence[ToolSchema]", data.get("tools") or ())),
        last_only=isinstance(answer, Mapping),
    )


class RowEncoder:
    """Writes a row as the chat protocol would have: prompts by the template, turns as they would be sampled."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Raises UserError when the template cannot be used."""
        self._chat = TemplateChat(tokenizer)
        self._codec = NativeCodec(tokenizer)

    def encode(self, row: Row) -> TrainingSample:
        """The conversation up to its last assistant turn. Raises BadRow when no turn can be trained on."""
        turns = _trained(row)
        dicts = chat_dicts(row.messages)
        first, last = turns[0], turns[-1]
        ids = self._chat.open(dicts[:first], list(row.tools))
        spans: list[tuple[int, int]] = []
        for turn, following in zip(turns, [*turns[1:], None], strict=True):
            written = self._write(row.messages[turn])
            spans.append((len(ids), len(ids) + len(written)))
            ids = [*ids, *written] if turn == last else self._chat.extend(ids, written, dicts[turn + 1 : following])
        mask = [0] * len(ids)
        for start, end in spans:
            mask[start:end] = [1] * (end - start)
        return TrainingSample(token_ids=tuple(ids), loss_mask=tuple(mask), logprobs=None, turn_spans=tuple(spans))

    def _write(self, message: Message) -> list[int]:
        if not message.tool_calls:  # as it stands: older data write their calls into the text
            return self._chat.write(message.content + self._chat.end_text)
        said = (Say(text=message.content),) if message.content.strip() else ()
        try:
            return self._codec.write((*said, *message.tool_calls))
        except ValueError as error:
            raise BadRow(f"a turn that this protocol cannot write: {error}") from None


def _trained(row: Row) -> list[int]:
    """Where the turns to be learned stand. What the assistant says before anyone spoke to it (a greeting) is not sampled."""
    heard = next((i for i, m in enumerate(row.messages) if m.role in ("user", "tool")), len(row.messages))
    turns = [i for i, m in enumerate(row.messages) if m.role == "assistant" and i > heard]
    if not turns:
        raise BadRow("no assistant turn to learn")
    if row.last_only:
        turns = turns[-1:]
    if empty := [i for i in turns if not row.messages[i].content.strip() and not row.messages[i].tool_calls]:
        raise BadRow(f"message {empty[0]} is an empty assistant turn")
    return turns


def _message(data: Any) -> Message:
    if not isinstance(data, Mapping) or data.get("role") not in ROLES:
        raise BadRow(f"a message with the role {data.get('role') if isinstance(data, Mapping) else data!r}")
    content = data.get("content")
    if content is not None and not isinstance(content, str):
        raise BadRow("a message whose content is not text")
    return Message(role=data["role"], content=content or "", tool_calls=tuple(_call(c) for c in data.get("tool_calls") or ()))


def _call(data: Any) -> CallTool:
    inner = data.get("function", data) if isinstance(data, Mapping) else None
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
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


def _object(line: str, path: Path, number: int) -> Mapping[str, Any]:
    try:
        data = json.loads(line)
    except ValueError as error:
        raise UserError(f"`{path}` line {number} is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise UserError(f"`{path}` line {number} is not an object")
    return cast("dict[str, Any]", data)
