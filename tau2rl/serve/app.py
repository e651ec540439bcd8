"""The HTTP around the choice: keys, limits, errors in OpenAI's form, the final answer as a stream.

Nothing is streamed before the choice is made, so that every failure still has a status of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tau2rl.errors import UserError
from tau2rl.serve.candidates import MessagePolicy
from tau2rl.serve.requests import ChatRequest, Refusal, Reply, completion, events, read_request

MOST_BODY_SECONDS = 30.0  # until a body is there
IDLE_SECONDS = 5  # until an idle connection is closed
PRIVATE = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


class Answers(Protocol):
    """`Turns` or `Conversations`."""

    mode: str

    @property
    def left(self) -> int:
        """Answers that are worked on although no request waits for them."""
        ...

    async def answer(self, request: ChatRequest) -> Reply:
        """Raises Refusal."""
        ...

    async def aclose(self) -> None:
        """Give up what is worked on."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one client cannot exceed: `Limits(body_bytes=4 * 2**20, at_once=16, seconds=300.0)`."""

    body_bytes: int
    at_once: int  # requests that are worked on, those without a client among them; a further one is refused and may come again
    seconds: float  # that a request may take


class Endpoint:
    """The requests of one served model."""

    def __init__(self, answers: Answers, *, model: str, key: str, limits: Limits) -> None:
        self._answers, self._model, self._limits = answers, model, limits
        self._key = hashlib.sha256(key.encode()).digest()
        self._busy = 0

    async def health(self, request: Request) -> Response:
        """That this process answers; it asks the policy server nothing and needs no key."""
        return JSONResponse({"status": "ok", "mode": self._answers.mode}, headers=PRIVATE)

    async def models(self, request: Request) -> Response:
        """The one model."""
        self._let_in(request)
        return JSONResponse({"object": "list", "data": [self._card()]}, headers=PRIVATE)

    async def model(self, request: Request) -> Response:
        """The one model by its name."""
        self._let_in(request)
        if (name := request.path_params["name"]) != self._model:
            raise Refusal(404, f"the model `{name[:256]}` does not exist", code="model_not_found", param="model")
        return JSONResponse(self._card(), headers=PRIVATE)

    async def chat(self, request: Request) -> Response:
        """One chat completion, plain or as a stream."""
        self._let_in(request)
        if (busy := self._busy + self._answers.left) >= self._limits.at_once:
            raise Refusal(429, f"{busy} requests are worked on, which is the limit; ask again", code="too_many_requests")
        self._busy += 1
        try:
            asked = read_request(await self._body(request), model=self._model)
            async with asyncio.timeout(self._limits.seconds):
                reply = await _unless_gone(request, self._answers.answer(asked))
        except TimeoutError:
            raise Refusal(504, f"no answer within {self._limits.seconds:g} s", code="timeout") from None
        finally:
            self._busy -= 1
        if asked.stream:
            lines = events(reply, model=self._model, include_usage=asked.include_usage)
            return StreamingResponse(lines, media_type="text/event-stream", headers=PRIVATE)
        return JSONResponse(completion(reply, model=self._model), headers=PRIVATE)

    def _let_in(self, request: Request) -> None:
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        digest = hashlib.sha256(given.strip().encode("utf-8", "surrogateescape")).digest()
        if not secrets.compare_digest(digest, self._key) or kind.lower() != "bearer":
            raise Refusal(401, "no such key: send it as `Authorization: Bearer KEY`", code="invalid_api_key")

    async def _body(self, request: Request) -> bytes:
        """Raises Refusal for one that is too large or too slow; no more than the limit is ever held."""
        parts, size = list[bytes](), 0
        try:
            async with asyncio.timeout(min(MOST_BODY_SECONDS, self._limits.seconds)):
                async for part in request.stream():
                    size += len(part)
                    if size > self._limits.body_bytes:
                        most = f"{self._limits.body_bytes / 2**20:g} MiB"
                        raise Refusal(413, f"the body is larger than {most}", code="request_too_large")
                    parts.append(part)
        except TimeoutError:
            raise Refusal(408, "the body did not come in time", code="timeout") from None
        return b"".join(parts)

    def _card(self) -> dict[str, Any]:
        return {"id": self._model, "object": "model", "created": 0, "owned_by": "tau2rl"}


async def _unless_gone(request: Request, answer: Coroutine[Any, Any, Reply]) -> Reply:
    """The answer, which is given up when its client goes. Raises ClientDisconnect."""
    working, gone = asyncio.ensure_future(answer), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        gone.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def make_app(answers: Answers, policy: MessagePolicy, *, model: str, key: str, limits: Limits) -> Starlette:
    """The ASGI application; at its end it gives up what is worked on, then closes the policy."""
    endpoint = Endpoint(answers, model=model, key=key, limits=limits)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None]:
        await policy.open()
        yield
        await answers.aclose()
        await policy.aclose()

    routes = [
        Route("/health", endpoint.health),
        Route("/v1/models", endpoint.models),
        Route("/v1/models/{name:path}", endpoint.model),
        Route("/v1/chat/completions", endpoint.chat, methods=["POST"]),
    ]
    handlers: dict[Any, Callable[[Request, Any], Awaitable[Response]]] = {
        Refusal: _refused, HTTPException: _of_http, ClientDisconnect: _gone, Exception: _broken,
    }  # fmt: skip
    return Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers)


async def _refused(request: Request, refusal: Refusal) -> Response:
    headers = dict(PRIVATE)
    if refusal.status in (429, 503):
        headers["Retry-After"] = "1"
    if refusal.status == 409:
        headers["x-should-retry"] = "false"  # the openai client would ask again
    if refusal.status in (408, 413):
        headers["Connection"] = "close"  # the rest of the body is not read
    return JSONResponse(refusal.payload(), status_code=refusal.status, headers=headers)


async def _of_http(request: Request, error: HTTPException) -> Response:
    return await _refused(request, Refusal(error.status_code, str(error.detail)))


async def _gone(request: Request, error: ClientDisconnect) -> Response:
    return Response(status_code=499)  # nobody reads it


async def _broken(request: Request, error: Exception) -> Response:
    """A bug: the client learns that there is one, the log where."""
    return await _refused(request, Refusal(500, "an error of this server", code="internal_error"))


def serve(app: Starlette, policy: MessagePolicy, *, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve until interrupted; `ready` is told the address. Port 0: a free one. Raises UserError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise UserError(
                f"cannot listen on {host}:{port}: {error.strerror}", hint="choose another `--host` or `--port`"
            ) from None
        listener.listen(128)
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, timeout_keep_alive=IDLE_SECONDS, ws="none"
        )
        shown = f"[{host}]" if ":" in host else host

        async def run() -> None:
            await policy.open()  # here, where what speaks against it is told as any refusal
            ready(f"http://{shown}:{listener.getsockname()[1]}/v1")
            await uvicorn.Server(config).serve(sockets=[listener])

        asyncio.run(run())
