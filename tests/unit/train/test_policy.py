"""Pins the policy over the worker thread:

- turns asked for together are sampled together, and equal those of the synchronous generator
- the event loop goes on while the model works
- who waits on a stopped or broken worker is told, and a cancelled call leaves
- `sync_weights` takes new weights into use; `greedy` shares the thread
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
import torch
from torch import nn

from tau2rl.config import SamplingConfig
from tau2rl.errors import PolicyFailure
from tau2rl.train.engine.generator import SampleRequest, TokenGenerator
from tau2rl.train.policy import LocalPolicy
from tests.unit.train.tiny import SAMPLING, tiny_model

PROMPT = [5, 6, 7, 8]


class Counting(nn.Module):
    """The model, counting forward passes and remembering the thread; may break or wait."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny_model()
        self.config = self.inner.config
        self.passes = 0
        self.threads: set[str] = set()
        self.error: Exception | None = None
        self.gate: threading.Event | None = None
        self.inner.model.register_forward_pre_hook(self._seen)

    def _seen(self, *_: Any) -> None:
        self.passes += 1
        self.threads.add(threading.current_thread().name)
        if self.gate is not None:
            self.gate.wait(10)
        if self.error is not None:
            raise self.error

    @property
    def base_model(self) -> Any:
        return self.inner.model

    def get_output_embeddings(self) -> Any:
        return self.inner.get_output_embeddings()


async def ask(policy: LocalPolicy, i: int, max_tokens: int = 8) -> tuple[int, ...]:
    return (await policy.complete([*PROMPT, 10 + i], seed=i, session=f"s{i}", max_tokens=max_tokens)).token_ids


def test_turns_asked_for_together_share_forward_passes() -> None:
    model = Counting()

    async def main() -> list[tuple[int, ...]]:
        async with LocalPolicy(model, SAMPLING) as policy:
            return list(await asyncio.gather(*(ask(policy, i) for i in range(16))))

    found = asyncio.run(main())
    requests = [
        SampleRequest(session=f"s{i}", prompt=[*PROMPT, 10 + i], sampling=SAMPLING, seed=i, max_tokens=8) for i in range(16)
    ]
    assert found == [c.token_ids for c in TokenGenerator(tiny_model()).run(requests)]
    assert model.passes < 16 * 8 / 4  # one at a time would be 128
    assert model.threads == {"local-policy"}


def test_the_event_loop_runs_while_the_model_works() -> None:
    model = Counting()
    model.gate = threading.Event()

    async def main() -> bool:
        async with LocalPolicy(model, SAMPLING) as policy:
            waiting = asyncio.create_task(ask(policy, 0))
            while not model.passes:
                await asyncio.sleep(0)
            turns = 0
            while turns < 100:  # the model is held inside a forward pass all the while
                await asyncio.sleep(0)
                turns += 1
            held = not waiting.done()
            model.gate.set()
            await waiting
            return held

    assert asyncio.run(main())


def test_who_waits_when_the_policy_is_closed_is_told() -> None:
    model = Counting()
    model.gate = threading.Event()

    async def main() -> None:
        policy = LocalPolicy(model, SAMPLING)
        await policy.__aenter__()
        waiting = asyncio.create_task(ask(policy, 0, max_tokens=400))
        while not model.passes:
            await asyncio.sleep(0)
        closing = asyncio.create_task(policy.aclose())
        await asyncio.sleep(0)
        model.gate.set()
        with pytest.raises(PolicyFailure, match="stopped"):
            await waiting
        await closing
        await policy.aclose()
        with pytest.raises(PolicyFailure, match="stopped"):
            await ask(policy, 1)

    asyncio.run(main())


def test_a_broken_model_reaches_everyone_who_waits() -> None:
    model = Counting()
    model.error = RuntimeError("out of memory")

    async def main() -> None:
        async with LocalPolicy(model, SAMPLING) as policy:
            results = await asyncio.gather(*(ask(policy, i) for i in range(3)), return_exceptions=True)
            assert all(isinstance(r, PolicyFailure) and "out of memory" in str(r) for r in results)

    asyncio.run(main())


def test_a_cancelled_call_leaves_and_others_go_on() -> None:
    model = Counting()
    model.gate = threading.Event()

    async def main() -> None:
        async with LocalPolicy(model, SAMPLING) as policy:
            gone = asyncio.create_task(ask(policy, 0, max_tokens=400))
            while not model.passes:
                await asyncio.sleep(0)
            gone.cancel()
            with pytest.raises(asyncio.CancelledError):
                await gone
            model.gate.set()
            assert len(await ask(policy, 1)) == 8
        assert model.passes < 50

    asyncio.run(main())


def test_before_it_is_entered_it_refuses() -> None:
    with pytest.raises(PolicyFailure, match="not running"):
        asyncio.run(ask(LocalPolicy(tiny_model(), SAMPLING), 0))


def test_an_impossible_request_harms_nobody_else() -> None:
    async def main() -> None:
        async with LocalPolicy(tiny_model(), SAMPLING) as policy:
            bad = policy.complete([], seed=0, session="x", max_tokens=4)
            good = ask(policy, 1)
            results = await asyncio.gather(bad, good, return_exceptions=True)
            assert isinstance(results[0], ValueError)
            assert len(results[1]) == 8  # type: ignore[arg-type]

    asyncio.run(main())


def test_sync_takes_new_weights_into_use_and_greedy_shares_the_thread() -> None:
    model = tiny_model()

    async def main() -> tuple[tuple[int, ...], tuple[int, ...]]:
        async with LocalPolicy(model, SamplingConfig(temperature=1.0, max_tokens=6)) as policy:
            greedy = policy.greedy()
            before = await ask(greedy, 0, max_tokens=100)
            with torch.no_grad():
                for p in model.parameters():
                    p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
            await policy.sync_weights()
            return before, await ask(greedy, 0)

    before, after = asyncio.run(main())
    greedy = SamplingConfig(temperature=0.0)
    want = [
        TokenGenerator(m)
        .run([SampleRequest(session="s", prompt=[*PROMPT, 10], sampling=greedy, seed=0, max_tokens=6)])[0]
        .token_ids
        for m in (tiny_model(), model)
    ]
    assert [before, after] == want
    assert len(before) == 6
