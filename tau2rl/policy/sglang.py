"""The policy behind SGLang servers or their router: token ids in, sampled ids and their log-probabilities out."""

from __future__ import annotations

import asyncio
import copy
import functools
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING

import orjson

from tau2rl.config import PolicyConfig
from tau2rl.policy.endpoints import Ask, Endpoints
from tau2rl.policy.generate import build_request, read_completion, read_json
from tau2rl.policy.http import patiently
from tau2rl.policy.server import Server
from tau2rl.types import Completion

if TYPE_CHECKING:
    from typing import Self


class SGLangPolicy:
    """`types.Policy` over POST `{url}/generate`.

        async with SGLangPolicy(config, stop=codec.stop, stop_token_ids=codec.stop_token_ids) as policy:
            completion = await policy.complete(prompt_ids, seed=7, session="retail/17#0", max_tokens=512)

    Completions keep the stop token or string. The deadline `config.timeout_seconds` covers a whole call: its retries, other
    servers, a question asked twice. A call that is cancelled or runs out of time tells its servers to stop sampling. The usage
    is that of the answer that was taken.
    """

    def __init__(
        self, config: PolicyConfig, *, stop: Sequence[str] = (), stop_token_ids: Sequence[int] = (), concurrency: int = 256
    ) -> None:
        """`concurrency` is the most calls in flight; more wait their turn. Raises UserError for a bad URL."""
        self._servers = [Server(url, timeout_seconds=config.timeout_seconds) for url in config.urls]
        self._config = config
        self._sampling = config.sampling
        self._stop = tuple(stop)
        self._stop_token_ids = tuple(stop_token_ids)
        self._turns = asyncio.Semaphore(concurrency)
        alone = len(self._servers) == 1 and config.hedge_seconds is None
        self._endpoints = None if alone else Endpoints(self._servers, config, concurrency=concurrency)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections, after the last abort requests went out; safe to call twice."""
        await asyncio.gather(*(server.aclose() for server in self._servers))

    def greedy(self) -> Self:
        """The same policy at temperature 0, over the same connections; closing either closes both."""
        twin = copy.copy(self)
        twin._sampling = self._sampling.model_copy(update={"temperature": 0.0})
        return twin

    async def complete(self, prompt_ids: Sequence[int], *, seed: int, session: str, max_tokens: int) -> Completion:
        """Sample one turn; see `types.Policy`. Raises PolicyFailure."""
        limit = min(max_tokens, self._sampling.max_tokens)
        ask = functools.partial(self._ask, prompt_ids, seed=seed, max_tokens=limit)
        if self._endpoints is not None:
            return await self._endpoints.complete(ask, session)
        server = self._servers[0]
        return await patiently(functools.partial(self._seated, ask, server, session), self._config, server=server.url)

    async def ready(self, *, context_tokens: int | None = None, timeout_seconds: float = 20.0) -> str:
        """What answers at the URL, in a few words: `Qwen/Qwen3-4B, 32768 tokens of context`.

        Raises UserError when nothing does, it is not SGLang, its context is shorter than `context_tokens`, or servers differ.
        """
        asked = self._endpoints or self._servers[0]
        return str(await asked.describe(timeout_seconds=timeout_seconds, context_tokens=context_tokens))

    async def _seated(self, ask: Ask, server: Server, session: str) -> Completion:
        async with self._turns:
            return await ask(server, session)

    async def _ask(self, prompt_ids: Sequence[int], server: Server, session: str, *, seed: int, max_tokens: int) -> Completion:
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
        answer = await server.generate(orjson.dumps(body), rid=rid, session=session)
        return read_completion(read_json(answer), num_prompt=len(prompt_ids), max_tokens=max_tokens)
