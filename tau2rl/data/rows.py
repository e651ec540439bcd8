"""Dataset rows: conversations, written by us and read in every layout that has been published.

Layouts that are read:
- ours and plain OpenAI: `messages`, optionally `tools` and `metadata`; every assistant turn after a user's is trained on
- ours with `token_ids` and `loss_mask`: what was sampled, exactly; see `exact_sample`
- `tau2-sft-seed-v3`: `prompt` holds the whole conversation, calls are text
- `AReaL-tau2-data`: `messages` is the history of one turn, `answer` is that turn; only the answer is trained on

What a turn was thought before it (`reasoning_content`, `reasoning` or `thinking`) is a part of it, as `chat.thinking` says.

What a row says of its own learning is honoured: `step_loss_mask: 0` or `weight: 0` on a message keeps it in the conversation and
out of the loss, on a row it leaves the row out. What cannot be honoured leaves the row out, with the reason.
Results stand in the order of their calls, whatever order a row has them in.
Arrow gives every object of a column the keys of all of them, and null for those that it lacked: such nulls are no values.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any, cast

from tau2rl.chat.content import NotText, read_arguments, read_content
from tau2rl.config import DataConfig
from tau2rl.data.jsonl import read_row_file, strict_json
from tau2rl.types import CallTool, Message, ToolSchema, TrainingSample

ROLES = ("system", "user", "assistant", "tool")
WEIGHTS = ("step_loss_mask", "loss_mask", "weight", "sample_weight", "loss_weight")  # which mean nothing else, on a row too
MARKS = (*WEIGHTS, "train", "training", "trainable", "loss", "loss_scale")  # the others may be notes of a tool on a row
THOUGHTS = ("reasoning_content", "reasoning", "thinking")  # where the thought of a turn stands, in three dialects
THOUGHTS_IN_PARTS = ("reasoning_details", "thinking_blocks")  # of two more, some of whose parts are encrypted


class BadRow(ValueError):
    """A row that cannot be trained on; the message says why, in words for the report."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One conversation: `Row(id="17", messages=(...), tools=(...,), last_only=False)`."""

    id: str
    messages: tuple[Message, ...]  # the system message first, where there is one
    tools: tuple[ToolSchema, ...]
    last_only: bool  # only the last turn is to be learned; the others are history
    masked: frozenset[int] = frozenset()  # messages of the assistant that are part of the conversation and not learned
    at: str = ""  # file and line
    aside: int | None = None  # the message whose thought may be left out, and counted: an AReaL answer's `thinking`
    chat: str = ""  # fingerprint of the codec that wrote its tokens, where it has them; see `exact_sample`


def read_row(data: Mapping[str, Any], *, name: str) -> Row:
    """A row of any of the layouts. Raises BadRow.

    >>> read_row({"messages": [{"role": "user", "content": "Hi"}]}, name="a.jsonl:1").messages
    (Message(role='user', content='Hi', tool_calls=(), error=False, reasoning=''),)
    """
    try:
        row = _row(data, name)
        said = [[m.content, [(call.name, call.arguments) for call in m.tool_calls]] for m in row.messages]
        json.dumps([row.id, said, row.tools], ensure_ascii=False, allow_nan=False).encode()
    except RecursionError:
        raise BadRow("it is nested too deep") from None
    except UnicodeEncodeError:  # JSON can spell half of a surrogate pair
        raise BadRow("it has half of a surrogate pair, which is no Unicode text") from None
    except BadRow:
        raise
    except ValueError as error:
        raise BadRow(f"it cannot be written as JSON: {error}") from None
    return row


