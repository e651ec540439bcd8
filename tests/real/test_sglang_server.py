"""A real SGLang server, on a CPU; pinned here:

- it answers every question of the record as it did when the record was made, by which the stub is held;
- our policy reads it: ids with log-probabilities, limits, stop tokens and strings, the weights' version, its context, its load;
- a call that is cut off ends on the server, with our abort and, behind a router, by the connection alone;
- more calls at once than it takes all bring a completion; a prompt that is too long is said to be so;
- its log-probabilities are those of our trainer for the same tokens, to what bfloat16 leaves;
- whole episodes on `mock` end without a failure, behind a router too.

Never asked: an id outside the vocabulary, which ends the server. Seeds have an effect only in deterministic mode, which has no
kernels for a CPU (it refuses to start): that the seed is sent is pinned with the stub.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import pytest

from tau2rl.config import EvalConfig, PolicyConfig, SamplingConfig, build
from tau2rl.errors import ContextExceeded
from tau2rl.policy.sglang import SGLangPolicy
from tau2rl.policy.sglang_load import LoadReader
from tau2rl.recipes.eval import run as evaluate
from tau2rl.runs.folder import RunFolder
from tau2rl.types import Completion, FinishReason, Status, TrainingSample
from tests.stubs.router import Router
from tests.stubs.sglang_transcript import PROMPT, QUESTIONS, RECORD, answers

pytestmark = pytest.mark.real
T = TypeVar("T")
GREEDY = SamplingConfig(temperature=0.0, max_tokens=8)
MISMATCH = 0.1  # the mean over tokens; what was measured stands in docs/servers.md


def run(url: str, use: Callable[[SGLangPolicy], Awaitable[T]], *, stop: Any = (), stop_token_ids: Any = (), **config: Any) -> T:
    async def inside() -> T:
        settings = PolicyConfig(url=url, **{"sampling": GREEDY, "timeout_seconds": 300.0, **config})
        async with SGLangPolicy(settings, stop=stop, stop_token_ids=stop_token_ids) as policy:
            return await use(policy)

    return asyncio.run(inside())


async def once(policy: SGLangPolicy, *, max_tokens: int = 8) -> Completion:
    return await policy.complete(PROMPT, seed=3, session="retail/1#0", max_tokens=max_tokens)


@pytest.mark.parametrize("name", QUESTIONS)
def test_it_answers_as_when_it_was_recorded(sglang: str, name: str) -> None:
    assert asyncio.run(answers(sglang, name)) == json.loads(RECORD.read_text())["answers"][name]


def test_a_turn_has_a_logprob_for_each_id(sglang: str) -> None:
    said = run(sglang, once)
    assert len(said.token_ids) == 8 and said.logprobs is not None and len(said.logprobs) == 8
    assert all(logprob <= 0 for logprob in said.logprobs)
    assert (said.finish_reason, said.weight_version, said.usage.prompt_tokens) == (FinishReason.LENGTH, "default", len(PROMPT))
    assert run(sglang, once).usage.cached_tokens == len(PROMPT) - 1


def test_a_stop_token_and_a_stop_string_end_a_turn_and_stay_in_it(sglang: str) -> None:
    said = run(sglang, once)
    at_token = run(sglang, once, stop_token_ids=[said.token_ids[3]])
    assert (at_token.token_ids, at_token.finish_reason) == (said.token_ids[:4], FinishReason.STOP)
    at_string = run(sglang, once, stop=["!"])  # Hello!
    assert (at_string.token_ids, at_string.finish_reason) == (said.token_ids[:2], FinishReason.STOP)


def test_a_stop_token_that_is_the_last_one_allowed_is_a_limit(sglang: str) -> None:
    said = run(sglang, once)
    last = run(sglang, lambda policy: once(policy, max_tokens=4), stop_token_ids=[said.token_ids[3]])
    assert (last.token_ids, last.finish_reason) == (said.token_ids[:4], FinishReason.LENGTH)


def test_sampling_is_random_and_greedy_is_not(sglang: str) -> None:
    async def many(policy: SGLangPolicy) -> list[Completion]:
        return [await once(policy) for _ in range(4)]

    assert len({said.token_ids for said in run(sglang, many, sampling=SamplingConfig(temperature=1.0, max_tokens=8))}) > 1
    assert len({said.token_ids for said in run(sglang, lambda policy: many(policy.greedy()))}) == 1


def test_ready_names_the_model_and_its_context(sglang: str) -> None:
    assert "8192 tokens of context" in run(sglang, lambda policy: policy.ready(context_tokens=8192))


def test_a_prompt_that_fills_the_context_says_so(sglang: str) -> None:
    async def full(policy: SGLangPolicy) -> None:
        with pytest.raises(ContextExceeded):
            await policy.complete([5] * 8190, seed=1, session="s", max_tokens=1)

    run(sglang, full)


def test_a_request_is_cut_to_the_room_in_the_context(sglang: str) -> None:
    async def use(policy: SGLangPolicy) -> Completion:
        await policy.ready()
        return await policy.complete(PROMPT, seed=1, session="s", max_tokens=100_000)

    sampling = SamplingConfig(temperature=0.0, max_tokens=100_000)
    said = run(sglang, use, stop=["!"], sampling=sampling)
    assert said.finish_reason is FinishReason.STOP


async def idle(url: str) -> None:
    """Wait until the server works on nothing."""
    async with LoadReader(url) as reader, asyncio.timeout(60):
        while (load := await reader.read()) is None or load.running or load.waiting:
            await asyncio.sleep(0.1)


async def busy(url: str) -> None:
    async with LoadReader(url) as reader, asyncio.timeout(60):
        while (load := await reader.read()) is None or not load.running:
            await asyncio.sleep(0.1)


def cut_off(url: str, engine: str) -> None:
    """A call of 4000 tokens is cancelled; the engine is idle before it could have sampled a tenth of them."""

    async def use(policy: SGLangPolicy) -> None:
        await idle(engine)
        call = asyncio.create_task(policy.complete(PROMPT, seed=1, session="s", max_tokens=4000))
        await busy(engine)
        call.cancel()
        await idle(engine)

    run(url, use, sampling=SamplingConfig(temperature=1.5, max_tokens=4000))


def test_a_call_that_is_cut_off_ends_on_the_server(sglang: str) -> None:
    cut_off(sglang, sglang)


def test_a_call_that_is_cut_off_ends_on_an_engine_behind_a_router(sglang: str, tmp_path: Path) -> None:
    with Router(tmp_path / "router.log", "--disable-retries") as router, router.over(sglang):
        cut_off(router.url, sglang)


def test_more_calls_than_it_has_room_for_all_bring_a_completion(sglang: str) -> None:
    async def many(policy: SGLangPolicy) -> list[Completion]:  # it works on 16, and lets 8 more wait
        return await asyncio.gather(*(once(policy, max_tokens=4) for _ in range(40)))

    assert [len(said.token_ids) for said in run(sglang, many, retries=50)] == [4] * 40


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_its_logprobs_are_those_of_our_trainer(
    sglang: str, checkpoint: Path, temperature: float, dtype: Literal["bfloat16", "float32"], record_property: Any
) -> None:
    import torch

    from tau2rl.train.engine.forward import collate, score_tokens
    from tau2rl.train.model import load_model

    async def many(policy: SGLangPolicy) -> list[Completion]:
        return await asyncio.gather(*(once(policy, max_tokens=24) for _ in range(4)))

    turns = run(sglang, many, sampling=SamplingConfig(temperature=temperature, max_tokens=24))
    apart = list[float]()
    model = load_model(checkpoint, dtype=dtype)
    for said in turns:
        ids, mask = (*PROMPT, *said.token_ids), (0,) * len(PROMPT) + (1,) * len(said.token_ids)
        sample = TrainingSample(token_ids=ids, loss_mask=mask, logprobs=None, turn_spans=((len(PROMPT), len(ids)),))
        with torch.no_grad():
            ours = score_tokens(model, collate([sample]), temperature=temperature).logp[0, len(PROMPT) :]
        apart += (ours - torch.tensor(said.logprobs)).abs().tolist()
    mean = sum(apart) / len(apart)
    record_property("mismatch", f"mean {mean:.4f}, largest {max(apart):.4f}, {len(apart)} tokens")  # in --junit-xml
    assert mean < MISMATCH


def episodes(url: str, checkpoint: Path, folder: Path) -> list[Status]:
    config = build(
        EvalConfig,
        {
            "tasks": {"domains": ["mock"], "split": "base", "ids": ["create_task_1", "update_task_1"]},
            "policy": {"kind": "sglang", "url": url, "sampling": {"max_tokens": 16}, "timeout_seconds": 300},
            "chat": {"protocol": "native", "tokenizer": str(checkpoint)},
            "user": {"kind": "scripted", "max_stalled_turns": 2},
            "limits": {"context_tokens": 8192, "max_turns": 2},
            "rollout": {"num_samples": 1, "retries": 0},
        },
    )
    with RunFolder.open(RunFolder.create(folder / "run", config, resume=False)) as opened:
        evaluate(config, opened, lambda event: None)
        return [record.episode.status for record in opened.records()]


def test_whole_episodes_end_without_a_failure(sglang: str, checkpoint: Path, tmp_path: Path) -> None:
    statuses = episodes(sglang, checkpoint, tmp_path)
    assert len(statuses) == 2 and Status.FAILED not in statuses


def test_whole_episodes_end_without_a_failure_behind_a_router(sglang: str, checkpoint: Path, tmp_path: Path) -> None:
    with Router(tmp_path / "router.log") as router, router.over(sglang):
        statuses = episodes(router.url, checkpoint, tmp_path)
    assert len(statuses) == 2 and Status.FAILED not in statuses
