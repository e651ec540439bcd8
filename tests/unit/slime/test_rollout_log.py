"""What the rollout process says of itself; pinned here:

- episodes of rollouts and of validation are counted, those that FAILED too;
- only rollouts add to its wall time, and it is written beside the log of the session that is going on;
- a folder without a session, or a full disk, ends no rollout;
- curves leave out what FAILED and count it; times are means;
- a sink is told, by this process, what was played and validated;
- monitors compare with the first rollouts of the run, of earlier sessions too; an alarm marks the curve and is said once.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tau2rl.report.cost import Session
from tau2rl.slime.advantages import Member
from tau2rl.slime.rollout_log import FILE, CostTracker, RolloutLog, rollout_numbers, validation_numbers
from tau2rl.slime.samples import SampleMetadata
from tau2rl.types import Attempt, EnvTime, Episode, EpisodeRecord, Failure, Fault, Status, StopReason
from tests.contract.slime_episodes import settings
from tests.play import CREATE

PLAYED = Episode(
    task=CREATE, seed=0, status=Status.COMPLETED, stop_reason=StopReason.USER_STOP,
    token_ids=(), turns=(), messages=(), grade=None,
    seconds=4.0, env_time=EnvTime(seconds=1.0, user_seconds=0.5, cpu_seconds=0.25),
)  # fmt: skip
FAILED = replace(PLAYED, status=Status.FAILED, failure=Failure(fault=Fault.USER, kind="UserSimulatorFailure", message="gone"))
MARKS = SampleMetadata(task=CREATE.key, domain="mock", split="base", status="completed")


def record(episode: Episode) -> EpisodeRecord:
    attempt = Attempt(task=CREATE, index=0, seed=0)
    return EpisodeRecord(schema=1, run="r", attempt=attempt, tries=1, episode=episode, score=None)


def test_a_sink_gets_a_rollouts_conversations_and_those_of_a_validation(tmp_path: Path) -> None:
    rollout_log = RolloutLog(tmp_path, settings(tracking={"sinks": ["tests.stubs.sink:Told"], "conversations": 2}))
    for number in range(3):
        one = replace(record(PLAYED), attempt=Attempt(task=CREATE, index=number, seed=0))
        rollout_log.add(one, MARKS, validation=False)
    rollout_log.add(record(FAILED), MARKS, validation=False)
    rollout_log.end_rollout(0, [], 1.0)
    rollout_log.add(record(PLAYED), MARKS, validation=True)
    rollout_log.end_validation(0)
    told = [json.loads(line) for line in (tmp_path / "told.jsonl").read_text("utf-8").splitlines()]
    shown = [(each[1], [row["attempt"] for row in each[2]]) for each in told if each[0] == "show"]
    assert shown[0][0] == 1 and len(shown[0][1]) == 2
    assert shown[1] == (1, [f"{CREATE.key}#0"])


def written(run: Path, number: int) -> Session:
    return Session.from_json(json.loads((run / "logs" / f"session_{number}" / FILE).read_text()))


def test_what_was_played_and_validated_is_counted(tmp_path: Path) -> None:
    for number in (1, 9, 10):
        (tmp_path / "logs" / f"session_{number}").mkdir(parents=True)
    rollout_log = RolloutLog(tmp_path, settings(rollout={"workers": 2}))
    rollout_log.add(record(PLAYED), MARKS, validation=True)
    rollout_log.end_validation(0)
    validated = written(tmp_path, 10)
    assert (validated.seconds, validated.played and validated.played.episodes) == (0.0, 1)
    rollout_log.add(record(PLAYED), MARKS, validation=False)
    rollout_log.add(record(FAILED), MARKS, validation=False)
    rollout_log.end_rollout(0, [], 12.5)
    rollout_log.end_rollout(1, [], 7.5)
    start = written(tmp_path, 10)
    assert (start.seconds, start.workers) == (20.0, 2)
    assert start.played is not None
    assert (start.played.episodes, start.played.seconds, start.played.env_cpu_seconds) == (3, 12.0, 0.75)
    assert not list((tmp_path / "logs").glob(f"session_[19]/{FILE}"))


def test_what_cannot_be_written_ends_no_rollout(tmp_path: Path) -> None:
    costs = CostTracker(tmp_path, settings())
    costs.end_rollout(1.0)  # there is no session here
    (tmp_path / "logs" / "session_1" / FILE).mkdir(parents=True)  # nothing can be moved to its place
    costs.end_rollout(1.0)
    assert (tmp_path / "logs" / "session_1" / FILE).is_dir()


def member(group: int, number: int, score: float | None, *, length: int = 4, **more: Any) -> Member:
    status = "failed" if score is None else "completed"
    given = {"task": "mock/a", "domain": "mock", "split": "base", "status": status, "evidence": score is not None, "score": score}
    return Member(metadata=SampleMetadata(**{**given, "reward": score, **more}), group=group, attempt=number, length=length)


def test_curves_leave_out_what_failed_and_count_it() -> None:
    batch = [
        member(0, 0, 1.0, solved=True, turns=2, user_seconds=3.0, user_messages=2, domain="retail", policy_seconds=4.0),
        member(0, 1, 0.0, solved=False, turns=4, user_seconds=1.0, user_messages=2, domain="telecom", fault="agent", tries=2),
        member(0, 2, None, fault="user"),
    ]
    played = [*(m.metadata for m in batch), SampleMetadata(task="mock/a", domain="mock", split="base", status="aborted")]
    numbers = rollout_numbers(played, batch, settings())
    assert (numbers["success"], numbers["score/mean"], numbers["turns/mean"]) == (0.5, 0.5, 3.0)
    assert (numbers["domain/retail/success"], numbers["domain/telecom/success"]) == (1.0, 0.0)
    counts = ("episodes/played", "episodes/failed", "episodes/aborted", "episodes/tried_again", "fault/user", "fault/agent")
    assert [numbers[name] for name in counts] == [3, 1, 1, 1, 1, 1]
    assert (numbers["seconds/user_message"], numbers["seconds/policy_turn"]) == (1.0, 4.0 / 6)
    assert (numbers["groups/trained"], numbers["groups/useful"]) == (1, 1)


def test_a_rollout_without_evidence_has_no_means() -> None:
    numbers = rollout_numbers([member(0, 0, None).metadata], [member(0, 0, None)], settings())
    assert numbers["success"] is None and numbers["seconds/user_message"] is None and numbers["episodes/failed"] == 1


def test_a_validation_counts_successes_of_what_could_be_graded() -> None:
    played = [
        member(0, i, score, solved=None if score is None else score == 1.0).metadata for i, score in enumerate([1.0, 0.0, None])
    ]
    assert validation_numbers(played) == {"val/pass@1": 0.5, "val/episodes": 2, "val/failed": 1, "val/mock/pass@1": 0.5}


def test_an_alarm_marks_the_curve_and_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    asked = settings(monitors={"window": 1})
    hacked = [member(0, i, 0.0, solved=False, habits=("transfers",)) for i in range(4)]

    def play(run: RolloutLog, rollout: int, batch: list[Member]) -> list[str]:
        for one in batch:
            run.add(record(PLAYED), one.metadata, validation=False)
        caplog.clear()
        run.end_rollout(rollout, batch, 1.0)
        return [record.getMessage() for record in caplog.records]

    first = RolloutLog(tmp_path, asked)
    assert play(first, 0, [member(0, i, 0.0, solved=False) for i in range(4)]) == []
    first.add(record(PLAYED), hacked[0].metadata, validation=True)
    first.end_validation(0)  # a line of its own, which is no rollout
    resumed = RolloutLog(tmp_path, asked)
    assert play(resumed, 1, hacked) == [
        "step 2, alarm `transfers`: 100% of the episodes hand the user over to a human, 0% did at the beginning"
    ]
    assert play(resumed, 2, hacked) == []
    assert play(RolloutLog(tmp_path, asked), 3, hacked) == []  # said by an earlier session
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text("utf-8").splitlines()]
    played = [line for line in lines if "success" in line]
    assert [line.get("alarm/transfers") for line in played] == [None, 1.0, 1.0, 1.0]
    assert [line["habit/transfers"] for line in played] == [0.0, 1.0, 1.0, 1.0]
    quiet = RolloutLog(tmp_path / "quiet", settings(monitors={"action": "off"}))
    assert not any(name.startswith("alarm/") for name in quiet.end_rollout(0, hacked, 1.0))
