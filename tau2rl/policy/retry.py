"""Retry with backoff: how long a call waits for a server that is overloaded, limits its rate, or is not there.

Everything is under one deadline, `policy.timeout_seconds`. A server that is unavailable is tried again `policy.retries` times.
Refusals of one that limits its rate are not counted: they say that it is well, and how often it may be asked.

What a refusal means is told first: the server's context is too small, it takes no more for now, it is not there, or it means no.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, TypeVar, cast

import orjson

from tau2rl.config import PolicyConfig
from tau2rl.errors import ContextExceeded, PolicyFailure
from tau2rl.rate_limit import Throttle, limits_rate, pause_seconds
from tau2rl.types import Completion

T = TypeVar("T")


async def complete_with_retries(
    call: Callable[[], Awaitable[Completion]], config: PolicyConfig, *, throttle: Throttle, server: str
) -> Completion:
    """The completion that `call` brings, which is tried again while it raises Unavailable or RateLimited.

    Raises PolicyFailure; see `with_retries`.
    """
    completion, waited = await with_retries(call, config, throttle=throttle, server=server)
    return replace(completion, throttled_seconds=waited) if waited else completion


async def with_retries(
    call: Callable[[], Awaitable[T]], config: PolicyConfig, *, throttle: Throttle, server: str
) -> tuple[T, float]:
    """(what `call` brings, the seconds that it was held back); it is tried again while it raises Unavailable or RateLimited.

    Raises PolicyFailure: the last one after `config.retries` retries, or one that says that `config.timeout_seconds` are over.
    `call` is cancelled when they are.
    """
    tries, waited, why = 0, 0.0, ""
    try:
        # No task and no retrying object for a call that goes well at once, which is nearly every one of thousands.
        async with asyncio.timeout(config.timeout_seconds):
            while True:
                waited += await throttle.wait()
                sent_at = time.monotonic()
                try:
                    answer = await call()
                except RateLimited as failure:
                    throttle.refused(sent_at, failure.retry_after, longest=config.timeout_seconds)
                    waited += time.monotonic() - sent_at
                    why = f"; {failure}"
                except Unavailable as failure:
                    if tries == config.retries:
                        raise
                    why = f"; {failure}"
                    await asyncio.sleep(pause_seconds(tries))
                    tries += 1
                else:
                    throttle.answered()
                    return answer, waited
    except TimeoutError:
        raise PolicyFailure(f"no completion from `{server}` within {config.timeout_seconds:g} s{why}") from None


class Unavailable(PolicyFailure):
    """The server is overloaded or unreachable: the same request may go better in a moment."""


class RateLimited(PolicyFailure):
    """The server takes no more requests for now. `retry_after`: seconds that it asks us to wait; None where it does not say."""

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


# Of a prompt that is too long, in lower case, as OpenAI, vLLM, SGLang, llama.cpp, TGI, Anthropic, Gemini, Bedrock, Mistral,
# Cohere, Cerebras, Groq, OpenRouter and Ollama have it; all that stand before one number or word are one.
OVERFLOW = (
    "context_length_exceeded",
    "exceed_context_size_error",
    "exceeds the available context size",
    "maximum context length",
    "maximum context limit",
    "maximum context window",
    "model's context length",
    "model's context window",
    "exceed context limit",
    "exceed the context window",
    "exceeds the context window",
    "exceeds the maximum number of tokens allowed",
    "exceeds the maximum allowed length",
    "exceed the configured limit",
    "longer than the maximum model length",
    "`inputs` tokens + `max_new_tokens` must be",
    "requested tokens exceed",
    "exceed context window",
    "prompt is too long",
    "prompt: length",
    "input is too long",
    "too many input tokens",
    "too many tokens",
    "string too long. expected a string with maximum length",
    "please reduce the length of the messages",
    "length limit exceeded",
    "model_context_window_exceeded",
    "context window exceeds limit",
    "maximum prompt length",
    "exceed the total tokens limit",
    "exceeded model token limit",
    "range of input length",
)
OVERFLOW_PAIRS = (("current length is", "while limit is"), ("maximum input length is", "tokens"), ("input length", "exceed"))
NOT_OVERFLOW = ("string_above_max_length", "per minute", "per day", "rate limit", "rate_limit")


def says_context_exceeded(text: str) -> bool:
    """Whether a refusal in these words is one of a prompt that is longer than the model's context.

    >>> says_context_exceeded("The input (70000 tokens) is longer than the model's context length (32768 tokens).")
    True
    >>> says_context_exceeded("Request too large: too many tokens per minute")
    False
    """
    text = text.lower()
    if any(words in text for words in NOT_OVERFLOW):
        return False
    return any(words in text for words in OVERFLOW) or any(a in text and b in text for a, b in OVERFLOW_PAIRS)


ENGINE_GONE = "error sending request for url"  # HTTP 500 of sglang-router, whose engine dropped the connection


def failure_of(
    status: int, body: bytes, *, server: str, busy: tuple[int, ...], retry_after: float | None = None
) -> PolicyFailure:
    """What a status that is not 200 means, in the server's own words; `busy`: those that may pass.

    >>> str(failure_of(400, b'{"detail": "no such field"}', server="http://a:1", busy=()))
    'the server answered HTTP 400: `no such field`'
    """
    said = _said(body)
    whole = body[:4096].decode("utf-8", "replace")
    if status != 429 and says_context_exceeded(whole):
        return ContextExceeded(f"the server answered HTTP {status}: `{said}`")
    if limits_rate(status, whole, busy=status in busy, retry_after=retry_after):
        return RateLimited(f"`{server}` is overloaded: HTTP {status}: `{said}`", retry_after=retry_after)
    if status in busy or (status == 500 and ENGINE_GONE in whole):
        return Unavailable(f"`{server}` is overloaded: HTTP {status}: `{said}`")
    return PolicyFailure(f"the server answered HTTP {status}: `{said}`", status=status)


def read_json(body: bytes) -> Any:
    """The JSON value of a response body. Raises PolicyFailure for anything else (HTML, a body cut short, ...)."""
    try:
        return orjson.loads(body)
    except ValueError:
        raise PolicyFailure(f"the server sent something that is not JSON: `{shorten(body)}`") from None


def shorten(text: bytes | str, limit: int = 160) -> str:
    r"""One line of at most `limit` characters.

    >>> shorten(b"<html>\n  <body>", 8)
    '<html> …'
    """
    # A slice first: nobody needs a megabyte split into words to be shown 160 characters.
    head = text[: 8 * limit]
    line = " ".join((head.decode("utf-8", "replace") if isinstance(head, bytes) else head).split())
    line = "".join(char if char.isprintable() else "\ufffd" for char in line)  # no escape sequence reaches a terminal
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _said(body: bytes) -> str:
    """The message inside an error body of SGLang, FastAPI, OpenAI or a router; else the body."""
    try:
        value: Any = orjson.loads(body)
    except ValueError:
        return shorten(body)
    for key in ("error", "message", "detail"):
        if isinstance(value, dict) and key in value:
            value = cast("dict[str, Any]", value)[key]
    return shorten(value if isinstance(value, str) else orjson.dumps(value))
