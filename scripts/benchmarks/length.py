"""What a turn costs late in a long conversation: `python scripts/benchmarks/length.py [--domain retail] [--turns 200]`.

CPU microseconds of a turn (a mean over 20 turns, the median of nine episodes) at 50, 100 and 200 turns, and their ratio, for

- `environment`: `Tau2Env.step` alone; `with LlmUser` and `with ScriptedUser` add the user simulators of `env/`
  on a model that answers at once
- `loop`: `rollouts/episode.py` around it, with a policy that answers at once
- `server`: the same with an SGLang stub in another process, to which the whole prompt is sent every turn

and, for the loop, what a turn adds to the memory in use (`tracemalloc`). The agent alternates a look-up with a sentence, so
that turns are alike; a prompt grows by as many tokens (bytes, here) a turn as the last line says.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tau2rl.chat import make_codec
from tau2rl.config import ChatConfig, LimitsConfig, PolicyConfig, UserConfig
from tau2rl.env import chat_client
from tau2rl.env.domain import domain
from tau2rl.env.simulation import Simulation
from tau2rl.env.tau2_env import Tau2Env
from tau2rl.env.user_simulator import make_user
from tau2rl.http_client import Response
from tau2rl.policy.sglang import SGLangPolicy
from tau2rl.protocols import Policy
from tau2rl.rollouts.episode import run_episode
from tau2rl.types import Actions, Attempt, CallTool, Completion, FinishReason, Say, TaskRef

from tau2.data_model.message import UserMessage
from tau2.user.user_simulator import DummyUser

ROOT = Path(__file__).parents[2]
ANSWER = b'{"choices": [{"finish_reason": "stop", "message": {"role": "assistant", "content": "Please go on."}}]}'
AT, WINDOW, EPISODES = (50, 100, 200), 20, 9
LOOKUPS: dict[str, Actions] = {
    "airline": (CallTool(name="get_user_details", arguments={"user_id": "mia_li_3668"}),),
    "retail": (CallTool(name="get_user_details", arguments={"user_id": "yusuf_rossi_9620"}),),
    "telecom": (CallTool(name="get_customer_by_phone", arguments={"phone_number": "555-123-2002"}),),
    "mock": (CallTool(name="get_users", arguments={}),),
}
SENTENCE: Actions = (Say(text="One moment, please."),)
SERVER = f"""
import json, sys
sys.path.insert(0, {str(ROOT)!r})
from tests.stubs.sglang import SGLangStub
turns = json.loads(sys.argv[1])
counts = {{}}
def answer(ids, params):
    counts["calls"] = counts.get("calls", 0) + 1
    return turns[counts["calls"] % 2]
with SGLangStub(answer=answer, context=10**9) as server:
    print(server.url, flush=True)
    sys.stdin.read()
