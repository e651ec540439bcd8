"""HTTP to the server of a policy: connections that are kept, and answers of bounded size.

The one client of the package is aiohttp: 0.1 ms a call, where litellm's takes 6 to 14.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from tau2rl.errors import PolicyFailure
from tau2rl.policy.retry import shorten
from tau2rl.rate_limit import retry_after

if TYPE_CHECKING:
    import aiohttp

IDLE_SECONDS = 4.0  # servers drop an idle connection after 5 s
JSON = {"Content-Type": "application/json"}
PLAIN = {"Accept-Encoding": "identity"}  # a few compressed kilobytes can be gigabytes
MAX_BODY = 8 * 2**20  # bytes of an answer, unless the caller expects more


class Unreachable(Exception):
    """No whole answer came back: refused, disconnected, cut short, or not HTTP. The message says what happened, in one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """A whole answer: `Response(status=200, body=b"{}")`."""

    status: int
    body: bytes
    retry_after: float | None = None  # seconds


class Connections:
    """As many connections to `url` as there are requests in flight; opened at the first one, on the loop that it runs on."""

    def __init__(self, url: str, *, connect_seconds: float, proxies: bool = False) -> None:
        """`url` has no slash at its end. Reading has no deadline: the caller has one for the whole call.

        `proxies`: whether those of the environment are heeded; never for a server of one's own.
        """
        self._url = url
        self._connect_seconds = connect_seconds
        self._proxies = proxies
        self._opened: aiohttp.ClientSession | None = None

    async def post(self, path: str, body: bytes, headers: Mapping[str, str], *, max_bytes: int = MAX_BODY) -> Response:
        """Send a JSON body. Raises Unreachable, and PolicyFailure for an answer of more than `max_bytes`."""
        return await self._request("POST", path, body, {**JSON, **headers}, max_bytes)

    async def get(self, path: str) -> Response:
        """Raises Unreachable, and PolicyFailure for an answer that is too large."""
        return await self._request("GET", path, None, {}, MAX_BODY)

    async def aclose(self) -> None:
        """Close all connections; safe to call twice."""
        if self._opened is not None:
            await self._opened.close()
            self._opened = None

    async def _request(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], most: int) -> Response:
        import aiohttp

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
    """The body, of which no more than `most` bytes are ever held. Raises PolicyFailure for more."""
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        response.close()  # what it would have sent is not read
        raise PolicyFailure("the server sent a compressed answer, which nobody asked for")
    parts, size = list[bytes](), 0
    async for part in response.content.iter_any():
        parts.append(part)
        size += len(part)
        if size > most:
            response.close()
            raise PolicyFailure(f"the server sent an answer of more than {most / 2**20:.0f} MiB")
    return b"".join(parts)


def read_json(body: bytes) -> Any:
    """The JSON value of a response body. Raises PolicyFailure for anything else (HTML, a body cut short, ...)."""
    try:
        return orjson.loads(body)
    except ValueError:
        raise PolicyFailure(f"the server sent something that is not JSON: `{shorten(body)}`") from None