def _row(data: Mapping[str, Any], name: str) -> Row:
    own = data.get("token_ids") is not None  # then `loss_mask` is theirs
    for mark in MARKS:
        noted = mark not in WEIGHTS and data.get(mark) not in (0, 1)  # `loss: 0.83`, `train: "train"`
        if not (noted or (own and mark == "loss_mask") or _is_on(data, mark, "the row")):
            raise BadRow(f"its `{mark}` is 0")
    answer = _mapping(data.get("answer"))
    history = data.get("messages") if data.get("messages") is not None else data.get("prompt")
    if not isinstance(history, Sequence) or isinstance(history, str) or not history:
        raise BadRow("no `messages` and no `prompt`")
    turns = _answered_in_order([*cast("Sequence[object]", history), *([answer] if answer else [])])
    metadata = _mapping(data.get("metadata"))
    return Row(
        id=str(data.get("id") or data.get("task_id") or metadata.get("id") or name),
        messages=tuple(map(_message, turns)),
        tools=read_tools(data.get("tools")) or read_tools(data.get("functions")),
        last_only=bool(answer),
        masked=frozenset(i for i, turn in enumerate(turns) if _is_masked(_mapping(turn), i)),
        at=name,
        aside=len(turns) - 1 if answer and not any(_is_said(answer.get(key)) for key in THOUGHTS[:2]) else None,
        chat=str(metadata.get("chat") or "") if data.get("token_ids") is not None else "",
    )


def _answered_in_order(turns: Sequence[object]) -> list[object]:
    """The messages, with results in the order of their calls where ids say which is whose. Raises BadRow.

    >>> call = {"role": "assistant", "tool_calls": [{"id": "a"}, {"id": "b"}]}
    >>> b, a = ({"role": "tool", "tool_call_id": id} for id in "ba")
    >>> _answered_in_order([call, b, a]) == [call, a, b]
    True
    """
    found: list[object] = []
    asked: list[str] = []
    for role, block in groupby(turns, lambda turn: _mapping(turn).get("role")):
        messages = list(block)
        if role == "tool":
            answered = _ids(messages, "tool_call_id")
            begun = asked[: len(answered)]
            if asked and all(asked) and all(answered) and answered != begun:
                if sorted(answered) != sorted(begun) or len(set(begun)) < len(begun):
                    raise BadRow(f"results of {answered}, where the calls before them are {asked}"[:200])
                messages = [messages[answered.index(id)] for id in begun]
        made = [_mapping(one).get("tool_calls") for one in messages]
        asked = [id for calls in made if isinstance(calls, list) for id in _ids(cast("list[object]", calls), "id")]
        found += messages
    return found


def _ids(values: Sequence[object], key: str) -> list[str]:
    """That of each of them; empty where one has none."""
    return [str(_mapping(one).get(key) or "") for one in values]


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
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in ids) or any(
        mark not in (0, 1) for mark in mask
    ):
        raise BadRow("`token_ids` that are no numbers, or a `loss_mask` of other values than 0 and 1")
    ids, mask = cast("list[int]", ids), cast("list[int]", mask)
    edges = [i for i in range(len(mask) + 1) if (mask[i] if i < len(mask) else 0) != (mask[i - 1] if i else 0)]
    spans = tuple(zip(edges[::2], edges[1::2], strict=True))
    return TrainingSample(token_ids=tuple(ids), loss_mask=tuple(mask), logprobs=None, turn_spans=spans)


def read_tools(value: object) -> tuple[ToolSchema, ...]:
    """The `tools` of a row: schemas, or schemas as JSON text, one by one or all together. Raises BadRow.

    >>> read_tools('[{"type": "function", "function": {"name": "f", "strict": null}}]')
    ({'type': 'function', 'function': {'name': 'f'}},)
    """
    found = _from_text(value, "`tools`")
    if found is None:
        return ()
    if not isinstance(found, Sequence) or isinstance(found, str):
        raise BadRow("`tools` that are no list")
    return tuple(_tool(_from_text(one, "a tool")) for one in cast("Sequence[object]", found))


def _tool(value: object) -> ToolSchema:
    schema = _mapping(value)
    own = {key: each for key, each in schema.items() if key != "type"}
    wrapped = schema.get("function") is not None
    inner = _mapping(own["function"]) if wrapped else own
    if not isinstance(inner.get("name"), str):
        raise BadRow("a tool that is no function schema with a name")
    parameters = _from_text(inner.get("parameters"), "a tool's `parameters`")
    if not isinstance(parameters, Mapping | None):
        raise BadRow(f"`parameters` of `{inner['name']}` that are no object"[:200])
    whole = {"type": "function", **(own if wrapped else {}), "function": {**inner, "parameters": parameters}}
    return cast("ToolSchema", _without_nulls(whole, keep="default"))  # `"default": null` is what a schema may well say


