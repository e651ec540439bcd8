"""Our environment against the untouched package, action for action.

- the same messages of both sides, the same database hashes, the same reward information, for gold, perturbed and cut-off play
- the same for seeded random conversations: calls of both sides, right and wrong, with arguments from the databases
- gold scores 1.0 on the graded tasks through the real grader
- environments made from a snapshot are equal to those that tau2 loads from its files
- the telecom user's VPN does not leak from one episode into the next, as it does in the untouched package: there a user who
  connects it out of turn ends with another hash of the user database, behind any task with a broken VPN, and the same reward

The whole test split runs with `-m slow`.
"""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from tau2rl.config import TasksConfig
from tau2rl.env.domain import domain
from tau2rl.env.tasks import gold_script, select
from tau2rl.types import Say, TaskRef
from tests.oracle.official import outcome, perturbed, play_official, play_ours
from tests.oracle.random_play import RandomUser, random_script

from tau2.data_model.message import ToolCall, UserMessage  # isort: skip
from tau2.registry import registry
from tau2.user.user_simulator import DummyUser

TALK = (Say(text="Please do."),)

PINNED = {
    "airline": ("124e39a664b56402", None),
    "retail": ("b25c9cb211f5efca", None),
    "telecom": ("304cf5ef059852e1", "e1f3a86373888082"),
}
SAMPLE = [
    TaskRef(domain=name, task_id=list(domain(name).tasks(split))[i], split=split)
    for name, split, places in (
        ("mock", "base", (0, 3, 6)),
        ("airline", "test", (4,)),
        ("retail", "test", (1,)),
        ("telecom", "test", (0, 7, 21)),
    )
    for i in places
]


def check(ref: TaskRef, *, only: tuple[str, ...] = ()) -> None:
    script = gold_script(ref)
    scripts = {"gold": script, **{name: turns for name, turns in perturbed(script, ref).items() if not only or name in only}}
    for name, actions in scripts.items():
        official = play_official(ref, actions)
        ours = asyncio.run(play_ours(ref, actions))
        assert ours.messages == official.messages, (ref.key, name)
        assert ours.hashes == official.hashes, (ref.key, name)
        assert ours.reward_info == official.reward_info, (ref.key, name)
        # The gym pays a conversation that `done` cut off; ours counts it as 0 and keeps its checks.
        assert ours.grade.reward == (official.reward_info["reward"] if ours.done else 0.0), (ref.key, name)
        if name == "gold":
            assert ours.reward_info["reward"] == 1.0, ref.key


@pytest.mark.oracle
@pytest.mark.parametrize("ref", SAMPLE, ids=lambda r: r.key)
def test_a_task_plays_and_scores_as_in_the_untouched_package(ref: TaskRef) -> None:
    # The untouched package takes seconds for each conversation of the large domains.
    check(ref, only=("one argument changed",) if ref.domain in ("airline", "retail") else ())


@pytest.mark.slow
@pytest.mark.parametrize("ref", select(TasksConfig(split="test")), ids=lambda r: r.key)
def test_every_test_task_plays_and_scores_as_in_the_untouched_package(ref: TaskRef) -> None:
    check(ref)


def random_tasks(seeds: range) -> list[tuple[TaskRef, int]]:
    """One task of each domain a seed, from all over its tasks."""
    listed = {name: list(domain(name).tasks("base")) for name in ("mock", "airline", "retail", "telecom")}
    return [
        (TaskRef(domain=name, task_id=ids[(37 * seed + 5) % len(ids)], split="base"), seed)
        for seed in seeds
        for name, ids in listed.items()
    ]


def check_random(ref: TaskRef, seed: int) -> None:
    script = random_script(ref, seed)
    official = outcome(lambda: play_official(ref, script, lambda _: RandomUser(ref, seed)))
    ours = outcome(lambda: asyncio.run(play_ours(ref, script, lambda _: RandomUser(ref, seed))))
    assert len(ours) == len(official), (ref.key, seed, ours[0], official[0])
    for mine, theirs in zip(ours, official, strict=True):
        assert mine == theirs, (ref.key, seed)


@pytest.mark.oracle
@pytest.mark.parametrize(("ref", "seed"), random_tasks(range(1)), ids=str)
def test_random_actions_end_as_in_the_untouched_package(ref: TaskRef, seed: int) -> None:
    check_random(ref, seed)


@pytest.mark.slow
@pytest.mark.parametrize(("ref", "seed"), random_tasks(range(1, 16)), ids=str)
def test_many_random_actions_end_as_in_the_untouched_package(ref: TaskRef, seed: int) -> None:
    check_random(ref, seed)


@pytest.mark.oracle
@pytest.mark.parametrize("name", PINNED)
def test_a_snapshot_is_the_database_that_tau2_loads(name: str) -> None:
    ours, official = domain(name).environment(), registry.get_env_constructor(name)()
    hashes = (ours.get_db_hash(), ours.get_user_db_hash())
    assert hashes == (official.get_db_hash(), official.get_user_db_hash())
    assert tuple(h[:16] if h else None for h in hashes) == PINNED[name]


@pytest.mark.oracle
def test_an_environment_does_not_see_what_another_one_wrote() -> None:
    first, second = domain("mock").environment(), domain("mock").environment()
    before = second.get_db_hash()
    first.use_tool("create_task", user_id="user_1", title="mine")
    assert first.get_db_hash() != before == second.get_db_hash() == domain("mock").environment().get_db_hash()


@pytest.mark.oracle
def test_a_broken_vpn_stays_in_its_own_episode() -> None:
    first = domain("telecom").environment()
    first.user_tools.connect_vpn()
    first.user_tools.break_vpn()
    second = domain("telecom").environment()
    second.user_tools.connect_vpn()
    assert "excellent" in str(second.user_tools.db.device.vpn_details.server_performance.value).lower()


class Connects(DummyUser):
    """A user who connects the VPN, for which no task asks, and leaves."""

    def __init__(self) -> None:
        super().__init__()
        call = ToolCall(id="user_1", name="connect_vpn", arguments={}, requestor="user")
        self._says = iter(({"content": "Hello."}, {"content": None, "tool_calls": [call]}, {"content": "Bye. ###STOP###"}))

    def generate_next_message(self, message: Any, state: Any) -> tuple[UserMessage, Any]:
        return UserMessage(role="user", cost=0.0, **next(self._says)), state


@pytest.mark.oracle
def test_the_untouched_package_remembers_a_vpn_that_broke_in_an_earlier_episode() -> None:
    tasks = domain("telecom").tasks("test")
    ref = TaskRef(domain="telecom", task_id=next(name for name in tasks if "vpn" not in name), split="test")

    def play(*, broken_before: bool) -> SimpleNamespace:
        return play_official(ref, (TALK,), lambda _: Connects(), broken_before=broken_before)

    ours = asyncio.run(play_ours(ref, (TALK,), lambda _: Connects()))
    fresh, later = play(broken_before=False), play(broken_before=True)
    assert ours.hashes == fresh.hashes != later.hashes
    assert ours.hashes[0] == later.hashes[0]
    assert ours.messages == fresh.messages == later.messages
    assert ours.reward_info == fresh.reward_info == later.reward_info
