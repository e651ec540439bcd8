"""400 episodes, 100 test tasks four times, against a policy and a user that take 50 ms each: how near to what is possible.

    python scripts/benchmarks/rollouts_400.py [--concurrency 16 20 24 32] [--workers 2] [--limit TASKS]

The policy server is a process of its own and answers with reference turns; the scripted user sleeps before each message.
Prompts have the layout of a Qwen checkpoint, in the tokens of a BPE that is trained on the policies first, about 4 characters
each. Every episode is graded, scored and written as in a run.

`one at a time` is what evaluating sequentially costs: a sample of the episodes really played so, scaled to all by their latency.
It is played by this project's own environments, which cost less CPU than the untouched package's, so the ratio is a low one.
Every process that plays has seen each task once before (which is what `the first time` costs). The four attempts of a task
make the same calls, so their results are encoded once: attempts of a model differ more.
The bound is the largest of: the latency of the longest episode; the CPU time of the environments alone / cores; all latency /
concurrency. `busy` is CPU time / wall time of the process that writes the records, not of the workers. Timings of a busy
machine mean little: look at the ratios on an idle one.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tau2rl.chat.tokenizers import CHATML_TEMPLATE
from tau2rl.config import EvalConfig, load_config
from tau2rl.env.domain import domain
from tau2rl.env.tasks import gold_script, select
from tau2rl.env.tau2_env import make_env
from tau2rl.reward.presets import spec_from
from tau2rl.rollouts.runner import PlayAttempt, outcomes, plan_attempts, record_of
from tau2rl.rollouts.workers import Workers
from tau2rl.runs.folder import RunFolder
from tau2rl.types import Attempt, Episode, Status

SERVER = Path(__file__).with_name("gold_server.py")
SAMPLE = 10  # every so many-th task is played alone


# What a worker needs is inside: this file is not on its path.
@asynccontextmanager
async def open_runner(config: Any, latency: float) -> AsyncGenerator[Any]:
    """An episode runner as a run has it, with a user who takes its time."""
    import time

    from tau2rl.chat import make_codec
    from tau2rl.env.tau2_env import Tau2Env
    from tau2rl.env.user_simulator import make_user
    from tau2rl.recipes.agents import open_agent
    from tau2rl.rollouts.runner import episode_limits, play_with

    def user(simulation: Any) -> Any:
        made = make_user(config.user, seed=0)(simulation)
        answer = made.generate_next_message

        def late(message: Any, state: Any) -> Any:
            time.sleep(latency)  # on the episode's own thread
            return answer(message, state)

        made.generate_next_message = late
        return made

    await environments(config)
    codec = make_codec(config.chat)
    async with open_agent(config, codec) as policies:
        yield play_with(
            make_env=lambda attempt: Tau2Env(attempt.task, make_user=user),
            make_policy=policies,
            codec=codec,
            limits=episode_limits(config),
        )


async def collect(
    config: EvalConfig, attempts: list[Attempt], play: PlayAttempt, concurrency: int
) -> tuple[list[Episode], float, float]:
    """Play, grade, score and write: the episodes, wall seconds, CPU seconds of this process."""
    spec = spec_from(config.reward, max_turns=config.limits.max_turns, domains=config.tasks.domains)
    with tempfile.TemporaryDirectory() as folder:
        path = RunFolder.create(Path(folder) / "run", config, resume=False)
        with RunFolder.open(path) as run:
            wall, cpu = time.perf_counter(), time.process_time()
            episodes: list[Episode] = []
            async for outcome in outcomes(attempts, play=play, concurrency=concurrency, retries=0):
                run.append(record_of(outcome, config, spec))
                episodes.append(outcome.episode)
            spent = time.perf_counter() - wall, time.process_time() - cpu
    failed = [e.failure for e in episodes if e.status is Status.FAILED]
    assert not failed, failed[0]
    return episodes, *spent


def make_tokenizer(folder: Path, names: tuple[str, ...]) -> Path:
    """A tokenizer as a checkpoint brings it, with about as many tokens to a text."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    texts = [text for name in names for text in (domain(name).policy, json.dumps(domain(name).tools))]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=3000, initial_alphabet=alphabet, show_progress=False))
    made.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    made.add_tokens([AddedToken(tag, normalized=False) for tag in ("<tool_call>", "</tool_call>")])
    fast = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|im_end|>", chat_template=CHATML_TEMPLATE)
    fast.save_pretrained(folder)
    return folder


def waits(episode: Episode) -> int:
    """How often an episode waited: its turns, and the user simulator's messages."""
    return len(episode.turns) + sum(message["role"] == "user" for message in episode.trajectory)


