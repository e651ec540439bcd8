"""What the order of attempts and an adaptive number in flight are worth, against the order of the plan and fixed numbers.

    python scripts/benchmarks/scheduling.py [--episodes 400] [--seeds 5]

Order: the 100 test tasks four times, through the real `outcomes`, with a player that sleeps. An episode takes as long as its
task's reference path, times something that only the task has and nobody knows (lognormal, sigma 0.5), times chance (lognormal,
sigma 0.4). All runs sleep side by side. The bound is the longest episode, or all of them divided by the number in flight.
`known before` sorts by what the episodes will really take: what is left there no order can remove.

In flight: episodes of ten turns, each followed by a user who takes 60 ms, against a server in a process of its own. It works
on 16 turns at once, others wait in its queue; a turn takes 40 ms, and 0.1 ms for each token of its prompt that is not in the
cache. The cache holds the contexts of about 48 episodes in the mean, the oldest make room. So it is full with 40 episodes,
and with many more than 48 it computes contexts again and again. The adaptive runs know none of this, but may look at
`/v1/loads` every 50 ms, which beside these episodes is what a second is beside real ones.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import subprocess
import sys
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from tau2rl.config import PolicyConfig, TasksConfig
from tau2rl.env.tasks import select
from tau2rl.policy.sglang import SGLangPolicy
from tau2rl.policy.sglang_load import LoadReader
from tau2rl.recipes.play import reference_length
from tau2rl.rollouts.concurrency import START, AdaptiveConcurrency
from tau2rl.rollouts.runner import PlayAttempt, outcomes, plan_attempts
from tau2rl.rollouts.scheduling import DurationEstimate, longest_first
from tau2rl.types import Attempt, Episode, Status, StopReason, TaskRef

ROOT = Path(__file__).parents[2]
SECONDS = 0.1  # of a reference action, in the first part
PLACES, POOL, TURN, TOKEN, USER_SECONDS = 16, 16_000, 0.04, 0.0001, 0.06  # of the server, in the second part
TURNS, OPENING, GROWTH = 10, 100, 50  # of its episodes; tokens
POLL = 0.05
FIXED = (16, 32, 40, 48, 64, 128, 512)
CEILING, STARTS = 512, (8, START, 128)  # of the adaptive runs: a run of `tau2rl` begins with 32 for each engine


def ended(attempt: Attempt, seconds: float) -> Episode:
    """An episode of which only its time matters."""
    return Episode(
        task=attempt.task, seed=attempt.seed, status=Status.COMPLETED, stop_reason=StopReason.USER_STOP, token_ids=(), turns=(),
        messages=(), grade=None, seconds=seconds,
    )  # fmt: skip


async def drain(attempts: Iterable[Attempt], play: PlayAttempt, concurrency: int, **options: Any) -> float:
    """Wall seconds of all attempts; `learn` gets every episode."""
    learn = options.pop("learn", lambda attempt, episode: None)
    began = time.perf_counter()
    async with aclosing(outcomes(attempts, play=play, concurrency=concurrency, retries=0, **options)) as playing:
        async for outcome in playing:
            assert outcome.episode.status is not Status.FAILED, outcome.episode.failure
            learn(outcome.attempt, outcome.episode)
    return time.perf_counter() - began


def orders(
    tasks: list[TaskRef], attempts: list[Attempt], seconds: dict[str, float], concurrency: int
) -> dict[str, tuple[Iterable[Attempt], Any]]:
    """Name -> attempts in that order, and who learns from them."""
    by_path, learning = DurationEstimate(tasks, reference_length), DurationEstimate(tasks, reference_length)
    return {
        "as planned": (attempts, None),
        "longest first, by reference path": (longest_first(attempts, by_path, concurrency=concurrency), None),
        "longest first, as a run does": (longest_first(attempts, learning, concurrency=concurrency), learning.ended),
        "longest first, known before": (sorted(attempts, key=lambda a: -seconds[a.key]), None),
    }


async def compare_orders(seeds: int) -> list[list[str]]:
    """The rows of the first table."""
    tasks, rows = select(TasksConfig()), [["in flight", "order", "wall s", "against the bound", "against the plan"]]
    length = {task: reference_length(task) + 1 for task in tasks}

    async def one(concurrency: int, name: str, seed: int) -> tuple[float, float]:
        chance = random.Random(seed)
        hidden = {task: length[task] * SECONDS * chance.lognormvariate(0, 0.5) for task in tasks}
        attempts = plan_attempts(tasks, num_samples=4, seed=seed)
        seconds = {a.key: hidden[a.task] * chance.lognormvariate(0, 0.4) for a in attempts}

        async def sleep(attempt: Attempt) -> Episode:
            await asyncio.sleep(seconds[attempt.key])
            return ended(attempt, seconds[attempt.key])

        order, learn = orders(tasks, attempts, seconds, concurrency)[name]
        wall = await drain(order, sleep, concurrency, **({"learn": learn} if learn else {}))
        return wall, max(max(seconds.values()), sum(seconds.values()) / concurrency)

    names = list(orders(tasks, [], {}, 1))
    for concurrency in (32, 100):
        cells = await asyncio.gather(*(one(concurrency, name, seed) for name in names for seed in range(seeds)))
        walls = [sum(wall for wall, _ in cells[i * seeds : (i + 1) * seeds]) for i in range(len(names))]
        bound = sum(bound for _, bound in cells[:seeds])
        for name, wall in zip(names, walls, strict=True):
            rows.append([f"{concurrency}", name, f"{wall / seeds:.2f}", f"{wall / bound:.2f}x", f"{wall / walls[0]:.2f}x"])
    return rows


@asynccontextmanager
async def adaptive(url: str, start: int) -> AsyncGenerator[AdaptiveConcurrency]:
    """The adaptive concurrency of a run, with polls as fast as these episodes."""
    async with LoadReader(url) as reader:
        control = AdaptiveConcurrency(CEILING, start=start)

        async def poll() -> None:
            while True:
                control.poll(await reader.read())
                await asyncio.sleep(POLL)

        polling = asyncio.create_task(poll())
        try:
            yield control
        finally:
            polling.cancel()
            with suppress(asyncio.CancelledError):
                await polling


async def compare_numbers(url: str, episodes: int) -> list[list[str]]:
    """The rows of the second table."""
    attempts = plan_attempts([TaskRef(domain="mock", task_id="a", split="base")], num_samples=episodes, seed=0)
    config = PolicyConfig(url=url, timeout_seconds=600)
    results: list[tuple[str, float, str]] = []
    runs = 0
    async with SGLangPolicy(config, concurrency=10_000) as policy:

        async def talk(attempt: Attempt) -> Episode:
            ids = [1] * OPENING
            began = time.perf_counter()
            for turn in range(TURNS):
                await policy.complete(ids, seed=turn, session=f"{runs}/{attempt.key}", max_tokens=8)
                ids = [1] * (len(ids) + GROWTH)
                await asyncio.sleep(USER_SECONDS)
            return ended(attempt, time.perf_counter() - began)

        for number in FIXED:
            runs += 1
            results.append((f"{number}", await drain(attempts, talk, number), ""))
            print(f"{number} in flight: {results[-1][1]:.1f} s", file=sys.stderr)
        for start in STARTS:
            runs += 1
            async with adaptive(url, start) as control:
                wall = await drain(attempts, talk, CEILING, control=control)
            far = f"{control.peak} at most, cut {control.cuts} times, {control.limit} at the end"
            results.append((f"adaptive from {start}, ceiling {CEILING}", wall, far))
            print(f"{control}; {wall:.1f} s", file=sys.stderr)
    best = min(wall for _, wall, _ in results[: len(FIXED)])
    rows = [["in flight", "wall s", "episodes/s", "against the best fixed", "how far it went"]]
    return rows + [[name, f"{wall:.1f}", f"{episodes / wall:.1f}", f"{wall / best:.2f}x", far] for name, wall, far in results]


def serve() -> None:
    """The server of the second part, until its standard input ends."""
    sys.path.insert(0, str(ROOT))
    from tests.stubs.http import Request, Response
    from tests.stubs.sglang import SGLangStub

    class Crowded(SGLangStub):
        """So many places, a queue before them, and a cache that forgets the oldest."""

        def __init__(self) -> None:
            super().__init__(answer=lambda ids, params: [5, 6, 7], context=10**7)
            self.places = asyncio.Semaphore(PLACES)
            self.waiting = 0
            self.cached: OrderedDict[str, int] = OrderedDict()  # session -> tokens
            self.running: dict[str, int] = {}

        async def reply(self, request: Request, mode: str) -> Response:
            if request.path == "/v1/loads":
                load = {"num_running_reqs": len(self.running), "num_waiting_reqs": self.waiting}
                return Response(payload={"loads": [{**load, "token_usage": sum(self.running.values()) / POOL}]})
            if request.path == "/generate":
                self.traffic.requests.clear()  # which would else be what fills this process
                await self.work(request.headers["x-smg-routing-key"], len(request.body["input_ids"]))
            return await super().reply(request, mode)

        async def work(self, session: str, tokens: int) -> None:
            self.waiting += 1
            async with self.places:
                self.waiting -= 1
                self.running[session] = tokens
                await asyncio.sleep(TURN + TOKEN * (tokens - self.cached.pop(session, 0)))
                del self.running[session]
                self.cached[session] = tokens
                room = POOL - sum(self.running.values())
                while sum(self.cached.values()) > room:
                    self.cached.popitem(last=False)

    with Crowded() as server:
        print(server.url, flush=True)
        sys.stdin.read()


def show(rows: list[list[str]]) -> None:
    """A table."""
    print("\n".join("| " + " | ".join(row) + " |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]]) + "\n")


def main() -> None:
    """Measure and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=400, help="of the second part")
    parser.add_argument("--seeds", type=int, default=5, help="of the first part")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.serve:
        serve()
        return
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", file=sys.stderr)
    show(asyncio.run(compare_orders(a.seeds)))
    server = subprocess.Popen([sys.executable, __file__, "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        show(asyncio.run(compare_numbers(server.stdout.readline().strip(), a.episodes)))
    finally:
        server.kill()
        server.wait()


if __name__ == "__main__":
    main()
