"""A domain that somebody else registered with tau2's registry, pinned here on `tests/library_domain.py`:

- its gold path is played and graded by tau2, and so is a policy that does something else; episodes share nothing
- its splits are its own, `base` (all tasks) and the halves of `train`; kinds, floors, validation and audit know it
- a name that nobody registered is refused with those that are
- its hashes move with its data and its tasks
"""

from __future__ import annotations

import pytest

from tau2rl.chat.transcript import TranscriptCodec
from tau2rl.config import TasksConfig
from tau2rl.env import audit
from tau2rl.env.domain import domain, known_domains
from tau2rl.env.tasks import changed_something, describe, gold_script, held_out, is_test, kind_of, select
from tau2rl.env.turn_rewards import episode_turn_rewards
from tau2rl.errors import UserError
from tau2rl.reward.tiers import DENSE
from tau2rl.types import Actions, CallTool, Episode, Say, Status, TaskRef
from tests import library_domain
from tests.play import mock_env, play

LEND, ASK = (TaskRef(domain="library", task_id=id, split="base") for id in ("lend", "ask"))


def played(ref: TaskRef, script: tuple[Actions, ...]) -> Episode:
    return play(script, ref=ref, env=mock_env(ref), codec=TranscriptCodec())


@pytest.mark.parametrize("ref", [LEND, ASK], ids=lambda ref: ref.task_id)
def test_its_gold_path_is_graded_one_every_time(ref: TaskRef) -> None:
    for _ in range(2):  # what the first one lent is back
        episode = played(ref, gold_script(ref))
        assert episode.grade is not None and episode.grade.reward == 1.0 and episode.grade.checks is not None
        assert episode.status is Status.COMPLETED


def test_what_somebody_else_does_is_graded_by_tau2() -> None:
    wrong = CallTool(name="lend_book", arguments={"title": "Dune", "reader": "Eve"})
    out = CallTool(name="lend_book", arguments={"title": "Emma", "reader": "Ben"})
    episode = played(LEND, ((out,), (wrong,), *[(Say(text="Here you are."),)] * 4))
    assert episode.messages[3].content == "Error: Emma is out" and episode.messages[3].error
    assert episode.status is Status.COMPLETED and episode.grade is not None and episode.grade.reward == 0.0
    assert episode.grade.checks is not None and episode.grade.checks.db == (False,)
    assert changed_something(episode)
    assert len(episode_turn_rewards(episode, DENSE)) == len(episode.turns)


def test_its_splits_are_its_own() -> None:
    loaded = domain("library")
    assert loaded.splits() == ["train", "test", "base", "train-learn", "train-select"]
    assert {split: list(loaded.tasks(split)) for split in loaded.splits()} == {
        "train": ["lend"],
        "test": ["ask"],
        "base": ["lend", "ask"],
        "train-learn": [],
        "train-select": ["lend"],
    }
    assert [is_test(ref) for ref in (LEND, ASK)] == [False, True]
    assert held_out(ASK)
    with pytest.raises(UserError, match="no such split `dev` in `library`"):
        loaded.tasks("dev")


def tasks_config(split: str = "base") -> TasksConfig:
    return TasksConfig().model_copy(update={"domains": ("library",), "split": split})


def test_its_tasks_are_described_and_audited() -> None:
    assert select(tasks_config()) == [LEND, ASK]
    assert [(row.reads, row.writes, row.basis) for row in map(describe, (LEND, ASK))] == [
        (0, 1, ("DB", "COMMUNICATE")),
        (1, 0, ("DB", "COMMUNICATE")),
    ]
    assert [kind_of(ref) for ref in (LEND, ASK)] == ["lend_book", "read only"]
    assert [validation.reward for validation in audit.validate_tasks(tasks_config())] == [1.0, 1.0]
    # No floors are shipped: they are found by replay.
    assert {policy: audit.solved_by(policy, [LEND, ASK]) for policy in audit.POLICIES} == {
        "do_nothing": set(),
        "always_transfer": set(),
    }
    report = audit.audit_tasks(tasks_config())["domains"]["library"]
    assert report["tasks"] == 2 and report["quarantined"] == {} and report["floor"]["do_nothing"]["solved"] == 0


def test_its_hashes_are_of_its_data(monkeypatch: pytest.MonkeyPatch) -> None:
    from tau2rl.env.domain import Domain

    before = domain("library").hashes()
    assert Domain("library").hashes() == before
    other = library_domain.TASKS["ask"].model_copy(update={"id": "another"})
    monkeypatch.setitem(library_domain.TASKS, "ask", other)
    after = Domain("library").hashes()
    assert after["tasks"] != before["tasks"]
    assert {**after, "tasks": ""} == {**before, "tasks": ""}


def test_a_name_that_nobody_registered_is_refused_with_those_that_are() -> None:
    assert {"airline", "retail", "telecom", "mock", "library"} <= set(known_domains())
    with pytest.raises(UserError, match="no such domain `libary`") as refused:
        domain("libary")
    assert "library" in refused.value.hint and "tau2rl:" not in refused.value.hint
