"""The model as a `protocols.Policy`: turns asked for at the same time are sampled together, on a thread of their own."""

from __future__ import annotations

import asyncio
import copy
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from torch import nn

from tau2rl.chat.tokenizers import load_tokenizer
from tau2rl.config import ChatConfig, LocalConfig, SamplingConfig
from tau2rl.errors import PolicyFailure
from tau2rl.protocols import ChatCodec, Policy
from tau2rl.train.engine.generator import Sampler, SampleRequest
from tau2rl.train.engine.proof import sampler_for
from tau2rl.types import Completion

if TYPE_CHECKING:
    from typing import Self


def local_policy(
    model: nn.Module, sampling: SamplingConfig, local: LocalConfig, chat: ChatConfig, codec: ChatCodec
) -> LocalPolicy:
    """A model as a policy that stops where the chat protocol says; it is started by `async with`."""
    decode = load_tokenizer(chat.tokenizer).decode if codec.stop and chat.tokenizer else None  # for stop strings alone
    return LocalPolicy(
        model, sampling, stop_token_ids=codec.stop_token_ids, stop=codec.stop, decode=decode, kv_cache_slots=local.kv_cache_slots
    )


class LocalPolicy:
    """Batches whatever waits; the event loop never does arithmetic.

        async with LocalPolicy(model, SamplingConfig(temperature=1.0), stop_token_ids=codec.stop_token_ids) as policy:
            completion = await policy.complete(prompt_ids, seed=7, session="mock/a#0", max_tokens=64)

    The weights may be trained while nobody waits for a turn; call `sync_weights` afterwards.
    """

    def __init__(
        self,
        model: nn.Module,
        sampling: SamplingConfig,
        *,
        stop_token_ids: Sequence[int] = (),
        stop: Sequence[str] = (),
        decode: Callable[[Sequence[int]], str] | None = None,
        kv_cache_slots: int = 64,
    ) -> None:
        """`decode` is needed by stop strings only.

        `kv_cache_slots`: conversations whose keys and values are kept; more in flight take turns, and pay for their prompt again.
        A model without slots samples as many at once.
        """
        self._worker = SamplerThread(sampler_for(model, slots=kv_cache_slots, decode=decode))
        self._stop_token_ids, self._stop = tuple(stop_token_ids), tuple(stop)
        self.sampling = sampling

    async def __aenter__(self) -> Self:
        self._worker.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stop the thread; who still waits gets a PolicyFailure. Safe to call twice."""
        await asyncio.get_running_loop().run_in_executor(None, self._worker.stop)

    def greedy(self) -> Self:
        """The same policy at temperature 0, on the same thread; closing either closes both."""
        return self.at(0.0)

    def at(self, temperature: float) -> Self:
        """The same policy at another temperature, on the same thread; closing either closes both."""
        twin = copy.copy(self)
        twin.sampling = self.sampling.model_copy(update={"temperature": temperature})
        return twin

    async def complete(self, prompt_ids: Sequence[int], *, seed: int, session: str, max_tokens: int) -> Completion:
        """Sample one turn; see `protocols.Policy`. Same prompt, seed and weights: same turn, whoever else is being served.

        A call that is cancelled is dropped from the batch. Raises PolicyFailure when the worker has stopped or broken.
        """
        request = SampleRequest(
            session=session,
            prompt=list(prompt_ids),
            sampling=self.sampling,
            seed=seed,
            max_tokens=min(max_tokens, self.sampling.max_tokens),
            stop_token_ids=self._stop_token_ids,
            stop=self._stop,
        )
        future = self._worker.submit(request)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            request.abandoned = True
            raise

    async def sync_weights(self) -> None:
        """The weights have changed: forget keys and values computed with the old ones. Nobody may be waiting for a turn.

        The trainer moves the very weights that are sampled from, so there is nothing to copy.
        """
        await asyncio.wrap_future(self._worker.submit(None))


class SamplerThread:
    """The thread that owns the generator. Everything reaches it through one queue."""

    def __init__(self, generator: Sampler) -> None:
        self._generator = generator
        self._inbox: queue.SimpleQueue[tuple[SampleRequest | None, Future[Any]] | None] = queue.SimpleQueue()
        self._waiting: dict[int, Future[Any]] = {}  # id(request) -> who waits for it
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()  # between "is it running?" and "put it in the inbox"
        self._over = "the local policy is not running"

    def start(self) -> None:
        """Start the thread. Raises PolicyFailure when it has been stopped before."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="local-policy", daemon=True)
                self._over = ""
                self._thread.start()

    def stop(self) -> None:
        """End the thread and refuse who still waits; safe to call twice, from any thread."""
        with self._lock:
            thread, self._over = self._thread, self._over or "the local policy was stopped"
        self._inbox.put(None)
        if thread is not None:
            thread.join()

    def submit(self, request: SampleRequest | None) -> Future[Any]:
        """A future of the completion; of nothing, once the generator has cleared its cache, for None. Raises PolicyFailure."""
        future: Future[Any] = Future()
        with self._lock:
            if self._over:
                raise PolicyFailure(self._over)
            self._inbox.put((request, future))
        return future

    def _work(self) -> None:
        reason = "the local policy was stopped"
        try:
            while self._take_in():
                for request in self._generator.step() if self._generator.busy else ():
                    self._answer(request)
        # The thread's boundary: whatever broke it has to reach those who wait, or they would wait for ever.
        except Exception as error:  # noqa: BLE001
            reason = f"the local policy broke: {type(error).__name__}: {error}"
        with self._lock:
            self._over = reason
        self._refuse_all(reason)

    def _take_in(self) -> bool:
        """Everything that has arrived; waits only when there is nothing to sample. False: stop."""
        block = not self._generator.busy
        while True:
            try:
                item = self._inbox.get(block=block)
            except queue.Empty:
                return True
            block = False
            if item is None:
                return False
            request, future = item
            if future.set_running_or_notify_cancel():
                self._begin(request, future)

    def _begin(self, request: SampleRequest | None, future: Future[Any]) -> None:
        try:
            if request is None:
                self._generator.clear_cache()
                future.set_result(None)
            else:
                self._generator.add(request)
                self._waiting[id(request)] = future
        except (ValueError, RuntimeError) as error:  # a misuse by this caller, which nobody else should pay for
            future.set_exception(error)

    def _answer(self, request: SampleRequest) -> None:
        future = self._waiting.pop(id(request))
        if request.result is None:
            future.set_exception(PolicyFailure("the turn was given up"))
        else:
            future.set_result(request.result)

    def _refuse_all(self, reason: str) -> None:
        waiting = list(self._waiting.values())
        self._waiting.clear()
        while True:
            try:
                item = self._inbox.get_nowait()
            except queue.Empty:
                break
            waiting += [] if item is None else [item[1]]
        for future in waiting:
            if not future.done():
                future.set_exception(PolicyFailure(reason))


class TimedPolicy:
    """A policy, and in `seconds` the wall time in which at least one turn was asked of it."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._waiting = 0
        self._since = 0.0
        self.seconds = 0.0

    async def complete(self, prompt_ids: Sequence[int], *, seed: int, session: str, max_tokens: int) -> Completion:
        """Sample one turn; see `protocols.Policy`."""
        if not self._waiting:
            self._since = time.monotonic()
        self._waiting += 1
        try:
            return await self._policy.complete(prompt_ids, seed=seed, session=session, max_tokens=max_tokens)
        finally:
            self._waiting -= 1
            if not self._waiting:
                self.seconds += time.monotonic() - self._since
