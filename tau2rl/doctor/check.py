"""Two ways to ask whether somebody is there; neither waits longer than PROBE_SECONDS."""

from __future__ import annotations

import asyncio
import importlib.util
import socket
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

State = Literal["ok", "missing", "optional"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What was found: `Check(name="torch", state="optional", detail="not installed", hint="pip install torch")`."""

    name: str
    state: State  # missing: this use needs it; optional: it is not there, and this use can do without
    detail: str
    hint: str = ""


def need(name: str, there: bool, detail: str, hint: str) -> Check:
    """A check of something that the use cannot do without; the hint is for when it is not there."""
    return Check(name=name, state="ok" if there else "missing", detail=detail, hint="" if there else hint)


def importable(name: str) -> bool:
    """Whether a top-level module is there, without importing it."""
    return importlib.util.find_spec(name) is not None


PROBE_SECONDS = 2.0


def answers(url: str) -> int | None:
    """The HTTP status of a GET; None when nobody speaks HTTP there in time."""
    import httpx

    async def ask() -> int:
        loopback = httpx.URL(url).host in ("127.0.0.1", "localhost", "::1")
        # A proxy for the internet must not answer for a server of this machine.
        async with httpx.AsyncClient(trust_env=not loopback) as client, client.stream("GET", url) as reply:
            return reply.status_code

    async def ask_in_time() -> int:
        # Not httpx's own timeouts: they count from byte to byte, and a server that drips never uses them up.
        async with asyncio.timeout(PROBE_SECONDS):
            return await ask()

    try:
        _ = urlsplit(url).port  # an impossible one would come out of the event loop as a group of exceptions
        return asyncio.run(ask_in_time())
    except (TimeoutError, httpx.HTTPError, httpx.InvalidURL, ValueError):
        return None


def connects(address: str, *, default_port: int) -> bool:
    """Whether somebody accepts TCP connections at `HOST:PORT` or `SCHEME://HOST:PORT`."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        with socket.create_connection((parts.hostname or "", parts.port or default_port), timeout=PROBE_SECONDS):
            return True
    except (OSError, ValueError):  # ValueError: a port that is no number, or too large
        return False
