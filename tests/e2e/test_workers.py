"""Episodes in processes of their own, on a Ray cluster of several nodes on this machine.

- every attempt has exactly one outcome, and the work is spread over the nodes
- a worker that is killed costs its episodes a try each and nothing else; another takes its place
- a node that is lost costs no episode and doubles none; where no worker is left and none comes back, the run ends and says so
- a worker that leaks is replaced: nothing is lost, doubled or played again; one that grows too fast to wait for ends at once
- an episode that is called off has ended in its worker; what a call says reaches the player; a bug there keeps its name
- a player that cannot be opened, and a cluster with too few cores, are told as a person's mistake
- (slow) the same on ten nodes

The players here play nothing, so that what is tested is who plays; `tests/contract/test_slime_workers.py` has real ones.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tau2rl.errors import RunIncomplete, UserError
from tau2rl.rollouts.runner import Outcome, PlayAttempt, outcomes, plan_attempts
from tau2rl.rollouts.workers import GB, Workers
from tau2rl.types import Attempt, Episode, Status, StopReason, TaskRef

pytestmark = pytest.mark.e2e
TASKS = [TaskRef(domain="mock", task_id=f"task_{i}", split="base") for i in range(12)]


class Nodes:
    """A cluster on this machine: a head without cores, and nodes of one core each."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self.nodes: list[Any] = []

    def add(self, count: int) -> None:
        self.nodes += [self.cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20) for _ in range(count)]

    def lose(self) -> None:
        self.cluster.remove_node(self.nodes.pop(), allow_graceful=False)


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    import ray

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_health_check_period_ms", "1000")
    monkeypatch.setenv("RAY_health_check_failure_threshold", "3")
    made = Nodes()
    ray.init(address=made.cluster.address, logging_level="ERROR", log_to_driver=False)
    try:
        yield made
    finally:
        ray.shutdown()
        made.cluster.shutdown()


def opener(folder: Path, *, seconds: float = 0.05, dies_on: str = "") -> Callable[[], Any]:
    """What opens a runner that notes its process and plays nothing; on `dies_on` the process is killed, the first time."""
    mark = str(folder / "died")

    # Everything that the worker needs is inside: this file is not on its path.
    @asynccontextmanager
    async def open_runner() -> AsyncGenerator[PlayAttempt]:
        def die_once() -> None:
            if not os.path.exists(mark):
                open(mark, "w").close()
                os.kill(os.getpid(), signal.SIGKILL)

        async def play(attempt: Attempt) -> Episode:
            if attempt.key == dies_on:
                die_once()
            await asyncio.sleep(seconds)
            return Episode(
                task=attempt.task, seed=attempt.seed, status=Status.COMPLETED, stop_reason=StopReason.USER_STOP,
                token_ids=(), turns=(), messages=(), grade=None, db_hashes=(str(os.getpid()), None),
            )  # fmt: skip

        yield play

    return open_runner


async def play_all(
    attempts: list[Attempt], opened: Callable[[], Any], count: int, *, on: Callable[[int], None] = lambda done: None
) -> list[Outcome]:
    found: list[Outcome] = []
    async with Workers(opened, count=count, concurrency=4 * count) as workers:
        playing = outcomes(attempts, play=workers.play, concurrency=4 * count, retries=3, retry_pause_seconds=0.1)
        async for outcome in playing:
            found.append(outcome)
            on(len(found))
    return found


def check_whole(attempts: list[Attempt], found: list[Outcome]) -> None:
    assert sorted(o.attempt.key for o in found) == sorted(a.key for a in attempts)
    assert all(o.episode.status is Status.COMPLETED for o in found)


def test_a_killed_worker_costs_its_episodes_a_try_and_nothing_else(nodes: Nodes, tmp_path: Path) -> None:
    nodes.add(2)
    attempts = plan_attempts(TASKS, num_samples=4, seed=1)
    found = asyncio.run(play_all(attempts, opener(tmp_path, dies_on=attempts[9].key), 2))
    check_whole(attempts, found)
    tries = {o.attempt.key: o.tries for o in found}
    assert tries[attempts[9].key] == 2
    # Eight are in flight at most, four of them in the process that died.
    assert sum(t - 1 for t in tries.values()) <= 8
    assert len({o.episode.db_hashes for o in found}) >= 2  # at least two processes played


@pytest.mark.slow
def test_a_lost_node_costs_no_episode(nodes: Nodes, tmp_path: Path) -> None:
    nodes.add(3)
    attempts = plan_attempts(TASKS, num_samples=6, seed=1)
    found = asyncio.run(
        play_all(attempts, opener(tmp_path, seconds=0.3), 3, on=lambda done: nodes.lose() if done == 10 else None)
    )
    check_whole(attempts, found)


@pytest.mark.slow
def test_ten_nodes_of_which_two_are_lost(nodes: Nodes, tmp_path: Path) -> None:
    nodes.add(10)
    attempts = plan_attempts(TASKS, num_samples=40, seed=1)
    found = asyncio.run(
        play_all(attempts, opener(tmp_path, seconds=0.3), 10, on=lambda done: nodes.lose() if done in (40, 80) else None)
    )
    check_whole(attempts, found)
    assert len({o.episode.db_hashes for o in found}) >= 10


