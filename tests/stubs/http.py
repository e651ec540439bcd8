"""An HTTP/1.1 server for tests: asyncio in a background thread, a free port of 127.0.0.1, and the ways in which servers fail.

Nothing but the core's own libraries, so that a test which stubs a server needs no extra. A stub subclasses `StubServer` and
answers `reply`. `mode` names the behaviour of every request to a path in `main_paths`; a list of modes is used up one a
request, and its last one stays:

    with SGLangStub(answer=..., mode=["429", "ok"]) as server: ...

Modes of every stub: `ok`, `dead` (nothing listens), `hang` (accepts and never answers), `held` (answers all behind `release()`),
`drip` (a byte a second),
`disconnect`, `html`, `truncated` (half of the JSON), `cut` (fewer bytes than promised), `not_object`, `huge` (100 MB),
`endless` (chunks without an end), `gzip_bomb` (a megabyte that is a gigabyte), and any three-digit HTTP status.
"""

from __future__ import annotations

import asyncio
import gzip
import itertools
import json
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import orjson

HTML = b"<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>"
MODES = (
    "ok", "dead", "hang", "held", "drip", "disconnect", "html", "truncated", "cut", "not_object", "huge", "endless", "gzip_bomb",
)  # fmt: skip
BLOCK = b" " * 2**16  # of a body that is too large
HUGE_BYTES = 100 * 10**6


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request as it came: `Request(method="POST", path="/generate", headers={...}, body={...})`."""

    method: str
    path: str
    headers: dict[str, str]  # names in lower case
    body: Any  # decoded JSON; None when there is none


@dataclass(frozen=True, kw_only=True)
class Response:
    """What to answer: `Response(payload={"ok": True})`."""

    status: int = 200
    payload: Any = None
    raw: bytes | None = None  # instead of the payload
    content_type: str = "application/json"  # empty: the answer has none
    headers: dict[str, str] = field(default_factory=dict[str, str])  # besides those of every answer

    def encode(self) -> bytes:
        return json.dumps(self.payload).encode() if self.raw is None else self.raw


@dataclass
class Traffic:
    """What a stub has seen; read it from the test's own thread whenever you like."""

    requests: list[Request] = field(default_factory=list[Request])  # of `main_paths`
    others: list[Request] = field(default_factory=list[Request])
    in_flight: int = 0
    max_in_flight: int = 0


