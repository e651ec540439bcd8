"""A stub of an OpenAI-compatible chat API, for simulated users and API policies.

    with OpenAIStub(answer=lambda messages, tools: "Yes, please.") as server:
        litellm.completion(model="openai/any", api_base=server.api_base, api_key="none", messages=[...])

`answer(messages, tools)` returns the text, or a list of (name, arguments) tool calls, or a whole assistant message; arguments
are an object, or text that is sent as it is. Modes beyond those of every stub: `empty` (no text), `null` (null content),
`unknown_tool` (a call of a tool that nobody offered), `role_flip` (speaks as the other side would), `no_choices`,
`wrong_types`, `filtered` (finish_reason content_filter), `aborted` (finish_reason abort), `length` (cut at max_tokens).

As the real API does, it refuses (HTTP 400) a conversation in which a tool call has no answer or a `tool` message no call.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from tests.stubs.http import MODES, Request, Response, StubServer

ToolCalls = Sequence[tuple[str, dict[str, Any] | str]]
Answer = Callable[[list[dict[str, Any]], list[dict[str, Any]]], str | ToolCalls | dict[str, Any]]

ROLE_FLIP = "Thank you for contacting customer support. How may I help you today?"
UNKNOWN_TOOL = "launch_rocket"


class OpenAIStub(StubServer):
    """Answers POST /v1/chat/completions and GET /v1/models. `requests` holds the calls of the former."""

    main_paths = ("/v1/chat/completions",)
    modes = (*MODES, "empty", "null", "unknown_tool", "role_flip", "no_choices", "wrong_types", "filtered", "aborted", "length")

    def __init__(self, *, answer: Answer = lambda messages, tools: "Okay.", model: str = "stub-model", **options: Any) -> None:
        """`options`: see StubServer."""
        super().__init__(**options)
        self.answer = answer
        self.model = model

    @property
    def api_base(self) -> str:
        """What litellm and openai clients call the base URL."""
        return f"{self.url}/v1"

    @property
    def bodies(self) -> list[dict[str, Any]]:
        """The bodies of the chat calls."""
        return [request.body for request in self.requests]

    async def reply(self, request: Request, mode: str) -> Response:
        if request.path == "/v1/models":
            return Response(payload={"object": "list", "data": [{"id": self.model, "object": "model", "owned_by": "stub"}]})
        if request.path not in self.main_paths:
            return Response(status=404, payload={"error": {"message": "Not Found"}})
        body = request.body
        if body.get("stream"):
            return Response(status=400, payload={"error": {"message": "the stub does not stream"}})
        if problem := _problem(body["messages"]):
            error = {"message": problem, "type": "invalid_request_error", "param": "messages", "code": None}
            return Response(status=400, payload={"error": error})
        return Response(payload=self._completion(body, mode))

    def _completion(self, body: dict[str, Any], mode: str) -> dict[str, Any]:
        message = self._message(body, mode)
        reason = "tool_calls" if message.get("tool_calls") else "stop"
        reason = {"filtered": "content_filter", "aborted": "abort", "length": "length"}.get(mode, reason)
        prompt, completion = _words(json.dumps(body["messages"])), _words(json.dumps(message))
        return {
            "id": "chatcmpl-stub",
            "object": "chat.completion",
            "created": 1_700_000_000,
            "model": body["model"],
            "choices": [] if mode == "no_choices" else [{"index": 0, "message": message, "finish_reason": reason}],
            "usage": {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion},
        }

    def _message(self, body: dict[str, Any], mode: str) -> dict[str, Any]:
        match mode:
            case "empty":
                return {"role": "assistant", "content": ""}
            case "null":
                return {"role": "assistant", "content": None}
            case "wrong_types":
                return {"role": "assistant", "content": {"text": 5}, "tool_calls": "none"}
            case "unknown_tool":
                return _calls([(UNKNOWN_TOOL, {"to": "the moon"})])
            case "role_flip":
                return {"role": "assistant", "content": ROLE_FLIP}
            case _:
                answer = self.answer(body["messages"], body.get("tools") or [])
        if isinstance(answer, str):
            return {"role": "assistant", "content": answer}
        return answer if isinstance(answer, dict) else _calls(answer)


def _problem(messages: Sequence[dict[str, Any]]) -> str:
    """What the API has against a conversation: calls and results must belong together, without a message between them."""
    waiting: list[str] = []
    for message in [*messages, {"role": "end"}]:
        if message["role"] == "tool":
            if message.get("tool_call_id") not in waiting:
                return "messages with role 'tool' must be a response to a preceding message with 'tool_calls'"
            waiting.remove(message["tool_call_id"])
        elif waiting:
            return f"tool calls must be followed by tool messages; these have no response: {', '.join(waiting)}"
        else:
            waiting = [call["id"] for call in message.get("tool_calls") or ()]
    return ""


def _calls(calls: ToolCalls) -> dict[str, Any]:
    """The assistant message that makes these tool calls."""
    listed = [
        {
            "id": f"call_{i}",
            "type": "function",
            "function": {"name": name, "arguments": arguments if isinstance(arguments, str) else json.dumps(arguments)},
        }
        for i, (name, arguments) in enumerate(calls)
    ]
    return {"role": "assistant", "content": None, "tool_calls": listed}


def _words(text: str) -> int:
    return len(text.split())