"""


class Patient(DummyUser):
    """A user with one sentence."""

    usage = None

    def generate_next_message(self, message: Any, state: Any) -> tuple[UserMessage, Any]:
        """That sentence."""
        return UserMessage(role="user", content="Please go on.", cost=0.0), state


class Clocked:
    """A policy that notes the process's CPU time, and `tracemalloc`'s bytes when that runs, whenever it is asked."""

    def __init__(self, inner: Policy) -> None:
        self.inner, self.marks, self.bytes, self.prompts = inner, list[float](), list[int](), list[int]()

    async def complete(self, prompt_ids: Sequence[int], **options: Any) -> Completion:
        """Of the policy inside."""
        self.marks.append(time.process_time())
        self.bytes.append(tracemalloc.get_traced_memory()[0])
        self.prompts.append(len(prompt_ids))
        return await self.inner.complete(prompt_ids, **options)


class Instant:
    """A policy that samples given turns in a circle."""

    def __init__(self, turns: Sequence[Sequence[int]]) -> None:
        self.completions = [
            Completion(token_ids=tuple(ids), logprobs=(-0.5,) * len(ids), finish_reason=FinishReason.STOP) for ids in turns
        ]
        self.asked = 0

    async def complete(self, prompt_ids: Sequence[int], **_: Any) -> Completion:
        """The next turn."""
        self.asked += 1
        return self.completions[self.asked % 2]


def patient(_: Simulation) -> DummyUser:
    """The user of most lines."""
    return Patient()


def llm_user(simulation: Simulation) -> Any:
    """The LLM user simulator, whose model answers at once: the connection to its server is the edge that is replaced."""
    chat_client.post = lambda *_, **__: Response(status=200, body=ANSWER)
    return make_user(UserConfig(kind="llm", model="openai/none", api_base="http://127.0.0.1:9"), seed=0)(simulation)


def scripted_user(simulation: Simulation) -> Any:
    """The scripted user, who would leave for boredom."""
    return make_user(UserConfig(kind="scripted", max_stalled_turns=10**6), seed=0)(simulation)


def environment(ref: TaskRef, user: Callable[[Simulation], Any]) -> Tau2Env:
    """One that does not end by itself."""
    return Tau2Env(ref, make_user=user, limits=LimitsConfig(max_steps=10**6))


async def steps(ref: TaskRef, turns: int, user: Callable[[Simulation], Any]) -> list[float]:
    """CPU time at each step of the environment alone."""
    env, marks = environment(ref, user), [0.0] * (turns + 1)
    await env.open()
    for number in range(turns):
        marks[number] = time.process_time()
        await env.step(SENTENCE if number % 2 else LOOKUPS[ref.domain])
    marks[turns] = time.process_time()
    await env.close(grade=False)
    return marks


async def loop(ref: TaskRef, turns: int, codec: Any, policy: Policy) -> Clocked:
    """One episode of the loop."""
    clocked = Clocked(policy)
    attempt = Attempt(task=ref, index=0, seed=0)
    limits = LimitsConfig(max_turns=turns, context_tokens=10**9)
    await run_episode(attempt, env=environment(ref, patient), policy=clocked, codec=codec, limits=limits)
    return clocked


def late(series: Sequence[Sequence[float]], at: int) -> float:
    """Mean difference of neighbours in the last `WINDOW` before `at`; the median of all series."""
    return statistics.median(marks[at - 1] - marks[at - 1 - WINDOW] for marks in series) / WINDOW


def line(name: str, values: Sequence[float], unit: str) -> str:
    """One row of the table."""
    return f"| {name} | " + " | ".join(f"{v:.0f}" for v in values) + f" | {unit} | {values[-1] / values[0]:.2f} |"


async def measure(name: str, turns: int) -> list[str]:
    """The rows of the table."""
    at = [a for a in AT if a <= turns] or [turns]
    loaded = domain(name)
    ref = TaskRef(domain=name, task_id=next(iter(loaded.tasks("base"))), split="base")
    codec = make_codec(ChatConfig(protocol="native", tokenizer="bytes"))
    samples = [codec.write(SENTENCE), codec.write(LOOKUPS[name])]
    rows: list[str] = []
    users = {"environment": patient, "with LlmUser": llm_user, "with ScriptedUser": scripted_user}
    for label, user in users.items():
        await steps(ref, 5, user)
        marks = [await steps(ref, turns, user) for _ in range(EPISODES)]
        rows.append(line(label, [1e6 * late(marks, a) for a in at], "µs a turn"))
    await loop(ref, 5, codec, Instant(samples))
    played = [await loop(ref, turns, codec, Instant(samples)) for _ in range(EPISODES)]
    rows.append(line("loop", [1e6 * late([p.marks for p in played], a) for a in at], "µs a turn"))
    with server(samples) as url:
        async with SGLangPolicy(PolicyConfig(url=url), stop=codec.stop, stop_token_ids=codec.stop_token_ids) as policy:
            await loop(ref, 5, codec, policy)
            served = [await loop(ref, turns, codec, policy) for _ in range(EPISODES)]
    rows.append(line("server", [1e6 * late([p.marks for p in served], a) for a in at], "µs a turn"))
    tracemalloc.start()
    traced = await loop(ref, turns, codec, Instant(samples))
    tracemalloc.stop()
    rows.append(line("loop", [late([traced.bytes], a) for a in at], "bytes a turn"))
    rows.append(line("prompt", [late([traced.prompts], a) for a in at], "tokens a turn"))
    return rows


@contextmanager
def server(samples: Sequence[Sequence[int]]) -> Iterator[str]:
    """The URL of a stub server that samples these turns."""
    command = [sys.executable, "-c", SERVER, json.dumps([list(ids) for ids in samples])]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domain", choices=LOOKUPS, default="retail")
    parser.add_argument("--turns", type=int, default=max(AT))
    arguments = parser.parse_args()
    rows = asyncio.run(measure(arguments.domain, arguments.turns))
    at = [a for a in AT if a <= arguments.turns] or [arguments.turns]
    print(f"| {arguments.domain} | " + " | ".join(f"turn {a}" for a in at) + " | unit | last to first |")
    print("|" + " --- |" * (len(at) + 3))
    print("\n".join(rows))


if __name__ == "__main__":
    main()