def _from_text(value: object, what: str) -> object:
    if not isinstance(value, str):
        return value
    if not value.strip():  # as with `arguments: ""`
        return None
    try:
        return strict_json(value)
    except (ValueError, RecursionError) as error:
        raise BadRow(f"{what} given as text that is not JSON: {error}"[:200]) from None


def _without_nulls(value: object, *, keep: str = "") -> object:
    """Without the keys whose value is null, at any depth; elements of lists stay."""
    if isinstance(value, Mapping):
        items = cast("Mapping[str, object]", value).items()
        return {key: _without_nulls(each, keep=keep) for key, each in items if each is not None or key == keep}
    if isinstance(value, list):
        return [_without_nulls(each, keep=keep) for each in cast("list[object]", value)]
    return value


def _is_masked(message: Mapping[str, Any], number: int) -> bool:
    if message.get("role") != "assistant":
        return False
    if message.get("train_detail"):
        raise BadRow(f"message {number} has a `train_detail`: a turn is learned as a whole")
    return not all(_is_on(message, name, f"message {number}") for name in MARKS)


def _is_on(values: Mapping[str, Any], name: str, whose: str) -> bool:
    """Whether a mark of 0 or 1 is not 0; absent and null are 1. Raises BadRow for what is neither."""
    mark = values.get(name)
    if mark is None:
        return True
    if mark not in (0, 1):
        raise BadRow(f"{whose} has a `{name}` of {mark!r}: only 0 and 1 can be honoured"[:200])
    return bool(mark)


def _message(data: object) -> Message:
    fields = _mapping(data)
    role = "tool" if fields.get("role") == "function" else fields.get("role")  # OpenAI's older way to call
    if role not in ROLES:
        raise BadRow(f"a message with the role {fields.get('role') if fields else data!r}"[:200])
    try:
        content = read_content(fields)
    except NotText as error:
        raise BadRow(f"a message that has {error}"[:200]) from None
    thought = (_thought(fields) if role == "assistant" else "") or content.thought
    if role == "assistant" and not thought.strip() and (parts := next(filter(fields.get, THOUGHTS_IN_PARTS), None)):
        raise BadRow(f"a message whose thought stands in `{parts}` alone: `reasoning_content` is read")
    if fields.get("tool_calls") and fields.get("function_call"):
        raise BadRow("a message with `tool_calls` and a `function_call`, of which one would be lost")
    calls = fields.get("tool_calls") or ([fields["function_call"]] if fields.get("function_call") else ())
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        raise BadRow("`tool_calls` that are no list")
    made = tuple(map(_call, cast("Sequence[object]", calls)))
    thought = thought if thought.strip() else ""
    return Message(role=role, content=content.text or content.refusal, tool_calls=made, reasoning=thought)


def _thought(fields: Mapping[str, Any]) -> str:
    thought = next((fields[name] for name in THOUGHTS if _is_said(fields.get(name))), "")
    if not isinstance(thought, str):
        raise BadRow("a message whose thought is not text")
    return thought


def _is_said(value: object) -> bool:
    return bool(value.strip() if isinstance(value, str) else value)


def _call(data: object) -> CallTool:
    fields = _mapping(data)
    inner = _mapping(fields.get("function") or fields)
    name = inner.get("name")
    if not isinstance(name, str):
        raise BadRow("a tool call without a name")
    arguments = inner.get("arguments")
    if isinstance(arguments, Mapping):  # OpenAI writes them as JSON in a string: every null in it was meant
        arguments = _without_nulls(cast("Mapping[str, object]", arguments))
    try:
        arguments = read_arguments(arguments)
    except ValueError:
        raise BadRow(f"arguments of `{name}` that are not JSON"[:200]) from None
    if not isinstance(arguments, dict):
        raise BadRow(f"arguments of `{name}` that are not an object"[:200])
    return CallTool(name=name, arguments=cast("dict[str, Any]", arguments))


def _mapping(value: object) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}


def read_rows(data: DataConfig) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Name and content of every row, file by file. Raises UserError."""
    for file in data.files:
        yield from islice(read_row_file(file.expanduser()), data.limit)
