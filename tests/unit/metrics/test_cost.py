"""What a run cost and what bounds it.

- The time of an episode goes to the policy, to the customer (turns of text), to the tools (turns with calls), and the rest.
- FAILED tries and repeated records are counted: they were paid for.
- A policy that reports no tokens has null and a reason, not 0.
- The starts of a resumed run add up; one that was killed makes wall and CPU null, with the reason.
- A process that is busy is the bound, whatever its episodes wait for.
- Starts are kept in the run's folder, and one that was killed while it played is known from what it left.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tau2rl.config import EvalConfig, build
from tau2rl.metrics.cost import Costs, Start
from tau2rl.metrics.table import cost_words
from tau2rl.stages.clock import clocked, starts
from tau2rl.store.run import RunFolder
from tau2rl.types import Actions, Attempt, CallTool, Episode, EpisodeRecord, FinishReason, Say, Status, TaskRef, Turn, Usage

CALL, SAY = CallTool(name="f", arguments={}), Say(text="Hello.")
TOLD = Usage(prompt_tokens=100, completion_tokens=10, cached_tokens=60)


def turn(actions: Actions, policy: float, env: float, usage: Usage = TOLD) -> Turn:
    return Turn(
        start=0, end=1, prompt_hash="", logprobs=None, finish_reason=FinishReason.STOP, actions=actions, seconds=policy,
        env_seconds=env, usage=usage,
    )  # fmt: skip


def record(*turns: Turn, seconds: float, status: Status = Status.COMPLETED) -> EpisodeRecord:
    task = TaskRef(domain="mock", task_id="a", split="base")
    episode = Episode(
        task=task, seed=0, status=status, termination="", token_ids=(), turns=turns, messages=(), grade=None, seconds=seconds,
        user_usage=Usage(prompt_tokens=30, completion_tokens=5),
    )  # fmt: skip
    return EpisodeRecord(schema=1, run="r", attempt=Attempt(task=task, index=0, seed=0), tries=1, episode=episode, score=None)


def account(*records: EpisodeRecord, starts: tuple[Start, ...] = (Start(seconds=8.0, cpu_seconds=2.0),)) -> dict[str, Any]:
    costs = Costs()
    for each in records:
        costs.add(each)
    return costs.account(starts)


# Six seconds of policy, one of tools (text beside a call is part of the call), two of the customer, one of neither.
PLAYED = record(turn((CALL,), 1.0, 0.75), turn((SAY, CALL), 2.0, 0.25), turn((SAY,), 3.0, 2.0), seconds=10.0)


def test_the_time_of_episodes_goes_to_four_parts() -> None:
    cost = account(PLAYED)
    assert cost["episode_seconds"] == {"total": 10.0, "policy": 6.0, "customer": 2.0, "tools": 1.0, "rest": 1.0}
    assert cost["shares"] == {"policy": 0.6, "customer": 0.2, "tools": 0.1, "rest": 0.1}
    assert cost["process"] == {"wall_seconds": 8.0, "cpu_seconds": 2.0, "busy": 0.25, "reason": None}
    assert cost["bound"] == "60% of episode time waits for the policy, the process was busy 25% of the time"


def test_tokens_are_those_that_servers_report_and_failed_tries_count() -> None:
    cost = account(PLAYED, record(turn((), 1.0, 0.0), seconds=1.0, status=Status.FAILED))
    assert cost["episodes"] == 2
    assert cost["tokens"] == {
        "policy_in": 400, "policy_out": 40, "policy_cached": 240, "user_in": 60, "user_out": 10, "reason": None,
    }  # fmt: skip


def test_a_policy_that_counts_nothing_has_no_number() -> None:
    tokens = account(record(turn((SAY,), 1.0, 1.0, Usage()), seconds=2.0))["tokens"]
    assert (tokens["policy_in"], tokens["policy_out"], tokens["policy_cached"]) == (None, None, None)
    assert tokens["reason"] == "the policy counts no tokens"


def test_a_busy_process_is_the_bound_whatever_its_episodes_wait_for() -> None:
    bound = account(PLAYED, starts=(Start(seconds=10.0, cpu_seconds=9.5),))["bound"]
    assert bound == "the process itself is the bound, busy 95% of the time; 60% of episode time waits for the policy"
    waiting = record(turn((SAY,), 1.0, 8.0), seconds=10.0)
    assert account(waiting)["bound"].startswith("80% of episode time waits for the customer")


def test_starts_add_up_and_a_lost_one_is_said() -> None:
    whole = Start(seconds=6.0, cpu_seconds=3.0)
    assert account(PLAYED, starts=(whole, Start(seconds=2.0, cpu_seconds=1.0)))["process"]["wall_seconds"] == 8.0
    process = account(PLAYED, starts=(whole, Start(seconds=None, cpu_seconds=None)))["process"]
    assert (process["wall_seconds"], process["busy"]) == (None, None)
    assert process["reason"] == "1 of 2 starts ended before they could say what they took"
    cost = account(PLAYED, starts=())
    assert cost["bound"] == "60% of episode time waits for the policy"
    assert cost_words(cost).startswith("unknown for 10.0 s of episodes; agent 300 tokens in (60% cached), 30 out; customer 30")


def test_a_run_without_episodes_has_no_bound() -> None:
    cost = account()
    assert (cost["shares"], cost["bound"]) == (None, None)
    assert cost_words(cost) == "8.0 s for 0.0 s of episodes"


def test_what_starts_took_is_kept_in_the_folder(tmp_path: Path) -> None:
    config = build(EvalConfig, {"output": str(tmp_path / "run"), "policy": {"kind": "gold"}, "chat": {"protocol": "transcript"}})
    path = RunFolder.create(tmp_path / "run", config, resume=False)
    with RunFolder.open(path) as first, pytest.raises(KeyboardInterrupt), clocked(first):
        raise KeyboardInterrupt  # it can still say what it took
    with RunFolder.open(path) as killed, clocked(killed):
        during = json.loads((killed.logs / "play.json").read_bytes())
    assert during == {"seconds": None, "cpu_seconds": None}  # what kill -9 leaves
    with RunFolder.open(path) as last:  # finds nothing to play
        assert [start.seconds is not None for start in starts(last)] == [True, True]
