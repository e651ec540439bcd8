"""Chat completions as values: a transcript prompt as OpenAI messages, and an answer as a transcript line. No network here.

A provider may want its own assistant message back as it came: thoughts (`reasoning_content`, thought signatures), call ids of
its own form. So what it sent is kept for the length of an episode (`OwnMessages`), and stands in the next requests unchanged.
"""

from __future__ import annotations

import itertools
import json
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from tau2rl.chat.content import NotText, read_arguments, read_content
from tau2rl.chat.native import system_prompt
from tau2rl.enums import Ending, ending_of
from tau2rl.errors import PolicyFailure
from tau2rl.policy.retry import shorten
from tau2rl.types import CallTool, Completion, FinishReason, Message, Opening, Usage

RawMessage = dict[str, Any]  # as a server sent it
THOUGHT, THOUGHT_ENDS = "<think>", "</think>"
MOST_TOKENS = 2**40  # a larger count is none


class OwnMessages:
    """What the provider sent in each of the running episodes, by where its line begins in the transcript.

    A prompt begins with the one before it, so a line stays where it was; a line that differs from what was kept there belongs
    to another try of the episode.
    """

    def __init__(self, sessions: int) -> None:
        """`sessions`: so many are remembered; the one that was not asked for longest is forgotten first."""
        self._most = sessions
        self._kept: OrderedDict[str, dict[int, tuple[bytes, RawMessage]]] = OrderedDict()

    def add(self, session: str, prompt_ids: Sequence[int], line: Sequence[int], message: RawMessage) -> None:
        """Keep the message that answered a prompt, and became this line of the transcript."""
        kept = self._kept.setdefault(session, {})
        kept[len(prompt_ids)] = (bytes(line).rstrip(b"\n"), message)
        self._kept.move_to_end(session)
        if len(self._kept) > self._most:
            self._kept.popitem(last=False)

    def of(self, session: str, prompt_ids: Sequence[int]) -> dict[int, RawMessage]:
        """Index among the messages of the prompt -> what the provider sent."""
        kept = self._kept.get(session)
        if not kept:
            return {}
        head, *lines = bytes(prompt_ids).split(b"\n")
        offset, index, found = len(head) + 1, 0, dict[int, RawMessage]()
        for line in lines:
            if line:
                before = kept.get(offset)
                if before is not None and before[0] == line:
                    found[index] = before[1]
                index += 1
            offset += len(line) + 1
        return found


