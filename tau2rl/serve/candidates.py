"""One answer of the policy server to a chat request, checked: what an attempt is made of."""

from __future__ import annotations

import functools
import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

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


class PolicyServer:
    """Whoever answers for the policy. Its own sampling holds: fields of a request that it sets are not passed on."""

    def __init__(self, config: PolicyConfig, *, logprobs: bool = False) -> None:
        """Raises UserError when the model or its key is missing."""
        self._config, self._logprobs = config, logprobs
        self._server = chat_server(config)
        self._throttle = Throttle(str(config.model))

    async def aclose(self) -> None:
        """Close the connections."""
        await self._server.aclose()

    async def ask(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], fields: Mapping[str, Any], *, seed: int,
        spent: Callable[[Usage], None] = lambda usage: None,
    ) -> Candidate:  # fmt: skip
        """One answer; `spent` is told what it took, usable or not.

        Raises PolicyFailure, for calls of tools that are not offered and arguments that are none or nested too deeply too.
        """
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
    calls = [_call(one, offered) for one in line.get("tool_calls", ())]
    content: Any = line["content"]
    if not isinstance(content, str):
        raise PolicyFailure("the policy server sent content that is no text")
    if not content.strip() and not calls:
        raise PolicyFailure("the policy server sent an empty message")
    message: dict[str, Any] = {"content": content or None}
    thought = line.get("reasoning_content") or answer.message.get("reasoning_content")
    if isinstance(thought, str) and thought:
        message["reasoning_content"] = thought
    if calls:
        message["tool_calls"] = [
            {
                "id": f"call_{uuid.uuid4().hex[:24]}",
                "type": "function",
                "function": {"name": call.name, "arguments": orjson.dumps(call.arguments).decode()},
            }
            for call in calls
        ]
    return Candidate(
        message=message,
        seen=Message(role="assistant", content=content, tool_calls=tuple(calls)),
        finish_reason="tool_calls" if calls else answer.completion.finish_reason.value,
        usage=answer.completion.usage,
        logprobs=_logprobs(payload),
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
    if not within_depth(cast("Any", arguments)):
        raise PolicyFailure(f"the policy server called a tool with arguments that are nested more than {MOST_DEPTH} deep")
    return CallTool(name=str(name), arguments=cast("dict[str, Any]", arguments))


def _logprobs(payload: Any) -> tuple[float, ...] | None:
    try:
        tokens = payload["choices"][0]["logprobs"]["content"]
        values = tuple(float(token["logprob"]) for token in tokens)
    except (KeyError, IndexError, TypeError, ValueError):
        return None
    return values if values and all(map(math.isfinite, values)) else None
