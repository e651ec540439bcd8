"""What the rollout filter keeps and why it drops the rest, pinned here:

- an episode that FAILED is never kept; of several records of an attempt the same one counts as in the report;
- what tau2 did not grade 1 goes, unless everything is asked for; a success that changed nothing goes if asked;
- of attempts with the same actions one stays;
- the back-off takes the best failure of a task without a success, at or above its bound, and of no other task;
- limits by task, kind and domain hold together, and second attempts of a task go before first ones of another;
- the order in which attempts were added changes nothing;
- counts, coverage and entropy are those of what stays.
"""

from __future__ import annotations

import random
from itertools import count
from typing import Any

import pytest

from tau2rl.config import KeepConfig
from tau2rl.data.rollout_filter import Entry, RolloutFilter

ALL = KeepConfig(dedupe=False, per_task=None)
numbers = count()


def entry(task: str, index: int, reward: float = 1.0, **more: Any) -> Entry:
    """An attempt of its own actions; the lower the index the earlier its pick."""
    values: dict[str, Any] = {
        "source": 0, "position": next(numbers), "domain": "mock", "kind": "k", "partial": 0.0, "no_op": False, "fault": "",
        "excluded": "",
        "signature": f"{task}#{index}", "pick": index, **more,
    }  # fmt: skip
    return Entry(task=task, key=f"{task}#{index}", index=index, reward=reward, **values)


def outcome(entries: list[Entry], keep: KeepConfig = ALL) -> tuple[list[str], dict[str, str]]:
    """Keys that stay, and key -> reason of the others."""
    with RolloutFilter() as rollouts:
        for one in entries:
            rollouts.add(one)
        rollouts.apply(keep)
        at = {(e.source, e.position): e.key for e in entries}
        return [at[place] for place in rollouts.kept()], {d.key: d.reason for d in rollouts.dropped()}


def test_what_was_not_solved_goes_with_its_reason() -> None:
    kept, dropped = outcome([entry("a", 0), entry("a", 1, 0.0), entry("b", 0, 1 - 1e-9)])
    assert kept == ["a#0", "b#0"]
    assert dropped == {"a#1": "not solved"}


@pytest.mark.parametrize("fault", ["user", "task", "infra"])
def test_what_failed_is_never_kept(fault: str) -> None:
    entries = [entry("a", 0, 0.0, fault=fault), entry("b", 0, 0.0)]
    assert outcome(entries)[1] == {"a#0": f"fault: {fault}", "b#0": "not solved"}
    assert outcome(entries, ALL.model_copy(update={"attempts": "all"})) == (["b#0"], {"a#0": f"fault: {fault}"})
    assert outcome(entries, KeepConfig(partial_backoff=0.1))[0] == []


def test_what_the_settings_leave_out_is_never_kept_and_still_counts_as_graded() -> None:
    spoiled = "user: role_flip"
    entries = [
        entry("a", 0, excluded=spoiled),
        entry("a", 1, 0.0, partial=0.7),
        entry("b", 0, 0.0, partial=0.9, excluded=spoiled),
    ]
    kept, dropped = outcome(entries, ALL.model_copy(update={"partial_backoff": 0.5}))
    assert (kept, dropped) == (["a#1"], {"a#0": "left out, user: role_flip", "b#0": "left out, user: role_flip"})
    for attempts in ("all", "subset"):
        assert outcome(entries, ALL.model_copy(update={"attempts": attempts}))[0] == (["a#1"] if attempts == "all" else [])
    with RolloutFilter() as rollouts:
        for one in entries:
            rollouts.add(one)
        rollouts.apply(ALL)
        assert (rollouts.counts()["all"]["graded"], rollouts.counts()["all"]["solved"]) == (3, 1)


def test_a_subset_is_as_many_as_were_solved_whatever_came_of_them() -> None:
    entries = [entry("a", 0, 0.0), entry("a", 1), entry("b", 0), entry("b", 1, 0.0), entry("c", 0, 0.0, fault="user")]
    kept, dropped = outcome(entries, ALL.model_copy(update={"attempts": "subset"}))
    assert kept == ["a#0", "b#0"]  # two were solved; the lowest picks stay, one of them a failure
    assert dropped == {"c#0": "fault: user", "a#1": "not drawn", "b#1": "not drawn"}


def test_the_size_of_a_subset_follows_the_other_rules() -> None:
    entries = [entry("a", index) for index in range(3)] + [entry("b", index, 0.0) for index in range(3)]
    kept, _ = outcome(entries, KeepConfig(attempts="subset", dedupe=False, per_task=1))
    assert len(kept) == 1  # `solved` would have kept one of `a`


def test_failures_stay_when_all_is_kept_though_they_changed_nothing() -> None:
    entries = [entry("a", 0, no_op=True), entry("b", 0, 0.0, no_op=True)]
    assert outcome(entries, KeepConfig(attempts="all", exclude_no_op=True))[0] == ["b#0"]


def test_of_a_repeated_attempt_only_the_evidence_counts() -> None:
    entries = [
        entry("a", 0),
        entry("a", 0, 0.0, fault="infra"),
        entry("b", 0, 0.0, fault="user"),
        entry("b", 0, 0.0, fault="infra"),
    ]
    kept, dropped = outcome(entries)
    assert kept == ["a#0"]
    assert dropped == {"b#0": "fault: infra"}  # the last word