class StubServer:
    """Runs from `with` to the end of its block."""

    main_paths: tuple[str, ...] = ()
    modes: tuple[str, ...] = MODES

    def __init__(self, *, mode: str | Sequence[str] = "ok", latency: float | Callable[[], float] = 0.0) -> None:
        """`latency` is the seconds before each answer, or a function that draws them."""
        self.latency = latency
        self.traffic = Traffic()
        self.port = 0
        self.set_mode(mode)
        self._released = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True, name=type(self).__name__)
        self._started = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def requests(self) -> list[Request]:
        """The requests to `main_paths`, in order of arrival."""
        return self.traffic.requests

    @property
    def max_in_flight(self) -> int:
        """The most requests to `main_paths` that were being answered at one moment."""
        return self.traffic.max_in_flight

    def set_mode(self, mode: str | Sequence[str]) -> None:
        """Change the behaviour from the next request on."""
        queue = [mode] if isinstance(mode, str) else list(mode)
        unknown = [name for name in queue if name not in self.modes and not (name.isdigit() and len(name) == 3)]
        if unknown or not queue:
            raise ValueError(f"{type(self).__name__} has no mode {unknown}; it has {self.modes} and HTTP statuses")
        self._queue = queue

    def release(self) -> None:
        """Answer what is `held`, now and from now on."""
        self._loop.call_soon_threadsafe(self._released.set)

    def __enter__(self) -> Any:
        if self._queue == ["dead"]:  # a port that was free a moment ago refuses connections
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                self.port = probe.getsockname()[1]
        else:
            self._thread.start()
            self._started.wait()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        self._loop.close()

    def die(self) -> None:
        """Stop listening and drop every connection, as a killed server does; the port stays known."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    async def reply(self, request: Request, mode: str) -> Response:
        """The answer to a request, after the latency. `mode` is `ok` or one of the stub's own."""
        raise NotImplementedError

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._connected, "127.0.0.1", 0, limit=2**20))
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        self._loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def ended(task: asyncio.Task[None]) -> None:
            # A task that is cancelled before its first step has closed nothing, and its client would wait for ever.
            error = None if task.cancelled() else task.exception()
            if task.cancelled() or error is not None:
                writer.transport.abort()
            if error is not None:
                self._loop.call_exception_handler({"message": f"a bug of {type(self).__name__}", "exception": error})

        self._loop.create_task(self._serve(reader, writer)).add_done_callback(ended)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, kept alive over its requests."""
        # A client that leaves in the middle is the business of many tests, and no error of the stub.
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while await self._exchange(reader, writer):
                pass
        with suppress(ConnectionError):
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        request = await _read(reader)
        if request.path not in self.main_paths:
            self.traffic.others.append(request)
            return await self._write(writer, await self.reply(request, "ok"), "ok")
        mode = self._queue.pop(0) if len(self._queue) > 1 else self._queue[0]
        traffic = self.traffic
        traffic.requests.append(request)
        traffic.in_flight += 1
        traffic.max_in_flight = max(traffic.max_in_flight, traffic.in_flight)
        try:
            return await self._perform(request, mode, reader, writer)
        finally:
            traffic.in_flight -= 1

    async def _perform(self, request: Request, mode: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        if mode in ("disconnect", "dead"):
            return False
        if mode == "hang":
            await reader.read()  # until the client gives up
            return False
        if mode == "held":
            await self._released.wait()
        await asyncio.sleep(self.latency() if callable(self.latency) else self.latency)
        if mode in ("huge", "endless", "gzip_bomb"):
            return await _flood(writer, mode)
        if mode == "html":
            return await self._write(writer, Response(raw=HTML, content_type="text/html"), mode)
        if mode == "not_object":
            return await self._write(writer, Response(payload=[1, 2, 3]), mode)
        if mode.isdigit():
            return await self._write(
                writer, Response(status=int(mode), payload={"error": {"message": f"stub says {mode}"}}), mode
            )
        return await self._write(writer, await self.reply(request, "ok" if mode in MODES else mode), mode)

    async def _write(self, writer: asyncio.StreamWriter, response: Response, mode: str) -> bool:
        """Send; whether the connection can be used again."""
        body = response.encode()
        promised = len(body)
        if mode == "truncated":
            body, promised = body[: len(body) // 2], len(body) // 2
        elif mode == "cut":
            body = body[: len(body) // 2]
        kind = {"Content-Type": response.content_type} if response.content_type else {}
        fields = {**kind, "Content-Length": str(promised), **response.headers}
        head = f"HTTP/1.1 {response.status} X\r\n" + "".join(f"{k}: {v}\r\n" for k, v in fields.items()) + "\r\n"
        if mode == "drip":
            for byte in head.encode() + body:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(1.0)
            return True
        writer.write(head.encode() + body)
        await writer.drain()
        return mode != "cut"


async def _flood(writer: asyncio.StreamWriter, mode: str) -> bool:
    """Send a body that is too large, for as long as the client takes it, without ever holding it here."""
    kind = {
        "huge": f"Content-Length: {HUGE_BYTES // len(BLOCK) * len(BLOCK)}",
        "endless": "Transfer-Encoding: chunked",
        "gzip_bomb": "Content-Encoding: gzip\r\nTransfer-Encoding: chunked",
    }[mode]
    writer.write(f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n{kind}\r\n\r\n".encode())
    block = gzip.compress(BLOCK * 160) if mode == "gzip_bomb" else BLOCK  # 10 MB in 10 kB; members follow each other
    many = {"huge": HUGE_BYTES // len(BLOCK), "gzip_bomb": 100}.get(mode)
    for _ in itertools.count() if many is None else range(many):
        writer.write(block if mode == "huge" else b"%x\r\n%b\r\n" % (len(block), block))
        await writer.drain()
    if mode == "gzip_bomb":
        writer.write(b"0\r\n\r\n")
        await writer.drain()
    return True


async def _read(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.rstrip().split("\r\n")
    if first.startswith("PRI "):  # of HTTP/2, with which a router tries whether it is spoken here
        raise ConnectionError(first)
    method, path, _ = first.split(" ", 2)
    pairs = (line.partition(":") for line in lines)
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    length = int(headers.get("content-length", 0))
    data = await reader.readexactly(length) if length else b""
    return Request(method=method, path=path.partition("?")[0], headers=headers, body=orjson.loads(data) if data else None)
