"""Episodes played in processes of their own: Ray actors over the nodes of a cluster.

tau2 is Python under one lock, so one process plays a few hundred turns a second and no more. Each worker here is a process
with a player of its own (environments, connections, chat codec); an attempt goes in, an episode comes out. A worker that dies
takes its episodes with it as FAILED ones, which `outcomes` plays again elsewhere; Ray starts another in its place.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import TYPE_CHECKING, Any

from tau2rl.errors import EnvironmentFailure, UserError
from tau2rl.rollouts.collect import Play, never_began
from tau2rl.settings import ray_address
from tau2rl.types import Attempt, Episode

if TYPE_CHECKING:
    from typing_extensions import Self

OpenPlayer = Callable[[], AbstractAsyncContextManager[Play]]  # pickled, and called once in each worker

REVIVE_PAUSE_SECONDS = 1.0

log = logging.getLogger(__name__)


class Workers:
    """Players in other processes; `play` goes to the one with the fewest episodes.

        async with Workers(functools.partial(open_player, config), count=16, concurrency=256) as workers:
            async for outcome in outcomes(attempts, play=workers.play, concurrency=256, retries=2): ...

    Needs a Ray cluster: the one of the job that this process runs in, or one that `ray.init` was called for.
    """

    def __init__(self, open_player: OpenPlayer, *, count: int, concurrency: int, start_timeout_seconds: float = 300.0) -> None:
        """`count` processes with a core each, spread over the nodes, for `concurrency` episodes at a time in all of them."""
        self._open_player = open_player
        self._count = count
        self._concurrency = concurrency
        self._start_timeout = start_timeout_seconds
        self._playing: dict[Any, int] = {}  # actor that can play -> its episodes in flight
        self._reviving: dict[Any, asyncio.Task[None]] = {}  # actor that died -> what waits for it to come back
        self._back = asyncio.Event()  # some actor can play

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
            num_cpus=1, scheduling_strategy="SPREAD", max_restarts=-1, max_concurrency=max(2, self._concurrency)
        )
        self._playing = {actor.remote(self._open_player): 0 for _ in range(self._count)}
        try:
            nodes = await asyncio.wait_for(self._nodes(), self._start_timeout)
        except asyncio.TimeoutError:
            self._end()
            cores = ray.cluster_resources().get("CPU", 0)
            raise UserError(
                f"{self._count} workers did not start within {self._start_timeout:g} s; the cluster has {cores:g} cores",
                hint="each worker takes one core: lower `rollout.workers`",
            ) from None
        except BaseException:
            self._end()
            raise
        self._back.set()
        log.info("%d workers on %d nodes", len(nodes), len(set(nodes)))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._end()

    async def play(self, attempt: Attempt) -> Episode:
        """Play it in the least busy worker. A worker that dies under it is a FAILED episode."""
        from ray.exceptions import RayActorError

        try:
            await asyncio.wait_for(self._back.wait(), self._start_timeout)
        except asyncio.TimeoutError:
            return never_began(attempt, EnvironmentFailure(f"no worker came back within {self._start_timeout:g} s"))
        worker = min(self._playing, key=self._playing.__getitem__)
        self._playing[worker] += 1
        call = worker.play.remote(attempt)
        try:
            return await call
        except RayActorError as error:
            self._lost(worker)
            reason = str(error).strip().partition("\n")[0]
            return never_began(attempt, EnvironmentFailure(f"the process that played it is gone: {reason}"))
        except asyncio.CancelledError:
            self._ray.cancel(call)
            raise
        finally:
            if worker in self._playing:
                self._playing[worker] -= 1

    def _lost(self, worker: Any) -> None:
        """Send no more to a worker that died, until the process in its place can play."""
        if self._playing.pop(worker, None) is None:
            return
        log.warning("a worker is gone, %d are left", len(self._playing))
        if not self._playing:
            self._back.clear()
        self._reviving[worker] = asyncio.create_task(self._revive(worker))

    async def _revive(self, worker: Any) -> None:
        from ray.exceptions import RayActorError

        while True:
            try:
                await worker.open.remote()
            except RayActorError:
                await asyncio.sleep(REVIVE_PAUSE_SECONDS)
            else:
                break
        self._playing[worker] = 0
        del self._reviving[worker]
        self._back.set()

    async def _nodes(self) -> list[str]:
        """The node of each worker, once all of them can play. Raises what opening a player raised."""
        from ray.exceptions import RayTaskError

        try:
            return list(await asyncio.gather(*(worker.open.remote() for worker in self._playing)))
        except RayTaskError as error:
            raise error.cause if isinstance(error.cause, UserError) else error from None

    def _end(self) -> None:
        for waiting in self._reviving.values():
            waiting.cancel()
        for worker in (*self._playing, *self._reviving):
            self._ray.kill(worker)
        self._playing, self._reviving = {}, {}


class Worker:
    """What runs in each process, as an async actor: one event loop, one player, many episodes."""

    def __init__(self, open_player: OpenPlayer) -> None:
        self._open_player = open_player
        self._stack = AsyncExitStack()
        self._opening = asyncio.Lock()
        self._play: Play | None = None

    async def open(self) -> str:
        """Get ready to play; the id of the node that this is on."""
        import ray

        await self._player()
        return ray.get_runtime_context().get_node_id()

    async def play(self, attempt: Attempt) -> Episode:
        """Play an attempt once."""
        return await (await self._player())(attempt)

    async def _player(self) -> Play:
        """The player, opened at the first call: of this process, or of the one that Ray put in its place."""
        async with self._opening:
            if self._play is None:
                self._play = await self._stack.enter_async_context(self._open_player())
            return self._play
