"""How the throughput of slime's rollouts grows with the trajectories in flight: our hook `generate`, called as slime calls it.

    python scripts/benchmarks/slime_generate.py [--in-flight 8 16 32 64 128] [--workers 0 2] [--slime CHECKOUT]

So many places play one trajectory after the other, each from reset to a filled sample, against an SGLang server (a process of
its own, reference turns, 100 ms a turn) and a scripted customer who answers at once. Counted is what ends within a window, when
all places are busy; then slime's abort calls off the rest. With a checkout the places call slime's own `generate_and_rm`, under
its semaphore, and the samples are slime's; without one the hook is called alone, and a sample that only keeps its tokens stands
in.

The ideal is that nothing but the server takes time: places / (turns x latency). `process` is the CPU time of slime's rollout
process by the clock, `machine` that of all processes (workers and server too) by clock and cores. Once either is full, more
places cannot help. On a machine that others use that is so earlier.
"""

from __future__ import annotations

import argparse
import asyncio
import enum
import itertools
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from rollouts_400 import SERVER, make_tokenizer

from tau2rl.config import GrpoConfig, build, dump
from tau2rl.env.tasks import gold_script, select
from tau2rl.slime import hooks
from tau2rl.slime.rollout import rollout_of
from tau2rl.slime.samples import SampleMetadata, metadata_of
from tau2rl.types import TaskRef

ROOT = Path(__file__).parents[2]
PARAMS = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "max_new_tokens": 2048}
Generate = Callable[[Any, Any, dict[str, Any]], Awaitable[Any]]


@dataclass
class StandIn:
    """slime's `Sample`, as far as the hook knows it."""

    index: int
    metadata: dict[str, Any]
    tokens: list[int] = field(default_factory=list)
    loss_mask: list[int] | None = None
    rollout_log_probs: list[float] | None = None
    response_length: int = 0

    Status = enum.Enum("Status", "COMPLETED TRUNCATED FAILED ABORTED")
    PrefixCacheInfo = SimpleNamespace

    def append_response_tokens(
        self, args: Any, *, tokens: Any, log_probs: Any = None, trainable: bool = True, meta_info: Any = None
    ) -> None:
        """Keep them, with their mask and log-probabilities."""
        self.tokens += tokens
        self.response_length += len(tokens)
        self.loss_mask = (self.loss_mask or []) + [int(trainable)] * len(tokens)
        self.rollout_log_probs = (self.rollout_log_probs or []) + list(log_probs or [0.0] * len(tokens))


def without_slime() -> tuple[type, Any, Generate]:
    """What makes a sample, what calls it off, what plays it: the hook alone."""
    state = SimpleNamespace(aborted=False)
    module = ModuleType("slime.rollout.sglang_rollout")
    module.__dict__.update(GenerateState=lambda args: state, get_model_url=None)  # no model but the policy is served
    for name in ("slime", "slime.rollout"):
        sys.modules[name] = ModuleType(name)
    sys.modules[module.__name__] = module
    return StandIn, lambda args: state, hooks.generate


def with_slime(checkout: str) -> tuple[type, Any, Generate]:
    """The same of slime itself; SGLang, which it imports for other things, is stood in for as in our tests."""
    import pytest

    sys.path.insert(0, str(ROOT))
    from tests.contract.slime_job import only_the_edges
    from tests.stubs.slime_stubs import install

    patch = pytest.MonkeyPatch()
    patch.setenv("SLIME_CHECKOUT", checkout)
    install(patch)
    only_the_edges(patch)
    from slime.rollout.sglang_rollout import GenerateState, generate_and_rm  # pyright: ignore[reportMissingImports]
    from slime.utils.types import Sample  # pyright: ignore[reportMissingImports]

    return Sample, GenerateState, generate_and_rm


def arguments(config: GrpoConfig, folder: Path, url: str) -> Any:
    """slime's `args`, as far as the hook and `generate_and_rm` read them."""
    host, _, port = url.removeprefix("http://").partition(":")
    most = config.rollout.concurrency
    slimes: dict[str, Any] = dict.fromkeys(
        ("rollout_sample_hook_path", "sglang_model_routers", "rollout_stop", "rollout_stop_token_ids", "rollout_max_context_len")
    )
    off = ("partial_rollout", "mask_offpolicy_in_partial_rollout", "group_rm", "rollout_skip_special_tokens")
    slimes |= dict.fromkeys(off, False)
    slimes |= {"custom_generate_function_path": f"{hooks.__name__}.generate", "hf_checkpoint": config.chat.tokenizer}
    slimes |= {"sglang_server_concurrency": most, "rollout_num_engines": 1, "sglang_dp_size": 1}
    slimes |= {"rollout_temperature": 1.0, "rollout_top_p": 1.0, "rollout_top_k": -1, "rollout_max_response_len": 2048}
    given = {"folder": str(folder), "stage": "grpo", "config": dump(config)}
    return SimpleNamespace(tau2rl=given, sglang_router_ip=host, sglang_router_port=int(port), **slimes)


def machine_seconds() -> float:
    """CPU seconds that all processes have taken; 0 where the system does not say."""
    with suppress(OSError):
        with open("/proc/stat", encoding="ascii") as file:
            user, nice, system, _idle, _wait, *rest = map(int, file.readline().split()[1:9])
        return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")
    return 0.0


