"""What an SGLang server says of its load.

An engine tells it at `/v1/loads?include=core` (that of SGLang 0.5.15 does; older ones a part of it at `/get_load`). A router
(sgl-router, sgl-model-gateway) has no queue of its own and adds up only tokens, so the engines behind it are asked: it lists
them at `/workers`, or at `/list_workers`. Read in sglang `srt/entrypoints/v1_loads.py`, `srt/managers/scheduler_components/
load_inquirer.py` and sgl-model-gateway `src/server.rs`, `src/core/worker_service.rs`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import orjson

from tau2rl.http_client import Connections, Unreachable, Unusable

if TYPE_CHECKING:
    from typing import Self

LOADS, OLD_LOADS = "/v1/loads?include=core", "/get_load"
WORKERS, OLD_WORKERS = "/workers", "/list_workers"
RANK = re.compile(r"@\d+$")  # a router that knows the data-parallel ranks of an engine lists each as URL@RANK
READ_SECONDS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLoad:
    """Of one engine, or of several together: `ServerLoad(engines=8, running=240, waiting=3, memory=0.71)`."""

    engines: int
    running: int  # requests that are worked on
    waiting: int  # requests in the queue
    memory: float  # share of the KV memory that the running ones hold; contexts that are only cached do not count


class LoadReader:
    """Asks the server of a policy what it has to do.

        async with LoadReader("http://127.0.0.1:30000") as reader:
            load = await reader.read()

    The first `read` finds out how. A server that cannot say it then is not asked later.
    """

    def __init__(self, url: str | None) -> None:
        """The base URL of an engine or a router; None: there is nobody to ask."""
        self._url = url.rstrip("/") if url else None
        self._http: dict[str, Connections] = {}
        self._path: str | None = None  # where the server says it

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close its connections; safe to call twice."""
        for connections in self._http.values():
            await connections.aclose()

    async def read(self) -> ServerLoad | None:
        """The load, or that of all engines that answer within two seconds; None when nobody does, or nobody could at first."""
        if self._url is None:
            return None
        if self._path is not None:
            return await self._read(self._url, self._path)
        for path in (LOADS, WORKERS, OLD_WORKERS, OLD_LOADS):  # a router has something else at the first and the last
            load = await self._read(self._url, path)
            if load is not None:
                self._path = path
                return load
        self._url = None
        return None

    async def _read(self, url: str, path: str) -> ServerLoad | None:
        answer = await self._get(url, path)
        if path in (LOADS, OLD_LOADS):
            return read_load(answer)
        # Asked for again each time: engines come and go behind a router.
        engines = worker_urls(answer)
        read = await asyncio.gather(*(self._engine(engine) for engine in engines))
        return together([load for load in read if load is not None])

    async def _engine(self, url: str) -> ServerLoad | None:
        load = read_load(await self._get(url, LOADS))
        return load if load is not None else read_load(await self._get(url, OLD_LOADS))

    async def _get(self, url: str, path: str) -> Any:
        """The JSON there; None when there is none."""
        if url not in self._http:
            self._http[url] = Connections(url, connect_seconds=READ_SECONDS)
        with suppress(Unreachable, Unusable, TimeoutError, ValueError):
            async with asyncio.timeout(READ_SECONDS):
                response = await self._http[url].get(path)
            if response.status == 200:
                return orjson.loads(response.body)
        return None


def read_load(answer: Any) -> ServerLoad | None:
    """The load in the answer of an engine, over its data-parallel ranks; None when it is something else.

    >>> read_load({"loads": [{"num_running_reqs": 8, "num_waiting_reqs": 2, "token_usage": 0.5}]})
    ServerLoad(engines=1, running=8, waiting=2, memory=0.5)
    >>> read_load([{"dp_rank": 0, "num_reqs": 10, "num_waiting_reqs": 2, "num_tokens": 900}])
    ServerLoad(engines=1, running=8, waiting=2, memory=0.0)
    """
    listed = cast("Mapping[str, Any]", answer).get("loads") if isinstance(answer, Mapping) else answer
    ranks: list[Mapping[str, Any]] = [
        cast("Mapping[str, Any]", rank)
        for rank in (cast("list[Any]", listed) if isinstance(listed, list) else [])
        if isinstance(rank, Mapping) and isinstance(cast("Mapping[str, Any]", rank).get("num_waiting_reqs"), int)
    ]
    if not ranks:
        return None
    waiting = sum(_number(rank, "num_waiting_reqs") for rank in ranks)
    running = sum(
        _number(rank, "num_running_reqs") or max(0, _number(rank, "num_reqs") - _number(rank, "num_waiting_reqs"))
        for rank in ranks
    )
    memory = sum(_number(rank, "token_usage") for rank in ranks) / len(ranks)
    return ServerLoad(engines=1, running=int(running), waiting=int(waiting), memory=memory)


def worker_urls(answer: Any) -> list[str]:
    """The engines that a router lists, each once; those that it reaches by gRPC cannot be asked.

    >>> worker_urls({"workers": [{"id": "1", "url": "http://a:1@0"}, {"id": "2", "url": "http://a:1@1"}]})
    ['http://a:1']
    >>> worker_urls({"urls": ["http://a:1/", "grpc://b:2"]})
    ['http://a:1']
    """
    if not isinstance(answer, Mapping):
        return []
    fields = cast("Mapping[str, Any]", answer)
    urls: list[Any] = []
    if isinstance(fields.get("workers"), list):
        urls = [cast("Mapping[str, Any]", w).get("url") for w in fields["workers"] if isinstance(w, Mapping)]
    elif isinstance(fields.get("urls"), list):
        urls = fields["urls"]
    named = [RANK.sub("", url).rstrip("/") for url in urls if isinstance(url, str) and url.startswith("http")]
    return list(dict.fromkeys(named))


def together(loads: Sequence[ServerLoad]) -> ServerLoad | None:
    """The load of several servers; None for none."""
    if not loads:
        return None
    engines = sum(load.engines for load in loads)
    return ServerLoad(
        engines=engines,
        running=sum(load.running for load in loads),
        waiting=sum(load.waiting for load in loads),
        memory=sum(load.memory * load.engines for load in loads) / engines,
    )


def _number(fields: Mapping[str, Any], name: str) -> float:
    value = fields.get(name)
    return value if isinstance(value, int | float) else 0
