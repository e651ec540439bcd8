"""The policy behind an API that takes messages: any model that litellm can call."""

from __future__ import annotations

import copy
import functools
import itertools
import json
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from tau2rl import settings
from tau2rl.chat.native import system_prompt
from tau2rl.chat.transcript import read
from tau2rl.config import PolicyConfig
from tau2rl.errors import PolicyFailure, UserError
from tau2rl.policy.generate import shorten
from tau2rl.policy.http import Unavailable, patiently
from tau2rl.types import CallTool, Completion, FinishReason, Message, Opening, Usage

if TYPE_CHECKING:
    from typing import Self


def to_openai(conversation: Opening) -> list[dict[str, Any]]:
    """The messages of a chat request: the system prompt that the native protocol has, then the conversation.

    Our messages carry no call ids: results follow their calls in order, so that ids can be given here. APIs refuse calls
    without results and results without calls, so calls that were not carried out (an unknown tool, wrong arguments: the next
    message asks for a better turn) become text.

    >>> from tau2rl.types import Message
    >>> calls = (CallTool(name="f", arguments={"a": 1}),)
    >>> turn = (Message(role="assistant", tool_calls=calls), Message(role="tool", content="ok"))
    >>> [m.get("tool_call_id") for m in to_openai(Opening(domain_policy="", messages=turn, tools=()))]
    [None, None, 'call_0']
    """
    waiting: deque[str] = deque()
    ids = (f"call_{number}" for number in itertools.count())
    messages: list[dict[str, Any]] = [{"role": "system", "content": system_prompt(conversation.domain_policy)}]
    for index, message in enumerate(conversation.messages):
        one: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.role == "tool":
            # A result whose call stands nowhere can still be told, as what the other side said.
            one |= {"tool_call_id": waiting.popleft()} if waiting else {"role": "user"}
        else:
            waiting.clear()
        if message.tool_calls and _results_after(conversation.messages, index) == len(message.tool_calls):
            made = [_call(call, next(ids)) for call in message.tool_calls]
            waiting.extend(call["id"] for call in made)
            one |= {"content": message.content or None, "tool_calls": made}
        elif message.tool_calls:
            one["content"] = _as_text(message)
        messages.append(one)
    return messages


def line_of(message: Any) -> list[int]:
    """The transcript line, as bytes, of an API's assistant message (`content`, `tool_calls`).

    Arguments that are no JSON object stay the text that they are: `TranscriptCodec.parse` names what is wrong with them.
    Raises PolicyFailure for content that is no text.
    """
    content = getattr(message, "content", None)
    if not isinstance(content, str | None):
        raise PolicyFailure(f"the API sent content as {type(content).__name__}, not as text")
    fields: dict[str, Any] = {"role": "assistant", "content": content or ""}
    calls = cast("Sequence[Any]", getattr(message, "tool_calls", None) or ())
    if calls:
        fields["tool_calls"] = [{"name": c.function.name, "arguments": _arguments(c.function.arguments)} for c in calls]
    return list(f"{json.dumps(fields)}\n".encode())


def finish_of(reason: str | None) -> FinishReason:
    """Why the API stopped. Raises PolicyFailure when a filter, not the model, ended the answer."""
    if reason == "content_filter":
        raise PolicyFailure("the API's content filter ended the answer")
    return FinishReason.LENGTH if reason == "length" else FinishReason.STOP


def _results_after(messages: Sequence[Message], index: int) -> int:
    """How many tool messages follow the message at `index` without a break."""
    return sum(1 for _ in itertools.takewhile(lambda message: message.role == "tool", messages[index + 1 :]))


def _as_text(message: Message) -> str:
    """What an assistant said and called, as text; in words that nobody takes for the way to call a tool."""
    calls = (f"[this call was not carried out: {call.name} with {json.dumps(call.arguments)}]" for call in message.tool_calls)
    return "\n".join(filter(None, (message.content, *calls)))


