"""The policy behind an SGLang server or its router: token ids in, sampled ids and their log-probabilities out."""

from __future__ import annotations

import asyncio
import copy
import functools
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING

import orjson

from tau2rl.config import PolicyConfig
from tau2rl.policy.http import read_json
from tau2rl.policy.retry import Throttle, complete_with_retries
from tau2rl.policy.sglang_format import build_request, read_completion
from tau2rl.policy.sglang_server import Server
from tau2rl.types import Completion

if TYPE_CHECKING:
    from typing import Self


class SGLangPolicy:
    """`types.Policy` over POST `{url}/generate`.

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
        """Sample one turn; see `types.Policy`. Raises PolicyFailure."""
        limit = min(max_tokens, self._sampling.max_tokens)
        call = functools.partial(self._ask, prompt_ids, seed=seed, session=session, max_tokens=limit)
        return await complete_with_retries(call, self._config, throttle=self._throttle, server=self._server.url)

    async def ready(self, *, context_tokens: int | None = None, timeout_seconds: float = 20.0) -> str:
        """What answers at the URL, in a few words: `Qwen/Qwen3-4B, 32768 tokens of context`.

        Raises UserError when nothing does, it is not SGLang, or its context is shorter than `context_tokens`.
        """
        return str(await self._server.describe(timeout_seconds=timeout_seconds, context_tokens=context_tokens))

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
