"""What the rollout process says of itself; pinned here:

- episodes of rounds and of looks are counted, those that FAILED too;
- only rounds add to its wall time, and it is written beside the log of the start that is going on;
- a folder without a start, or a full disk, ends no rollout.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from tau2rl.report.cost import Session
from tau2rl.slime.metadata import Marks
from tau2rl.slime.rollout_log import FILE, Journal, Spending
from tau2rl.types import Attempt, EnvTime, Episode, EpisodeRecord, Failure, Fault, Status
from tests.contract.slime_world import settings
from tests.play import CREATE

PLAYED = Episode(
    task=CREATE, seed=0, status=Status.COMPLETED, termination="user_stop", token_ids=(), turns=(), messages=(), grade=None,
    seconds=4.0, env_time=EnvTime(seconds=1.0, user_seconds=0.5, cpu_seconds=0.25),
)  # fmt: skip
FAILED = replace(PLAYED, status=Status.FAILED, failure=Failure(fault=Fault.USER, kind="UserSimulatorFailure", message="gone"))
MARKS = Marks(task=CREATE.key, domain="mock", split="base", status="completed")


def record(episode: Episode) -> EpisodeRecord:
    attempt = Attempt(task=CREATE, index=0, seed=0)
    return EpisodeRecord(schema=1, run="r", attempt=attempt, tries=1, episode=episode, score=None)


def written(run: Path, number: int) -> Session:
    return Session.from_json(json.loads((run / "logs" / f"session_{number}" / FILE).read_text()))


def test_the_journal_counts_what_was_played_and_looked_at(tmp_path: Path) -> None:
    for number in (1, 9, 10):
        (tmp_path / "logs" / f"session_{number}").mkdir(parents=True)
    journal = Journal(tmp_path, settings(rollout={"workers": 2}))
    journal.keep(record(PLAYED), MARKS, look=True)
    journal.look(0, [])
    looked = written(tmp_path, 10)
    assert (looked.seconds, looked.played and looked.played.episodes) == (0.0, 1)
    journal.keep(record(PLAYED), MARKS, look=False)
    journal.keep(record(FAILED), MARKS, look=False)
    journal.round(0, [], 12.5)
    journal.round(1, [], 7.5)
    start = written(tmp_path, 10)
    assert (start.seconds, start.workers) == (20.0, 2)
    assert start.played is not None
    assert (start.played.episodes, start.played.seconds, start.played.env_cpu_seconds) == (3, 12.0, 0.75)
    assert not list((tmp_path / "logs").glob(f"session_[19]/{FILE}"))


def test_what_cannot_be_written_ends_no_rollout(tmp_path: Path) -> None:
    spending = Spending(tmp_path, settings())
    spending.round(1.0)  # there is no start here
    (tmp_path / "logs" / "session_1" / FILE).mkdir(parents=True)  # nothing can be moved to its place
    spending.round(1.0)
    assert (tmp_path / "logs" / "session_1" / FILE).is_dir()
