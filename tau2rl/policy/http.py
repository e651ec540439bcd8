"""How long a policy waits for its server: retries with a pause that grows and varies, all under one deadline."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from tau2rl.config import PolicyConfig
from tau2rl.errors import PolicyFailure

if TYPE_CHECKING:
    import aiohttp


IDLE_SECONDS = 4.0  # servers drop an idle connection after 5 s
JSON = {"Content-Type": "application/json"}


class Unreachable(Exception):
    """No whole answer came back: refused, disconnected, cut short, or not HTTP. The message says what happened, in one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """A whole answer: `Response(status=200, body=b"{}")`."""

    status: int
    body: bytes


class Connections:
    """As many connections to `url` as there are requests in flight; opened at the first one, on the loop that it runs on."""

    def __init__(self, url: str, *, connect_seconds: float) -> None:
        """`url` has no slash at its end. Reading has no deadline: the caller has one for the whole call."""
        self._url = url
        self._connect_seconds = connect_seconds
        self._opened: aiohttp.ClientSession | None = None

    async def post(self, path: str, body: bytes, headers: Mapping[str, str]) -> Response:
        """Send a JSON body. Raises Unreachable."""
        return await self._request("POST", path, body, {**JSON, **headers})

    async def get(self, path: str) -> Response:
        """Raises Unreachable."""
        return await self._request("GET", path, None, {})

    async def aclose(self) -> None:
        """Close all connections; safe to call twice."""
        if self._opened is not None:
            await self._opened.close()
            self._opened = None

    async def _request(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> Response:
        import aiohttp

        try:
            # A redirect is not followed: a policy server has no reason to send one, and a login page has.
            async with self._session().request(
                method, f"{self._url}{path}", data=body, headers=headers, allow_redirects=False
            ) as response:
                return Response(status=response.status, body=await response.read())
        except (aiohttp.ClientError, OSError) as error:
            raise Unreachable(" ".join(str(error).split()) or type(error).__name__) from None

    def _session(self) -> aiohttp.ClientSession:
        import aiohttp

        if self._opened is None:
            self._opened = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_SECONDS),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._connect_seconds),
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,  # a proxy for the internet must not sit between us and our own server
            )
        return self._opened


T = TypeVar("T")
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.25, 10.0


class Unavailable(PolicyFailure):
    """The server is overloaded or unreachable: the same request may go better in a moment."""


async def patiently(call: Callable[[], Awaitable[T]], config: PolicyConfig, *, server: str) -> T:
    """The result of `call`, which is tried again while it raises Unavailable.

    Raises PolicyFailure: the last one after `config.retries` retries, or one that says that `config.timeout_seconds` are over.
    `call` is cancelled when they are.
    """
    tries = 0
    try:
        # No task and no retrying object for a call that goes well at once, which is nearly every one of thousands.
        async with asyncio.timeout(config.timeout_seconds):
            while True:
                try:
                    return await call()
                except Unavailable:
                    if tries == config.retries:
                        raise
                await asyncio.sleep(pause_seconds(tries))
                tries += 1
    except TimeoutError:
        raise PolicyFailure(f"no completion from `{server}` within {config.timeout_seconds:g} s") from None


def pause_seconds(tries: int) -> float:
    """Any time up to a bound that doubles, so that clients that failed together come apart ("full jitter").

    Source: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/

    >>> 0 <= pause_seconds(0) <= 0.25 and 0 <= pause_seconds(1000) <= 10
    True
    """
    # No float is large enough for a power of hundreds.
    return random.uniform(0, min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** min(tries, 30)))
