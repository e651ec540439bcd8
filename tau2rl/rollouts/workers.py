"""Episodes played in processes of their own: Ray actors over the nodes of a cluster.

tau2 is Python under one lock, so one process plays a few hundred turns a second and no more. Here are the caller's side and
the worker's: a process with its own environments, connections and chat codec. An attempt goes in, an episode comes out.

A worker that dies takes its episodes with it as FAILED ones, which `outcomes` plays again elsewhere; Ray starts another in its
place. One that has grown too large is given no more, plays what it has to the end and is then replaced: no episode is lost.
One at a time, because all leak alike and would leave together. Where none is left and none comes back, the run ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tau2rl.errors import EnvironmentFailure, RunIncomplete, UserError
from tau2rl.rollouts.runner import never_began
from tau2rl.settings import ray_address
from tau2rl.types import Attempt, Episode

if TYPE_CHECKING:
    from typing import Self

MEMORY_GB = 4.0
START_SECONDS = 300.0
START_TRIES = 3  # of a worker that ends before it can play
REVIVE_SECONDS = 60.0  # for one of the workers that are all gone to come back
REVIVE_PAUSE_SECONDS = 1.0
CALL_OFF_SECONDS = 5.0  # for a worker to close an episode that nobody wants any more
OTHER_CALLS = 8  # of an actor, beside those that play

log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class _Handle:
    """A worker as its caller sees it. The process that Ray puts in its place has the same actor and a new handle."""

    actor: Any
    playing: int = 0  # episodes


class Workers:
    """Episode runners in other processes; `play` goes to the one with the fewest episodes.

        async with Workers(functools.partial(open_runner, config), count=16, concurrency=256) as workers:
            async for outcome in outcomes(attempts, play=workers.play, concurrency=256, retries=2): ...

    Needs a Ray cluster: the one of the job that this process runs in, or one that `ray.init` was called for. The workers end
    with this process, however it ends.
    """

    def __init__(
        self,
        open_runner: OpenRunner,
        *,
        count: int,
        concurrency: int,
        memory_gb: float = MEMORY_GB,
        start_timeout_seconds: float = START_SECONDS,
        revive_timeout_seconds: float = REVIVE_SECONDS,
    ) -> None:
        """`count` processes with a core each, spread over the nodes, for `concurrency` episodes at a time in all of them.

        One with more than `memory_gb` of its own is replaced.
        """
        self._open_runner = open_runner
        self._count = count
        self._concurrency = concurrency
        self._memory_gb = memory_gb
        self._start_timeout = start_timeout_seconds
        self._revive_timeout = revive_timeout_seconds
        self._actors: list[Any] = []
        self._available: set[_Handle] = set()  # those that may be sent more
        self._leaving: _Handle | None = None  # the one that has grown too large
        self._reviving: set[asyncio.Task[None]] = set()
        self._gone_at = 0.0  # on the monotonic clock, when the last one was lost
        self._back = asyncio.Event()  # somebody is available

    @property
    def _ray(self) -> Any:
        import ray

        return ray

    async def __aenter__(self) -> Self:
        """Start them. Raises UserError when there is no cluster, it has too few cores, or a player cannot be opened."""
        ray = self._ray
        if not ray.is_initialized():
            if ray_address() is None:
                raise UserError(
                    "`rollout.workers` are processes of a Ray cluster, and there is none",
                    hint="leave out `--inline`, or set `rollout.workers` to 0",
                )
            ray.init(logging_level=logging.WARNING)
        # An actor that dies is started again: on its node, or on another one when the node is gone.
        actor = ray.remote(EpisodeWorker).options(
            num_cpus=1, scheduling_strategy="SPREAD", max_restarts=-1, max_concurrency=self._concurrency + OTHER_CALLS
        )
        self._actors = [actor.remote(self._open_runner, memory_gb=self._memory_gb) for _ in range(self._count)]
        try:
            async with asyncio.timeout(self._start_timeout):
                nodes = await self._nodes()
        except TimeoutError:
            self._end()
            cores = ray.cluster_resources().get("CPU", 0)
            raise UserError(
                f"{self._count} workers did not start within {self._start_timeout:g} s; the cluster has {cores:g} cores",
                hint="each worker takes one core: lower `rollout.workers`",
            ) from None
        except BaseException:
            self._end()
            raise
        self._available = {_Handle(actor) for actor in self._actors}
        self._back.set()
        log.info("%d workers on %d nodes", len(nodes), len(set(nodes)))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._end()

    async def ready(self) -> None:
        """Wait until a worker can play. Raises RunIncomplete when all are gone and none comes back in time."""
        while not self._available:
            left = self._revive_timeout - (time.monotonic() - self._gone_at)
            if left <= 0 and self._leaving is None:  # one that leaves may have half an hour to play
                raise RunIncomplete(
                    f"all {self._count} workers are gone, and none came back within {self._revive_timeout:g} s\n\n"
                    "hint: look at the nodes of the cluster and their logs, then continue the run with `--resume`"
                )
            with suppress(TimeoutError):
                async with asyncio.timeout(max(left, REVIVE_PAUSE_SECONDS)):
                    await self._back.wait()

    async def play(self, attempt: Attempt, *how: Any) -> Episode:
        """Play it in the least busy worker; `how` goes to its player. A worker that dies under it is a FAILED episode.

        Cancelled, it ends there too, and has ended on return. What the player raises is raised here; so is RunIncomplete.
        """
        from ray.exceptions import RayError, RayTaskError

        await self.ready()
        handle = min(self._available, key=lambda each: each.playing)
        handle.playing += 1
        call = handle.actor.play.remote(attempt, *how)
        try:
            episode, has = await call
            if has > self._memory_gb * GB:
                self._retire(handle, has)
            return episode
        except asyncio.CancelledError:
            self._ray.cancel(call)
            with suppress(RayError, asyncio.TimeoutError):
                async with asyncio.timeout(CALL_OFF_SECONDS):
                    await asyncio.wrap_future(call.future())
            raise
        except RayTaskError as error:
            if isinstance(error.cause, Exception):
                raise error.cause from error
            raise
        except RayError as error:  # the process, its node, or what it had to say is gone
            self._lost(handle)
            reason = str(error).strip().partition("\n")[0]
            return never_began(attempt, EnvironmentFailure(f"the process that played it is gone: {reason}"))
        finally:
            handle.playing -= 1
            if handle is self._leaving and not handle.playing:
                self._revive(handle, self._replaced(handle))

    def _retire(self, handle: _Handle, has: int) -> None:
        """Send no more to a worker that has grown too large; its last episode has it replaced."""
        if self._leaving is None and handle in self._available:
            log.warning("a worker has %.1f GB: it ends what it plays, and another takes its place", has / GB)
            self._leaving = handle
            self._withdraw(handle)

    def _lost(self, handle: _Handle) -> None:
        """Send no more to a worker that died, until the process in its place can play."""
        if handle in self._available or handle is self._leaving:
            self._withdraw(handle)
            self._leaving = None if handle is self._leaving else self._leaving
            log.warning("a worker is gone, %d are left", len(self._available))
            self._revive(handle, self._opened(handle))

    def _withdraw(self, handle: _Handle) -> None:
        self._available.discard(handle)
        if not self._available:
            self._gone_at = time.monotonic()
            self._back.clear()

    def _revive(self, handle: _Handle, back: Any) -> None:
        task = asyncio.create_task(back)
        self._reviving.add(task)
        task.add_done_callback(self._reviving.discard)

    async def _replaced(self, handle: _Handle) -> None:
        """End a worker that plays nothing any more, and wait for the process in its place."""
        from ray.exceptions import RayError

        with suppress(RayError):  # which says that it has ended
            await handle.actor.leave.remote()
        self._leaving, self._gone_at = None, time.monotonic()
        await self._opened(handle)

    async def _opened(self, handle: _Handle) -> None:
        """Wait until the process in the place of one that ended can play."""
        from ray.exceptions import RayError

        while True:
            try:
                await handle.actor.open.remote()
            except RayError as error:  # it is not there yet, or cannot open its player: the server it asks may be down
                log.debug("a worker is not back: %s", error)
                await asyncio.sleep(REVIVE_PAUSE_SECONDS)
            else:
                break
        self._available.add(_Handle(handle.actor))
        self._back.set()

    async def _nodes(self) -> list[str]:
        """The node of each worker, once all of them can play. Raises what opening a player raised, and RunIncomplete."""
        return list(await asyncio.gather(*map(self._node, self._actors)))

    async def _node(self, actor: Any) -> str:
        from ray.exceptions import RayError, RayTaskError

        why = ""
        for _ in range(START_TRIES):
            try:
                return await actor.open.remote()
            except RayTaskError as error:
                raise error.cause if isinstance(error.cause, UserError) else error from None
            except RayError as error:  # the process is gone, and Ray starts another
                why = str(error).strip().partition("\n")[0]
                log.warning("a worker is gone before it could play: %s", why)
                await asyncio.sleep(REVIVE_PAUSE_SECONDS)
        raise RunIncomplete(f"a worker ended {START_TRIES} times before it could play: {why}")

    def _end(self) -> None:
        for waiting in self._reviving:
            waiting.cancel()
        for actor in self._actors:
            self._ray.kill(actor)
        self._actors, self._available, self._leaving = [], set(), None


PlayWith = Callable[..., Awaitable[Episode]]  # plays an attempt once; what follows the attempt says how, where calls differ in it
OpenRunner = Callable[[], AbstractAsyncContextManager[PlayWith]]  # pickled, and called once in each worker

GB = 10**9
TOO_MUCH = 2  # times the limit: then a worker does not wait for the end of what it plays
POLL_SECONDS = 1.0
LEAVE_SECONDS = 10.0


class EpisodeWorker:
    """An async actor of Ray. Its caller sends it no more than it should, and ends it when it has grown too large."""

    def __init__(self, open_runner: OpenRunner, *, memory_gb: float) -> None:
        """`memory_gb`: at twice as much the process ends at once, before its machine has none left."""
        self._open_runner = open_runner
        self._most = memory_gb * TOO_MUCH * GB
        self._stack = AsyncExitStack()
        self._opening = asyncio.Lock()
        self._play: PlayWith | None = None
        self._watching: asyncio.Task[None] | None = None

    async def open(self) -> str:
        """Get ready to play; the id of the node that this is on. Raises UserError: it has grown too large before it plays."""
        import ray

        await self._runner()
        if (has := own_bytes()) * TOO_MUCH > self._most:
            raise UserError(
                f"a worker has {has / GB:.2f} GB before it plays, more than `rollout.worker_memory_gb`",
                hint="what is loaded and a few conversations need about 0.5",
            )
        return ray.get_runtime_context().get_node_id()

    async def play(self, attempt: Attempt, *how: Any) -> tuple[Episode, int]:
        """Play an attempt once; the episode, and the bytes that this process has now."""
        episode = await (await self._runner())(attempt, *how)
        return episode, own_bytes()

    async def leave(self) -> None:
        """End the process, which plays nothing any more; Ray starts another in its place."""
        with contextlib.suppress(Exception):  # it leaves in any case
            async with asyncio.timeout(LEAVE_SECONDS):
                await self._stack.aclose()
        os._exit(0)  # an orderly exit of an actor is one that Ray does not make good

    async def _runner(self) -> PlayWith:
        """The episode runner, opened at the first call: of this process, or of the one that Ray put in its place."""
        async with self._opening:
            if self._play is None:
                self._play = with_cpu_time(await self._stack.enter_async_context(self._open_runner()))
                self._watching = asyncio.create_task(self._watch())
            return self._play

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(POLL_SECONDS)
            if (has := own_bytes()) > self._most:
                log.error("this worker has %.1f GB, twice what it may have, and ends", has / GB)
                os._exit(1)


def own_bytes() -> int:
    """Memory that is this process's alone, in bytes; 0 where the system does not say.

    Not all that it maps: Ray's object store is mapped into every worker, and each thread reserves a stack that it hardly uses,
    which is also why no limit of the kernel (RLIMIT_AS, RLIMIT_DATA) would mean anything here.
    """
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            resident, shared = map(int, file.read().split()[1:3])
    except OSError:
        return 0
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")


def with_cpu_time(play: Callable[..., Awaitable[Episode]]) -> Callable[..., Awaitable[Episode]]:
    """Plays as `play` does; each episode says what CPU time this process used since the one before, so that the sum is all.

    For a process that plays for another one: the run cannot see the CPU time of a worker, perhaps on another machine, but it gets
    the episodes. What was used before this call, for loading, is not counted.
    """
    told = time.process_time()

    async def timed(*how: Any) -> Episode:
        nonlocal told
        episode = await play(*how)
        before, told = told, time.process_time()
        return replace(episode, worker_cpu_seconds=told - before)

    return timed