async def environments(config: EvalConfig) -> float:
    """CPU seconds of the environments alone, with reference turns at once, each task once."""
    began = time.process_time()
    for attempt in plan_attempts(select(config.tasks), num_samples=1, seed=0):
        env = make_env(attempt, user=config.user, limits=config.limits)
        await env.open()
        for actions in gold_script(attempt.task):
            if (await env.step(actions)).done:
                break
        await env.close(grade=True)
    return time.process_time() - began


async def with_workers(config: EvalConfig, attempts: list[Attempt], count: int, concurrency: int, latency: float) -> Any:
    """`collect` with so many processes that play; 0: in this one."""
    if not count:
        async with open_runner(config, latency) as play:
            return await collect(config, attempts, play, concurrency)
    opening = functools.partial(open_runner, config, latency)
    async with Workers(opening, count=count, concurrency=concurrency) as workers:
        return await collect(config, attempts, workers.play, concurrency)


async def measure(config: EvalConfig, a: argparse.Namespace) -> list[list[str]]:
    """The rows of the table."""
    tasks, cores = select(config.tasks), len(os.sched_getaffinity(0))
    first = await environments(config)
    cpu = await environments(config)
    alone, wall_alone, _ = await with_workers(config, plan_attempts(tasks, num_samples=1, seed=0)[::SAMPLE], 0, 1, a.latency)
    per_wait = wall_alone / sum(map(waits, alone))
    rows = [["in flight", "workers", "wall s", "against one at a time", "bound s", "against the bound", "busy"]]
    ways = [*((c, 0) for c in a.concurrency), *((a.concurrency[-1], workers) for workers in a.workers)]
    for number, (concurrency, count) in enumerate(ways):
        attempts = plan_attempts(tasks, num_samples=a.samples, seed=1 + number)  # the server counts the turns of each seed
        episodes, wall, spent = await with_workers(config, attempts, count, concurrency, a.latency)
        counts = list(map(waits, episodes))
        if len(rows) == 1:
            solved = sum(e.grade is not None and e.grade.success for e in episodes)
            prompt = sum(turn.start for e in episodes for turn in e.turns) / sum(len(e.turns) for e in episodes)
            print(f"{len(episodes)} episodes, {solved} solved, {sum(counts)} waits of {a.latency * 1000:g} ms")
            print(f"{prompt:.0f} tokens a prompt; {cores} cores")
            print(f"environments of {len(tasks)} tasks: {first:.1f} s of CPU the first time, {cpu:.1f} s later")
            rows.append(["1", f"({len(alone)} played)", f"{per_wait * sum(counts):.0f}", "1x", "", "", ""])
        bound = max(a.latency * max(counts), cpu * a.samples / cores, a.latency * sum(counts) / concurrency)
        ratio = per_wait * sum(counts) / wall
        figures = [f"{wall:.2f}", f"{ratio:.1f}x", f"{bound:.2f}", f"{wall / bound:.2f}x", f"{spent / wall:.0%}"]
        rows.append([str(concurrency), str(count), *figures])
    return rows


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[16, 20, 24, 32], help="episodes in flight, played here")
    parser.add_argument("--workers", type=int, nargs="*", default=[2], help="processes that play, with the last concurrency")
    parser.add_argument("--samples", type=int, default=4, help="episodes of each task")
    parser.add_argument("--limit", type=int, help="tasks of each domain")
    parser.add_argument("--latency", type=float, default=0.05, help="seconds, of the policy and of the user")
    parser.add_argument("--tokenizer", help="a checkpoint's directory, or `bytes`; default: trained for this")
    a = parser.parse_args()
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        names = EvalConfig.model_fields["tasks"].default.domains
        tokenizer = a.tokenizer or str(make_tokenizer(Path(folder), names))
        command = [sys.executable, SERVER, str(a.latency), tokenizer]
        server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            settings = [f"policy.url={url}", f"chat.tokenizer={tokenizer}", "user.kind=scripted", "limits.context_tokens=1000000"]
            settings += [f"rollout.concurrency={max(a.concurrency)}", *([f"tasks.limit={a.limit}"] if a.limit else [])]
            if any(a.workers):
                import ray

                ray.init(
                    "local", num_cpus=max(a.workers), include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False
                )
            rows = asyncio.run(measure(load_config(EvalConfig, None, settings), a))
        finally:
            server.kill()
            server.wait()
    print("\n".join("| " + " | ".join(row) + " |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]]))


if __name__ == "__main__":
    main()
