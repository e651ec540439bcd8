"""Several servers of one model: which of them a conversation plays on, and where its calls go when that one fails.

A conversation stays on the server that has its beginning in the cache. A new one goes to the server with the fewest calls of
this process in flight. Where they are equal, a hash of conversation and server decides: processes that know nothing of each
other do not all begin with the first server.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from tau2rl.config import PolicyConfig
from tau2rl.errors import PolicyFailure, UserError
from tau2rl.hashing import derive_seed
from tau2rl.policy.hedging import first_answer
from tau2rl.policy.http import Unavailable, patiently
from tau2rl.policy.server import Absent, Described, Server
from tau2rl.types import Completion

REST_SECONDS = 30.0  # a server that failed is left alone for so long
VET_SECONDS = 5.0
STRIKES = 3  # refusals in a row: a server that refuses at once would draw all new conversations
SESSIONS_A_SEAT = 4  # remembered; one that is forgotten in the middle costs its server's cache, once
DOUBLE = "~2"  # behind the routing key of a question that is asked twice, so that a router sends it elsewhere

Ask = Callable[[Server, str], Awaitable[Completion]]  # one request to a server, under a routing key

log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True, eq=False)
class Endpoint:
    """A server and how it is doing: `Endpoint(server=..., calls=12)`."""

    server: Server
    calls: int = 0  # in flight, pauses between retries included
    strikes: int = 0  # refusals since its last completion
    heard_at: float = 0.0  # on the monotonic clock, its last answer of any kind
    due: float | None = None  # None: well; else it rests until then, and is asked what it serves before it is used again


class Endpoints:
    """Completions from whichever server is well, each call under one deadline."""

    def __init__(self, servers: Sequence[Server], config: PolicyConfig, *, concurrency: int) -> None:
        """`concurrency` is the most calls in flight; one that is asked twice counts once."""
        self._all = [Endpoint(server=server) for server in servers]
        self._config = config
        self._once = config.model_copy(update={"retries": 0})  # the retries are those of each server, the deadline is one
        self._seats = asyncio.Semaphore(concurrency)
        self._sessions: OrderedDict[str, Endpoint] = OrderedDict()  # least recently used first
        self._most_sessions = SESSIONS_A_SEAT * concurrency
        self._serves: Described | None = None  # what `describe` found; before that, anything will do
        others = len(servers) - 1
        self._names = f"{servers[0].url} and {others} more" if others else servers[0].url

    async def describe(self, *, timeout_seconds: float, context_tokens: int | None = None) -> Described:
        """What the servers serve.

        One that does not answer is asked again later, and used when it serves the same. Raises UserError when none answers,
        when two of them differ, or one is not SGLang or has too short a context.
        """
        looks = (e.server.describe(timeout_seconds=timeout_seconds, context_tokens=context_tokens) for e in self._all)
        found = await asyncio.gather(*looks, return_exceptions=True)
        absent: list[Absent] = []
        known: tuple[Server, Described] | None = None
        for endpoint, what in zip(self._all, found, strict=True):
            if isinstance(what, Absent):
                absent.append(what)
                self._rest(endpoint, what.message)
            elif isinstance(what, BaseException):
                raise what
            else:
                known = _together(known, (endpoint.server, what))
        if known is None:
            raise UserError("\n".join(error.message for error in absent), hint=absent[0].hint)
        self._serves = known[1]
        return self._serves

    async def complete(self, ask: Ask, session: str) -> Completion:
        """One turn of a conversation. Raises PolicyFailure: the last server's, or the deadline's."""
        began = time.monotonic()
        try:
            return await patiently(functools.partial(self._seated, ask, session), self._once, server=self._names)
        except PolicyFailure:
            # It will be played again under the same name: not on a server that has said nothing for a whole deadline.
            endpoint = self._sessions.pop(session, None)
            if endpoint is not None and endpoint.heard_at < began:
                self._rest(endpoint, f"nothing has come from it for {self._config.timeout_seconds:g} s")
            raise

    async def _seated(self, ask: Ask, session: str) -> Completion:
        after = self._config.hedge_seconds
        async with self._seats:
            if after is None:
                return await self._anywhere(ask, session)
            return await first_answer(self._anywhere(ask, session), functools.partial(self._elsewhere, ask, session), after=after)

    async def _anywhere(self, ask: Ask, session: str) -> Completion:
        """From the conversation's server, or else from the others, one after the other."""
        endpoint = self._endpoint_of(session)
        tried = [endpoint]
        while True:
            try:
                return await self._ask(endpoint, ask, session)
            except Unavailable:
                other = self._pick(session, tried)
                if other is None:
                    raise
            endpoint = other
            tried.append(endpoint)
            self._keep(session, endpoint)

    async def _elsewhere(self, ask: Ask, session: str) -> Completion:
        """The same question to another server; its answer, if it is the first, makes that the conversation's server."""
        endpoint = self._endpoint_of(session)
        other = self._pick(session, [endpoint])
        if other is None:  # a router has another engine for another key
            return await self._ask(endpoint, ask, session + DOUBLE)
        completion = await self._ask(other, ask, session)
        self._keep(session, other)
        return completion

    async def _ask(self, endpoint: Endpoint, ask: Ask, key: str) -> Completion:
        """From one server, which is tried again while it is unavailable; what comes of it is noted."""
        endpoint.calls += 1
        try:
            send = functools.partial(self._send, endpoint, ask, key)
            completion = await patiently(send, self._config, server=endpoint.server.url)
        except Unavailable as failure:
            self._rest(endpoint, str(failure))
            raise
        except PolicyFailure as failure:
            endpoint.heard_at = time.monotonic()
            endpoint.strikes += 1
            if endpoint.strikes >= STRIKES:
                self._rest(endpoint, f"{endpoint.strikes} failures in a row, the last: {failure}")
            raise
        finally:
            endpoint.calls -= 1
        endpoint.heard_at, endpoint.strikes = time.monotonic(), 0
        return completion

    async def _send(self, endpoint: Endpoint, ask: Ask, key: str) -> Completion:
        if endpoint.due is not None:
            await self._vet(endpoint)
        return await ask(endpoint.server, key)

    async def _vet(self, endpoint: Endpoint) -> None:
        """Take a server back into use. Raises Unavailable when it is not there, or came back with another model."""
        try:
            found = await endpoint.server.describe(timeout_seconds=VET_SECONDS)
        except UserError as error:
            raise Unavailable(error.message) from None
        if self._serves is not None and not found.agrees(self._serves):
            raise Unavailable(f"`{endpoint.server.url}` has {found} now; this run plays {self._serves}")
        endpoint.due, endpoint.strikes = None, 0
        log.info("`%s` serves again", endpoint.server.url)

    def _rest(self, endpoint: Endpoint, reason: str) -> None:
        if endpoint.due is None:
            log.warning("`%s` gets no calls for the next %g s: %s", endpoint.server.url, REST_SECONDS, reason)
        endpoint.due = time.monotonic() + REST_SECONDS

    def _endpoint_of(self, session: str) -> Endpoint:
        """Where the conversation is; a new one, or one whose server rests, finds its place."""
        kept = self._sessions.get(session)
        if kept is not None and kept.due is None:
            self._sessions.move_to_end(session)
            return kept
        # Where every server rests, the one that does so longest: it is asked patiently, as a lone server would be.
        chosen = self._pick(session) or min(self._all, key=lambda e: e.due or 0.0)
        self._keep(session, chosen)
        return chosen

    def _pick(self, session: str, without: Sequence[Endpoint] = ()) -> Endpoint | None:
        """The least busy of the other servers that are well or have rested; None when there is none."""
        now = time.monotonic()
        ready = [e for e in self._all if e not in without and (e.due is None or e.due <= now)]
        if not ready:
            return None
        chosen = min(ready, key=lambda e: (e.calls, derive_seed(session, e.server.url)))
        if chosen.due is not None:
            chosen.due = now + REST_SECONDS  # one call finds out whether it is back; meanwhile it gets no others
        return chosen

    def _keep(self, session: str, endpoint: Endpoint) -> None:
        self._sessions[session] = endpoint
        self._sessions.move_to_end(session)
        if len(self._sessions) > self._most_sessions:
            self._sessions.popitem(last=False)


def _together(known: tuple[Server, Described] | None, new: tuple[Server, Described]) -> tuple[Server, Described]:
    """Of two servers and what they serve, the one that tells more. Raises UserError when they cannot be the same model."""
    if known is None:
        return new
    (server, what), (other, found) = known, new
    if not what.agrees(found):
        raise UserError(
            f"the servers of `policy.url` differ: `{server.url}` has {what}; `{other.url}` has {found}",
            hint="start all of them with the same --model-path and --context-length",
        )
    return new if what.context is None else known