@dataclass
class Level:
    """What was measured with so many places."""

    places: int
    rate: float  # episodes a second
    turns: float  # of an episode
    process: float  # cores
    machine: float  # share of all cores

    def row(self, first: Level, workers: int, latency: float) -> list[str]:
        """A row of the table."""
        ideal = self.places / (self.turns * latency)
        shares = [f"{self.rate / ideal:.0%}", f"{self.process:.0%}", f"{self.machine:.0%}"]
        return [
            f"{workers}",
            f"{self.places}",
            f"{self.rate:.1f}",
            f"{self.rate * self.turns:.0f}",
            f"{self.rate / first.rate:.2f}x",
            *shares,
        ]


class Rollouts:
    """One rollout process with its settings, played at one level after the other."""

    def __init__(self, args: Any, tasks: list[TaskRef], slime: tuple[type, Any, Generate]) -> None:
        self.args, self.tasks = args, itertools.cycle(tasks)
        self.sample, state, self.generate = slime
        self.state = state(args)
        self.state.aborted = False
        self.numbers = itertools.count()
        self.ended: list[SampleMetadata] = []

    async def one(self) -> SampleMetadata:
        """One trajectory."""
        task = next(self.tasks)
        where = {"domain": task.domain, "task_id": task.task_id, "split": task.split}
        sample = self.sample(index=next(self.numbers), metadata={"task": where})
        return metadata_of(await self.generate(self.args, sample, dict(PARAMS)))

    async def place(self) -> None:
        """One trajectory after the other, until all is called off."""
        while not self.state.aborted:
            metadata = await self.one()
            self.ended.append(metadata)  # of the window that it ended in

    async def level(self, places: int, *, warm: float, seconds: float) -> Level:
        """Play with so many places for a while, and count what ends within the window."""
        self.state.aborted = False
        playing = [asyncio.create_task(self.place()) for _ in range(places)]
        await asyncio.sleep(warm)
        self.ended = []
        wall, cpu, machine = time.perf_counter(), time.process_time(), machine_seconds()
        await asyncio.sleep(seconds)
        wall, cpu, machine = time.perf_counter() - wall, time.process_time() - cpu, machine_seconds() - machine
        counted, self.ended, self.state.aborted = self.ended, [], True
        await asyncio.gather(*playing)
        bad = [metadata for metadata in counted if metadata.status != "completed"]
        assert counted and not bad, bad[:1] or "nothing ended: raise --seconds"
        return Level(
            places=places,
            rate=len(counted) / wall,
            turns=sum(metadata.turns for metadata in counted) / len(counted),
            process=cpu / wall,
            machine=machine / wall / (os.cpu_count() or 1),
        )


async def measure(a: argparse.Namespace, url: str, tokenizer: str, slime: tuple[type, Any, Generate]) -> list[list[str]]:
    """The rows of the table."""
    head = [
        "workers",
        "in flight",
        "episodes/s",
        "turns/s",
        f"against {a.in_flight[0]} in flight",
        "of the ideal",
        "process",
        "machine",
    ]
    rows = [head]
    for workers in a.workers:
        config = build(
            GrpoConfig,
            {
                "seed": workers,  # the server counts the turns of each seed
                "backend": "slime",
                "model": {"init": tokenizer},
                "tasks": {"split": "train-learn", "exclude_quarantined": True},
                "user": {"kind": "scripted"},
                "limits": {"context_tokens": 1_000_000},
                "rollout": {"concurrency": max(a.in_flight), "workers": workers, "retries": 0},
            },
        )
        tasks = [task for task in select(config.tasks) if len(gold_script(task)) > 1]
        with tempfile.TemporaryDirectory() as folder:
            args = arguments(config, Path(folder), url)
            rollouts = Rollouts(args, tasks, slime)
            # The first call loads what takes seconds, and starts the workers.
            await rollouts.one()
            levels = [await rollouts.level(places, warm=a.warm, seconds=a.seconds) for places in a.in_flight]
            await rollout_of(args).aclose()
        rows += [level.row(levels[0], workers, a.latency) for level in levels]
    return rows


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--in-flight", type=int, nargs="+", default=[8, 16, 32, 64, 128], help="trajectories")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="processes that play; 0: the rollout process")
    parser.add_argument("--latency", type=float, default=0.1, help="seconds, of the policy")
    parser.add_argument("--seconds", type=float, default=10.0, help="of a window")
    parser.add_argument("--warm", type=float, default=3.0, help="seconds before it")
    parser.add_argument("--slime", help="a checkout of slime at the pinned commit; default: the hook alone")
    a = parser.parse_args()
    logging.getLogger("slime").setLevel(logging.ERROR)
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        names = GrpoConfig.model_fields["tasks"].default.domains
        tokenizer = str(make_tokenizer(Path(folder), names))
        slime = with_slime(a.slime) if a.slime else without_slime()
        command = [sys.executable, SERVER, str(a.latency), tokenizer]
        server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            if any(a.workers):
                import ray

                ray.init(
                    "local", num_cpus=max(a.workers), include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False
                )
            rows = asyncio.run(measure(a, url, tokenizer, slime))
        finally:
            server.kill()
            server.wait()
    print(f"{a.latency * 1000:g} ms a turn, {os.cpu_count()} cores, {'slime itself' if a.slime else 'the hook alone'}")
    print("\n".join("| " + " | ".join(row) + " |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]]))


if __name__ == "__main__":
    main()