def to_openai(conversation: Opening, own: Mapping[int, RawMessage] | None = None) -> list[dict[str, Any]]:
    """The messages of a chat request: the system prompt that the native protocol has, then the conversation.

    `own`: index of a message -> what the provider sent for it, which goes back. Other messages carry no call ids: results
    follow their calls in order, so that ids can be given here, in the form that every provider takes (nine letters or digits).
    APIs refuse calls without results and results without calls, so calls that were not carried out (an unknown tool, wrong
    arguments: the next message asks for a better turn) become text.

    >>> from tau2rl.types import Message
    >>> calls = (CallTool(name="f", arguments={"a": 1}),)
    >>> turn = (Message(role="assistant", tool_calls=calls), Message(role="tool", content="ok"))
    >>> [m.get("tool_call_id") for m in to_openai(Opening(domain_policy="", messages=turn, tools=()))]
    [None, None, 'call00000']
    """
    own = own or {}
    waiting: deque[str] = deque()
    ids = (f"call{number:05}" for number in itertools.count())
    messages: list[dict[str, Any]] = [{"role": "system", "content": system_prompt(conversation.domain_policy)}]
    for index, message in enumerate(conversation.messages):
        one: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.role == "tool":
            # A result whose call stands nowhere can still be told, as what the other side said.
            messages.append(one | ({"tool_call_id": waiting.popleft()} if waiting else {"role": "user"}))
            continue
        waiting.clear()
        if message.role == "assistant":
            answered = bool(message.tool_calls) and _results_after(conversation.messages, index) == len(message.tool_calls)
            one = _assistant(message, own.get(index, {}), ids if answered else None)
            waiting.extend(call["id"] for call in one.get("tool_calls", ()))
        messages.append(one)
    return messages


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What an API answered: as a completion of the transcript, and the message as it came."""

    completion: Completion
    message: RawMessage


def read_answer(payload: Any, *, max_tokens: int) -> Answer:
    """The answer in a chat completion; its line is cut at `max_tokens` bytes, and says so.

    Raises PolicyFailure for anything that is no answer of a model: no choices, a filter's doing, fields of other types.
    """
    answer = _object(payload)
    choice = _object((_list(answer.get("choices")) or [None])[0])
    if not choice:
        raise PolicyFailure(f"the API sent an answer without choices: `{shorten(str(answer or payload))}`")
    message = _object(choice.get("message"))
    reason = finish_of(choice)
    if not message:
        raise PolicyFailure("the API sent a choice without a message")
    ids = line_of(message)
    if len(ids) > max_tokens:
        ids, reason = ids[:max_tokens], FinishReason.LENGTH
    completion = Completion(token_ids=tuple(ids), logprobs=None, finish_reason=reason, usage=usage_of(payload))
    return Answer(completion=completion, message=message)


def line_of(message: RawMessage) -> list[int]:
    """The transcript line, as bytes, of an API's assistant message (`content`, `tool_calls`).

    Arguments that are no JSON object stay the text that they are: `TranscriptCodec.parse` names what is wrong with them. A
    thought that the server left in the text is set apart: neither the user nor a check may read it. So it is with content that
    has other parts than text: of those the line keeps the types.
    Raises PolicyFailure for content that is none.
    """
    thought, said = _said(message)
    fields: dict[str, Any] = {"role": "assistant", "content": said} | ({"reasoning_content": thought} if thought else {})
    calls: object = message.get("tool_calls")
    functions = [_object(_object(call).get("function")) for call in _list(calls)]
    if not all(functions) or (calls and not functions):
        raise PolicyFailure(f"the API sent tool calls that are none: `{shorten(str(calls))}`")
    if functions:
        fields["tool_calls"] = [{"name": f.get("name"), "arguments": _arguments(f.get("arguments"))} for f in functions]
    return list(f"{json.dumps(fields)}\n".encode())


def finish_of(choice: Mapping[str, Any]) -> FinishReason:
    """Why the API stopped. Raises PolicyFailure when a filter, an abort or an error, not the model, ended the answer."""
    match ending_of(choice):
        case Ending.STOP:
            return FinishReason.STOP
        case Ending.LENGTH:
            return FinishReason.LENGTH
        case Ending.FILTER:
            raise PolicyFailure("the API's content filter ended the answer")
        case Ending.BROKEN:
            raise PolicyFailure(f"the API ended the answer with finish_reason `{shorten(str(choice.get('finish_reason')))}`")


def _assistant(message: Message, raw: RawMessage, ids: Iterator[str] | None) -> dict[str, Any]:
    """A turn as it goes back: `raw`, or what it amounts to; without `ids` its calls were not carried out."""
    kept = _kept_fields(raw)
    calls: list[dict[str, Any]] = kept.pop("tool_calls", None) or [_call(call) for call in message.tool_calls]
    one: dict[str, Any] = {"role": "assistant", "content": message.content, **kept}
    if ids is not None:
        return one | {
            "content": one["content"] or None,
            "tool_calls": [call | {"id": call.get("id") or next(ids)} for call in calls],
        }
    return one | {"content": _as_text(message)} if calls else one


def _kept_fields(message: RawMessage) -> RawMessage:
    """A message without what says nothing: servers that send `"tool_calls": []` refuse to be sent it."""
    return {name: value for name, value in message.items() if value is not None and value != [] and name != "role"}


def _results_after(messages: Sequence[Message], index: int) -> int:
    """How many tool messages follow the message at `index` without a break."""
    return sum(1 for _ in itertools.takewhile(lambda message: message.role == "tool", messages[index + 1 :]))


def _as_text(message: Message) -> str:
    """What an assistant said and called, as text; in words that nobody takes for the way to call a tool."""
    calls = (f"[this call was not carried out: {call.name} with {json.dumps(call.arguments)}]" for call in message.tool_calls)
    return "\n".join(filter(None, (message.content, *calls)))


def _call(call: CallTool) -> dict[str, Any]:
    return {"type": "function", "function": {"name": call.name, "arguments": json.dumps(call.arguments)}}


def _said(message: RawMessage) -> tuple[str, Any]:
    """The thought and the text of a message, or its refusal; parts that are no text by their types. Raises PolicyFailure."""
    try:
        content = read_content(message)
    except NotText as error:
        if not error.types:
            raise PolicyFailure(f"the API sent {error}") from None
        return "", [{"type": kind} for kind in error.types]
    thought, said = _thought_apart(content.text)
    return content.thought or thought, said or content.refusal


def _thought_apart(text: str) -> tuple[str, str]:
    """The thought before a text, and the text; a chat template may have written the mark that opens it.

    >>> _thought_apart("<think>Who is it?</think>\\n\\nHello."), _thought_apart("Hello.")
    (('Who is it?', 'Hello.'), ('', 'Hello.'))
    """
    before, closed, after = text.partition(THOUGHT_ENDS)
    opened = before.lstrip().startswith(THOUGHT)
    if opened or (closed and THOUGHT not in before):
        return before.lstrip().removeprefix(THOUGHT).strip(), after.lstrip("\n")
    return "", text


def _object(value: Any) -> dict[str, Any]:
    """The value, if it is a JSON object; else an empty one."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else []


def _arguments(text: Any) -> Any:
    """The object that the text spells, else the text; some APIs write nothing where a tool takes no arguments."""
    try:
        value = read_arguments(text)
    except ValueError:
        return text
    return cast("dict[str, Any]", value) if isinstance(value, dict) else text


def usage_of(payload: Any) -> Usage:
    """What a chat completion took, be it usable or not; 0 where it does not say."""
    usage = _object(_object(payload).get("usage"))
    cost = usage.get("cost")
    return Usage(
        prompt_tokens=_count(usage.get("prompt_tokens")),
        completion_tokens=_count(usage.get("completion_tokens")),
        cached_tokens=_count(_object(usage.get("prompt_tokens_details")).get("cached_tokens")),
        cost_usd=cost if isinstance(cost, float) and 0 <= cost < MOST_TOKENS else 0.0,
    )


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MOST_TOKENS else 0
