"""The rollout process of the slime backend, without slime: our loop, the mock domain, a stub SGLang server. Pinned here:

- the same attempts through it and through the local backend have the same tokens, masks, log-probabilities, scores and advantages
- a server that lies, a user that is gone, a task that does not exist: FAILED, kept in `failures.jsonl`, evidence of nothing
- a prompt that fills the context is no evidence; a conversation that outgrows it is cut off and counts
- one of two engines dies under 64 conversations: no attempt is lost or scored 0, and the run goes on
- when the user is gone for long, nothing is lost once it is back; when it stays away, the run ends with the reason
- 64 conversations are in flight at once, and wait for their user together
- a validation is kept apart, one file each
"""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tau2rl.chat.native import NativeCodec
from tau2rl.chat.tokenizers import ByteTokenizer
from tau2rl.config import PolicyConfig
from tau2rl.errors import RunIncomplete
from tau2rl.policy.sglang import SGLangPolicy
from tau2rl.reward.presets import spec_from
from tau2rl.runs.folder import RunFolder
from tau2rl.runs.records import read_records, validation_file
from tau2rl.slime.advantages import Member, batch_advantages
from tau2rl.slime.rollout import Rollout
from tau2rl.slime.samples import Played
from tau2rl.train.grpo import Rollouts
from tau2rl.types import Attempt, Status, TaskRef
from tests.contract.slime_episodes import DONE, RIGHT, SAMPLING, agent, play, rollout, settings, together, until, using
from tests.play import CREATE
from tests.stubs.http import Request, Response, StubServer
from tests.stubs.openai import OpenAIStub
from tests.stubs.sglang import UNSAMPLED, SGLangStub

CODEC = NativeCodec(ByteTokenizer())
ANSWER = agent(CODEC)


