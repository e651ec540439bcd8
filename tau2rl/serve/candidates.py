"""One answer of the policy to a chat request, checked: what an attempt is made of.

The policy is a server, or a checkpoint in this process: the policy of `eval --policy local`, asked for messages. To that one a
request is written by the checkpoint's own chat template as it stands: the client's system message, not tau2's.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import orjson

from tau2rl.chat.native import NativeCodec, codec as native_codec
from tau2rl.config import EvalConfig, PolicyConfig, build
from tau2rl.config.extras import lacking
from tau2rl.errors import ContextExceeded, MalformedTurn, PolicyFailure, UserError
from tau2rl.policy.api import chat_server
from tau2rl.policy.openai_format import read_answer, usage_of
from tau2rl.policy.retry import with_retries
from tau2rl.rate_limit import Throttle
from tau2rl.recipes.training import max_positions
from tau2rl.serve.requests import MOST_DEPTH, arguments_of, text_of, within_depth
from tau2rl.types import CallTool, Message, Usage

if TYPE_CHECKING:
    from tau2rl.train.policy import LocalPolicy

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


SAMPLING = ("temperature", "top_p", "max_tokens", "max_completion_tokens")  # fields of a request that a checkpoint goes by
WITHOUT_EFFECT: Mapping[str, Any] = {  # its other fields, with the only value at which they ask for nothing
    "tool_choice": "auto", "parallel_tool_calls": True, "response_format": {"type": "text"}, "presence_penalty": 0,
    "frequency_penalty": 0,
}  # fmt: skip


class CheckpointPolicy:
    """`candidates.MessagePolicy` of a checkpoint's directory: `CheckpointPolicy(Path("checkpoints/final"), seconds=60.0)`."""

    def __init__(self, checkpoint: Path, *, seconds: float, device: str = "cpu") -> None:
        """`seconds`: for one message. Raises UserError: no checkpoint, or one whose chat template cannot be used."""
        self._positions = max_positions(checkpoint)
        values: dict[str, Any] = {
            "policy": {"kind": "local", "checkpoint": str(checkpoint)},
            "chat": {"protocol": "native"},
            "local": {"device": device},
        }
        if self._positions is not None:
            values["limits"] = {"context_tokens": self._positions}
        self._config, self._seconds = build(EvalConfig, values), seconds
        for name, part in lacking(self._config):
            if name.startswith(("policy.", "chat.", "local.")):
                raise part.refusal("`--checkpoint`")
        self._codec: NativeCodec = native_codec(self._config.chat)
        self._stack = contextlib.AsyncExitStack()
        self._policy: LocalPolicy | None = None

    async def open(self) -> None:
        """Load the weights, once. Raises UserError."""
        if self._policy is None:
            from tau2rl.recipes.agents import open_checkpoint  # torch: seconds, and only here

            opening = open_checkpoint(self._config, self._codec, lambda **facts: None)
            self._policy = await self._stack.enter_async_context(opening)

    async def aclose(self) -> None:
        """Stop sampling; who still waits gets a PolicyFailure."""
        await self._stack.aclose()

    async def ask(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], fields: Mapping[str, Any], *, seed: int,
        spent: Callable[[Usage], None] = lambda usage: None,
    ) -> Candidate:  # fmt: skip
        """One message; see `candidates.MessagePolicy`."""
        prompt = self._prompt(messages, tools)
        policy, most = self._sampling(fields, len(prompt))
        try:
            async with asyncio.timeout(self._seconds):
                completion = await policy.complete(prompt, seed=seed, session=uuid.uuid4().hex, max_tokens=most)
        except TimeoutError:
            raise PolicyFailure(f"the checkpoint gave no message within {self._seconds:g} s") from None
        spent(completion.usage)
        try:
            said = Message.of(self._codec.parse(completion.token_ids, [dict(tool) for tool in tools]))
        except MalformedTurn as error:
            raise PolicyFailure(f"the checkpoint sampled no message: {error}") from None
        reason, logprobs = completion.finish_reason.value, completion.logprobs
        return candidate(said, finish_reason=reason, usage=completion.usage, logprobs=logprobs)

    def _prompt(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> list[int]:
        """Raises PolicyFailure, with status 400, for a conversation that the template does not take."""
        try:
            text = self._codec.chat.render([_as_template(one) for one in messages], tools or None, generation=True)
        except UserError as error:
            raise PolicyFailure(error.message, status=400) from None
        return self._codec.chat.tokenizer.encode(text)

    def _sampling(self, fields: Mapping[str, Any], prompt_tokens: int) -> tuple[LocalPolicy, int]:
        """The policy as a request wants it, and how many tokens it may sample. Raises PolicyFailure."""
        assert self._policy is not None, "it is open"
        for name in fields.keys() - set(SAMPLING):
            if name not in WITHOUT_EFFECT or fields[name] != WITHOUT_EFFECT[name]:
                raise PolicyFailure(f"a checkpoint that is served in this process knows no `{name}`", status=400)
        room = self._config.limits.context_tokens - prompt_tokens
        if room < 1:
            raise ContextExceeded(f"the conversation has {prompt_tokens} tokens, the model's context {room + prompt_tokens}")
        asked = {name: fields[name] for name in ("temperature", "top_p") if name in fields}
        most = fields.get("max_completion_tokens", fields.get("max_tokens", self._config.policy.sampling.max_tokens))
        try:
            sampling = build(type(self._policy.sampling), {**asked, "max_tokens": most})
        except UserError as error:
            raise PolicyFailure(error.message, status=400) from None
        policy = self._policy.at(sampling.temperature)
        policy.sampling = sampling
        return policy, room


def _as_template(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message of a request as chat templates read it."""
    role = "system" if message["role"] == "developer" else message["role"]
    one: dict[str, Any] = {"role": role, "content": text_of(message.get("content"))}
    if calls := message.get("tool_calls"):
        one["tool_calls"] = [
            {
                "id": call.get("id"),
                "type": "function",
                "function": {"name": call["function"]["name"], "arguments": arguments_of(call["function"]) or {}},
            }
            for call in calls
        ]
    if isinstance(thought := message.get("reasoning_content"), str) and thought:
        one |= {"reasoning_content": thought, "thinking": thought}
    return one | ({"tool_call_id": message["tool_call_id"]} if role == "tool" else {})
