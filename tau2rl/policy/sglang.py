"""The policy behind an SGLang server or its router: token ids in, sampled ids and their log-probabilities out."""

from __future__ import annotations

import asyncio
import copy
import functools
import logging
import string
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote, urlsplit

import orjson

from tau2rl.config import PolicyConfig
from tau2rl.errors import ContextExceeded, PolicyFailure, UserError
from tau2rl.http_client import Connections, Unreachable, Unusable
from tau2rl.policy.retry import Unavailable, complete_with_retries, failure_of, read_json
from tau2rl.policy.sglang_format import build_request, read_completion
from tau2rl.policy.sglang_load import OLD_WORKERS, WORKERS, worker_urls
from tau2rl.protocols import ChatCodec
from tau2rl.rate_limit import Throttle
from tau2rl.types import Completion

if TYPE_CHECKING:
    from typing import Self


class SGLangPolicy:
    """`protocols.Policy` over POST `{url}/generate`.

        async with SGLangPolicy(config, stop=codec.stop, stop_token_ids=codec.stop_token_ids) as policy:
            completion = await policy.complete(prompt_ids, seed=7, session="retail/17#0", max_tokens=512)

    Completions keep the stop token or string. The deadline `config.timeout_seconds` covers a whole call, its retries included. A
    call that is cancelled or runs out of time tells its server to stop sampling.
    """

    def __init__(
        self, config: PolicyConfig, *, stop: Sequence[str] = (), stop_token_ids: Sequence[int] = (), concurrency: int = 256
    ) -> None:
        """`concurrency` is the most calls in flight; more wait. Raises UserError for a bad URL."""
        self._server = Server(config.url, timeout_seconds=config.timeout_seconds)
        self._config = config
        self._sampling = config.sampling
        self._stop = tuple(stop)
        self._stop_token_ids = tuple(stop_token_ids)
        self._permits = asyncio.Semaphore(concurrency)
        self._throttle = Throttle(self._server.url)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections, after the last abort requests went out; safe to call twice."""
        await self._server.aclose()

    def greedy(self) -> Self:
        """The same policy at temperature 0, over the same connections; closing either closes both."""
        twin = copy.copy(self)
        twin._sampling = self._sampling.model_copy(update={"temperature": 0.0})
        return twin

    async def complete(self, prompt_ids: Sequence[int], *, seed: int, session: str, max_tokens: int) -> Completion:
        """Sample one turn; see `protocols.Policy`. Raises PolicyFailure."""
        limit = min(max_tokens, self._sampling.max_tokens)
        if (context := self._server.context) is not None:  # a server refuses to be asked for more than there is room for
            limit = min(limit, context - len(prompt_ids))
            if limit <= 0:
                raise ContextExceeded(f"a prompt of {len(prompt_ids)} tokens fills the {context} tokens of the server's context")
        call = functools.partial(self._ask, prompt_ids, seed=seed, session=session, max_tokens=limit)
        return await complete_with_retries(call, self._config, throttle=self._throttle, server=self._server.url)

    async def ready(self, *, context_tokens: int | None = None) -> str:
        """What answers at the URL, in a few words: `Qwen/Qwen3-4B, 32768 tokens of context`.

        Raises UserError when nothing does, it is not SGLang, or its context is shorter than `context_tokens`.
        """
        return str(await self._server.describe(timeout_seconds=READY_SECONDS, context_tokens=context_tokens))

    async def _ask(self, prompt_ids: Sequence[int], *, seed: int, session: str, max_tokens: int) -> Completion:
        """One request. A new id each time: SGLang refuses an id that it still works on."""
        rid = uuid.uuid4().hex
        body = build_request(
            prompt_ids,
            self._sampling,
            rid=rid,
            seed=seed,
            max_tokens=max_tokens,
            stop=self._stop,
            stop_token_ids=self._stop_token_ids,
        )
        async with self._permits:
            answer = await self._server.generate(orjson.dumps(body), rid=rid, session=session, max_tokens=max_tokens)
        return read_completion(read_json(answer), num_prompt=len(prompt_ids), max_tokens=max_tokens)


def make(config: PolicyConfig, codec: ChatCodec, *, concurrency: int) -> SGLangPolicy:
    """The policy of a config, which stops where the codec says. Raises UserError for a bad URL."""
    return SGLangPolicy(config, stop=codec.stop, stop_token_ids=codec.stop_token_ids, concurrency=concurrency)


BUSY = (502, 503, 504)
ROUTING_HEADER = "X-SMG-Routing-Key"  # the router's key of prefix-cache affinity
CONNECT_SECONDS = 10.0
ABORT_SECONDS = 2.0
READY_SECONDS = 20.0  # for the server to say what it is
ENGINE_SECONDS = 5.0  # for an engine behind a router to say that it is there
ANSWER_BYTES, TOKEN_BYTES = 2**20, 256  # of an answer, and for each token in it: id twice, log-probability, text

_URL_HINT = "`policy.url` names the server or router"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """What a server says that it serves: `Described(model="Qwen/Qwen3-4B", context=32768)`."""

    model: str
    context: int | None  # None: it does not say
    by_engine: bool = True  # and not only what a router remembers of one

    def __str__(self) -> str:
        return self.model if self.context is None else f"{self.model}, {self.context} tokens of context"


class Server:
    """The connections to one server: opened by the first call, closed by `aclose`."""

    def __init__(self, url: str, *, timeout_seconds: float) -> None:
        """`timeout_seconds` is the deadline of a whole call: reading waits for it, connecting not so long.

        Raises UserError for a bad URL.
        """
        self.url = _base_url(url)
        self._http = Connections(self.url, connect_seconds=min(CONNECT_SECONDS, timeout_seconds))
        self._aborts: set[asyncio.Task[None]] = set()
        self.context: int | None = None  # tokens; known once `describe` asked, where the server says it

    async def aclose(self) -> None:
        """Close the connections, after the last abort requests went out; safe to call twice."""
        if self._aborts:
            await asyncio.wait(self._aborts, timeout=ABORT_SECONDS)
        await self._http.aclose()

    async def generate(self, body: bytes, *, rid: str, session: str, max_tokens: int) -> bytes:
        """The answer to a request of that id, unread. A call that is cancelled tells the server to stop sampling.

        Raises Unavailable when nobody answers or the server is busy, RateLimited, and PolicyFailure when it refuses.
        """
        headers = {ROUTING_HEADER: quote(session, safe=string.punctuation)}
        try:
            most = ANSWER_BYTES + TOKEN_BYTES * max_tokens
            response = await self._http.post("/generate", body, headers, max_bytes=most)
        except asyncio.CancelledError:  # by the caller, or by the deadline
            self._abort(rid)
            raise
        except Unreachable as error:
            raise Unavailable(f"cannot reach `{self.url}`: {error}") from None
        except Unusable as error:
            raise PolicyFailure(str(error)) from None
        if response.status != 200:
            raise failure_of(response.status, response.body, server=self.url, busy=BUSY, retry_after=response.retry_after)
        return response.body

    async def describe(self, *, timeout_seconds: float, context_tokens: int | None = None) -> Described:
        """What answers at the URL.

        Raises UserError when nothing does, it is not SGLang, or its context is shorter than `context_tokens`.
        """
        try:
            async with asyncio.timeout(timeout_seconds):
                found = await self._described()
        except (PolicyFailure, Unusable) as failure:  # it answers, with what no such server sends
            raise UserError(f"what answers at `{self.url}` is not an SGLang server: {failure}", hint=_URL_HINT) from None
        except (TimeoutError, Unreachable):
            raise UserError(
                f"no SGLang server answers at `{self.url}`",
                hint="start one with `python -m sglang.launch_server --model-path MODEL --port PORT`, or set `policy.url`",
            ) from None
        self.context = found.context
        if context_tokens is not None and found.context is not None and found.context < context_tokens:
            raise UserError(
                f"`{self.url}` has {found.context} tokens of context, fewer than `limits.context_tokens` = {context_tokens}",
                hint=f"set `limits.context_tokens` to {found.context}, or start the server with a larger --context-length",
            )
        return found

    def _abort(self, rid: str) -> None:
        """Ask the server to stop working on `rid`, without waiting: by itself it notices a lost client after seconds."""
        task = asyncio.get_running_loop().create_task(self._post_abort(rid))
        self._aborts.add(task)
        task.add_done_callback(self._aborts.discard)

    async def _post_abort(self, rid: str) -> None:
        with suppress(Unreachable, Unusable, TimeoutError):  # best effort: the server may be the very thing that is broken
            async with asyncio.timeout(ABORT_SECONDS):
                await self._http.post("/abort_request", orjson.dumps({"rid": rid}), {})

    async def _described(self) -> Described:
        health = await self._http.get("/health")
        if health.status != 200:
            raise UserError(
                f"the server at `{self.url}` is not ready: HTTP {health.status}", hint="loading a model takes minutes"
            )
        listed = await _get_object(self._http, WORKERS) or await _get_object(self._http, OLD_WORKERS)
        if engine := await self._answering(worker_urls(listed)):
            return engine
        found = await _card(self._http)  # of an engine, or of one that only the router reaches
        if found is not None and (not listed or found.by_engine):
            return found
        if listed:
            raise UserError(
                f"no engine answers behind the router at `{self.url}`",
                hint="it lists them at /workers; start one, and add it there or with --worker-urls",
            )
        raise UserError(f"what answers at `{self.url}` is not an SGLang server", hint=_URL_HINT)

    async def _answering(self, engines: Sequence[str]) -> Described | None:
        """What the first engine that answers says of itself, which a router does not; those that do not answer are logged.

        A router itself finds out after minutes that an engine died.
        """

        async def ask(url: str) -> Described | None:
            http = Connections(url, connect_seconds=ENGINE_SECONDS)
            try:
                async with asyncio.timeout(ENGINE_SECONDS):
                    return await _card(http)
            except (TimeoutError, Unreachable, Unusable, PolicyFailure):
                return None
            finally:
                await http.aclose()

        said = await asyncio.gather(*map(ask, engines))
        answered = [each for each in said if each is not None]
        for url in (url for url, each in zip(engines, said, strict=True) if each is None and answered):
            log.warning("behind the router at `%s` the engine `%s` does not answer", self.url, url)
        return answered[0] if answered else None


async def _card(http: Connections) -> Described | None:
    """What an engine or a router says of its model; None when that is nothing."""
    models = await _get_object(http, "/v1/models")
    # `/get_model_info` is the older name; routers have only that one, and pass it on to an engine.
    info = await _get_object(http, "/model_info") or await _get_object(http, "/get_model_info")
    if not models and not info:
        return None
    card = _first(models.get("data"))
    length = card.get("max_model_len")
    name = info.get("model_path") or card.get("id") or "unnamed model"
    return Described(model=str(name), context=length if isinstance(length, int) else None, by_engine=bool(info))


async def _get_object(http: Connections, path: str) -> dict[str, Any]:
    """The JSON object at `path`; empty when there is none."""
    response = await http.get(path)
    with suppress(ValueError):
        value: Any = orjson.loads(response.body)
        if response.status == 200 and isinstance(value, dict):
            return cast("dict[str, Any]", value)
    return {}


def _first(value: Any) -> dict[str, Any]:
    first: Any = cast("list[Any]", value)[0] if isinstance(value, list) and value else None
    return cast("dict[str, Any]", first) if isinstance(first, dict) else {}


def _base_url(url: str) -> str:
    try:
        parsed = urlsplit(url)
        valid = parsed.scheme in ("http", "https") and bool(parsed.hostname) and parsed.port != 0  # reading a bad port raises
    except ValueError:
        valid = False
    if not valid:
        raise UserError(
            f"`policy.url` = `{url}` is not the address of a server",
            hint="write it as http://HOST:PORT; several stand behind one router",
        )
    return url.rstrip("/")
