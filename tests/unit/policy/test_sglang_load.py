"""What servers say of their load, pinned here:

- an engine says it at `/v1/loads`, summed over its ranks, an older one at `/get_load`; afterwards one request a poll;
- behind a router the engines are asked, whichever it lists now, and are one;
- a server that says nothing, or something else, is not asked again; one that fell silent later is asked again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest

from tau2rl.policy.sglang_load import LoadReader, ServerLoad
from tests.stubs.http import Request, Response, StubServer

T = TypeVar("T")


class Says(StubServer):
    """Answers GET requests with what stands there, and 404 to all others."""

    main_paths = ("/v1/loads", "/get_load", "/workers", "/list_workers")

    def __init__(self, **said: Any) -> None:
        super().__init__()
        self.said = {"/" + name.replace("__", "/"): value for name, value in said.items()}

    async def reply(self, request: Request, mode: str) -> Response:
        if request.path not in self.said:
            return Response(status=404, payload={"detail": "Not Found"})
        return Response(payload=self.said[request.path])

    @property
    def paths(self) -> list[str]:
        return [request.path for request in self.requests]


def rank(running: int, waiting: int, usage: float) -> dict[str, Any]:
    return {"dp_rank": 0, "num_running_reqs": running, "num_waiting_reqs": waiting, "token_usage": usage, "gen_throughput": 9.5}


def engine(*ranks: dict[str, Any]) -> Says:
    return Says(v1__loads={"timestamp": "2026-01-01T00:00:00+00:00", "version": "0.5.15", "loads": list(ranks)})


def router(*engines: str, old: bool = False) -> Says:
    if old:
        return Says(list_workers={"urls": list(engines)})
    listed = [{"id": str(i), "url": url, "is_healthy": True} for i, url in enumerate(engines)]
    return Says(v1__loads={"loads": [{"worker": url, "load": 900} for url in engines]}, workers={"workers": listed, "total": 1})


def reading(use: Callable[[LoadReader], Awaitable[T]], url: str | None) -> T:
    async def inside() -> T:
        async with LoadReader(url) as reader:
            return await use(reader)

    return asyncio.run(inside())


async def once(reader: LoadReader) -> ServerLoad | None:
    return await reader.read()


async def thrice(reader: LoadReader) -> ServerLoad | None:
    await reader.read()
    await reader.read()
    return await reader.read()


def test_an_engine_says_it_in_one_request() -> None:
    with engine(rank(8, 2, 0.5), rank(4, 1, 0.75)) as server:
        assert reading(thrice, server.url) == ServerLoad(engines=1, running=12, waiting=3, memory=0.625)
    assert server.paths == ["/v1/loads"] * 3


def test_an_older_engine_says_a_part_of_it() -> None:
    with Says(get_load=[{"dp_rank": 0, "num_reqs": 10, "num_waiting_reqs": 3, "num_tokens": 500}]) as server:
        assert reading(once, server.url) == ServerLoad(engines=1, running=7, waiting=3, memory=0.0)


@pytest.mark.parametrize("old", [False, True])
def test_behind_a_router_the_engines_are_asked(old: bool) -> None:
    with engine(rank(8, 2, 0.5)) as a, engine(rank(4, 0, 0.25)) as b, router(f"{a.url}@0", f"{a.url}@1", b.url, old=old) as front:
        assert reading(once, front.url) == ServerLoad(engines=2, running=12, waiting=2, memory=0.375)


def test_an_engine_that_came_to_the_router_later_is_asked_too() -> None:
    with engine(rank(8, 2, 0.5)) as a, engine(rank(4, 0, 0.5)) as b, router(a.url) as front:

        async def later(reader: LoadReader) -> ServerLoad | None:
            await reader.read()
            front.said["/workers"] = router(a.url, b.url).said["/workers"]
            return await reader.read()

        assert reading(later, front.url) == ServerLoad(engines=2, running=12, waiting=2, memory=0.5)


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"v1__loads": []},
        {"v1__loads": {"loads": "many"}},
        {"v1__loads": {"loads": [None, {"num_waiting_reqs": "two"}]}},
        {"workers": {"workers": [{"id": "1"}, 7]}},
        {"list_workers": {"urls": ["grpc://127.0.0.1:9", 3]}},
    ],
)
def test_who_says_nothing_is_not_asked_again(said: dict[str, Any]) -> None:
    with Says(**said) as server:
        assert reading(thrice, server.url) is None
    assert len(server.requests) == 4  # each path once


def test_who_fell_silent_later_is_asked_again() -> None:
    with engine(rank(8, 2, 0.5)) as server:

        async def interrupted(reader: LoadReader) -> list[bool]:
            heard = [await reader.read() is not None]
            server.set_mode("503")
            heard.append(await reader.read() is not None)
            server.set_mode("ok")
            return [*heard, await reader.read() is not None]

        assert reading(interrupted, server.url) == [True, False, True]


def test_nobody_there_says_nothing() -> None:
    with Says() as server:
        url = server.url
    assert reading(once, url) is None
    assert reading(once, None) is None
