"""A limit on answers that clients of libraries read: litellm and the SDKs under it hold whatever a server sends."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterable, Iterable
from typing import Any

MAX_BYTES = 4 * 2**20  # of an answer, unpacked: a turn has a few kilobytes, and litellm searches the text of what it cannot read


class AnswerTooLarge(Exception):
    """A server sent more than MAX_BYTES; no more was read."""

    def __init__(self) -> None:
        super().__init__(f"the server sent an answer of more than {MAX_BYTES / 2**20:.0f} MiB")


@functools.cache
def limit_httpx() -> None:
    """From now on no client of httpx in this process holds more of an answer: reading it whole raises AnswerTooLarge.

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


def too_large(error: BaseException | None) -> AnswerTooLarge | None:
    """The AnswerTooLarge from which a library's own error came, if any."""
    while error is not None and not isinstance(error, AnswerTooLarge):
        error = error.__cause__ or error.__context__
    return error


def _bounded(parts: Iterable[bytes]) -> Iterable[bytes]:
    size = 0
    for part in parts:
        if (size := size + len(part)) > MAX_BYTES:
            raise AnswerTooLarge
        yield part


async def _abounded(parts: AsyncIterable[bytes]) -> AsyncIterable[bytes]:
    size = 0
    async for part in parts:
        if (size := size + len(part)) > MAX_BYTES:
            raise AnswerTooLarge
        yield part
