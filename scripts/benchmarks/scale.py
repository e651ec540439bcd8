"""A million episodes on a hundred nodes, simulated from what one machine measures: what saturates first, and when.

    python scripts/benchmarks/scale.py [--episodes 1000000] [--nodes 100] [--turns 15] [--policy-turns 20] [--user-messages 20]

Measured here, as CPU time of one process: to take an episode from a Ray worker (`message`), to score, encode and append its
record (`record`), to keep so many episodes in flight (`in flight`), and to play an episode (`play`: environment, user,
tokens; without HTTP). The writer also pauses (`collect.start_pause`) before it starts an episode. Assumed: latencies, lengths of
episodes and what a GPU serves; each is an option. Simulated, in its own time and with a seed: a fixed number of episodes in
flight; each waits for its turns, then takes its share of the workers, the policy servers, the user's servers and the one process
that writes, first come first served. `drivers` are runs side by side, each with its own writer. Nothing of this ever
ran on more than one machine.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import heapq
import itertools
import json
import logging
import os
import random
import sys
import tempfile
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rollouts_400 import make_tokenizer

from tau2rl.chat import make_codec
from tau2rl.config import EvalConfig, load_config
from tau2rl.env.tasks import gold_script, select
from tau2rl.env.tau2_env import make_env
from tau2rl.policy.scripted import ScriptedPolicy
from tau2rl.reward.presets import spec_from
from tau2rl.rollouts.runner import (
    Outcome,
    PlayAttempt,
    episode_limits,
    outcomes,
    plan_attempts,
    play_with,
    record_of,
    start_pause,
)
from tau2rl.rollouts.workers import Workers
from tau2rl.runs.folder import RunFolder
from tau2rl.types import Attempt, Episode

MESSAGES, RECORDS = 400, 200
IN_FLIGHT = (100, 2000)  # where the cost of keeping episodes in flight is measured
SCENARIOS = ((2_000, 1), (20_000, 1), (20_000, 10), (20_000, 100), (60_000, 100))  # episodes in flight, drivers


# What a worker needs is inside: this file is not on its path.
@asynccontextmanager
async def open_echo(episode: Any, seconds: float) -> AsyncGenerator[Any]:
    """An episode runner that answers every attempt with one episode."""
    import asyncio

    async def play(attempt: Any) -> Any:
        await asyncio.sleep(seconds)
        return episode

    yield play


async def drain(attempts: list[Attempt], play: PlayAttempt, concurrency: int) -> float:
    """CPU seconds of this process for each outcome."""
    began = time.process_time()
    async for _ in outcomes(attempts, play=play, concurrency=concurrency, retries=0):
        pass
    return (time.process_time() - began) / len(attempts)


async def per_episode(play: PlayAttempt, attempts: list[Attempt]) -> tuple[list[Outcome], float]:
    """Every attempt, one at a time, and the CPU seconds of each."""
    began = time.process_time()
    played = [Outcome(attempt=attempt, episode=await play(attempt)) for attempt in attempts]
    return played, (time.process_time() - began) / len(attempts)


def with_logprobs(outcome: Outcome) -> Outcome:
    """The outcome as a served policy leaves it: a reference turn was not sampled and has none."""
    rng = random.Random(0)
    turns = [replace(t, logprobs=tuple(-rng.random() for _ in range(t.end - t.start))) for t in outcome.episode.turns]
    return replace(outcome, episode=replace(outcome.episode, turns=tuple(turns)))


def per_record(config: EvalConfig, played: list[Outcome], folder: Path) -> tuple[float, float]:
    """CPU seconds and bytes of a record: scored, encoded, appended."""
    spec = spec_from(config.reward, max_turns=config.limits.max_turns, domains=config.tasks.domains)
    with RunFolder.open(RunFolder.create(folder / "run", config, resume=False)) as run:
        began = time.process_time()
        for outcome in itertools.islice(itertools.cycle(played), RECORDS):
            run.append(record_of(outcome, config, spec))
        seconds = (time.process_time() - began) / RECORDS
        return seconds, run.episodes.stat().st_size / RECORDS


async def measure(folder: Path) -> dict[str, float]:
    """What one machine can say: CPU seconds, and the bytes of a record."""
    import ray

    names = EvalConfig.model_fields["tasks"].default.domains
    tokenizer = make_tokenizer(folder, names)
    settings = [f"chat.tokenizer={tokenizer}", "user.kind=scripted", "policy.kind=gold", "limits.context_tokens=1000000"]
    config = load_config(EvalConfig, None, settings)
    codec, tasks = make_codec(config.chat), select(config.tasks)
    play = play_with(
        make_env=lambda attempt: make_env(attempt, user=config.user, limits=config.limits),
        make_policy=lambda attempt: ScriptedPolicy(gold_script(attempt.task), codec),
        codec=codec,
        limits=episode_limits(config),
    )
    attempts = plan_attempts(tasks, num_samples=1, seed=0)
    await per_episode(play, attempts[::10])  # warm
    played, playing = await per_episode(play, attempts)
    played = [with_logprobs(outcome) for outcome in played]
    record, size = per_record(config, played, folder)
    typical = sorted(played, key=lambda o: len(o.episode.token_ids))[len(played) // 2].episode
    many = plan_attempts(tasks, num_samples=40, seed=0)
    flight = [await drain(many, functools.partial(_answer, typical, count * 0.003), count) for count in IN_FLIGHT]
    ray.init("local", num_cpus=1, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    async with Workers(functools.partial(open_echo, typical, 0.02), count=1, concurrency=64) as workers:
        await drain(many[:64], workers.play, 64)
        message = await drain(many[:MESSAGES], workers.play, 64)
    return {
        "play": playing,
        "record": record,
        "bytes": size,
        "message": max(0.0, message - flight[0]),
        **{f"in flight {count}": seconds for count, seconds in zip(IN_FLIGHT, flight, strict=True)},
    }


async def _answer(episode: Episode, seconds: float, attempt: Attempt) -> Episode:
    await asyncio.sleep(seconds)  # long enough that all are in flight before the first comes back
    return episode


def in_flight_cost(measured: dict[str, float], count: float) -> float:
    """CPU seconds an episode, a straight line through the two that were measured."""
    (low, a), (high, b) = ((n, measured[f"in flight {n}"]) for n in IN_FLIGHT)
    return max(0.0, a + (b - a) * (count - low) / (high - low))


def simulate(in_flight: int, services: dict[str, float], a: argparse.Namespace) -> tuple[float, dict[str, float]]:
    """Seconds of simulated time, and the share of it that each station is busy.

    `services` are the seconds of a station that one episode takes when nobody else wants it, over all servers of the station.
    Services are constant, so who comes first to the first station is first at all of them, and one pass in order is exact.
    """
    rng = random.Random(a.seed)
    free = [0.0] * len(services)
    times = list(services.values())

    def waiting() -> float:
        """An episode's latency: lognormal, its mean that of `--turns`."""
        return a.turns * (a.policy_seconds + a.user_seconds / 2) * rng.lognormvariate(-0.125, 0.5)

    slots = [waiting() for _ in range(min(in_flight, a.episodes))]
    heapq.heapify(slots)
    now = 0.0
    for done in range(a.episodes):
        now = heapq.heappop(slots)
        for station, seconds in enumerate(times):
            now = free[station] = max(now, free[station]) + seconds
        if done + in_flight < a.episodes:
            heapq.heappush(slots, now + waiting())
    return now, {name: a.episodes * seconds / now for name, seconds in services.items()}