def _call(call: CallTool, call_id: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": call.name, "arguments": json.dumps(call.arguments)}}


def _arguments(text: Any) -> Any:
    """The object that the text spells, else the text; some APIs write nothing where a tool takes no arguments."""
    try:
        value: Any = json.loads(text or "{}")
    except (ValueError, TypeError, RecursionError):
        return text
    return cast("dict[str, Any]", value) if isinstance(value, dict) else text


NO_TOKENS = "an API model gives messages and no tokens: it serves eval and data generation, never training on its samples"
TRANSIENT = (429, 500, 502, 503, 504)  # litellm reports a refused or dropped connection as 500


class ApiPolicy:
    """`types.Policy` over litellm, for eval and data generation only: it gives no tokens of the model and no logprobs.

        policy = ApiPolicy(PolicyConfig(kind="api", model="openai/gpt-4.1-mini"))

    Prompts and completions are those of `chat.transcript.TranscriptCodec`: bytes of JSON lines. The deadline
    `config.timeout_seconds` covers a whole call, its retries included.
    """

    def __init__(self, config: PolicyConfig) -> None:
        """Raises UserError when the model or the key that the config names is missing."""
        if not config.model:
            raise UserError("policy.kind `api` needs policy.model, a litellm model name", hint="for example openai/gpt-4.1-mini")
        self._model = config.model
        self._config = config
        self._sampling = config.sampling
        self._key = settings.api_key(config.model, config.api_base, config.api_key_env)
        self._litellm = _litellm()
        self._options = settings.litellm_options()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Nothing to close: the connections are litellm's, shared by everything in this process that calls it."""

    def greedy(self) -> Self:
        """The same policy at temperature 0."""
        twin = copy.copy(self)
        twin._sampling = self._sampling.model_copy(update={"temperature": 0.0})
        return twin

    async def complete(self, prompt_ids: Sequence[int], *, seed: int, session: str, max_tokens: int) -> Completion:
        """One assistant line; see `types.Policy`.

        `max_tokens` counts bytes here, as the protocol does; a line beyond it is cut and reported as such.
        Raises PolicyFailure.
        """
        limit = min(max_tokens, self._sampling.max_tokens)  # a token of any model is a byte at the least
        response = await self._call(read(prompt_ids), seed=seed, max_tokens=limit)
        choices = getattr(response, "choices", None)
        if not choices:
            raise PolicyFailure(f"`{self._model}` sent an answer without choices")
        reason = finish_of(choices[0].finish_reason)
        ids = line_of(choices[0].message)
        if len(ids) > max_tokens:
            ids, reason = ids[:max_tokens], FinishReason.LENGTH
        return Completion(token_ids=tuple(ids), logprobs=None, finish_reason=reason, usage=_usage(response))

    async def ready(self, *, context_tokens: int | None = None) -> str:
        """The model's name and what it cannot give, after it answered one short question.

        Raises UserError when it does not: a wrong key or name would otherwise fail every episode.
        """
        question = Opening(domain_policy="", messages=(Message(role="user", content="Are you there?"),), tools=())
        try:
            await self._call(question, seed=0, max_tokens=min(64, self._sampling.max_tokens))
        except PolicyFailure as failure:
            hint = "look at `policy.model`, `policy.api_base` and `policy.api_key_env`"
            raise UserError(f"cannot use policy.model `{self._model}`: {failure}", hint=hint) from None
        return f"{self._model}; {NO_TOKENS}"

    async def _call(self, conversation: Opening, *, seed: int, max_tokens: int) -> Any:
        """Litellm's response, within the deadline. Raises PolicyFailure."""
        request = self._request(conversation, seed=seed, max_tokens=max_tokens)
        return await patiently(functools.partial(self._once, request), self._config, server=self._model)

    async def _once(self, request: dict[str, Any]) -> Any:
        try:
            return await self._litellm.acompletion(**request)
        # litellm fronts a hundred providers, and their exceptions leak through it: whatever it raises, our world broke.
        except Exception as error:  # noqa: BLE001
            kind = Unavailable if getattr(error, "status_code", None) in TRANSIENT else PolicyFailure
            raise kind(f"`{self._model}` does not answer: {self._reason(error)}") from None

    def _request(self, conversation: Opening, *, seed: int, max_tokens: int) -> dict[str, Any]:
        sampling = self._sampling
        request: dict[str, Any] = {
            "model": self._model,
            "messages": to_openai(conversation),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": max_tokens,
            "seed": seed,
            "timeout": self._config.timeout_seconds,
            "num_retries": 0,  # the retries are ours, under one deadline
            "max_retries": 0,
            "drop_params": True,  # what a provider does not know is left out instead of refused
        }
        if conversation.tools:
            request |= {"tools": list(conversation.tools), **self._options}
        if sampling.top_k > 0:
            request["top_k"] = sampling.top_k
        given = {"api_base": self._config.api_base, "api_key": self._key}
        return request | {name: value for name, value in given.items() if value is not None}

    def _reason(self, error: Exception) -> str:
        """The provider's words, without litellm's prefix, its stack and the key."""
        text = str(error).partition("Traceback")[0].rpartition("Exception - ")[2]
        if self._key and self._key != settings.NO_KEY:
            text = text.replace(self._key, "***")
        return shorten(text) or type(error).__name__


def _litellm() -> Any:
    settings.quiet_libraries()
    try:
        import litellm
    except ImportError:
        raise UserError("policy.kind `api` needs litellm", hint="pip install 'tau2rl[tau2]'") from None
    litellm.suppress_debug_info = True  # it prints advertisements on stdout, where our data goes
    return litellm


def _usage(response: Any) -> Usage:
    usage = getattr(response, "usage", None)
    details = getattr(usage, "prompt_tokens_details", None)
    cost = getattr(response, "_hidden_params", {}).get("response_cost")
    return Usage(
        prompt_tokens=getattr(usage, "prompt_tokens", None) or 0,
        completion_tokens=getattr(usage, "completion_tokens", None) or 0,
        cached_tokens=getattr(details, "cached_tokens", None) or 0,
        cost_usd=cost if isinstance(cost, float) else 0.0,  # None: not on litellm's price list
    )
