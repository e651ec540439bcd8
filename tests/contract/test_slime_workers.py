"""Episodes of the slime backend in processes of their own: a real Ray cluster of two cores, a stub SGLang server. Pinned here:

- the same attempts have the same tokens, log-probabilities, messages, scores and advantages, wherever they are played
- what a call says (its temperature) reaches the worker; its CPU time is known; records are written by the rollout process
- a worker that is killed costs its episodes a try; what is aborted ends in its worker, and tells the server
- an open circuit breaker pauses all, closes with a probe and loses nothing
- under slime's own rollout (needs a checkout) a rollout is the same rollout, and what slime does not need is aborted
- workers that do not fit are said to be too many, and not waited for in vain
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tau2rl.chat.native import NativeCodec
from tau2rl.chat.tokenizers import ByteTokenizer
from tau2rl.errors import UserError
from tau2rl.rollouts.workers import Workers
from tau2rl.runs.records import read_records
from tau2rl.slime import rollout as rollout_module
from tau2rl.slime.rollout import Rollout, rollout_of, run_until_aborted
from tau2rl.slime.samples import Played, SampleMetadata, metadata_of
from tests.contract.slime_episodes import agent, codec_of, play, rollout, settings, together, until, using
from tests.contract.slime_job import RouterStub, SlimeJob, write_checkpoint
from tests.play import CREATE
from tests.stubs.sglang import SGLangStub
from tests.stubs.slime_stubs import checkout

pytestmark = pytest.mark.e2e
ANSWER = agent(NativeCodec(ByteTokenizer()))


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    import ray

    # Not the head that another test may have started beside this one.
    ray.init("local", num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    yield
    ray.shutdown()


def workers_of(made: Rollout) -> Workers:
    assert made._workers is not None
    return made._workers


def what_happened(played: Played) -> tuple[Any, ...]:
    """All that a trainer or a reader could see of an attempt; not how long it took."""
    metadata = {**played.metadata.to_json(), "seconds": 0, "policy_seconds": 0, "user_seconds": 0}
    return SampleMetadata.from_json(metadata), played.packed, played.episode.messages, played.episode.db_hashes


def test_the_same_attempts_are_the_same_in_workers(cluster: None, tmp_path: Path) -> None:
    async def story(made: Rollout) -> list[Played]:
        return [*await together(made, 8), await play(made, 1), await play(made, 0, validation=True)]

    with SGLangStub(answer=ANSWER) as server:
        here, there = (
            using(rollout(settings(seed=303, rollout={"workers": count, "keep": True}), tmp_path / str(count), server), story)
            for count in (0, 2)
        )
    assert [what_happened(played) for played in here] == [what_happened(played) for played in there]
    assert {played.metadata.reward for played in there} == {0.0, 1.0}
    assert [played.episode.worker_cpu_seconds > 0 for played in (*here, *there)] == [False] * 10 + [True] * 10
    for count in "02":
        keys = [record.attempt.key for record in read_records(tmp_path / count / "episodes.jsonl")]
        assert len(keys) == 9 and len(set(keys)) == 8  # the validation is kept apart, and attempt 1 was played twice


def test_a_killed_worker_costs_a_try_and_what_is_aborted_ends_there(cluster: None, tmp_path: Path) -> None:
    import ray

    async def story(made: Rollout, server: SGLangStub) -> list[Played]:
        playing = asyncio.create_task(together(made, 8))
        await until(lambda: server.traffic.in_flight >= 8, playing)
        ray.kill(workers_of(made)._actors[0], no_restart=False)
        server.latency = 0.0
        played = await playing
        server.latency = 600.0
        before = len(server.requests)
        in_vain = run_until_aborted(lambda: len(server.requests) > before + 1, together(made, 2))
        assert await in_vain is None
        async with asyncio.timeout(60):
            while len(server.aborted) < 2:
                await asyncio.sleep(0.01)
        assert {request.body["rid"] for request in server.requests[before:]} <= set(server.aborted)
        server.latency = 0.0
        return [*played, await play(made, 8)]

    with SGLangStub(answer=ANSWER, latency=3.0) as server:
        config = settings(rollout={"workers": 2, "retries": 1})
        played = using(rollout(config, tmp_path, server), lambda made: story(made, server))
    assert [p.metadata.status for p in played] == ["completed"] * 9
    tries = [p.metadata.tries for p in played]
    assert sorted(tries) == [1] * 5 + [2] * 4  # four of eight were in the one that died
    assert not (tmp_path / "failures.jsonl").exists()


def test_an_open_breaker_closes_with_a_probe_and_loses_nothing(cluster: None, tmp_path: Path) -> None:
    config = settings(rollout={"workers": 1, "give_up_after": 1}, slime={"circuit_breaker_seconds": 60.0})

    async def story(made: Rollout, server: SGLangStub) -> list[Played]:
        playing = asyncio.create_task(together(made, 4))
        await until(lambda: made.breaker.open, playing)
        server.set_mode("ok")
        return await playing

    with SGLangStub(answer=ANSWER, mode="500") as server:
        played = using(rollout(config, tmp_path, server), lambda made: story(made, server))
    assert [p.metadata.status for p in played] == ["completed"] * 4


def test_too_many_workers_are_said_to_be(cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout_module, "WORKERS_START_SECONDS", 3.0)
    with SGLangStub(answer=ANSWER) as server, pytest.raises(UserError, match="3 workers did not start within 3 s"):
        using(rollout(settings(rollout={"workers": 3}), tmp_path, server), play)


def test_a_rollout_of_slime_is_the_same_in_workers(cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout()
    model = write_checkpoint(tmp_path / "model")

    def slow(key: str) -> float:  # one group ends, and the others would take minutes
        return 0.0 if key.startswith(f"{CREATE.key}#") else 300.0

    with RouterStub(answer=agent(codec_of(model)), slow=slow) as server:
        job = SlimeJob(
            tmp_path / "run",
            monkeypatch,
            server,
            checkpoint=model,
            seed=303,
            argv=["--over-sampling-batch-size", "3"],
            tasks={"domains": ["mock"], "split": "base", "ids": ["create_task_1", "update_task_1", "impossible_task_1"]},
            rollout={"concurrency": 12, "workers": 2},
        )
        try:
            samples = job.played()
            numbers = rollout_of(job.args).log.end_rollout(0, [], 1.0)
        finally:
            job.close()
        aborted = [r.body["rid"] for r in server.traffic.others if r.path == "/abort_request" and "rid" in r.body]
        config = job.config.model_copy(update={"rollout": job.config.rollout.model_copy(update={"workers": 0})})

        async def alone(made: Rollout) -> list[Played]:
            return [await play(made, sample.index) for sample in samples]

        played = using(rollout(config, tmp_path / "alone", server), alone)
    assert {metadata_of(sample).task for sample in samples} == {CREATE.key}
    assert (numbers["episodes/played"], numbers["episodes/aborted"], len(aborted)) == (4, 8, 8)
    for sample, other in zip(samples, played, strict=True):
        assert other.packed[0].logprobs is not None
        begin, end = other.packed[0].turn_spans[0][0], other.packed[0].turn_spans[-1][1]
        assert tuple(sample.tokens) == other.packed[0].token_ids[:end]
        assert tuple(sample.rollout_log_probs) == other.packed[0].logprobs[begin:end]
        assert sample.reward == other.metadata.score