def test_a_success_that_changed_nothing_goes_if_asked() -> None:
    entries = [entry("a", 0, no_op=True), entry("a", 1)]
    assert outcome(entries)[0] == ["a#0", "a#1"]
    assert outcome(entries, KeepConfig(exclude_no_op=True)) == (["a#1"], {"a#0": "solved without changing anything"})


def test_of_the_same_actions_one_stays() -> None:
    entries = [entry("a", 0, signature="x"), entry("a", 1, signature="x"), entry("a", 2), entry("b", 0, signature="x")]
    kept, dropped = outcome(entries, KeepConfig(per_task=None))
    assert kept == ["a#0", "b#0", "a#2"]
    assert dropped == {"a#1": "same actions as another"}


def test_the_back_off_takes_the_best_failure_of_a_task_without_success() -> None:
    entries = [
        entry("a", 0, 0.0, partial=0.6),
        entry("a", 1, 0.0, partial=0.8),
        entry("b", 0, 0.0, partial=0.59),
        entry("c", 0, 1.0),
        entry("c", 1, 0.0, partial=0.9),
        entry("d", 0, 1.0, no_op=True),
        entry("d", 1, 0.0, partial=0.9),
    ]
    assert outcome(entries, KeepConfig(partial_backoff=0.6, exclude_no_op=True))[0] == ["c#0", "a#1"]
    assert outcome(entries, KeepConfig())[0] == ["c#0", "d#0"]


def test_limits_hold_together_and_spare_other_tasks() -> None:
    entries = [entry(task, index, kind="k" if task in "ab" else "m") for task in "abc" for index in range(3)]
    kept, dropped = outcome(entries, KeepConfig(per_task=2, per_kind=3))
    assert kept == ["a#0", "b#0", "c#0", "a#1", "c#1"]
    assert dropped["a#2"] == dropped["b#2"] == dropped["c#2"] == "over the limit of its task"
    assert dropped["b#1"] == "over the limit of its kind"
    assert outcome(entries, KeepConfig(per_task=None, per_domain=3))[0] == ["a#0", "b#0", "c#0"]


def test_the_order_of_adding_changes_nothing() -> None:
    rng = random.Random(3)
    entries = [
        entry(
            task, index, float(rng.random() < 0.5), partial=rng.random(), signature=str(rng.randrange(3)), pick=rng.randrange(9)
        )
        for task in "abcdefgh"
        for index in range(6)
    ]
    keep = KeepConfig(per_task=2, per_kind=7, partial_backoff=0.5)
    first = outcome(entries, keep)
    assert 0 < len(first[0]) <= 7
    for _ in range(3):
        rng.shuffle(entries)
        assert outcome(entries, keep) == first


def test_counts_and_diversity_are_of_what_stays() -> None:
    entries = [
        entry("mock/a", 0, kind="x"),
        entry("mock/a", 1, kind="x"),
        entry("mock/b", 0, kind="y"),
        entry("mock/b", 1, kind="y"),
        entry("mock/c", 0, 0.0, kind="z"),
        entry("air/d", 0, 0.0, domain="air", fault="infra"),
    ]
    with RolloutFilter() as rollouts:
        for one in entries:
            rollouts.add(one)
        rollouts.apply(ALL)
        assert rollouts.counts("domain") == {
            "air": {"tried": 1, "graded": 0, "solved": 0, "kept": 0, "tasks": 1, "covered": 0},
            "mock": {"tried": 5, "graded": 5, "solved": 4, "kept": 4, "tasks": 3, "covered": 2},
        }
        assert rollouts.diversity("kind") == {"bits": 1.0, "effective": 2.0, "distinct": 2}  # two of two kinds: one bit
        assert rollouts.reasons() == {"fault: infra": 1, "not solved": 1}


def test_nothing_added_is_nothing_kept() -> None:
    with RolloutFilter() as rollouts:
        rollouts.apply(KeepConfig())
        assert list(rollouts.kept()) == [] and rollouts.counts() == {}
        assert rollouts.diversity("kind") == {"bits": 0.0, "effective": 0.0, "distinct": 0}


def test_form_users_and_cells_are_limited_and_the_total_is_even() -> None:
    made = [("a", "u1", ""), ("a", "u1", ""), ("a", "u2", ""), ("a", "u3", ""), ("b", "u4", ""), ("b", "u5", "failed_write")]
    with RolloutFilter() as rollouts:
        for number, (cell, user, form) in enumerate(made):
            rollouts.add(
                Entry(
                    source=0,
                    position=number,
                    domain="mock",
                    task=f"mock/{number}",
                    kind="k",
                    key=f"mock/{number}#0",
                    index=0,
                    reward=1.0,
                    partial=1.0,
                    no_op=False,
                    fault="",
                    excluded="",
                    signature=str(number),
                    user=user,
                    cell=cell,
                    form=form,
                    pick=number,
                )
            )
        rollouts.apply(KeepConfig(attempts="solved+form", per_user=1, total=2))
        assert [position for _, position in rollouts.kept()] == [0, 4]  # one of each cell
        assert rollouts.reasons() == {"over the total": 2, "form: failed_write": 1, "over the limit of its user": 1}
