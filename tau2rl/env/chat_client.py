"""Clients of the user model: our own for OpenAI-compatible servers, litellm for every other provider.

Both take the body of a chat request and give the body of the answer, within so many seconds. They block: each is called in the
thread of a simulation.
"""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast
from urllib.parse import urlsplit

from tau2rl.config import UserConfig
from tau2rl.http_client import Response, Unreachable, Unusable, limit_httpx, post, unusable
from tau2rl.rate_limit import ThreadThrottle, limits_rate, retry_after
from tau2rl.settings import NO_KEY, api_key, litellm_options, uses_proxy

BUSY = (408, 409, 425)  # beside 5xx: the same request may go better in a moment
OPENAI = "openai/"
MAX_BYTES = 2**20  # of an answer: a user's turn has a few hundred
T = TypeVar("T")
PRICED = "api.openai.com"  # litellm knows what its models cost


class ChatError(Exception):
    """There is no answer. `retry` says whether the same request may get one."""

    def __init__(self, message: str, *, retry: bool = True) -> None:
        super().__init__(message)
        self.retry = retry


class RateLimited(ChatError):
    """The server takes no more requests for now. `retry_after`: seconds that it asks us to wait; None where it does not say."""

    def __init__(self, message: str, *, retry_after: float | None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatAnswer:
    """`ChatAnswer(body={"choices": [...], "usage": {...}}, cost_usd=0.0)`; nothing of the body was looked at."""

    body: dict[str, Any]
    cost_usd: float = 0.0


class ChatClient(Protocol):
    """Who asks the user model."""

    def complete(self, body: dict[str, Any], *, seconds: float) -> ChatAnswer:
        """The answer to a chat request (`messages`, `tools`, `temperature`, `seed`...). Raises ChatError."""
        ...


Aside = Callable[[Callable[[], T]], T]  # runs a call in the thread that it is called from, and counts its CPU time


def chat_client(config: UserConfig, *, aside: Aside[ChatAnswer]) -> ChatClient:
    """The client for the model that the config names; `aside` is for one that answers in another thread.

    Raises UserError for a key that is not set.
    """
    return OpenAIClient(config) if is_direct(config) else LitellmClient(config, aside)


def is_direct(config: UserConfig) -> bool:
    """Whether our own client can ask: `openai/NAME` on a server that is reached without a proxy."""
    if not config.api_base or not config.model.startswith(OPENAI):
        return False
    return urlsplit(config.api_base).hostname != PRICED and not uses_proxy(config.api_base)


@functools.cache
def throttle_of(model: str, api_base: str | None) -> ThreadThrottle:
    """One for all simulations of this process that ask this server."""
    return ThreadThrottle(f"{model} at {api_base}" if api_base else model)


class OpenAIClient:
    """Asks a server that speaks OpenAI's chat completions, on connections that are kept."""

    def __init__(self, config: UserConfig) -> None:
        assert config.api_base is not None
        self._model = config.model.removeprefix(OPENAI)
        self._key = api_key(config.model, config.api_base, config.api_key_env) or NO_KEY
        self._url = f"{config.api_base.rstrip('/')}/chat/completions"
        self._headers = {"Accept": "application/json", "Authorization": f"Bearer {self._key}"}

    def complete(self, body: dict[str, Any], *, seconds: float) -> ChatAnswer:
        """See `ChatClient`."""
        request = json.dumps({"model": self._model, **body}).encode()
        try:
            response = post(self._url, request, self._headers, seconds=seconds, max_bytes=MAX_BYTES)
        except TimeoutError:
            raise ChatError(f"no answer within {seconds:g} s") from None
        except (Unreachable, Unusable) as error:
            raise ChatError(one_line(str(error), self._key)) from None
        if response.status != 200:
            raise _refusal(
                f"HTTP {response.status}: {one_line(_reason(response), self._key)}",
                status=response.status,
                said=_text(response.body)[:4096],
                asks=response.retry_after,
            )
        try:
            answer: Any = json.loads(response.body)
        except (ValueError, RecursionError):
            raise ChatError(f"the answer is not JSON: {one_line(_text(response.body), self._key)}") from None
        if not isinstance(answer, dict):
            raise ChatError("the answer is not a JSON object")
        return ChatAnswer(body=cast("dict[str, Any]", answer))


class LitellmClient:
    """Asks any model that litellm can call."""

    def __init__(self, config: UserConfig, aside: Aside[ChatAnswer]) -> None:
        self._aside = aside
        self._key = api_key(config.model, config.api_base, config.api_key_env)  # None: litellm looks for the provider's own
        given = {"api_base": config.api_base, "api_key": self._key}
        self._options: dict[str, Any] = {
            "model": config.model,
            "num_retries": 0,  # retries are ours, so that each has its deadline and its own seed
            "max_retries": 0,
            "drop_params": True,  # what a provider does not know is left out
            **litellm_options(),
            **{name: value for name, value in given.items() if value is not None},
        }

    def complete(self, body: dict[str, Any], *, seconds: float) -> ChatAnswer:
        """See `ChatClient`."""
        # litellm's timeout counts from byte to byte, so a server that drips holds it for ever; this one counts from the start.
        try:
            return _within(seconds, lambda: self._aside(lambda: self._ask({**body, "timeout": seconds})))
        # litellm fronts a hundred providers, and their exceptions leak through it; none of them is the agent's doing.
        except Exception as error:  # noqa: BLE001
            if large := unusable(error):
                raise ChatError(str(large)) from None
            headers: Any = getattr(error, "litellm_response_headers", None)
            raise _refusal(
                f"{type(error).__name__}: {one_line(str(error), self._key)}",
                status=getattr(error, "status_code", None),
                said=str(error),
                asks=retry_after(headers.get("retry-after") if headers else None),
            ) from None

    def _ask(self, body: dict[str, Any]) -> ChatAnswer:
        import litellm

        limit_httpx()
        litellm.suppress_debug_info = True
        response: Any = litellm.completion(**self._options, **body)
        return ChatAnswer(body=response.model_dump(), cost_usd=_cost(response))


def _cost(response: Any) -> float:
    import litellm

    try:
        return float(litellm.completion_cost(completion_response=response))
    except Exception:  # noqa: BLE001 - litellm raises plain Exceptions for models without a price
        return 0.0


def _refusal(message: str, *, status: int | None, said: str, asks: float | None) -> ChatError:
    """What a status that is not 200 means; without one there was no answer, which may come in a moment."""
    busy = status is None or status in BUSY or status >= 500
    if limits_rate(status, said, busy=busy, retry_after=asks):
        return RateLimited(message, retry_after=asks)
    return ChatError(message, retry=busy)


def _reason(response: Response) -> str:
    """What the server says against the request."""
    try:
        error: Any = json.loads(response.body)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, RecursionError, LookupError, TypeError):
        return _text(response.body)


def _text(body: bytes) -> str:
    return body.decode(errors="replace")


def one_line(text: str, key: str | None = None) -> str:
    """The first line of what a server or library said, printable, short, and without the key.

    >>> one_line("no such model\\x1b[2J\\nTraceback (most recent call last): ...")
    'no such model [2J'
    """
    if key and key != NO_KEY:
        text = text.replace(key, "[key]")
    text = text.partition("Traceback")[0].strip()  # litellm puts whole tracebacks into its messages
    first = (text.splitlines() or [""])[0][:300]
    return "".join(char if char.isprintable() else " " for char in first)


def _within(seconds: float, call: Callable[[], ChatAnswer]) -> ChatAnswer:
    """The result of `call`, or TimeoutError after so many seconds; a call that overran is left behind in a daemon thread."""
    outcome: list[ChatAnswer | Exception] = []

    def run() -> None:
        try:
            outcome.append(call())
        except Exception as error:  # noqa: BLE001 - carried over to the caller
            outcome.append(error)

    thread = threading.Thread(target=run, name="user simulator call", daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise TimeoutError(f"no answer within {seconds:g} s")
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]
