"""What a run cost and what is its bottleneck.

- The time of an episode goes to the policy, to the user simulator, to the environment without it, and the rest: as the
  environment measured it, and by the kind of turn in records from before it did.
- The wait for a policy that broke is the policy's, though no turn has it.
- FAILED tries and repeated records are counted: they were paid for.
- A policy that reports no tokens has null and a reason, not 0; so has CPU time that nobody measured.
- The sessions of a resumed run add up; one that was killed makes wall and CPU null, with the reason, and keeps its parts.
- Sessions that sum their own episodes are added up; sums come back from JSON as they were.
- The parts of a training are shares of its wall time, with what is left of it as `rest`.
- Workers' CPU time is summed over their episodes and held against the cores that they had.
- Whoever is full is the bottleneck, whatever the episodes wait for: cores, process, workers; environments where they fill them.
- Sessions are kept in the run's folder, and one that was killed while it played is known from what it left.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tau2rl.config import EvalConfig, build
from tau2rl.errors import PolicyFailure
from tau2rl.policy.retry import Unavailable
from tau2rl.report.cost import Costs, ProcessLoad, Session, account as account_of, bottleneck
from tau2rl.report.tables import cost_words
from tau2rl.runs.folder import RunFolder
from tau2rl.runs.timing import sessions, timed
from tau2rl.types import (
    Actions,
    CallTool,
    EnvTime,
    Episode,
    Failure,
    Fault,
    FinishReason,
    Say,
    Status,
    StopReason,
    TaskRef,
    Turn,
    Usage,
)

CALL, SAY = CallTool(name="f", arguments={}), Say(text="Hello.")
TOLD = Usage(prompt_tokens=100, completion_tokens=10, cached_tokens=60)
EIGHT = Session(seconds=8.0, cpu_seconds=2.0, cores=4)


def turn(actions: Actions, policy: float, env: float, usage: Usage = TOLD) -> Turn:
    return Turn(
        start=0, end=1, prompt_hash="", logprobs=None, finish_reason=FinishReason.STOP, actions=actions, seconds=policy,
        env_seconds=env, usage=usage,
    )  # fmt: skip


def episode(*turns: Turn, seconds: float, status: Status = Status.COMPLETED, **more: Any) -> Episode:
    return Episode(
        task=TaskRef(domain="mock", task_id="a", split="base"), seed=0,
        status=status, stop_reason=StopReason.USER_STOP, token_ids=(), turns=turns,
        messages=(), grade=None, seconds=seconds, user_usage=Usage(prompt_tokens=30, completion_tokens=5), **more,
    )  # fmt: skip


def summed(*episodes: Episode) -> Costs:
    costs = Costs()
    for each in episodes:
        costs.add(each)
    return costs


def account(*episodes: Episode, sessions: tuple[Session, ...] = (EIGHT,)) -> dict[str, Any]:
    return account_of(sessions, summed(*episodes))


# Six seconds of policy, three of environment, one of neither.
PLAYED = episode(
    turn((CALL,), 1.0, 0.75), turn((SAY, CALL), 2.0, 0.25), turn((SAY,), 3.0, 2.0), seconds=10.0,
    env_time=EnvTime(seconds=3.0, user_seconds=2.5, cpu_seconds=0.25),
)  # fmt: skip


def test_the_time_of_episodes_goes_to_four_parts() -> None:
    cost = account(PLAYED)
    assert cost["episode_seconds"] == {"total": 10.0, "policy": 6.0, "user": 2.5, "environment": 0.5, "rest": 1.0}
    assert cost["shares"] == {"policy": 0.6, "user": 0.25, "environment": 0.05, "rest": 0.1}
    assert cost["env_cpu"] == {"seconds": 0.25, "per_episode": 0.25, "reason": None}
    assert cost["process"] == {"wall_seconds": 8.0, "cpu_seconds": 2.0, "busy": 0.25, "cores": 4, "reason": None}
    assert (cost["wall"], cost["workers"]) == (None, None)
    assert cost["bottleneck"] == "60% of episode time waits for the policy, the process was busy 25% of the time"


def test_a_record_from_before_environments_measured_goes_by_its_turns() -> None:
    cost = account(replace(PLAYED, env_time=None), PLAYED)
    parts = {"total": 20.0, "policy": 12.0, "user": 4.5, "environment": 1.5, "rest": 2.0}  # 2 + 2.5 and 1 + 0.5
    assert cost["episode_seconds"] == parts
    assert cost["env_cpu"] == {"seconds": None, "per_episode": None, "reason": "1 of 2 episodes were not measured"}


@pytest.mark.parametrize("kind", [PolicyFailure, Unavailable])
def test_the_wait_for_a_policy_that_broke_is_the_policys(kind: type[PolicyFailure]) -> None:
    broke = Failure(fault=Fault.INFRA, kind=kind.__name__, message="no answer")
    measured = EnvTime(seconds=2.0, user_seconds=1.5)
    lost = episode(turn((SAY,), 1.0, 0.5), seconds=30.0, status=Status.FAILED, failure=broke, env_time=measured)
    assert account(lost)["episode_seconds"] == {
        "total": 30.0, "policy": 28.0, "user": 1.5, "environment": 0.5, "rest": 0.0,
    }  # fmt: skip


def test_tokens_are_those_that_servers_report_and_failed_tries_count() -> None:
    cost = account(PLAYED, episode(turn((), 1.0, 0.0), seconds=1.0, status=Status.FAILED))
    assert cost["episodes"] == 2
    assert cost["tokens"] == {
        "policy_in": 400, "policy_out": 40, "policy_cached": 240, "user_in": 60, "user_out": 10, "reason": None,
    }  # fmt: skip


def test_a_policy_that_counts_nothing_has_no_number() -> None:
    tokens = account(episode(turn((SAY,), 1.0, 1.0, Usage()), seconds=2.0))["tokens"]
    assert (tokens["policy_in"], tokens["policy_out"], tokens["policy_cached"]) == (None, None, None)
    assert tokens["reason"] == "the policy counts no tokens"


def test_sessions_add_up_and_a_lost_one_is_said() -> None:
    whole = Session(seconds=6.0, cpu_seconds=3.0)
    assert account(PLAYED, sessions=(whole, Session(seconds=2.0, cpu_seconds=1.0)))["process"]["wall_seconds"] == 8.0
    process = account(PLAYED, sessions=(whole, Session(seconds=None, cpu_seconds=None)))["process"]
    assert (process["wall_seconds"], process["cpu_seconds"], process["busy"]) == (None, None, None)
    assert process["reason"] == "1 of 2 sessions ended before they could say what they took"
    cost = account(PLAYED, sessions=())
    assert cost["process"]["reason"] == "no session of the run says what it took"
    assert cost["bottleneck"] == "60% of episode time waits for the policy"
    assert cost_words(cost) == (
        "unknown for 10.0 s of episodes; agent 300 tokens in (60% cached), 30 out; user simulator 30 tokens in, 5 out; "
        "environments 0.25 s of CPU; 60% of episode time waits for the policy"
    )


def test_a_run_without_episodes_has_no_bottleneck() -> None:
    cost = account()
    assert (cost["shares"], cost["bottleneck"]) == (None, None)
    assert cost_words(cost) == "8.0 s for 0.0 s of episodes; environments 0.00 s of CPU"


def test_a_training_has_parts_of_its_wall_time_and_sums_its_own_episodes() -> None:
    parts, more = {"sampling": 9.0, "playing": 1.0, "update": 4.0, "saving": 1.0}, {"sampling": 9.0, "update": 6.0}
    first = Session(seconds=20.0, cpu_seconds=20.0, cores=2, wall=parts, trained=600, played=summed(PLAYED))
    again = Session(seconds=20.0, cpu_seconds=18.0, cores=2, wall=more, trained=400, played=summed(PLAYED))
    cost = account_of([Session.from_json(json.loads(json.dumps(session.to_json()))) for session in (first, again)])
    assert cost["wall"]["seconds"] == {"sampling": 18.0, "playing": 1.0, "update": 10.0, "saving": 1.0, "rest": 10.0}
    assert cost["wall"]["shares"] == {"sampling": 0.45, "playing": 0.025, "update": 0.25, "saving": 0.025, "rest": 0.25}
    assert (cost["episodes"], cost["episode_seconds"]["total"], cost["env_cpu"]["seconds"]) == (2, 20.0, 0.5)
    assert (cost["tokens"]["trained"], cost["tokens"]["trained_per_second"], cost["tokens"]["policy_in"]) == (1000, 100.0, 600)
    assert cost["bottleneck"] == "the process itself is the bottleneck, busy 95% of the time; 45% of the wall time is sampling"


def test_a_training_that_was_killed_keeps_its_parts() -> None:
    killed = Session(seconds=None, cpu_seconds=None, wall={"sampling": 3.0, "update": 1.0}, trained=100, played=summed(PLAYED))
    cost = account_of([killed])
    assert cost["wall"] == {"seconds": {"sampling": 3.0, "update": 1.0}, "shares": {"sampling": 0.75, "update": 0.25}}
    assert cost["process"]["reason"] == "1 of 1 sessions ended before they could say what they took"
    assert (cost["episodes"], cost["tokens"]["trained"]) == (1, 100)
    assert cost["bottleneck"] == "75% of the wall time is sampling"


def test_rows_are_trained_on_without_episodes() -> None:
    cost = account_of([Session(seconds=10.0, cpu_seconds=5.0, cores=4, wall={"update": 8.0}, trained=800)])
    assert cost.keys() == {"tokens", "wall", "process", "workers", "bottleneck"}
    assert cost["tokens"] == {"trained": 800, "trained_per_second": 100.0}
    assert cost_words(cost) == (
        "10.0 s (80% update, 20% rest); 800 tokens trained, 100 a second; "
        "80% of the wall time is training, the process was busy 50% of the time"
    )


def test_what_plays_for_another_process_is_busy_by_its_own_seconds() -> None:
    around = Session(seconds=100.0, cpu_seconds=1.0, cores=8, wall={"update": 30.0})
    plays = Session(seconds=60.0, cpu_seconds=57.0, cores=8, played=summed(PLAYED))
    cost = account_of([around], rollouts=[plays])
    assert cost["wall"]["seconds"] == {"rollout": 60.0, "update": 30.0, "rest": 10.0}
    assert (cost["process"]["wall_seconds"], cost["process"]["busy"]) == (60.0, 0.95)
    assert cost["bottleneck"] == (
        "the process itself is the bottleneck, busy 95% of the time; "
        "60% of the wall time is rollouts, 60% of episode time waits for the policy"
    )


def test_workers_say_what_they_used_through_their_episodes() -> None:
    played = [replace(PLAYED, worker_cpu_seconds=3.0), replace(PLAYED, worker_cpu_seconds=4.0)]
    cost = account(*played, sessions=(Session(seconds=4.0, cpu_seconds=1.0, cores=2, workers=2),))
    assert cost["workers"] == {"processes": 2, "cpu_seconds": 7.0, "busy": 0.875}
    assert cost["bottleneck"] == "the workers are the bottleneck, busy 88% of the time; 60% of episode time waits for the policy"
    assert "; environments 0.50 s of CPU; 2 workers 7.0 s; " in cost_words(cost)
    lost = account(*played, sessions=(Session(seconds=None, cpu_seconds=None, workers=2),))["workers"]
    assert lost == {"processes": 2, "cpu_seconds": 7.0, "busy": None}
    silent = account(PLAYED, sessions=(Session(seconds=4.0, cpu_seconds=1.0, workers=2),))["workers"]
    assert silent == {"processes": 2, "cpu_seconds": None, "busy": None}


WAITING = {"policy": 0.1, "user": 0.8, "environment": 0.1, "rest": 0.0}
USER = "80% of episode time waits for the user simulator"


@pytest.mark.parametrize(
    ("load", "words"),
    [
        (ProcessLoad(), USER),
        (ProcessLoad(busy=0.12, cores=2), f"{USER}, the process was busy 12% of the time"),
        (ProcessLoad(busy=0.2, cores=2, workers_busy=0.5), f"{USER}, the process was busy 20% of the time, its workers 50%"),
        (ProcessLoad(busy=0.9, cores=2), f"the process itself is the bottleneck, busy 90% of the time; {USER}"),
        (ProcessLoad(busy=0.9, cores=2, gpu=True), f"{USER}, the process was busy 90% of the time"),
        (ProcessLoad(busy=1.8, cores=2, gpu=True), f"the CPU cores are the bottleneck, 1.8 of 2 are busy; {USER}"),
        (
            ProcessLoad(busy=0.9, cores=2, environments=0.6),
            f"the process itself is the bottleneck, busy 90% of the time, 60% of it with the CPU time of environments; {USER}",
        ),
        (
            ProcessLoad(busy=0.9, cores=2, workers_busy=0.9, environments=0.6),  # they are in the workers
            f"the process itself is the bottleneck, busy 90% of the time; {USER}",
        ),
        (
            ProcessLoad(busy=0.1, cores=2, workers_busy=0.9, environments=0.6),
            f"the workers are the bottleneck, busy 90% of the time, 60% of it with the CPU time of environments; {USER}",
        ),
    ],
)
def test_who_is_full_is_the_bottleneck(load: ProcessLoad, words: str) -> None:
    assert bottleneck(WAITING, None, load) == words


@pytest.mark.parametrize(
    ("wall", "words"),
    [
        ({"sampling": 0.2, "update": 0.8}, "80% of the wall time is training"),
        ({"sampling": 0.7, "update": 0.3}, "70% of the wall time is sampling"),
        ({"rollout": 0.7, "update": 0.3}, f"70% of the wall time is rollouts, {USER}"),
    ],
)
def test_a_training_is_bound_by_the_largest_part_of_its_wall_time(wall: dict[str, float], words: str) -> None:
    assert bottleneck(WAITING, wall, ProcessLoad()) == words


def test_nothing_known_is_no_sentence() -> None:
    assert bottleneck(None, None, ProcessLoad(busy=0.3)) is None


def test_what_sessions_took_is_kept_in_the_folder(tmp_path: Path) -> None:
    values = {"output": str(tmp_path / "run"), "policy": {"kind": "gold"}, "chat": {"protocol": "transcript"}}
    config = build(EvalConfig, {**values, "rollout": {"workers": 3}})
    path = RunFolder.create(tmp_path / "run", config, resume=False)
    with RunFolder.open(path) as first, pytest.raises(KeyboardInterrupt), timed(first):
        raise KeyboardInterrupt  # it can still say what it took
    with RunFolder.open(path) as killed, timed(killed) as clock:
        clock.played = summed(PLAYED)
        clock.add("update", 2.0)
        clock.add("update", 1.0)
        clock.write()
        during = Session.from_json(json.loads((killed.logs / "timing.json").read_bytes()))
    assert (during.seconds, during.cpu_seconds, during.workers) == (None, None, 3)  # what kill -9 leaves
    assert (during.wall, during.played) == ({"update": 3.0}, summed(PLAYED))
    with RunFolder.open(path) as last:  # finds nothing to play
        assert [session.seconds is not None for session in sessions(last.path)] == [True, True]
