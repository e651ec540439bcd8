"""The policy behind an SGLang server or router: token ids in, sampled ids and their log-probabilities out."""

from __future__ import annotations

import asyncio
import copy
import functools
import string
import uuid
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote, urlsplit

import orjson

from tau2rl.config import PolicyConfig
from tau2rl.errors import UserError
from tau2rl.policies.connections import Connections, Response, Unreachable
from tau2rl.policies.generate import build_request, read_completion, read_json, refusal
from tau2rl.policies.patience import Unavailable, patiently
from tau2rl.types import Completion

if TYPE_CHECKING:
    from typing_extensions import Self

BUSY = (429, 502, 503, 504)
ROUTING_HEADER = "X-SMG-Routing-Key"  # the router's key of prefix-cache affinity
CONNECT_SECONDS = 10.0
ABORT_SECONDS = 2.0


class SGLangPolicy:
    """`types.Policy` over POST `{url}/generate`.

        async with SGLangPolicy(config, stop=codec.stop, stop_token_ids=codec.stop_token_ids) as policy:
            completion = await policy.complete(prompt_ids, seed=7, session="retail/17#0", max_tokens=512)

    Completions keep the stop token or string. The deadline `config.timeout_seconds` covers a whole call, its retries
    included. A call that is cancelled or runs out of time tells the server to stop sampling.
    """

    def __init__(
        self, config: PolicyConfig, *, stop: Sequence[str] = (), stop_token_ids: Sequence[int] = (), concurrency: int = 256
    ) -> None:
        """`concurrency` is the most calls in flight; more wait their turn. Raises UserError for a bad URL."""
        self._url = _base_url(config.url)
        self._config = config
        self._sampling = config.sampling
        self._stop = tuple(stop)
        self._stop_token_ids = tuple(stop_token_ids)
        # Reading waits as long as the call's own deadline allows.
        self._http = Connections(self._url, connect_seconds=min(CONNECT_SECONDS, config.timeout_seconds))
        self._turns = asyncio.Semaphore(concurrency)
        self._aborts: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections, after the last abort requests went out; safe to call twice."""
        if self._aborts:
            await asyncio.wait(self._aborts, timeout=ABORT_SECONDS)
        await self._http.aclose()

    def greedy(self) -> Self:
        """The same policy at temperature 0, over the same connections; closing either closes both."""
        twin = copy.copy(self)
        twin._sampling = self._sampling.model_copy(update={"temperature": 0.0})
        return twin

    async def complete(self, prompt_ids: Sequence[int], *, seed: int, session: str, max_tokens: int) -> Completion:
        """Sample one turn; see `types.Policy`. Raises PolicyFailure."""
        limit = min(max_tokens, self._sampling.max_tokens)
        send = functools.partial(self._post, prompt_ids, seed=seed, session=session, max_tokens=limit)
        response = await patiently(send, self._config, server=self._url)
        return read_completion(read_json(response.body), num_prompt=len(prompt_ids), max_tokens=limit)

    async def ready(self, *, context_tokens: int | None = None, timeout_seconds: float = 20.0) -> str:
        """What answers at the URL, in a few words: `Qwen/Qwen3-4B, 32768 tokens of context`.

        Raises UserError when nothing does, it is not SGLang, or its context is shorter than `context_tokens`.
        """
        try:
            return await asyncio.wait_for(self._describe(context_tokens), timeout_seconds)
        except (asyncio.TimeoutError, Unreachable):
            raise UserError(
                f"no SGLang server answers at `{self._url}`",
                hint="start one with `python -m sglang.launch_server --model-path MODEL --port PORT`, or set `policy.url`",
            ) from None

    async def _post(self, prompt_ids: Sequence[int], *, seed: int, session: str, max_tokens: int) -> Response:
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
        headers = {ROUTING_HEADER: quote(session, safe=string.punctuation)}
        try:
            async with self._turns:
                response = await self._http.post("/generate", orjson.dumps(body), headers)
        except asyncio.CancelledError:  # by the caller, or by the deadline
            self._abort(rid)
            raise
        except Unreachable as error:
            raise Unavailable(f"cannot reach `{self._url}`: {error}") from None
        if response.status in BUSY:
            raise Unavailable(f"`{self._url}` is overloaded: HTTP {response.status}")
        if response.status != 200:
            raise refusal(response.status, response.body)
        return response

    def _abort(self, rid: str) -> None:
        """Ask the server to stop working on `rid`, without waiting: by itself it notices a lost client after seconds."""
        task = asyncio.get_running_loop().create_task(self._post_abort(rid))
        self._aborts.add(task)
        task.add_done_callback(self._aborts.discard)

    async def _post_abort(self, rid: str) -> None:
        with suppress(Unreachable, asyncio.TimeoutError):  # best effort: the server may be the very thing that is broken
            await asyncio.wait_for(self._http.post("/abort_request", orjson.dumps({"rid": rid}), {}), ABORT_SECONDS)

    async def _describe(self, context_tokens: int | None) -> str:
        health = await self._http.get("/health")
        if health.status != 200:
            raise UserError(
                f"the server at `{self._url}` is not ready: HTTP {health.status}", hint="loading a model takes minutes"
            )
        models = await self._get_object("/v1/models")
        # `/get_model_info` is the older name; routers have only that one.
        info = await self._get_object("/model_info") or await self._get_object("/get_model_info")
        if not models and not info:
            raise UserError(
                f"what answers at `{self._url}` is not an SGLang server", hint="`policy.url` names the server or router"
            )
        card = _first(models.get("data"))
        length = card.get("max_model_len")
        if context_tokens is not None and isinstance(length, int) and length < context_tokens:
            raise UserError(
                f"`{self._url}` has {length} tokens of context, fewer than `limits.context_tokens` = {context_tokens}",
                hint=f"set `limits.context_tokens` to {length}, or start the server with a larger --context-length",
            )
        name = info.get("model_path") or card.get("id") or "unnamed model"
        return f"{name}, {length} tokens of context" if isinstance(length, int) else str(name)

    async def _get_object(self, path: str) -> dict[str, Any]:
        """The JSON object at `path`; empty when there is none."""
        response = await self._http.get(path)
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
        raise UserError(f"`policy.url` = `{url}` is not the address of a server", hint="write it as http://HOST:PORT")
    return url.rstrip("/")
