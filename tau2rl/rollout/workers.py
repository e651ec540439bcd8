"""Episodes played in processes of their own: Ray actors over the nodes of a cluster.

tau2 is Python under one lock, so one process plays a few hundred turns a second and no more. Each worker here is a process
with a player of its own (environments, connections, chat codec); an attempt goes in, an episode comes out.

A worker that dies takes its episodes with it as FAILED ones, which `outcomes` plays again elsewhere; Ray starts another in its
place. One that has grown too large is given no more, plays what it has to the end and is then replaced: no episode is lost.
One at a time, because all leak alike and would leave together.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tau2rl.errors import EnvironmentFailure, UserError
from tau2rl.rollout.runner import metered, never_began
from tau2rl.settings import ray_address
from tau2rl.types import Attempt, Episode

if TYPE_CHECKING:
    from typing import Self


PlayAs = Callable[..., Awaitable[Episode]]  # plays an attempt once; what follows the attempt says how, where calls differ in it
OpenPlayer = Callable[[], AbstractAsyncContextManager[PlayAs]]  # pickled, and called once in each worker

GB = 10**9
TOO_MUCH = 2  # times the limit: then a worker does not wait for the end of what it plays
LOOK_SECONDS = 1.0
LEAVE_SECONDS = 10.0

log = logging.getLogger(__name__)


class Worker:
    """An async actor of Ray. Its caller sends it no more than it should, and ends it when it has grown too large."""

    def __init__(self, open_player: OpenPlayer, *, memory_gb: float) -> None:
        """`memory_gb`: at twice as much the process ends at once, before its machine has none left."""
        self._open_player = open_player
        self._most = memory_gb * TOO_MUCH * GB
        self._stack = AsyncExitStack()
        self._opening = asyncio.Lock()
        self._play: PlayAs | None = None
        self._watching: asyncio.Task[None] | None = None

    async def open(self) -> str:
        """Get ready to play; the id of the node that this is on. Raises UserError: it has grown too large before it plays."""
        import ray

        await self._player()
        if (has := own_bytes()) * TOO_MUCH > self._most:
            raise UserError(
                f"a worker has {has / GB:.2f} GB before it plays, more than `rollout.worker_memory_gb`",
                hint="what is loaded and a few conversations need about 0.5",
            )
        return ray.get_runtime_context().get_node_id()

    async def play(self, attempt: Attempt, *how: Any) -> tuple[Episode, int]:
        """Play an attempt once; the episode, and the bytes that this process has now."""
        episode = await (await self._player())(attempt, *how)
        return episode, own_bytes()

    async def leave(self) -> None:
        """End the process, which plays nothing any more; Ray starts another in its place."""
        with contextlib.suppress(Exception):  # it leaves in any case
            async with asyncio.timeout(LEAVE_SECONDS):
                await self._stack.aclose()
        os._exit(0)  # an orderly exit of an actor is one that Ray does not make good

    async def _player(self) -> PlayAs:
        """The player, opened at the first call: of this process, or of the one that Ray put in its place."""
        async with self._opening:
            if self._play is None:
                self._play = metered(await self._stack.enter_async_context(self._open_player()))
                self._watching = asyncio.create_task(self._watch())
            return self._play

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
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


MEMORY_GB = 4.0
REVIVE_PAUSE_SECONDS = 1.0
CALL_OFF_SECONDS = 5.0  # for a worker to close an episode that nobody wants any more
OTHER_CALLS = 8  # of an actor, beside those that play


@dataclass(eq=False, slots=True)
class _Seat:
    """A process that can play, as the caller sees it. The one that Ray puts in its place has the same actor and a new seat."""

    actor: Any
    playing: int = 0  # episodes


class Workers:
    """Players in other processes; `play` goes to the one with the fewest episodes.

        async with Workers(functools.partial(open_player, config), count=16, concurrency=256) as workers:
            async for outcome in outcomes(attempts, play=workers.play, concurrency=256, retries=2): ...

    Needs a Ray cluster: the one of the job that this process runs in, or one that `ray.init` was called for. The workers end
    with this process, however it ends.
    """

    def __init__(
        self,
        open_player: OpenPlayer,
        *,
        count: int,
        concurrency: int,
        memory_gb: float = MEMORY_GB,
        start_timeout_seconds: float = 300.0,
    ) -> None:
        """`count` processes with a core each, spread over the nodes, for `concurrency` episodes at a time in all of them.

        One with more than `memory_gb` of its own is replaced.
        """
        self._open_player = open_player
        self._count = count
        self._concurrency = concurrency
        self._memory_gb = memory_gb
        self._start_timeout = start_timeout_seconds
        self._actors: list[Any] = []
        self._seats: set[_Seat] = set()  # those that may be sent more
        self._leaving: _Seat | None = None  # the one that has grown too large
        self._reviving: set[asyncio.Task[None]] = set()
        self._back = asyncio.Event()  # there are seats

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
        actor = ray.remote(Worker).options(
            num_cpus=1, scheduling_strategy="SPREAD", max_restarts=-1, max_concurrency=self._concurrency + OTHER_CALLS
        )
        self._actors = [actor.remote(self._open_player, memory_gb=self._memory_gb) for _ in range(self._count)]
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
        self._seats = {_Seat(actor) for actor in self._actors}
        self._back.set()
        log.info("%d workers on %d nodes", len(nodes), len(set(nodes)))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._end()

    async def ready(self) -> None:
        """Wait until a worker can play. Raises EnvironmentFailure when none comes back in time."""
        while not self._seats:
            try:
                async with asyncio.timeout(self._start_timeout):
                    await self._back.wait()
            except TimeoutError:
                if self._leaving is None:  # it may have half an hour to play
                    raise EnvironmentFailure(f"no worker came back within {self._start_timeout:g} s") from None

    async def play(self, attempt: Attempt, *how: Any) -> Episode:
        """Play it in the least busy worker; `how` goes to its player. A worker that dies under it is a FAILED episode.

        Cancelled, it ends there too, and has ended on return. What the player raises is raised here.
        """
        from ray.exceptions import RayError, RayTaskError

        try:
            await self.ready()
        except EnvironmentFailure as failure:
            return never_began(attempt, failure)
        seat = min(self._seats, key=lambda seat: seat.playing)
        seat.playing += 1
        call = seat.actor.play.remote(attempt, *how)
        try:
            episode, has = await call
            if has > self._memory_gb * GB:
                self._retire(seat, has)
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
            self._lost(seat)
            reason = str(error).strip().partition("\n")[0]
            return never_began(attempt, EnvironmentFailure(f"the process that played it is gone: {reason}"))
        finally:
            seat.playing -= 1
            if seat is self._leaving and not seat.playing:
                self._revive(seat, self._replaced(seat))

    def _retire(self, seat: _Seat, has: int) -> None:
        """Send no more to a worker that has grown too large; its last episode has it replaced."""
        if self._leaving is None and seat in self._seats:
            log.warning("a worker has %.1f GB: it ends what it plays, and another takes its place", has / GB)
            self._leaving = seat
            self._stand_up(seat)

    def _lost(self, seat: _Seat) -> None:
        """Send no more to a worker that died, until the process in its place can play."""
        if seat in self._seats or seat is self._leaving:
            self._stand_up(seat)
            self._leaving = None if seat is self._leaving else self._leaving
            log.warning("a worker is gone, %d are left", len(self._seats))
            self._revive(seat, self._opened(seat))

    def _stand_up(self, seat: _Seat) -> None:
        self._seats.discard(seat)
        if not self._seats:
            self._back.clear()

    def _revive(self, seat: _Seat, back: Any) -> None:
        task = asyncio.create_task(back)
        self._reviving.add(task)
        task.add_done_callback(self._reviving.discard)

    async def _replaced(self, seat: _Seat) -> None:
        """End a worker that plays nothing any more, and wait for the process in its place."""
        from ray.exceptions import RayError

        with suppress(RayError):  # which says that it has ended
            await seat.actor.leave.remote()
        self._leaving = None
        await self._opened(seat)

    async def _opened(self, seat: _Seat) -> None:
        """Wait until the process in the place of one that ended can play."""
        from ray.exceptions import RayError

        while True:
            try:
                await seat.actor.open.remote()
            except RayError as error:  # it is not there yet, or cannot open its player: the server it asks may be down
                log.debug("a worker is not back: %s", error)
                await asyncio.sleep(REVIVE_PAUSE_SECONDS)
            else:
                break
        self._seats.add(_Seat(seat.actor))
        self._back.set()

    async def _nodes(self) -> list[str]:
        """The node of each worker, once all of them can play. Raises what opening a player raised."""
        from ray.exceptions import RayTaskError

        try:
            return list(await asyncio.gather(*(actor.open.remote() for actor in self._actors)))
        except RayTaskError as error:
            raise error.cause if isinstance(error.cause, UserError) else error from None

    def _end(self) -> None:
        for waiting in self._reviving:
            waiting.cancel()
        for actor in self._actors:
            self._ray.kill(actor)
        self._actors, self._seats, self._leaving = [], set(), None
