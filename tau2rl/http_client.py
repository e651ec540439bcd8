"""HTTP to the servers of models: connections that are kept, and answers of bounded size.

The one client of the package is aiohttp, for coroutines and for threads: 0.1 to 0.3 ms of CPU a call, where litellm's takes 3 to
14. Clients of libraries, litellm's and the SDKs under it, hold whatever a server sends: `limit_httpx` is for them.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import threading
from collections.abc import AsyncIterable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tau2rl.rate_limit import retry_after

if TYPE_CHECKING:
    import aiohttp

IDLE_SECONDS = 4.0  # servers drop an idle connection after 5 s
CLOSE_SECONDS = 1.0  # at the end of the process
JSON = {"Content-Type": "application/json"}
PLAIN = {"Accept-Encoding": "identity"}  # a few compressed kilobytes can be gigabytes
MAX_BODY = 8 * 2**20  # bytes of an answer, unless the caller expects more
MAX_READ = 4 * 2**20  # bytes of one that a library reads, unpacked: litellm searches the text of what it cannot read


class Unreachable(Exception):
    """No whole answer came back: refused, disconnected, cut short, or not HTTP. The message says what happened, in one line."""


class Unusable(Exception):
    """An answer that is not read: too large, or compressed. Or a request that cannot be sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """A whole answer: `Response(status=200, body=b"{}")`."""

    status: int
    body: bytes
    retry_after: float | None = None  # seconds


class Connections:
    """As many connections to `url` as there are requests in flight; opened at the first one, on the loop that it runs on."""

    def __init__(self, url: str, *, connect_seconds: float | None = None, proxies: bool = False) -> None:
        """`url` has no slash at its end. Reading has no deadline: the caller has one for the whole call.

        `proxies`: whether those of the environment are heeded; never for a server of one's own.
        """
        self._url = url
        self._connect_seconds = connect_seconds
        self._proxies = proxies
        self._opened: aiohttp.ClientSession | None = None

    async def post(self, path: str, body: bytes, headers: Mapping[str, str], *, max_bytes: int = MAX_BODY) -> Response:
        """Send a JSON body. Raises Unreachable, and Unusable for an answer of more than `max_bytes`."""
        return await self._request("POST", path, body, {**JSON, **headers}, max_bytes)

    async def get(self, path: str) -> Response:
        """Raises Unreachable, and Unusable for an answer that is too large."""
        return await self._request("GET", path, None, {}, MAX_BODY)

    async def aclose(self) -> None:
        """Close all connections; safe to call twice."""
        if self._opened is not None:
            await self._opened.close()
            self._opened = None

    async def _request(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], most: int) -> Response:
        import aiohttp

        if not all(value.isascii() and value.isprintable() for value in headers.values()):
            raise Unusable("the key has characters that no HTTP header can have")
        try:
            # A redirect is not followed: a policy server has no reason to send one, and a login page has.
            async with self._session().request(
                method, f"{self._url}{path}", data=body, headers={**PLAIN, **headers}, allow_redirects=False
            ) as response:
                return Response(
                    status=response.status,
                    body=await _read(response, most),
                    retry_after=retry_after(response.headers.get("Retry-After")),
                )
        except (aiohttp.ClientError, OSError) as error:
            raise Unreachable(" ".join(str(error).split()) or type(error).__name__) from None

    def _session(self) -> aiohttp.ClientSession:
        import aiohttp

        if self._opened is None:
            self._opened = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_SECONDS),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._connect_seconds),
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=self._proxies,
                auto_decompress=False,
            )
        return self._opened


async def _read(response: aiohttp.ClientResponse, most: int) -> bytes:
    """The body, of which no more than `most` bytes are ever held. Raises Unusable for more."""
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        response.close()  # what it would have sent is not read
        raise Unusable("the server sent a compressed answer, which nobody asked for")
    parts, size = list[bytes](), 0
    async for part in response.content.iter_any():
        parts.append(part)
        size += len(part)
        if size > most:
            response.close()
            raise too_long(most)
    return b"".join(parts)


def too_long(most: int) -> Unusable:
    """What is raised for an answer of more than `most` bytes."""
    return Unusable(f"the server sent an answer of more than {most / 2**20:.0f} MiB")


def post(url: str, body: bytes, headers: Mapping[str, str], *, seconds: float, max_bytes: int = MAX_BODY) -> Response:
    """Send a JSON body from a thread and wait. Raises TimeoutError, Unreachable, Unusable.

    One event loop in a thread of its own serves all threads of the process, so that they share connections.
    """

    async def within() -> Response:
        async with asyncio.timeout(seconds):
            connections = _threads.connections.setdefault(url, Connections(url))
            return await connections.post("", body, headers, max_bytes=max_bytes)

    return asyncio.run_coroutine_threadsafe(within(), _threads.loop()).result()


class _Threads:
    """The event loop of all threads, and the connections on it, by URL; both from the first request to the end of the process."""

    def __init__(self) -> None:
        self._lock, self._loop = threading.Lock(), None
        self.connections: dict[str, Connections] = {}

    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop, which runs."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="HTTP of threads", daemon=True).start()
                atexit.register(self._close, self._loop)
            return self._loop

    def _close(self, loop: asyncio.AbstractEventLoop) -> None:
        async def close() -> None:
            await asyncio.gather(*(each.aclose() for each in self.connections.values()))

        with suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(close(), loop).result(CLOSE_SECONDS)


_threads = _Threads()


@functools.cache
def limit_httpx() -> None:
    """From now on no client of httpx in this process holds more of an answer than MAX_READ: reading it whole raises Unusable.

    What is read in pieces, a download, has no limit.
    """
    import httpx

    def read(self: Any) -> bytes:
        if not hasattr(self, "_content"):
            self._content = b"".join(_bounded(self.iter_bytes()))
        return self._content

    async def aread(self: Any) -> bytes:
        if not hasattr(self, "_content"):
            self._content = b"".join([part async for part in _abounded(self.aiter_bytes())])
        return self._content

    httpx.Response.read, httpx.Response.aread = read, aread


def unusable(error: BaseException | None) -> Unusable | None:
    """The Unusable from which a library's own error came, if any."""
    while error is not None and not isinstance(error, Unusable):
        error = error.__cause__ or error.__context__
    return error


def _bounded(parts: Iterable[bytes]) -> Iterable[bytes]:
    size = 0
    for part in parts:
        if (size := size + len(part)) > MAX_READ:
            raise too_long(MAX_READ)
        yield part


async def _abounded(parts: AsyncIterable[bytes]) -> AsyncIterable[bytes]:
    size = 0
    async for part in parts:
        if (size := size + len(part)) > MAX_READ:
            raise too_long(MAX_READ)
        yield part