def user_says(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> str:
    return "Thank you. ###STOP###" if "done" in str(messages[-1]["content"]) else "Please create it for user_1."


def llm(server: OpenAIStub, **changes: Any) -> dict[str, Any]:
    values = {"kind": "llm", "model": "openai/stub", "api_base": server.api_base, "retries": 0, "timeout_seconds": 20}
    return {"user": {**values, **changes}}


@pytest.mark.parametrize("estimator", ["grpo", "mt_gtpo"])
def test_the_same_attempts_are_the_same_on_both_backends(tmp_path: Path, estimator: str) -> None:
    turns = {"turn_rewards": "dense"} if estimator == "mt_gtpo" else {}
    config = settings(seed=303, algo={"estimator": estimator, **turns})  # a seed that chooses every script
    config = config.model_copy(update={"train": config.train.model_copy(update={"tasks_per_step": 2})})
    spec = spec_from(config.reward, max_turns=config.limits.max_turns, domains=["mock"])
    refs = [CREATE, TaskRef(domain="mock", task_id="update_task_1", split="base")]
    with SGLangStub(answer=ANSWER) as server:

        async def local() -> tuple[Any, list[Attempt]]:
            run = RunFolder.open(RunFolder.create(tmp_path / "local", config, resume=False))
            rollouts = Rollouts(config=config, codec=CODEC, spec=spec, folder=run, tasks=refs)
            async with SGLangPolicy(
                PolicyConfig(url=server.url, sampling=SAMPLING), stop=CODEC.stop, stop_token_ids=CODEC.stop_token_ids
            ) as policy:
                played = await rollouts.groups(0, policy)
            run.close()
            # Step 0 of the local backend numbers its attempts from 0, as slime numbers its samples.
            attempts = [Attempt(task=group.task, index=0, seed=e.seed) for group in played for e in group.episodes]
            return played, attempts

        theirs, attempts = asyncio.run(local())

        async def hooks(made: Rollout) -> list[Played]:
            tasks = [group.task for group in theirs for _ in group.episodes]
            return await asyncio.gather(*(play(made, index, task=task) for index, task in enumerate(tasks)))

        ours = using(rollout(config, tmp_path, server), hooks)
    members = [
        Member(metadata=p.metadata, group=i // 4, attempt=i, length=len(p.packed[0].token_ids) - p.packed[0].turn_spans[0][0])
        for i, p in enumerate(ours)
        if p.packed
    ]
    scored = batch_advantages(members, config.algo)
    assert [attempt.seed for attempt in attempts] == [p.episode.seed for p in ours]
    assert [e.token_ids for group in theirs for e in group.episodes] == [p.episode.token_ids for p in ours]
    assert [s for group in theirs for s in group.scores] == [p.metadata.score for p in ours]
    trajectories = iter([one for group in theirs for one in group.trajectories()])
    assert any(group.has_signal for group in theirs)
    for number, played in enumerate(ours):
        known = next(trajectories)
        assert played.packed == known.samples and len(played.packed) == 1 and played.packed[0].logprobs is not None
        if scored.tokens is None:
            assert (scored.rewards[number],) == known.advantages
        else:
            spans = played.metadata.spans
            assert tuple(scored.tokens[number][start] for _, start, _ in spans) == known.advantages


@pytest.mark.parametrize(
    "mode", ["500", "html", "nan", "mismatch", "abort", "too_many", "wrong_types", "truncated_prompt", *UNSAMPLED]
)
def test_a_server_that_lies_makes_no_evidence(tmp_path: Path, mode: str) -> None:
    with SGLangStub(answer=ANSWER, mode=mode) as server:
        played = using(rollout(settings(), tmp_path, server), play)
    assert played.metadata.status == "failed" and played.metadata.fault == "infra" and played.packed == ()
    assert (played.metadata.evidence, played.metadata.score, played.metadata.reward) == (False, None, None)
    (record,) = read_records(tmp_path / "failures.jsonl")
    assert record.episode.status is Status.FAILED and record.score is None and not (tmp_path / "episodes.jsonl").exists()


def test_a_model_that_says_nothing_is_to_blame_itself(tmp_path: Path) -> None:
    with SGLangStub(answer=ANSWER, mode="empty") as server:
        played = using(rollout(settings(), tmp_path, server), play)
    assert (played.metadata.status, played.metadata.fault, played.packed) == ("malformed", "agent", ())


def test_a_task_that_is_not_there_is_no_evidence(tmp_path: Path) -> None:
    nobody = TaskRef(domain="mock", task_id="no_such_task", split="base")
    with SGLangStub(answer=ANSWER) as server:
        played = using(rollout(settings(), tmp_path, server), lambda made: play(made, task=nobody))
    assert played.metadata.status == "failed" and "no task `no_such_task`" in played.metadata.failure


def test_a_failed_try_is_played_again_in_a_fresh_environment(tmp_path: Path) -> None:
    with SGLangStub(answer=ANSWER, mode=["500", "ok"]) as server:
        played = using(rollout(settings(rollout={"retries": 1}), tmp_path, server), play)
    assert played.metadata.status == "completed" and played.metadata.tries == 2 and played.metadata.evidence


def test_a_prompt_that_fills_the_context_is_no_evidence(tmp_path: Path) -> None:
    with SGLangStub(answer=ANSWER) as server:
        played = using(rollout(settings(limits={"context_tokens": 50}), tmp_path, server), play)
        asked = len(server.requests)
    assert (played.metadata.status, played.metadata.termination, played.metadata.turns) == ("truncated", "context", 0)
    assert not played.metadata.evidence and played.packed == () and asked == 0


def test_a_conversation_that_outgrows_the_context_is_cut_off_and_counts(tmp_path: Path) -> None:
    with SGLangStub(answer=agent(CODEC, [(RIGHT, DONE)])) as server:
        whole = using(rollout(settings(), tmp_path, server), play)
        budget = whole.episode.turns[0].end + 1
        played = using(rollout(settings(limits={"context_tokens": budget}), tmp_path / "cut", server), play)
        asked = [len(body["input_ids"]) + body["sampling_params"]["max_new_tokens"] for body in server.bodies[2:]]
    assert (played.metadata.status, played.metadata.termination, played.metadata.turns) == ("truncated", "context", 1)
    assert played.metadata.evidence and played.metadata.reward == 0.0 and played.packed
    assert asked == [budget]


def test_what_was_cut_off_is_dropped_where_the_settings_say_so(tmp_path: Path) -> None:
    config = settings(algo={"truncated": "drop"}, limits={"context_tokens": 100_000, "max_turns": 1})
    with SGLangStub(answer=ANSWER) as server:
        played = using(rollout(config, tmp_path, server), play)
    assert played.metadata.status == "truncated" and not played.metadata.evidence and played.metadata.reward == 0.0


def test_a_user_that_is_gone_pauses_all_and_costs_nothing_once_it_is_back(tmp_path: Path) -> None:
    with OpenAIStub(answer=user_says, mode="500") as user, SGLangStub(answer=ANSWER) as server:
        config = settings(**llm(user), rollout={"give_up_after": 1}, slime={"circuit_breaker_seconds": 20})
        made = rollout(config, tmp_path, server)

        async def story(made: Rollout) -> list[Played]:
            attempts = asyncio.create_task(together(made, 6))
            await until(lambda: len(user.requests) >= 8, attempts)  # six that began, and probes
            assert not attempts.done() and len(server.requests) == 0 and made.breaker.open
            user.set_mode("ok")
            return await attempts

        played = using(made, story)
    assert [p.metadata.status for p in played] == ["completed"] * 6
    assert not (tmp_path / "failures.jsonl").exists()


def test_a_user_that_stays_away_ends_the_run_with_the_reason(tmp_path: Path) -> None:
    with OpenAIStub(answer=user_says, mode="dead") as user, SGLangStub(answer=ANSWER) as server:
        config = settings(**llm(user), rollout={"give_up_after": 2}, slime={"circuit_breaker_seconds": 1.5})
        with pytest.raises(RunIncomplete, match=r"nothing has worked for 1\.5 s: UserSimulatorFailure"):
            using(rollout(config, tmp_path, server), lambda made: together(made, 4))


class TwoEngines(StubServer):
    """A router in front of engines, each in its turn; it tries nothing again. `says` is its status for an engine that is gone."""

    main_paths = ("/generate",)

    def __init__(self, engines: list[SGLangStub], *, says: int) -> None:
        super().__init__()
        self.engines = engines
        self.says = says
        self.refused = 0
        self._turn = 0

    async def reply(self, request: Request, mode: str) -> Response:
        self._turn += 1
        url = self.engines[self._turn % len(self.engines)].url + request.path
        head = {"Content-Type": "application/json", "X-SMG-Routing-Key": request.headers.get("x-smg-routing-key", "")}
        return await asyncio.to_thread(self._forward, urllib.request.Request(url, json.dumps(request.body).encode(), head))

    def _forward(self, asked: urllib.request.Request) -> Response:
        try:
            with urllib.request.urlopen(asked, timeout=60) as answered:
                return Response(raw=answered.read())
        except urllib.error.HTTPError as error:  # the engine's own word
            return Response(status=error.code, raw=error.read())
        except OSError:
            self.refused += 1
            return Response(status=self.says, payload={"error": {"message": "no route to the worker"}})


@pytest.mark.parametrize("says", [500, 502])
def test_a_dead_engine_costs_no_attempt(tmp_path: Path, says: int) -> None:
    config = settings(
        rollout={"concurrency": 64, "give_up_after": 20},
        slime={"fault_tolerance": True, "health_seconds": 1, "circuit_breaker_seconds": 40},
    )
    with SGLangStub(answer=ANSWER) as one, SGLangStub(answer=ANSWER) as other, TwoEngines([one, other], says=says) as router:
        made = rollout(config, tmp_path, router)

        async def story(made: Rollout) -> list[Played]:
            attempts = asyncio.create_task(together(made, 64))
            await until(lambda: len(router.requests) >= 8, attempts)
            other.die()
            await until(lambda: router.refused >= 30, attempts)  # at 500, which nothing tries again, so many FAILED once at least
            router.engines = [one]  # what slime does when the engine has not answered for a while
            return await attempts

        played = using(made, story)
    assert [p.metadata.status for p in played] == ["completed"] * 64 and all(p.metadata.evidence for p in played)
    assert not (tmp_path / "failures.jsonl").exists()
    # An attempt scores what it would have scored with both engines: its seed chooses its script.
    with SGLangStub(answer=ANSWER) as server:
        undisturbed = using(rollout(settings(), tmp_path / "whole", server), lambda made: together(made, 64))
    assert [p.metadata.reward for p in played] == [p.metadata.reward for p in undisturbed]


def test_without_fault_tolerance_an_attempt_is_given_up_at_once(tmp_path: Path) -> None:
    with SGLangStub(answer=ANSWER, mode="500") as server:
        played = using(rollout(settings(), tmp_path, server), play)
        asked = len(server.requests)
    assert (played.metadata.status, asked) == ("failed", 1)


def test_sixty_four_conversations_wait_for_their_user_together(tmp_path: Path) -> None:
    waits = iter([4.0] * 64)  # the first words of all: long enough for the last conversation to have begun
    with OpenAIStub(answer=user_says, latency=lambda: next(waits, 0.0)) as user, SGLangStub(answer=ANSWER) as server:
        played = using(
            rollout(settings(**llm(user), rollout={"concurrency": 64}), tmp_path, server), lambda made: together(made, 64)
        )
        most = user.max_in_flight
    assert [p.metadata.status for p in played] == ["completed"] * 64
    assert most == 64


def test_a_validation_is_kept_apart_and_is_the_same_every_time(tmp_path: Path) -> None:
    val = {"domains": ["mock"], "split": "synth-select", "num_samples": 2}
    config = settings(val=val, train={"tasks_per_step": 1, "val_every": 1}, rollout={"keep": True})
    with SGLangStub(answer=ANSWER) as server:
        made = rollout(config, tmp_path, server)

        async def story(made: Rollout) -> list[Played]:
            validated = [await play(made, index, validation=True) for index in (4, 5)]
            made.log.end_validation(0)
            await play(made, 0)
            made.log.end_rollout(0, [], 1.0)
            validated += [await play(made, index, validation=True) for index in (4, 5)]
            made.log.end_validation(0)
            return validated

        validated = using(made, story)
    assert [p.episode.seed for p in validated[:2]] == [p.episode.seed for p in validated[2:]]
    assert [len(list(read_records(validation_file(tmp_path, step)))) for step in (0, 1)] == [2, 2]
    assert [record.attempt.index for record in read_records(validation_file(tmp_path, 0))] == [0, 1]
    assert len(list(read_records(tmp_path / "episodes.jsonl"))) == 1
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], "val/pass@1" in line) for line in lines] == [(0, True), (1, False), (1, True)]
