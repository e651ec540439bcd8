"""Blocking HTTP connections to one URL: kept alive, one deadline for a whole answer, and a limit on its size.

http.client's own timeout counts from byte to byte, so a server that drips holds it for ever.
"""

from __future__ import annotations

import functools
import http.client
import io
import socket
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

IDLE_SECONDS = 4.0  # servers drop an idle connection after 5 s
MAX_BYTES = 1 << 20  # of an answer: a user's turn has a few hundred


class NoAnswer(Exception):
    """No whole answer came back: refused, disconnected, too slow, too large, or not HTTP. The message says which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """A whole answer: `Response(status=429, body=b"{}", wait_seconds=2.0)`."""

    status: int
    body: bytes
    wait_seconds: float | None = None  # of its Retry-After

    @property
    def text(self) -> str:
        """The body, as far as it is text."""
        return self.body.decode(errors="replace")


class Connections:
    """As many connections to `url` as there are requests at one time; safe from any thread."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        secure = parts.scheme == "https"
        self._kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        self._host, self._port, self._path = parts.hostname or "", parts.port, parts.path
        self._idle = _idle.setdefault((secure, self._host, self._port), [])

    def post(self, body: bytes, headers: Mapping[str, str], *, seconds: float) -> Response:
        """The answer to a POST of `body`. Raises NoAnswer."""
        deadline = time.monotonic() + seconds
        try:
            if kept := self._kept():
                try:
                    return self._exchange(kept, body, headers, deadline)
                except ConnectionError:  # the server had closed it: that says nothing about the request
                    kept.close()
            return self._exchange(self._connect(deadline), body, headers, deadline)
        except TimeoutError:
            raise NoAnswer(f"no answer within {seconds:g} s") from None
        except (OSError, http.client.HTTPException) as error:
            raise NoAnswer(f"{type(error).__name__}: {error}") from None
        except ValueError:  # http.client's message has the header in it
            raise NoAnswer("the key has characters that no HTTP header can have") from None

    def _kept(self) -> http.client.HTTPConnection | None:
        now = time.monotonic()
        while self._idle:
            try:
                since, connection = self._idle.pop()
            except IndexError:  # another thread was faster
                return None
            if now - since < IDLE_SECONDS:
                return connection
            connection.close()
        return None

    def _connect(self, deadline: float) -> http.client.HTTPConnection:
        connection = self._kind(self._host, self._port, timeout=_left(deadline))
        connection.connect()
        return connection

    def _exchange(
        self, connection: http.client.HTTPConnection, body: bytes, headers: Mapping[str, str], deadline: float
    ) -> Response:
        assert connection.sock is not None
        connection.sock.settimeout(_left(deadline))  # for all that is sent
        connection.response_class = functools.partial(_TimedResponse, deadline=deadline)  # pyright: ignore[reportAttributeAccessIssue] - it is only called
        try:
            connection.request("POST", self._path, body, dict(headers))
            with closing(connection.getresponse()) as response:
                data = response.read(MAX_BYTES + 1)
                whole = response.isclosed()
        except BaseException:
            connection.close()
            raise
        if whole and connection.sock is not None:
            self._idle.append((time.monotonic(), connection))
        else:
            connection.close()
        if len(data) > MAX_BYTES:
            raise NoAnswer(f"the answer has more than {MAX_BYTES} bytes")
        return Response(status=response.status, body=data, wait_seconds=_seconds(response.headers.get("Retry-After")))


# One list a server, for all simulations of the process: an episode has its connection from the one before it.
_idle: dict[tuple[bool, str, int | None], list[tuple[float, http.client.HTTPConnection]]] = {}


class _TimedResponse(http.client.HTTPResponse):
    """A response whose every read ends at the deadline."""

    def __init__(self, sock: socket.socket, *arguments: Any, deadline: float, **named: Any) -> None:
        super().__init__(sock, *arguments, **named)
        self.fp = io.BufferedReader(_TimedReader(self.fp.detach(), sock, deadline))


class _TimedReader(io.RawIOBase):
    def __init__(self, raw: io.RawIOBase, sock: socket.socket, deadline: float) -> None:
        self._raw, self._socket, self._deadline = raw, sock, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._socket.settimeout(_left(self._deadline))
        return self._raw.readinto(buffer)

    def close(self) -> None:
        super().close()
        self._raw.close()


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _seconds(text: str | None) -> float | None:
    """Retry-After in seconds; a date is rare, and a moment of our own will do for it."""
    try:
        return max(0.0, float(text or ""))
    except ValueError:
        return None
