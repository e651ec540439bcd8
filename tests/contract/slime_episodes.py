"""What the tests of the slime backend play: tau2's mock domain, an agent with a few scripts behind a stub SGLang server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

from tau2rl.chat.native import NativeCodec
from tau2rl.chat.tokenizers import HFTokenizer
from tau2rl.config import GrpoConfig, SamplingConfig, build, dump
from tau2rl.protocols import ChatCodec
from tau2rl.slime.rollout import Rollout, rollout_of
from tau2rl.slime.samples import Played
from tau2rl.types import Actions, CallTool, Say, TaskRef
from tests.play import CREATE
from tests.stubs.http import StubServer
from tests.stubs.sglang import Answer

T = TypeVar("T")
SAMPLING = SamplingConfig(temperature=1.0, max_tokens=512)
RIGHT = (CallTool(name="create_task", arguments={"user_id": "user_1", "title": "Important Meeting"}),)
WRONG = (CallTool(name="create_task", arguments={"user_id": "nobody", "title": "Important Meeting"}),)
ASK = (Say(text="One moment, please."),)
DONE = (Say(text="That is done."),)
HOLD = (Say(text="Let me see."),)
SCRIPTS = ((ASK, RIGHT, DONE), (HOLD, WRONG, DONE), (RIGHT, DONE), (WRONG, DONE))  # told apart by their first turns


def settings(**values: Any) -> GrpoConfig:
    """A GRPO run on the mock domain, a group of four a round."""
    given = {
        "model": {"init": "a/checkpoint"},
        "backend": "slime",
        "tasks": {"domains": ["mock"], "split": "base", "ids": ["create_task_1"]},
        "user": {"kind": "scripted"},
        "chat": {"tokenizer": "bytes"},
        "limits": {"context_tokens": 100_000},
        "reward": {"preset": "outcome"},
        "sampling": {"max_tokens": 512},
        "train": {"tasks_per_step": 1},
    }
    rollout = {"num_samples": 4, "concurrency": 8, "retries": 0, **values.pop("rollout", {})}
    slime = {"fault_tolerance": False, **values.pop("slime", {})}  # with it a failure is waited out for minutes
    return build(GrpoConfig, {**given, "rollout": rollout, "slime": slime, **values})


def handed(config: GrpoConfig, folder: Path, **more: Any) -> Any:
    """slime's `args`, as far as our own code reads them."""
    return SimpleNamespace(tau2rl={"folder": str(folder), "stage": "grpo", "config": dump(config)}, **more)


def rollout(config: GrpoConfig, folder: Path, server: StubServer) -> Rollout:
    """The rollout process's object, ready to play."""
    folder.mkdir(parents=True, exist_ok=True)
    made = rollout_of(handed(config, folder))
    made.prepare(config, router=server.url)
    return made


def using(made: Rollout, use: Callable[[Rollout], Awaitable[T]]) -> T:
    """What comes of using it, on a loop of its own; it is closed then."""

    async def main() -> T:
        try:
            return await use(made)
        finally:
            await made.aclose()

    return asyncio.run(main())


async def play(made: Rollout, index: int = 0, *, task: TaskRef = CREATE, validation: bool = False) -> Played:
    """The attempt of a number."""
    played = await made.play(made.attempt(task, index, validation=validation), SAMPLING, validation=validation)
    assert played is not None
    return played


async def together(made: Rollout, count: int) -> list[Played]:
    """So many attempts at once."""
    return await asyncio.gather(*(play(made, index) for index in range(count)))


async def until(true: Callable[[], bool], attempts: asyncio.Future[Any]) -> None:
    """Wait for something that comes true while the attempts are played. Raises what has ended them before, and TimeoutError."""
    async with asyncio.timeout(60):
        while not true():
            if attempts.done():
                raise AssertionError(f"the attempts have ended before: {attempts.result()}")
            await asyncio.sleep(0.01)


def codec_of(checkpoint: Path) -> NativeCodec:
    """The codec of a checkpoint's own template."""
    return NativeCodec(HFTokenizer(str(checkpoint)))


def agent(codec: ChatCodec, scripts: Sequence[Sequence[Actions]] = SCRIPTS) -> Answer:
    """An answer for the stub server: the first turn's seed chooses a script, the prompt says how far it is."""
    written = [[_text(codec.write(turn)) for turn in script] for script in scripts]

    def answer(input_ids: list[int], params: dict[str, Any]) -> list[int]:
        prompt = _text(input_ids)
        done = [_done(prompt, turns) for turns in written]
        most = max(done)
        chosen = done.index(most) if most else params["sampling_seed"] % len(scripts)
        script = scripts[chosen]
        return codec.write(script[min(most, len(script) - 1)])

    return answer


def _done(prompt: str, turns: Sequence[str]) -> int:
    """How many turns of a script stand in the prompt, in order, from its first on."""
    end = 0
    for number, turn in enumerate(turns):
        at = prompt.find(turn, end)
        if at < 0:
            return number
        end = at + len(turn)
    return len(turns)


def _text(ids: Sequence[int]) -> str:
    return " " + " ".join(map(str, ids)) + " "