@pytest.mark.slow
def test_a_worker_that_leaks_is_replaced_and_loses_nothing(nodes: Nodes, tmp_path: Path) -> None:
    nodes.add(2)
    attempts = plan_attempts(TASKS, num_samples=8, seed=1)
    mark, big = tmp_path / "grew", attempts[-1].key

    @asynccontextmanager
    async def open_leaky() -> AsyncGenerator[PlayAttempt]:
        kept: list[bytes] = []

        async def play(attempt: Attempt) -> Episode:
            if len(kept) < 30:  # 8 MB each, on top of 50: beyond the limit of 200, and below its double
                kept.append(b"x" * (GB // 125))
            await asyncio.sleep(0.25)
            if attempt.key == big and not mark.exists():
                mark.touch()
                kept.append(b"x" * (GB // 2))  # beyond twice the limit, in the middle of an episode that does not end
                await asyncio.sleep(600)
            return Episode(
                task=attempt.task, seed=attempt.seed, status=Status.COMPLETED, stop_reason=StopReason.USER_STOP,
                token_ids=(), turns=(), messages=(), grade=None, db_hashes=(str(os.getpid()), None),
            )  # fmt: skip

        yield play

    async def leak() -> list[Outcome]:
        async with Workers(open_leaky, count=2, concurrency=4, memory_gb=0.2) as workers:
            playing = outcomes(attempts, play=workers.play, concurrency=4, retries=3, retry_pause_seconds=0.1)
            return [outcome async for outcome in playing]

    found = asyncio.run(leak())
    check_whole(attempts, found)
    assert len({o.episode.db_hashes for o in found}) >= 4  # the first two were both replaced
    tries = {o.attempt.key: o.tries for o in found}
    assert tries[big] == 2
    assert sum(t - 1 for t in tries.values()) <= 4  # only the one that ended at once took others with it: those beside it


def test_a_call_reaches_its_worker_and_ends_there_when_it_is_called_off(nodes: Nodes, tmp_path: Path) -> None:
    nodes.add(1)
    began, ended = tmp_path / "began", tmp_path / "ended"

    @asynccontextmanager
    async def open_patient() -> AsyncGenerator[Callable[..., Any]]:
        async def play(attempt: Attempt, how: str, seconds: float) -> Episode:
            if how == "broken":
                raise LookupError("a bug of ours")
            began.touch()
            try:
                await asyncio.sleep(seconds)
            except asyncio.CancelledError:
                await asyncio.sleep(0.3)  # an environment that takes its time to close
                ended.touch()
                raise
            return Episode(
                task=attempt.task, seed=attempt.seed, status=Status.COMPLETED, stop_reason=StopReason.USER_STOP,
                token_ids=(), turns=(), messages=(), grade=None, db_hashes=(how, None),
            )  # fmt: skip

        yield play

    async def call() -> None:
        (attempt,) = plan_attempts(TASKS[:1], num_samples=1, seed=1)
        async with Workers(open_patient, count=1, concurrency=4) as workers:
            assert (await workers.play(attempt, "as told", 0.0)).db_hashes[0] == "as told"
            with pytest.raises(LookupError, match="a bug of ours"):
                await workers.play(attempt, "broken", 0.0)
            began.unlink()
            playing = asyncio.create_task(workers.play(attempt, "in vain", 600.0))
            while not began.exists():
                await asyncio.sleep(0.05)
            playing.cancel()
            await asyncio.gather(playing, return_exceptions=True)
            assert playing.cancelled() and ended.exists()
            assert (await workers.play(attempt, "again", 0.0)).db_hashes[0] == "again"

    asyncio.run(call())


def test_a_run_whose_workers_are_all_gone_ends_with_a_word(nodes: Nodes, tmp_path: Path) -> None:
    nodes.add(1)
    attempts = plan_attempts(TASKS, num_samples=2000, seed=1)  # more than can end before the node is gone

    async def lose_all() -> list[Outcome]:
        found: list[Outcome] = []
        async with Workers(opener(tmp_path), count=1, concurrency=4, revive_timeout_seconds=3.0) as workers:
            playing = outcomes(attempts, play=workers.play, concurrency=4, retries=3, retry_pause_seconds=0.1)
            async for outcome in playing:
                found.append(outcome)
                if len(found) == 8:
                    await asyncio.to_thread(nodes.lose)
        return found

    with pytest.raises(RunIncomplete, match=r"all 1 workers are gone, and none came back within 3 s"):
        asyncio.run(asyncio.wait_for(lose_all(), 120))


def test_too_few_cores_and_a_player_that_cannot_open_are_told(nodes: Nodes, tmp_path: Path) -> None:
    nodes.add(1)

    async def open_three() -> None:
        async with Workers(opener(tmp_path), count=3, concurrency=4, start_timeout_seconds=12):
            raise AssertionError("unreachable")

    with pytest.raises(UserError, match="the cluster has 1 cores"):
        asyncio.run(open_three())

    @asynccontextmanager
    async def broken() -> AsyncGenerator[PlayAttempt]:
        from tau2rl.errors import UserError

        raise UserError("no SGLang server answers", hint="start one")
        yield  # pragma: no cover

    async def open_broken() -> None:
        async with Workers(broken, count=1, concurrency=4):
            raise AssertionError("unreachable")

    with pytest.raises(UserError, match="no SGLang server answers") as caught:
        asyncio.run(open_broken())
    assert caught.value.hint == "start one"


def test_without_a_cluster_the_hint_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    async def open_one() -> None:
        async with Workers(opener(tmp_path), count=1, concurrency=4):
            raise AssertionError("unreachable")

    with pytest.raises(UserError, match="there is none"):
        asyncio.run(open_one())