def row(in_flight: int, drivers: int, measured: dict[str, float], a: argparse.Namespace) -> list[str]:
    """One scenario."""
    cpu = measured["message"] + measured["record"] + in_flight_cost(measured, in_flight / drivers)
    pause = start_pause(max(1, round(in_flight / drivers)))
    writing = max(cpu, pause + measured["record"])  # messages are taken during the pause, records are not
    services = {
        "workers": measured["play"] / (a.nodes * a.workers),
        "policy": a.turns / (a.nodes * a.policy_gpus * a.policy_turns),
        "user": a.turns / 2 / (a.nodes * a.user_gpus * a.user_messages),
        "drivers": writing / drivers,
    }
    seconds, busy = simulate(in_flight, services, a)
    first = max(busy, key=busy.__getitem__)
    return [
        f"{in_flight:,}",
        str(drivers),
        f"{a.episodes / seconds:.0f}",
        f"{seconds / 3600:.2f}",
        *(f"{share:.0%}" for share in busy.values()),
        first if busy[first] > 0.9 else "latency",
    ]


def main() -> None:
    """Measure, simulate, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=1_000_000)
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--workers", type=int, default=16, help="of a node: processes that play")
    parser.add_argument("--turns", type=float, default=15, help="of an episode; every second one is answered by the user")
    parser.add_argument("--policy-seconds", type=float, default=2.0, help="of a turn, when the server has room")
    parser.add_argument("--user-seconds", type=float, default=2.0, help="of a message of the user")
    parser.add_argument("--policy-gpus", type=int, default=4, help="of a node")
    parser.add_argument("--user-gpus", type=int, default=4, help="of a node")
    parser.add_argument("--policy-turns", type=float, default=20, help="turns a second that a GPU serves")
    parser.add_argument("--user-messages", type=float, default=20, help="messages a second that a GPU serves")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--measured", type=json.loads, help="simulate with these, as an earlier start printed them")
    a = parser.parse_args()
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        measured = a.measured or asyncio.run(measure(Path(folder)))
    print("measured: " + json.dumps({name: round(value, 6) for name, value in measured.items()}))
    rows = [["in flight", "drivers", "episodes/s", "hours", "workers", "policy", "user", "drivers busy", "bound by"]]
    rows += [row(*scenario, measured, a) for scenario in SCENARIOS]
    print("\n".join("| " + " | ".join(cells) + " |" for cells in [rows[0], ["---"] * len(rows[0]), *rows[1:]]))


if __name__ == "__main__":
    main()
