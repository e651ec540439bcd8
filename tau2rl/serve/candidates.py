"""One answer of the policy to a chat request, checked: what an attempt is made of."""

from __future__ import annotations

import functools
import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import orjson

from tau2rl.config import PolicyConfig
from tau2rl.errors import PolicyFailure
from tau2rl.policy.api import chat_server
from tau2rl.policy.openai_format import read_answer, usage_of
from tau2rl.policy.retry import with_retries
from tau2rl.rate_limit import Throttle
from tau2rl.serve.requests import MOST_DEPTH, within_depth
from tau2rl.types import CallTool, Message, Usage

MOST_BYTES = 4 * 2**20  # of an answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A message that the policy proposes: `Candidate(message={...}, seen=Message(...), finish_reason="stop", usage=...)`."""

    message: dict[str, Any]  # content, tool_calls with ids, perhaps reasoning_content
    seen: Message  # the same, as verifiers see it
    finish_reason: str
    usage: Usage
    logprobs: tuple[float, ...] | None = None  # [num_tokens]; None: not asked for, or the server gave none


class MessagePolicy(Protocol):
    """Who proposes messages: `PolicyServer`, or `checkpoint.CheckpointPolicy` in this process."""

    async def open(self) -> None:
        """Get ready, once, on the loop that asks. Raises UserError."""
        ...

    async def aclose(self) -> None:
        """Let go of what it holds."""
        ...

    async def ask(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], fields: Mapping[str, Any], *, seed: int,
        spent: Callable[[Usage], None] = lambda usage: None,
    ) -> Candidate:  # fmt: skip
        """One message; `spent` is told what it took, usable or not.

        Raises PolicyFailure, for calls of tools that are not offered and arguments that are none or nested too deeply too.
        """
        ...


class PolicyServer:
    """Whoever answers for the policy. Its own sampling holds: fields of a request that it sets are not passed on."""

    def __init__(self, config: PolicyConfig, *, logprobs: bool = False) -> None:
        """Raises UserError when the model or its key is missing."""
        self._config, self._logprobs = config, logprobs
        self._server = chat_server(config)
        self._throttle = Throttle(str(config.model))

    async def open(self) -> None:
        """Connections are made when they are needed."""

    async def aclose(self) -> None:
        """Close the connections."""
        await self._server.aclose()

    async def ask(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], fields: Mapping[str, Any], *, seed: int,
        spent: Callable[[Usage], None] = lambda usage: None,
    ) -> Candidate:  # fmt: skip
        """One answer; see `MessagePolicy`."""
        request: dict[str, Any] = {**fields, "messages": list(messages)}
        if "seed" not in self._config.omit:
            request["seed"] = seed
        if tools:
            request["tools"] = list(tools)
        if self._logprobs:
            request["logprobs"] = True
        call = functools.partial(self._server.ask, request)
        payload, _ = await with_retries(call, self._config, throttle=self._throttle, server=str(self._config.model))
        spent(usage_of(payload))
        return candidate_of(payload, {str(tool["function"]["name"]) for tool in tools})


def candidate_of(payload: Any, offered: set[str]) -> Candidate:
    """The candidate in the JSON of a chat completion. Raises PolicyFailure."""
    answer = read_answer(payload, max_tokens=MOST_BYTES)
    line: dict[str, Any] = orjson.loads(bytes(answer.completion.token_ids))
    calls = tuple(_call(one, offered) for one in line.get("tool_calls", ()))
    thought = line.get("reasoning_content") or answer.message.get("reasoning_content")
    said = Message(
        role="assistant", content=str(line["content"]), tool_calls=calls, reasoning=thought if isinstance(thought, str) else ""
    )
    reason, usage = answer.completion.finish_reason.value, answer.completion.usage
    return candidate(said, finish_reason=reason, usage=usage, logprobs=_logprobs(payload))


def candidate(said: Message, *, finish_reason: str, usage: Usage, logprobs: tuple[float, ...] | None) -> Candidate:
    """A candidate that says this, its calls with ids. Raises PolicyFailure for an empty one, and arguments nested too deeply."""
    if not said.content.strip() and not said.tool_calls:
        raise PolicyFailure("the policy sent an empty message")
    if not all(within_depth(call.arguments) for call in said.tool_calls):
        raise PolicyFailure(f"the policy called a tool with arguments that are nested more than {MOST_DEPTH} deep")
    message: dict[str, Any] = {"content": said.content or None}
    if said.reasoning:
        message["reasoning_content"] = said.reasoning
    if said.tool_calls:
        message["tool_calls"] = [
            {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": {"name": call.name, "arguments": _text(call)}}
            for call in said.tool_calls
        ]
    return Candidate(
        message=message,
        seen=Message(role="assistant", content=said.content, tool_calls=said.tool_calls),
        finish_reason="tool_calls" if said.tool_calls else finish_reason,
        usage=usage,
        logprobs=logprobs,
    )


def mean_logprob(candidates: Sequence[Candidate]) -> float | None:
    """Over the tokens of all of them; None where one has none."""
    if any(one.logprobs is None for one in candidates):
        return None
    values = [value for one in candidates for value in one.logprobs or ()]
    return math.fsum(values) / len(values) if values else None


def _call(line: Mapping[str, Any], offered: set[str]) -> CallTool:
    name, arguments = line.get("name"), line.get("arguments")
    if name not in offered:
        raise PolicyFailure("the policy server called a tool that was not offered")
    if not isinstance(arguments, dict):
        raise PolicyFailure("the policy server called a tool with arguments that are no JSON object")
    return CallTool(name=str(name), arguments=cast("dict[str, Any]", arguments))


def _text(call: CallTool) -> str:
    """Its arguments. Raises PolicyFailure for what JSON has no place for, as a number of a hundred digits."""
    try:
        return orjson.dumps(call.arguments).decode()
    except TypeError as error:
        raise PolicyFailure(f"the policy called a tool with arguments that are none: {error}") from None


def _logprobs(payload: Any) -> tuple[float, ...] | None:
    try:
        tokens = payload["choices"][0]["logprobs"]["content"]
        values = tuple(float(token["logprob"]) for token in tokens)
    except (KeyError, IndexError, TypeError, ValueError):
        return None
    return values if values and all(map(math.isfinite, values)) else None
