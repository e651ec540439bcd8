"""Two ways to ask whether somebody is there; neither waits longer than PROBE_SECONDS."""

from __future__ import annotations

import asyncio
import importlib.util
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from tau2rl.settings import LOOPBACK

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


def answers(url: str, *, headers: Mapping[str, str] | None = None, seconds: float | None = None) -> int | None:
    """The HTTP status of a GET; None when nobody speaks HTTP there within `seconds`, by default PROBE_SECONDS."""
    import aiohttp

    async def ask() -> int:
        # In all: aiohttp's own timeouts count from byte to byte where they are not `total`, and a server that drips goes on.
        timeout = aiohttp.ClientTimeout(total=PROBE_SECONDS if seconds is None else seconds)
        # A proxy for the internet must not answer for a server of this machine.
        async with aiohttp.ClientSession(trust_env=urlsplit(url).hostname not in LOOPBACK, timeout=timeout) as session:
            async with session.get(url, headers=headers) as reply:
                return reply.status

    try:
        _ = urlsplit(url).port  # an impossible one is a ValueError here, and something else in each library
        return asyncio.run(ask())
    except (TimeoutError, aiohttp.ClientError, ValueError):
        return None


def connects(address: str, *, default_port: int, seconds: float | None = None) -> bool:
    """Whether somebody accepts TCP connections at `HOST:PORT` or `SCHEME://HOST:PORT`."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    patience = PROBE_SECONDS if seconds is None else seconds
    try:
        with socket.create_connection((parts.hostname or "", parts.port or default_port), timeout=patience):
            return True
    except (OSError, ValueError):  # ValueError: a port that is no number, or too large
        return False
